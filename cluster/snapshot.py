"""The code of a run, copied into its folder: tomorrow's edit does not change a job that waits in a queue."""

import shutil
from collections.abc import Sequence
from pathlib import Path


def copy_code(packages: Sequence[Path], place: Path) -> Path:
    """Copies the packages into `place`, anew, and returns it, for PYTHONPATH.

    What is not code, weights and pictures beside it, is linked to where it lies. Replaces what an earlier call left.
    """
    draft = place.with_name(f"{place.name}.new")
    shutil.rmtree(draft, ignore_errors=True)
    for package in packages:
        _copy(package, draft / package.name)
    if place.exists():
        shutil.rmtree(place)
    draft.rename(place)
    return place


def _copy(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for entry in sorted(source.iterdir()):
        if entry.name in ("__pycache__", ".DS_Store"):
            continue
        if entry.is_dir() and any(entry.rglob("*.py")):
            _copy(entry, target / entry.name)
        elif entry.suffix in (".py", ".js", ".css", ".html", ".txt", ".toml"):
            shutil.copy2(entry, target / entry.name)
        else:
            (target / entry.name).symlink_to(entry.resolve(), target_is_directory=entry.is_dir())
