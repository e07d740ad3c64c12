"""What is to run, apart from where: a module, the machines it wants, and its folder."""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,50}[a-z0-9])?")  # what every engine accepts
MEMORY = re.compile(r"\d+[KMGT]?")
SHUTDOWN = 3600  # seconds that processes get for their last checkpoint; an engine may be less patient


@dataclass(frozen=True, kw_only=True)
class Job:
    """`python -m module arguments` on `nodes` machines, `processes` on each.

    folder: the run's; what is submitted is recorded in folder/jobs. Raises ValueError for what no engine could run.
    """

    name: str
    folder: Path
    module: str
    arguments: tuple[str, ...] = ()
    nodes: int = 1
    processes: int = 1  # a node
    gpus: int = 0  # a node
    cpus: int = 0  # a process; 0: as many as the engine gives
    memory: str = ""  # a node, as "64G"; empty: as much as the engine gives
    minutes: int = 0  # until it is told to save and leave; 0: as long as the engine allows
    environment: Mapping[str, str] = field(default_factory=dict)
    restarts: int = 0  # how often torchrun starts all processes again after one failed

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(f"a job's name has small letters, digits and hyphens, at most 52; not {self.name!r}")
        for what in ("nodes", "processes"):
            if getattr(self, what) < 1:
                raise ValueError(f"{what} is at least 1, got {getattr(self, what)}")
        for what in ("gpus", "cpus", "minutes", "restarts"):
            if getattr(self, what) < 0:
                raise ValueError(f"{what} is at least 0, got {getattr(self, what)}")
        if self.memory and not MEMORY.fullmatch(self.memory):
            raise ValueError(f'memory is a number with K, M, G or T, as "64G", not {self.memory!r}')
        if self.gpus and self.gpus % self.processes:
            raise ValueError(f"{self.gpus} GPUs a node cannot be shared by {self.processes} processes evenly")

    @property
    def resources(self) -> dict[str, Any]:
        """What it wants, by the names of `cluster.targets.RESOURCES`."""
        names = ("nodes", "processes", "gpus", "cpus", "memory", "minutes")
        return {name: getattr(self, name) for name in names}

    @property
    def world(self) -> int:
        """Processes over all nodes."""
        return self.nodes * self.processes


def job_name(text: str) -> str:
    """A name for a job that resembles the text."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:52].rstrip("-")
    return name or "run"


def start_line(job: Job, *, python: str = "python", endpoint: str = "", address: str = "", number: str = "") -> str:
    """The shell line that starts a job's processes on one node: torchrun, or the module itself for a single process.

    endpoint: "host:port" where nodes meet, shell variables allowed; needed for several nodes. address: of this node,
    where its name does not lead to it. number: of this node, in shell arithmetic; number 0 then waits for the others at
    the endpoint. Without it torchrun has to guess from names whether that is here. Processes get NCCL or gloo by their
    device; that is the module's business.
    """
    words = [python, "-m", job.module, *job.arguments]
    if job.world == 1:
        return shlex.join(words)
    if job.nodes > 1 and not endpoint:
        raise ValueError(f"{job.nodes} nodes need an endpoint to meet at")
    run = [python, "-m", "torch.distributed.run", "--nnodes", f"{job.nodes}", "--nproc-per-node", f"{job.processes}"]
    run += ["--max-restarts", f"{job.restarts}", "--shutdown-timeout", f"{SHUTDOWN}"]
    run += ["--signals-to-handle", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"]
    line = shlex.join(run)
    if job.nodes == 1:
        line += " --standalone"
    else:
        line += f' --rdzv-backend c10d --rdzv-id {job.name} --rdzv-endpoint "{endpoint}"'
        line += f' --rdzv-conf "is_host=$(( {number} == 0 ))"' if number else ""
    if address:
        line += f' --local-addr "{address}"'
    return f"{line} {shlex.join(words[1:])}"


def exports(job: Job, more: Mapping[str, str]) -> list[str]:
    """Shell lines that set the job's environment; what the job says goes before what the target says."""
    threads = {"OMP_NUM_THREADS": str(job.cpus)} if job.cpus else {}
    merged = {"OMP_WAIT_POLICY": "PASSIVE", **threads, **more, **job.environment}
    return [f"export {name}={shlex.quote(value)}" for name, value in merged.items()]
