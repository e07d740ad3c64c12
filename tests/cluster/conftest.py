"""Jobs that take a moment, and places to run them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cluster import Job

NAPPER = """
import os, signal, sys, time

def stop(number, frame):
    print("heard", signal.Signals(number).name, flush=True)
    time.sleep(0.5)
    print("saved", flush=True)
    sys.exit(0)

signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGUSR1, stop)
print("start", os.environ.get("SLURM_RESTART_COUNT", 0), flush=True)
seconds, megabytes, status = (int(word) for word in sys.argv[1:])
held = bytearray(megabytes * 2**20)
held[::4096] = b"1" * len(held[::4096])  # touched, so that it is really there
time.sleep(seconds)
print("end", flush=True)
sys.exit(status)
"""


@pytest.fixture
def nap(make_nap: Callable[[Path], Callable[..., Job]], tmp_path: Path) -> Callable[..., Job]:
    """`nap("name", seconds=..)`: a job that sleeps, and saves and leaves when it is told to."""
    return make_nap(tmp_path)


@pytest.fixture(scope="session")
def make_nap() -> Callable[[Path], Callable[..., Job]]:
    """The same in a folder of one's own."""
    return naps_in


def naps_in(tmp_path: Path) -> Callable[..., Job]:
    """What `nap` is."""
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "napper.py").write_text(NAPPER)
    plain = Job(name="nap", folder=tmp_path, module="napper", environment={"PYTHONPATH": str(modules)})

    def make(name: str, *, seconds: int = 0, holding: int = 0, status: int = 0, **wants: object) -> Job:
        arguments = (str(seconds), str(holding), str(status))
        return replace(plain, name=name, folder=tmp_path / "runs" / name, arguments=arguments, **wants)

    return make
