"""The apps as their users meet them: the real command, a port of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@contextmanager
def serving(folder: Path, *arguments: object) -> Iterator[str]:
    """The address of an app that `gramscope` serves, its log in the folder; that must stay free of tracebacks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / "log.txt"
    threads = {"OMP_NUM_THREADS": str(os.cpu_count() or 1)}  # as for its users, whatever the tests have themselves
    own = threads | {
        "GRADIO_TEMP_DIR": str(folder / "uploads"),
        "HF_HOME": str(folder / "hub"),
        "HF_HUB_OFFLINE": "1",
    }
    with log.open("w") as file:
        server = subprocess.Popen(
            [sys.executable, "-m", "apps.cli", *map(str, arguments), "--port", str(port), "--no-open"],
            cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=os.environ | own,
        )  # fmt: skip
    address = f"http://127.0.0.1:{port}/"
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                urllib.request.urlopen(address, timeout=5).close()
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.3)
        yield address
    finally:
        server.send_signal(signal.SIGINT)  # in our group: what ends the tests from outside ends it too
        try:
            server.wait(15)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
    assert "Traceback" not in log.read_text(), log.read_text()


@pytest.fixture(scope="session")
def serve() -> Callable[..., AbstractContextManager[str]]:
    """`with serve(folder, "app", ...) as address`: see `serving`."""
    return serving
