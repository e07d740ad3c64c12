"""Jobs on a Ray cluster, through the Jobs API of its head (`ray start --head`). Needs no Ray where it is asked from."""

import json
import os
import shlex
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster import ray_nodes
from cluster.commands import PATIENCE
from cluster.job import Job, exports, start_line
from cluster.launcher import Handle
from cluster.states import State, Status, of_exit
from cluster.submission import ENDED, LOG, SCRIPT, ended, last_lines
from cluster.targets import Target

ADDRESS = "http://127.0.0.1:8265"
UP = 60  # seconds that a head may need from its first answer until it takes jobs
STATES = {"PENDING": State.WAITING, "RUNNING": State.RUNNING, "SUCCEEDED": State.DONE, "STOPPED": State.CANCELLED}
SCRIPT_TEXT = """\
#!/bin/bash
# {name}, on each of its nodes
{setup}
{line} >> {log} 2>&1 &
child=$!
trap 'kill -TERM $child' TERM INT
wait $child; status=$?
while kill -0 $child 2>/dev/null; do wait $child; status=$?; done  # a signal ends a wait, not the job
echo $status > {ended}
exit $status
"""


def render(job: Job, target: Target, place: Path, after: tuple[Mapping[str, str], ...] = ()) -> str:
    """The script that each node runs; the run's folder has to be one that all of them see."""
    if after:
        raise ValueError("Ray starts jobs at once; submit the next stage when this one is done")
    if job.minutes:
        raise ValueError("Ray has no time limits; leave minutes out")
    line = start_line(
        job,
        python=target.interpreter,
        endpoint=f"${ray_nodes.HEAD}:{target.port}",
        address=f"${ray_nodes.ADDRESS}" if job.nodes > 1 else "",
        number=ray_nodes.RANK,
    )
    rank = f"${{{ray_nodes.RANK}:-0}}"
    here = shlex.quote(str(place))
    log = f"{here}/{LOG}" if job.nodes == 1 else f"{here}/log.{rank}.txt"
    left = f"{here}/{ENDED}" if job.nodes == 1 else f"{here}/{ENDED}.{rank}"
    setup = "\n".join([*exports(job, target.environment), *target.before])
    return SCRIPT_TEXT.format(name=job.name, setup=setup, line=line, log=log, ended=left)


def submit(job: Job, target: Target, place: Path, text: str) -> Handle:
    """To the head at the target's address, http://127.0.0.1:8265 without one. Paths mean what they mean here."""
    (place / SCRIPT).write_text(text, encoding="utf-8")
    script = shlex.quote(str(place / SCRIPT))
    wants: dict[str, Any] = {}
    if job.nodes == 1:
        entry = f"bash {script}"
        wants |= {"entrypoint_num_cpus": float(job.cpus * job.processes)} if job.cpus else {}
        wants |= {"entrypoint_num_gpus": float(job.gpus)} if job.gpus else {}
        wants |= {"entrypoint_memory": _bytes(job.memory)} if job.memory else {}
    else:  # a job's entry runs on one node; it starts the others. -P: `import ray` must not find the file beside it
        each = {"CPU": job.cpus * job.processes or 1, "GPU": job.gpus}
        entry = f"{target.interpreter} -P {ray_nodes.__file__} {job.nodes} {shlex.quote(json.dumps(each))} {script}"
    handle = {"address": target.address or ADDRESS, "place": str(place)}
    entry = f"cd {shlex.quote(os.getcwd())} && exec {entry}"
    body = {"entrypoint": entry, "submission_id": f"{job.name}-{place.name}-{uuid.uuid4().hex[:8]}", **wants}
    return handle | {"body": json.dumps(body), "id": _post(handle, body)}


def _post(handle: Mapping[str, str], body: Mapping[str, Any]) -> str:
    """The number of a job that was handed over, after as many attempts as a head needs that has just been started."""
    deadline = time.monotonic() + UP
    while True:
        try:
            return str(_call(handle, "/api/jobs/", body)["submission_id"])
        except RuntimeError as error:
            if "try again later" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(1)


def _bytes(memory: str) -> int:
    scale = {"K": 1, "M": 2, "G": 3, "T": 4}.get(memory[-1], 0)
    return int(memory.rstrip("KMGT")) * 1024**scale


def _call(handle: Mapping[str, str], path: str, body: Any = None, method: str = "") -> Any:
    """What the head answers. Raises RuntimeError where it does not or refuses."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(handle["address"] + path, data, headers, method=method or None)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        said = error.read().decode(errors="replace").strip()
        raise RuntimeError(f"Ray at {handle['address']}: {said.splitlines()[-1] if said else error}") from error
    except (OSError, ValueError) as error:
        raise RuntimeError(f"no Ray answers at {handle['address']} ({error}); is `ray start --head` up?") from error


def status(handle: Mapping[str, str], place: Path) -> Status:
    try:
        told = _call(handle, f"/api/jobs/{handle['id']}")
    except RuntimeError as error:
        code = ended(place)
        return Status(State.UNKNOWN, str(error)) if code is None else of_exit(code, last_lines(place / LOG, 40))
    state = STATES.get(told["status"], State.FAILED)
    reason = str(told.get("message") or "")
    if state == State.FAILED:
        code = ended(place)
        found = of_exit(1 if code is None else code, logs(handle, place, 40))
        state = State.NODE_FAILED if "node" in reason.lower() and "died" in reason.lower() else found.state
    if state == State.DONE:
        return Status(state)
    return Status(state, reason.partition("\n")[0].partition(", last available logs")[0])


def logs(handle: Mapping[str, str], place: Path, lines: int) -> str:
    first = next((path for path in (place / LOG, place / "log.0.txt") if path.exists()), None)
    if first is not None and (said := last_lines(first, lines)):
        return said
    try:
        return "\n".join(_call(handle, f"/api/jobs/{handle['id']}/logs")["logs"].splitlines()[-lines:])
    except RuntimeError as error:
        return str(error)


def cancel(handle: Mapping[str, str], place: Path) -> None:
    """Told to stop; Ray is patient for RAY_JOB_STOP_WAIT_TIME_S, 3 s unless its head was started with more. Several
    nodes take that long to leave alone, without what they have to save. A job that waits for room hears it only when it
    gets some, and ends then."""
    _call(handle, f"/api/jobs/{handle['id']}/stop", {}, "POST")


def requeue(handle: Mapping[str, str], place: Path) -> Handle:
    """Stopped, and submitted again under another number."""
    if not status(handle, place).state.is_over:
        cancel(handle, place)
    body = json.loads(handle["body"])
    body["submission_id"] = f"{body['submission_id'].rpartition('-')[0]}-{uuid.uuid4().hex[:8]}"
    return dict(handle) | {"body": json.dumps(body), "id": _post(handle, body)}
