"""A run's folder: made once, with the configuration and what ran it, and read by everything that looks at runs.

config.json  log.txt  metrics.jsonl  checkpoints/<step>/  teacher/<step>.safetensors
probes/<step>/  evals/<step>/<name>.json  nonfinite/<step>/  broken.txt
code/commit.txt  code/changes.diff  code/environment.json
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from core.config import Config, load_config, to_json

PACKAGES = ("gramscope", "torch", "numpy", "pillow", "kornia", "safetensors", "jaxtyping", "tqdm")
PROJECT = Path(__file__).resolve().parents[1]


def new_folder(name: str, parent: Path = Path("runs")) -> Path:
    """A fresh folder `<parent>/<name>-<date>-<n>`, made here so that two runs started together get two."""
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        folder = parent / f"{name}-{time.strftime('%Y-%m-%d')}-{number}"
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder


def create(config: Config, folder: Path, *, command: Sequence[str] | None = None) -> Path:
    """The folder with the configuration and a record of code and machine; config.json comes last.

    Raises FileExistsError when something else lies there already.
    """
    if (folder / "config.json").exists():
        raise FileExistsError(
            f"{folder} already holds the run {_name_of(folder)!r}: go on with it (gramscope resume {folder}) "
            "or choose another folder with --out"
        )
    if folder.is_file() or (folder.is_dir() and any(entry.name != "code" for entry in folder.iterdir())):
        raise FileExistsError(f"{folder} is not empty and holds no run; choose another folder with --out")
    code = folder / "code"
    code.mkdir(parents=True, exist_ok=True)
    commit, changes = code_state()
    (code / "commit.txt").write_text(commit, encoding="utf-8")
    (code / "changes.diff").write_text(changes, encoding="utf-8", errors="surrogateescape")
    record = environment(config, sys.argv if command is None else command)
    (code / "environment.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    replace_text(folder / "config.json", to_json(config))
    return folder


def change(folder: Path, config: Config, *, at: int) -> None:
    """Gives a run another configuration from step `at` on; the one before is kept in code/."""
    before = (folder / "config.json").read_text(encoding="utf-8")
    if before != to_json(config):
        replace_text(folder / "code" / f"config-until-{at}.json", before)
        replace_text(folder / "config.json", to_json(config))


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Keeps a second process from training in the same folder; however this one ends, the lock goes with it.

    Raises BlockingIOError when another one is at it. Where there are no such locks (Windows, some network disks)
    nothing is kept out.
    """
    try:
        import fcntl
    except ModuleNotFoundError:
        yield
        return
    with (folder / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"{folder} is being trained by another process; wait for it, or stop it") from None
        except OSError:
            pass
        yield


def check_run(folder: Path) -> Config:
    """The configuration of a run folder. Raises ValueError, saying what is wrong, for anything else."""
    if not (folder / "config.json").is_file():
        near = runs_in(folder if folder.is_dir() else folder.parent)
        known = f"; runs there: {', '.join(run.name for run in near[-5:])}" if near else ""
        raise ValueError(f"{folder} is no run folder: it has no config.json{known}")
    try:
        return load_config(folder)
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'} cannot be read: {error}") from error


def runs_in(parent: Path) -> list[Path]:
    """The run folders in a folder, the one changed last at the end."""
    if not parent.is_dir():
        return []
    return sorted((path.parent for path in parent.glob("*/config.json")), key=lambda run: run.stat().st_mtime)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a last line that is only half there is left out, other broken ones with a warning."""
    return [entry for _, entry in _parsed(folder / "metrics.jsonl")]


def keep_metrics_before(folder: Path, step: int) -> None:
    """Leaves only whole lines of earlier steps in metrics.jsonl, so that a resumed run writes none twice."""
    path = folder / "metrics.jsonl"
    if path.exists():
        replace_text(path, "".join(f"{line}\n" for line, entry in _parsed(path) if entry["step"] < step))


def replace_text(path: Path, text: str) -> None:
    """Writes a file in one piece: whoever reads sees the old text or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def code_state(project: Path = PROJECT) -> tuple[str, str]:
    """The commit of the code (commit.txt) and what differs from it (changes.diff, names of new files on top).

    Both say so when the project is not a git checkout, as after a plain `pip install`.
    """
    top = _git(project, "rev-parse", "--show-toplevel")
    if top is None or Path(top.strip()).resolve() != project.resolve():
        return f"no git checkout; gramscope {_version('gramscope')}\n", "# no git checkout\n"
    commit = _git(project, "log", "-1", "--format=%H%n%cI%n%s") or "no commit yet\n"
    new = (_git(project, "ls-files", "--others", "--exclude-standard") or "").splitlines()
    named = "".join(f"# not in git: {name}\n" for name in new)
    return commit, named + (_git(project, "diff", "HEAD", "--binary", "--no-color", "--no-ext-diff") or "")


def environment(config: Config, command: Sequence[str]) -> dict[str, Any]:
    """What a run was started with: versions, machine, seed, command line. Imports nothing heavy."""
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": list(command),
        "seed": config.seed,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cpus": os.cpu_count(),
        "gpus": _gpus(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _parsed(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Whole lines and what they hold."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    broken = []
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            if line and number < len(lines):
                broken.append(number)
            continue
        if isinstance(entry, dict) and "step" in entry:
            yield line, entry
    if broken:
        warnings.warn(f"{path}: left out unreadable lines {', '.join(map(str, broken))}", stacklevel=3)


def _name_of(folder: Path) -> str:
    try:
        return load_config(folder).name
    except ValueError:
        return "unreadable"


def _git(project: Path, *arguments: str) -> str | None:
    """What git answers; None where it cannot."""
    if not shutil.which("git"):
        return None
    command = ["git", "-C", str(project), "-c", "core.quotepath=off", *arguments]
    try:
        out = subprocess.run(command, capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return out.stdout.decode("utf-8", "surrogateescape") if out.returncode == 0 else None


def _gpus() -> list[str]:
    """Names of the GPUs; asked of the driver, since torch would take memory on the first one."""
    if not (program := shutil.which("nvidia-smi")):
        return []
    command = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        out = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return out.stdout.splitlines() if out.returncode == 0 else []


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
