"""What the tests may find on a machine: a browser, and the larger data beside the project.

Where one is missing the tests that need it are skipped and say why; with CI=true that is a failure, so that
nothing goes unchecked unnoticed.
"""

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

# The golden files were made with AVX2 kernels, and with those our models agree to the last bit. AVX-512 sums in another
# order: one value of vit_7b_like then differs by 1.4e-5, where the file itself is 1.2e-5 from the float64 result.
os.environ.setdefault("ATEN_CPU_CAPABILITY", "avx2")
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # servers and browsers share the cores: waiting must not spin
if "PYTEST_XDIST_WORKER" in os.environ:  # two files at a time: threads of one would only displace those of the other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")  # .ci/run looks for the same
BROWSER_ARGUMENTS = [
    "--no-sandbox",  # a browser of root, as in containers, does not start otherwise
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.hookimpl(tryfirst=True)  # before -m "not long" takes the long ones out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Folders and files with the most long tests come first, so that two workers end at about the same time.

    Folders stay whole: what is set up for one of them ends before the next. A file goes to one worker, the tests of an
    app all to the same: they share its server.
    """
    files = Counter(item.path for item in items if item.get_closest_marker("long"))
    folders: Counter[Path] = Counter()
    for path, count in files.items():
        folders[path.parent] += count
    items.sort(key=lambda item: (-folders[item.path.parent], item.path.parent, -files[item.path]))
    for item in items:
        served = item.path.parent.parent == ROOT / "tests" / "apps"
        item.add_marker(pytest.mark.xdist_group(str(item.path.parent if served else item.path)))


def missing(what: str) -> NoReturn:
    """Skips the test; on CI, where everything must be there, fails it."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what}; with CI=true that is a failure")
    pytest.skip(what)


@pytest.fixture(scope="session")
def browser_path() -> str:
    """A system Chromium: none is ever downloaded."""
    if found := next(filter(None, map(shutil.which, BROWSERS)), None):
        return found
    missing(f"no browser: none of {', '.join(BROWSERS)} is installed")


# Not for the session: playwright keeps an event loop running, which the tests of other modules must not meet.
@pytest.fixture(scope="module")
def browser(browser_path: str) -> Iterator:
    """A headless Chromium of playwright; open pages in it with `browser.new_page()`."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=BROWSER_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The golden files, weights and photographs beside the project; a clone alone does not have them."""
    folder = ROOT.parent / "shared"
    if folder.is_dir():
        return folder
    missing("the folder shared is not beside the project")
