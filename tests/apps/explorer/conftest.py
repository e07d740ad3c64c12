"""The explorer as its users meet it: the real command, the real weights, a port of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="package")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running explorer; its log must stay free of tracebacks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("explorer") / "log.txt"
    threads = {"OMP_NUM_THREADS": str(os.cpu_count() or 1)}  # as for its users, whatever the tests have themselves
    own = threads | {
        "GRADIO_TEMP_DIR": str(log.parent / "uploads"),
        "HF_HOME": str(log.parent / "hub"),
        "HF_HUB_OFFLINE": "1",
    }
    with log.open("w") as file:
        server = subprocess.Popen(
            [sys.executable, "-m", "apps.cli", "app", "--port", str(port), "--no-open"],
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
