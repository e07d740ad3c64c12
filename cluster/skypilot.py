"""Jobs through SkyPilot, which finds machines at many clouds. Its client `sky` submits them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from cluster.block_yaml import dump
from cluster.commands import ask
from cluster.job import Job, exports, start_line
from cluster.launcher import Handle
from cluster.states import State, Status
from cluster.submission import SCRIPT
from cluster.targets import Target

PATIENCE = 900.0  # seconds: machines are rented and set up before sky answers
STATES = {
    "PENDING": State.WAITING,
    "SUBMITTED": State.WAITING,
    "STARTING": State.WAITING,
    "RECOVERING": State.WAITING,
    "INIT": State.WAITING,
    "SETTING_UP": State.RUNNING,
    "RUNNING": State.RUNNING,
    "SUCCEEDED": State.DONE,
    "CANCELLING": State.CANCELLED,
    "CANCELLED": State.CANCELLED,
}


def render(job: Job, target: Target, place: Path, after: tuple[Mapping[str, str], ...] = ()) -> str:
    """The task as YAML. The target's options are its resources, as "accelerators=H100:8" or "use_spot=true"."""
    if after:
        raise ValueError("SkyPilot starts jobs at once; submit the next stage when this one is done")
    resources: dict[str, Any] = {}
    for option in target.options:
        name, equals, value = option.partition("=")
        if not equals:
            raise ValueError(
                f'options of a SkyPilot target are its resources, as "accelerators=H100:8", not {option!r}'
            )
        resources[name] = yaml.safe_load(value)
    resources |= {"image_id": f"docker:{target.image}"} if target.image else {}
    resources |= {"cpus": f"{job.cpus * job.processes}+"} if job.cpus else {}
    resources |= {"memory": f"{job.memory.rstrip('KMGT')}+"} if job.memory else {}
    if job.gpus and "accelerators" not in resources:
        raise ValueError(f'{job.gpus} GPUs of which kind? Give the target options = ["accelerators=H100:{job.gpus}"]')
    head = '$(echo "$SKYPILOT_NODE_IPS" | head -n 1)'
    line = start_line(job, python=target.interpreter, endpoint=f"{head}:{target.port}")
    task = {
        "name": f"{job.name}-{place.name}",
        "num_nodes": job.nodes,
        "resources": resources,
        "run": "\n".join([*exports(job, target.environment), *target.before, line]) + "\n",
    }
    return dump({name: value for name, value in task.items() if value != {}})


def submit(job: Job, target: Target, place: Path, text: str) -> Handle:
    """As a managed job, which is started again elsewhere when its machines are taken away."""
    (place / SCRIPT).write_text(text, encoding="utf-8")
    name = f"{job.name}-{place.name}"
    ask(["sky", "jobs", "launch", "--yes", "--detach-run", "--name", name, str(place / SCRIPT)], patience=PATIENCE)
    return {"id": name, "place": str(place)}


def status(handle: Mapping[str, str], place: Path) -> Status:
    """By the queue of managed jobs."""
    try:
        return of_queue(
            json.loads(ask(["sky", "jobs", "queue", "--all", "--output", "json"], patience=120)), handle["id"]
        )
    except (RuntimeError, ValueError) as error:
        return Status(State.UNKNOWN, str(error))


def of_queue(queue: list[dict[str, Any]], name: str) -> Status:
    """What a list of managed jobs says of the newest of that name."""
    mine = [entry for entry in queue if entry.get("job_name") == name]
    if not mine:
        return Status(State.UNKNOWN, "sky's queue does not have it")
    told = max(mine, key=lambda entry: entry.get("job_id", 0))
    word = str(told.get("status", "")).rpartition(".")[2]
    state = STATES.get(word, State.FAILED if word.startswith("FAILED") else State.UNKNOWN)
    return Status(state, str(told.get("failure_reason") or ""), int(told.get("recovery_count") or 0))


def logs(handle: Mapping[str, str], place: Path, lines: int) -> str:
    try:
        said = ask(["sky", "jobs", "logs", "--name", handle["id"], "--no-follow"], patience=120)
    except RuntimeError as error:
        return str(error)
    return "\n".join(said.splitlines()[-lines:])


def cancel(handle: Mapping[str, str], place: Path) -> None:
    """Ends it and gives its machines back."""
    ask(["sky", "jobs", "cancel", "--yes", "--name", handle["id"]], patience=120)


def requeue(handle: Mapping[str, str], place: Path) -> Handle:
    """Cancelled, and launched again by the same name."""
    cancel(handle, place)
    script = str(place / SCRIPT)
    ask(["sky", "jobs", "launch", "--yes", "--detach-run", "--name", handle["id"], script], patience=PATIENCE)
    return dict(handle)
