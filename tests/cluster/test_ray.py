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
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
}
PORTS = (
    *("port", "dashboard-port", "ray-client-server-port", "metrics-export-port"),
    # Without a number for these three the node ends when its agent is not there within 15 s.
    *("dashboard-agent-listen-port", "dashboard-agent-grpc-port", "runtime-env-agent-port"),
)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as probes:
        sockets = [probes.enter_context(socket.socket()) for _ in range(count)]
        for probe in sockets:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in sockets]


@pytest.fixture(scope="module")
def head() -> Iterator[Target]:
    """A Ray of two cores, as a target; at the end nothing of it is left."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'ray[default]'")
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    folder = Path(tempfile.mkdtemp(prefix="ray"))  # sockets lie in it, and their paths must be short
    mark = {"GRAMSCOPE_TEST_RAY": str(folder)}  # in the environment of all that it starts
    words = [f"--{name}={port}" for name, port in ports.items()]
    words += ["--num-cpus=2", "--num-gpus=0", "--object-store-memory=100000000", f"--temp-dir={folder}"]
    program = Path(sys.executable).with_name("ray")
    try:
        with (folder / "head.log").open("w") as log:
            started = subprocess.Popen(
                [program, "start", "--head", "--block", "--include-log-monitor=false", *words],
                env=os.environ | PATIENT | mark, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + 240
        while "Ray runtime started" not in (said := (folder / "head.log").read_text()):
            assert started.poll() is None and time.monotonic() < deadline, said[-3000:]
            time.sleep(0.5)
        yield find_target(f"ray:http://127.0.0.1:{ports['dashboard-port']}", Path("/nowhere"))
    finally:
        started.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.wait(10)
        end_all(mark)
        started.wait(10)
        shutil.rmtree(folder, ignore_errors=True)


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
    assert made.logs() == "start 0\nheard SIGTERM\nsaved"
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


def test_of_a_head_that_is_gone_the_job_itself_tells(head, nap):
    made = submit(nap("one"), head)
    wait(made, State.DONE)
    (port,) = free_ports(1)
    far = replace(made, handle=made.handle | {"address": f"http://127.0.0.1:{port}"})
    assert far.status().state == State.DONE
    (made.place / "ended").unlink()  # as while it runs
    assert far.status().state == State.UNKNOWN
    assert far.status().reason.startswith(f"no Ray answers at http://127.0.0.1:{port}")
