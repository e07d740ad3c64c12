"""Jobs on a real Ray: a head on this machine, with ports of its own."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cluster import State, Status, Submission, Target, find_target, submissions, submit

pytestmark = pytest.mark.long

PATIENT = {  # two busy cores are slower than Ray expects
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "180",
    "RAY_DASHBOARD_SUBPROCESS_MODULE_WAIT_READY_TIMEOUT": "180",
    "RAY_agent_register_timeout_ms": "180000",
    "RAY_JOB_STOP_WAIT_TIME_S": "30",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
}
# Without a number for the last three a node ends when its agent is not there within 15 s.
AGENT_PORTS = (
    *("metrics-export-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port", "runtime-env-agent-port"),
)
PORTS = ("port", "dashboard-port", "ray-client-server-port", *AGENT_PORTS)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as probes:
        sockets = [probes.enter_context(socket.socket()) for _ in range(count)]
        for probe in sockets:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in sockets]


@pytest.fixture(scope="module")
def ports() -> dict[str, int]:
    """The head's."""
    return dict(zip(PORTS, free_ports(len(PORTS)), strict=True))


@pytest.fixture(scope="module")
def head(ports) -> Iterator[Target]:
    """A Ray of two cores, as a target; at the end nothing of it is left."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'ray[default]'")
    with up("--head", *(f"--{name}={port}" for name, port in ports.items())):
        yield find_target(f"ray:http://127.0.0.1:{ports['dashboard-port']}", Path("/nowhere"))


@pytest.fixture(scope="module")
def second_node(head, ports) -> Iterator[None]:
    """A node that joins, on the same machine."""
    own = dict(zip(AGENT_PORTS, free_ports(len(AGENT_PORTS)), strict=True))
    with up(f"--address=127.0.0.1:{ports['port']}", *(f"--{name}={port}" for name, port in own.items())):
        yield


@contextlib.contextmanager
def up(*words: str) -> Iterator[None]:
    """`ray start` with these words, until the block ends. A node that is not there within Ray's 30 s gives up, which on
    a busy machine happens; it is started again then, twice at most."""
    folder = Path(tempfile.mkdtemp(prefix="ray"))  # sockets lie in it, and their paths must be short
    mark = {"GRAMSCOPE_TEST_RAY": str(folder)}  # in the environment of all that it starts
    words += ("--num-cpus=2", "--num-gpus=0", "--object-store-memory=100000000", "--include-log-monitor=false")
    words += (f"--temp-dir={folder}",) if "--head" in words else ()  # the others have the head's
    program = Path(sys.executable).with_name("ray")
    try:
        for again in (True, True, False):
            with (folder / "node.log").open("w") as log:
                started = subprocess.Popen(
                    [program, "start", "--block", *words],
                    env=os.environ | PATIENT | mark, stdout=log, stderr=log, start_new_session=True,
                )  # fmt: skip
            if is_up(started, folder / "node.log", again):
                break
            end_all(mark)
        yield
    finally:
        started.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.wait(10)
        end_all(mark)
        started.wait(10)
        shutil.rmtree(folder, ignore_errors=True)


def is_up(started: subprocess.Popen[bytes], log: Path, again: bool) -> bool:
    """Waits; False for a node that gave up, if there is to be another attempt."""
    deadline = time.monotonic() + 240
    while "Ray runtime started" not in (said := log.read_text()):
        if again and started.poll() is not None and "timed out during startup" in said:
            return False
        assert started.poll() is None and time.monotonic() < deadline, said[-3000:]
        time.sleep(0.5)
    return True


def end_all(mark: dict[str, str]) -> None:
    """Ray's workers and agents outlive its head for a while; they are told from others by their environment."""
    ((name, value),) = mark.items()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{name}={value}".encode() in (process / "environ").read_bytes().split(b"\0"):
                os.kill(int(process.name), signal.SIGKILL)


