"""The explorer with the real weights, one for all of its tests."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="package")
def app(serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running explorer."""
    with serve(tmp_path_factory.mktemp("explorer"), "app") as address:
        yield address
