"""Several processes that meet over gloo, as torchrun would start them, without its own start-up time."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RunProcesses = Callable[..., list[str]]


@pytest.fixture
def run_processes() -> RunProcesses:
    """`run_processes(script, size, *arguments)`: what each process printed. One that fails fails the test.

    Starting costs seconds, whatever the size: check much in one go.
    """
    return _run


def _run(script: str | Path, size: int, *arguments: str | Path, timeout: float = 240.0) -> list[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), *map(str, arguments)],
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        _wait(processes, timeout)
    finally:
        for process in processes:
            process.kill()
        outputs = [process.communicate() for process in processes]
    codes = [process.returncode for process in processes]
    if any(codes):
        text = "\n".join(f"--- process {rank}\n{error[-4000:]}" for rank, (_, error) in enumerate(outputs))
        pytest.fail(f"{script} {arguments}: processes ended with {codes} (-9: stopped here)\n{text}", pytrace=False)
    return [printed for printed, _ in outputs]


def _wait(processes: list[subprocess.Popen[str]], timeout: float) -> None:
    """Until all have ended, or one has failed, or time is up."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        codes = [process.poll() for process in processes]
        if None not in codes or any(codes):
            return
        time.sleep(0.05)