def wait(submission: Submission, *states: State, patience: float = 90) -> Status:
    """Until the job stands in one of these ways; another end fails."""
    deadline = time.monotonic() + patience
    while (status := submission.status()).state not in states:
        assert not status.state.is_over and time.monotonic() < deadline, (status, submission.logs())
        time.sleep(0.3)
    return status


def started(submission: Submission) -> None:
    deadline = time.monotonic() + 90
    while "start" not in submission.logs():
        assert time.monotonic() < deadline, (submission.status(), submission.logs())
        time.sleep(0.3)


@pytest.mark.timeout(600)  # a head takes its time
def test_jobs_end_as_they_do_and_are_found_again(head, nap):
    one, bad = submit(nap("one"), head), submit(nap("bad", status=3), head)
    assert wait(one, State.DONE) == Status(State.DONE)
    assert one.logs() == "start 0\nend" and submissions(one.job.folder) == [one]
    assert wait(bad, State.FAILED).reason == "Job entrypoint command failed with exit code 3"
    assert bad.logs() == "start 0\nend"


def test_a_job_that_is_cancelled_saves_first_and_can_be_queued_again(head, nap, tmp_path):
    made = submit(nap("long", seconds=90), head)
    started(made)
    assert made.status().state == State.RUNNING
    made.cancel()
    wait(made, State.CANCELLED)
    # Ray tells the script's processes as well as the script, which passes it on: it may be heard twice.
    assert list(dict.fromkeys(made.logs().splitlines())) == ["start 0", "heard SIGTERM", "saved"]
    again = made.requeue()
    assert again.handle["id"] != made.handle["id"] and submissions(made.job.folder) == [again]
    wait(again, State.RUNNING)
    again.cancel()
    wait(again, State.CANCELLED)


def test_two_processes_meet(head, nap):
    made = submit(nap("pair", processes=2), head)
    wait(made, State.DONE)
    assert made.logs(400).count("start 0") == 2


def test_a_job_without_room_waits_and_when_cancelled_ends_as_soon_as_it_has_some(head, nap):
    first = submit(nap("first", seconds=90, cpus=2), head)
    started(first)
    second = submit(nap("second", seconds=90, cpus=2), head)
    time.sleep(1)
    assert second.status().state == State.WAITING
    second.cancel()
    first.cancel()
    wait(second, State.CANCELLED)
    assert "end" not in second.logs()


@pytest.mark.timeout(400)
def test_nodes_meet_and_the_worst_status_is_the_jobs(head, second_node, nap):
    (port,) = free_ports(1)
    target = replace(head, port=port)
    good = submit(nap("nodes", nodes=2, cpus=2), target)
    assert wait(good, State.DONE, patience=150) == Status(State.DONE)
    for rank in range(2):
        # torchrun may have more to say: that the other node left first.
        assert (good.place / f"log.{rank}.txt").read_text().startswith("start 0\nend\n")
        assert (good.place / f"ended.{rank}").read_text() == "0\n"
    assert good.logs(400).startswith("start 0\nend")
    told = submit(nap("told", nodes=2, cpus=2, seconds=90), target)
    started(told)
    told.cancel()
    wait(told, State.CANCELLED)
    for rank in range(2):
        log = told.place / f"log.{rank}.txt"
        assert "heard SIGTERM\nsaved" in log.read_text()
    bad = submit(nap("bad", nodes=2, cpus=2, status=3), target)
    assert (
        wait(bad, State.FAILED, patience=150).reason == "Job entrypoint command failed with exit code 1"
    )  # torchrun's


def test_of_a_head_that_is_gone_the_job_itself_tells(head, nap):
    made = submit(nap("one"), head)
    wait(made, State.DONE)
    (port,) = free_ports(1)
    far = replace(made, handle=made.handle | {"address": f"http://127.0.0.1:{port}"})
    assert far.status().state == State.DONE
    (made.place / "ended").unlink()  # as while it runs
    assert far.status().state == State.UNKNOWN
    assert far.status().reason.startswith(f"no Ray answers at http://127.0.0.1:{port}")
