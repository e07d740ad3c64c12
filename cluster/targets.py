"""Places where jobs run, named in one file: ~/.config/gramscope/targets.toml.

    [h100]                        # gramscope launch vit7b_pretrain --on h100
    launcher = "slurm"
    partition = "h100"
    account = "vision"
    nodes = 32                    # what a job gets unless it says otherwise
    processes = 8                 # a node
    gpus = 8                      # a node
    gpu = "H100"                  # what they are: the doctor counts their memory
    cpus = 12                     # a process
    minutes = 2880
    python = "/shared/envs/gramscope/bin/python"
    before = ["module load cuda/13"]
    options = ["--exclusive", "--qos=long"]
    environment = { NCCL_DEBUG = "WARN" }

Without a file a target is a launcher and, for Slurm, a partition: "local", "slurm:gpu", "ray".
"""

import os
import sys
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

GPUS = {  # GiB of memory, compute capability, dense TFLOP/s in bf16 (V100: fp16); from the maker's data sheets
    "V100": (32.0, 7.0, 125.0),
    "A100-40": (40.0, 8.0, 312.0),
    "A100": (80.0, 8.0, 312.0),
    "L40S": (48.0, 8.9, 362.0),
    "H100": (80.0, 9.0, 989.0),
    "H200": (141.0, 9.0, 989.0),
    "B200": (180.0, 10.0, 2250.0),
}
RESOURCES = ("nodes", "processes", "gpus", "cpus", "memory", "minutes")


@dataclass(frozen=True, kw_only=True)
class Target:
    """A place for jobs: a launcher and what it has to be told. Resources are what a job gets that names none."""

    name: str
    launcher: str
    partition: str = ""  # Slurm
    account: str = ""  # Slurm
    address: str = ""  # of nodes whose names do not lead to them (Slurm); of Ray's dashboard; kubectl's context
    gpu: str = ""  # an entry of GPUS: what each of its GPUs is, for the doctor
    image: str = ""  # of the container (Kubernetes, SkyPilot)
    volume: str = ""  # claim that is mounted at the run's folder's place (Kubernetes)
    python: str = ""
    port: int = 29_500  # where nodes meet; jobs that share a node need different ones
    before: tuple[str, ...] = ()  # shell lines before the job's
    options: tuple[str, ...] = ()  # more words for the engine
    environment: dict[str, str] = field(default_factory=dict)
    nodes: int = 1
    processes: int = 1
    gpus: int = 0
    cpus: int = 0
    memory: str = ""
    minutes: int = 0

    @property
    def interpreter(self) -> str:
        """The Python of the job: the target's, or else this one where the job sees this machine's files."""
        return self.python or ("python" if self.launcher in ("kubernetes", "skypilot") else sys.executable)

    @property
    def resources(self) -> dict[str, Any]:
        """What a job gets unless it says otherwise."""
        return {name: getattr(self, name) for name in RESOURCES}


def targets_file() -> Path:
    """Where targets are named."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "gramscope" / "targets.toml"


def read_targets(path: Path) -> dict[str, Target]:
    """The targets of a file, none where there is no file. Raises ValueError, naming the entry that is wrong."""
    if not path.exists():
        return {}
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no TOML: {error}") from error
    return {name: _target(name, entry, path) for name, entry in entries.items()}


KINDS: dict[str, type] = {"environment": dict, "before": list, "options": list} | dict.fromkeys(
    ("port", "nodes", "processes", "gpus", "cpus", "minutes"), int
)  # of the entries in the file; all others are text

WORDS = {int: "a number", str: "text", list: "a list of texts", dict: "a table of texts"}


def _target(name: str, entry: Any, path: Path) -> Target:
    known = {each.name for each in fields(Target)} - {"name"}
    if not isinstance(entry, dict):
        raise ValueError(f"{path}: {name} is a table, [{name}], not a value")
    if unknown := sorted(set(entry) - known):
        raise ValueError(f"{path}: [{name}] has unknown {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    if "launcher" not in entry:
        raise ValueError(f"{path}: [{name}] names no launcher")
    for key, value in entry.items():
        kind = KINDS.get(key, str)
        kept = type(value) is kind
        parts = value.values() if kept and kind is dict else value if kept and kind is list else []
        if not kept or any(type(part) is not str for part in parts):
            raise ValueError(f"{path}: [{name}] {key} is {WORDS[kind]}, not {value!r}")
    plain: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
    return Target(name=name, **plain)


def find_target(text: str, path: Path | None = None) -> Target:
    """The target of that name in the file, or "launcher" or "launcher:partition" without one.

    Raises ValueError for an unknown one and lists what there is.
    """
    from cluster import LAUNCHERS

    named = read_targets(targets_file() if path is None else path)
    if text in named:
        target = named[text]
    else:
        launcher, _, detail = text.partition(":")
        more = {"slurm": "partition", "ray": "address", "kubernetes": "address"}
        if launcher not in LAUNCHERS or (detail and launcher not in more):
            known = ", ".join([*named, *LAUNCHERS])
            raise ValueError(f"no target called {text!r}; known: {known}; name your own in {targets_file()}")
        told: dict[str, Any] = {more[launcher]: detail} if detail else {}
        target = Target(name=text, launcher=launcher, **told)
    if target.launcher not in LAUNCHERS:
        raise ValueError(f"[{text}] has the launcher {target.launcher!r}; known: {', '.join(LAUNCHERS)}")
    if target.gpu and target.gpu not in GPUS:
        raise ValueError(f"[{text}] has the gpu {target.gpu!r}; known: {', '.join(GPUS)}")
    return target
