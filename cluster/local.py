"""Jobs on this machine: a process group of their own, which outlives whoever started it."""

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from cluster.job import SHUTDOWN, Job, exports, start_line
from cluster.launcher import Handle
from cluster.states import State, Status, of_exit
from cluster.submission import ENDED, LOG, SCRIPT, ended, last_lines
from cluster.targets import Target

SCRIPT_TEXT = """\
#!/bin/bash
# {name}, on this machine
{setup}
rm -f {ended}
{waits}{line} &
child=$!
trap 'kill -TERM $child' TERM INT
trap 'kill -USR1 $child' USR1
wait $child; status=$?
while kill -0 $child 2>/dev/null; do wait $child; status=$?; done  # a signal ends a wait, not the job
echo $status > {ended}
exit $status
"""
WAIT_TEXT = """\
while [ ! -e {before} ]; do sleep 1; done  # the job before
[ "$(cat {before})" = 0 ] || {{ echo "the job before failed"; echo 1 > {ended}; exit 1; }}
"""


def render(job: Job, target: Target, place: Path, after: tuple[Mapping[str, str], ...] = ()) -> str:
    """A shell script. Raises ValueError for what one machine does not have."""
    if job.nodes > 1:
        raise ValueError(f"this machine is one node, the job wants {job.nodes}; give it processes instead")
    if job.memory:
        raise ValueError("nothing limits the memory of a job on this machine; leave memory out")
    line = start_line(job, python=target.interpreter)
    if job.minutes:
        line = f"timeout --signal=USR1 --kill-after={SHUTDOWN} {job.minutes * 60} {line}"
    left = shlex.quote(str(place / ENDED))
    waits = "".join(WAIT_TEXT.format(before=shlex.quote(f"{each['place']}/{ENDED}"), ended=left) for each in after)
    setup = "\n".join([*exports(job, target.environment), *target.before])
    return SCRIPT_TEXT.format(name=job.name, setup=setup, ended=left, waits=waits, line=line)


def submit(job: Job, target: Target, place: Path, text: str) -> Handle:
    """Starts the script in a session of its own."""
    return _start(place, os.getcwd())


def _start(place: Path, directory: str) -> Handle:
    with (place / LOG).open("ab") as log:
        process = subprocess.Popen(
            ["bash", str(place / SCRIPT)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            cwd=directory,
        )  # fmt: skip
    known = {"id": str(process.pid), "began": _began(process.pid), "host": os.uname().nodename}
    return known | {"place": str(place), "directory": directory}


def status(handle: Mapping[str, str], place: Path) -> Status:
    """By its process while it lives, afterwards by the status it left."""
    if handle["host"] != os.uname().nodename:
        code = ended(place)
        there = f"it runs on {handle['host']}, where its process can be seen"
        return Status(State.UNKNOWN, there) if code is None else of_exit(code, last_lines(place / LOG, 40))
    if _alive(handle):
        return Status(State.RUNNING, f"process {handle['id']}")
    code = ended(place)
    if code is None:
        return Status(State.FAILED, "ended without a status: killed, or the machine was switched off")
    return of_exit(code, last_lines(place / LOG, 40))


def logs(handle: Mapping[str, str], place: Path, lines: int) -> str:
    return last_lines(place / LOG, lines)


def cancel(handle: Mapping[str, str], place: Path) -> None:
    """Told to stop; it saves and leaves in its own time."""
    if _alive(handle):
        os.kill(int(handle["id"]), signal.SIGTERM)


def requeue(handle: Mapping[str, str], place: Path) -> Handle:
    """Told to stop, and started again as soon as it has, where it was started first: paths may be relative."""
    cancel(handle, place)
    deadline = time.monotonic() + SHUTDOWN
    while _alive(handle) and time.monotonic() < deadline:
        time.sleep(0.2)
    if _alive(handle):
        raise RuntimeError(f"process {handle['id']} was told to stop and is still there")
    return _start(place, handle["directory"])


def _alive(handle: Mapping[str, str]) -> bool:
    """Whether the process is there, and is not another one that got its number."""
    pid = int(handle["id"])
    try:
        if os.waitpid(pid, os.WNOHANG)[0] == pid:  # a child of ours that has ended would stay visible
            return False
    except ChildProcessError:
        pass
    began = _began(pid)
    return bool(began) and began == handle["began"]


def _began(pid: int) -> str:
    """When a process began, empty where there is none."""
    done = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True)
    return done.stdout.strip()
