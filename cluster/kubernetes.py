"""Jobs on Kubernetes: an indexed Job with a headless Service, through which its pods meet. kubectl submits it."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.block_yaml import dump
from cluster.commands import ask
from cluster.job import Job, exports, start_line
from cluster.launcher import Handle
from cluster.states import State, Status
from cluster.submission import SCRIPT
from cluster.targets import Target

MEMORY = {"K": "Ki", "M": "Mi", "G": "Gi", "T": "Ti"}


def render(job: Job, target: Target, place: Path, after: tuple[Mapping[str, str], ...] = ()) -> str:
    """The manifest. Raises ValueError for what it cannot say: no image, jobs that have to end first."""
    if not target.image:
        raise ValueError(f"the target {target.name} names no image; pods are started from one")
    if after:
        raise ValueError("Kubernetes starts jobs at once; submit the next stage when this one is done")
    name = f"{job.name}-{place.name}"
    endpoint = f"{name}-0.{name}:{target.port}"
    lines = [*exports(job, target.environment), *target.before]
    lines.append(f"exec {start_line(job, python=target.interpreter, endpoint=endpoint)}")
    limits: dict[str, Any] = {"nvidia.com/gpu": job.gpus} if job.gpus else {}
    limits |= {"cpu": job.cpus * job.processes} if job.cpus else {}
    if job.memory:
        limits["memory"] = job.memory[:-1] + MEMORY[job.memory[-1]] if job.memory[-1] in MEMORY else job.memory
    container: dict[str, Any] = {
        "name": "train",
        "image": target.image,
        "command": ["bash", "-c", "\n".join(lines) + "\n"],
        "resources": {"limits": limits},
        # Data workers and NCCL share memory; the 64 MB that a pod gets otherwise are soon full.
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    }
    volumes: list[dict[str, Any]] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
    if target.volume:
        container["volumeMounts"].append({"name": "runs", "mountPath": str(job.folder.absolute().parent)})
        volumes.append({"name": "runs", "persistentVolumeClaim": {"claimName": target.volume}})
    pod = {"subdomain": name, "restartPolicy": "Never", "containers": [container], "volumes": volumes}
    labels = {"app": "gramscope", "job": name}
    specification: dict[str, Any] = {
        "completionMode": "Indexed",
        "completions": job.nodes,
        "parallelism": job.nodes,
        # A pod that fails or is evicted is started again, and the others meet it at the rendezvous anew.
        "backoffLimit": 6 * job.nodes,
        "template": {"metadata": {"labels": labels}, "spec": pod},
    }
    specification |= {"activeDeadlineSeconds": job.minutes * 60} if job.minutes else {}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": labels},
        "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {"job": name}},
    }
    work = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": labels},
        "spec": specification,
    }
    return dump(service, work)


def submit(job: Job, target: Target, place: Path, text: str) -> Handle:
    """kubectl apply, in the context and namespace that the target's address and options name."""
    where = [*(["--context", target.address] if target.address else []), *target.options]
    ask(["kubectl", *where, "apply", "-f", "-"], text=text)
    return {"id": f"{job.name}-{place.name}", "where": shlex.join(where), "place": str(place)}


def _kubectl(handle: Mapping[str, str], *words: str) -> str:
    return ask(["kubectl", *shlex.split(handle["where"]), *words])


def status(handle: Mapping[str, str], place: Path) -> Status:
    """By the Job's conditions, and the pods' reasons where they did not start or did not end well."""
    try:
        job = json.loads(_kubectl(handle, "get", "job", handle["id"], "-o", "json"))
        pods = json.loads(_kubectl(handle, "get", "pods", "-l", f"job={handle['id']}", "-o", "json"))["items"]
    except RuntimeError as error:
        gone = "NotFound" in str(error)
        return Status(State.CANCELLED if gone else State.UNKNOWN, "deleted" if gone else str(error))
    return of_objects(job, pods)


def of_objects(job: Mapping[str, Any], pods: list[Mapping[str, Any]]) -> Status:
    """The state that a Job and its pods describe."""
    told = job.get("status", {})
    conditions = {c["type"]: c for c in told.get("conditions", []) if c.get("status") == "True"}
    restarts = int(told.get("failed", 0))
    ends = [
        container["state"]["terminated"]
        for pod in pods
        for container in pod.get("status", {}).get("containerStatuses", [])
        if "terminated" in container.get("state", {})
    ]
    if "Complete" in conditions:
        return Status(State.DONE, restarts=restarts)
    if "Failed" in conditions:
        reasons = {end.get("reason", "") for end in ends} | {pod.get("status", {}).get("reason", "") for pod in pods}
        if "OOMKilled" in reasons:
            return Status(State.OUT_OF_MEMORY, "OOMKilled", restarts)
        if reasons & {"NodeLost", "NodeShutdown", "Evicted", "Preempting"}:
            return Status(State.NODE_FAILED, ", ".join(sorted(reasons - {""})), restarts)
        reason = conditions["Failed"].get("reason", "")
        return Status(State.OUT_OF_TIME if reason == "DeadlineExceeded" else State.FAILED, reason, restarts)
    if told.get("ready", 0):
        return Status(State.RUNNING, f"{told['ready']} of {job['spec']['parallelism']} pods are ready", restarts)
    waiting = [
        condition.get("message", "")
        for pod in pods
        for condition in pod.get("status", {}).get("conditions", [])
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False"
    ]
    return Status(State.WAITING, next(iter(waiting), "pods are being started"), restarts)


def logs(handle: Mapping[str, str], place: Path, lines: int) -> str:
    """Of the first pod, which speaks for all."""
    selector = f"job={handle['id']},batch.kubernetes.io/job-completion-index=0"
    try:
        return _kubectl(handle, "logs", "-l", selector, f"--tail={lines}").rstrip()
    except RuntimeError as error:
        return str(error)


def cancel(handle: Mapping[str, str], place: Path) -> None:
    """Deletes the Job with its pods, which get SIGTERM first, and its Service."""
    _kubectl(handle, "delete", "job,service", handle["id"], "--ignore-not-found", "--wait=false")


def requeue(handle: Mapping[str, str], place: Path) -> Handle:
    """Deleted and applied again."""
    _kubectl(handle, "delete", "job", handle["id"], "--ignore-not-found", "--wait=true", "--timeout=25s")
    ask(["kubectl", *shlex.split(handle["where"]), "apply", "-f", str(place / SCRIPT)])
    return dict(handle)
