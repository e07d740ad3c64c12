"""Several processes that meet over gloo, as torchrun would start them, without its own start-up time."""

import multiprocessing
import os
import runpy
import socket
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

# Imported once, where processes are forked: 5 s that each of them would need. No thread has run there by then.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch.distributed.fsdp", "torch.distributed.checkpoint", "core.train"])
FORKED = Path(__file__).with_name("forked.py")
RunProcesses = Callable[..., list[str]]


@pytest.fixture(scope="session")
def run_processes(tmp_path_factory: pytest.TempPathFactory) -> RunProcesses:
    """`run_processes(script, size, *arguments)`: what each process printed, as after `python script arguments`, or
    `python -m module arguments` for a name that does not end in .py. One that fails fails the test."""

    def run(script: str | Path, size: int, *arguments: str | Path, timeout: float = 240.0) -> list[str]:
        return _run(tmp_path_factory.mktemp("processes"), script, size, *arguments, timeout=timeout)

    return run


def _run(folder: Path, script: str | Path, size: int, *arguments: str | Path, timeout: float) -> list[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported, where processes are forked
    try:
        processes = [
            SERVER.Process(
                target=runpy.run_path,
                args=(str(FORKED),),
                kwargs={
                    "init_globals": {
                        "script": str(script),
                        "arguments": list(map(str, arguments)),
                        "environment": common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                        "out": str(folder / f"{rank}.out"),
                        "error": str(folder / f"{rank}.err"),
                    }
                },
            )
            for rank in range(size)
        ]
        for process in processes:
            process.start()
    finally:
        os.environ.pop("OMP_NUM_THREADS")
        os.environ |= {} if before is None else {"OMP_NUM_THREADS": before}
    try:
        _wait(processes, timeout)
    finally:
        for process in processes:
            process.kill()
            process.join()
    codes = [process.exitcode for process in processes]
    if any(codes):
        text = "\n".join(f"--- process {rank}\n{(folder / f'{rank}.err').read_text()[-4000:]}" for rank in range(size))
        pytest.fail(f"{script} {arguments}: processes ended with {codes} (-9: stopped here)\n{text}", pytrace=False)
    return [(folder / f"{rank}.out").read_text() for rank in range(size)]


def _wait(processes: Sequence[BaseProcess], timeout: float) -> None:
    """Until all have ended, or one has failed, or time is up."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        codes = [process.exitcode for process in processes]
        if None not in codes or any(codes):
            return
        time.sleep(0.05)
