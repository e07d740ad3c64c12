"""A run made small enough to give away: what the views read, without its weights and its training photographs.

Probes of other photographs than the run's own, which may not be given away, are made anew from the teachers it kept.
"""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path, PurePath
from typing import Any

from core.checkpoint import load_teacher, teacher_steps
from core.config import Config, from_json, to_json
from core.probes import Probe, write_probes
from core.run_folder import check_run, read_metrics, replace_text
from workbench.images import open_image
from workbench.runs import open_run

LINES = 200  # of the metrics: as many as a curve on a screen can show


def share_run(
    run: str | os.PathLike[str],
    to: str | os.PathLike[str],
    *,
    steps: Sequence[int] | None = None,
    photos: Sequence[str | os.PathLike[str]] = (),
    size: int | None = None,
    licence: str = "",
) -> Path:
    """The folder `to`, which every view opens as the run: configuration, curves, evaluations and probes.

    steps: only these; without them all that have probes, or, with photos, all whose teacher was kept. photos: pictures
    to look at in place of the run's own probes, through the kept teachers, with the long side at `size` pixels; their
    packs say `licence`, under which these features may be passed on. Paths in the configuration are cut to their last
    part: they say something of the machine alone. Raises ValueError for a folder that holds no run and for steps that
    are not there, BadImage for a picture that cannot be read, FileExistsError where `to` is not empty; then nothing is
    written.
    """
    source, folder = Path(run).expanduser(), Path(to).expanduser()
    config = check_run(source)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already; name a new folder")
    there = sorted(teacher_steps(source)) if photos else open_run(source).probe_steps
    wanted = there if steps is None else sorted(set(steps))
    if not wanted or (missing := [step for step in wanted if step not in there]):
        kind = "kept teacher" if photos else "probes"
        known = ", ".join(map(str, there)) or "none"
        asked = ", ".join(map(str, missing)) if wanted else "any step"
        raise ValueError(f"{source.name} has no {kind} of {asked}; there are: {known}")
    probes = [Probe(photo.name, photo.pixels) for photo in map(open_image, photos)]
    folder.mkdir(parents=True, exist_ok=True)
    for step in wanted:
        if photos:
            backbone, _ = load_teacher(f"{source}@{step}")
            write_probes(folder, step, backbone.eval(), probes, size=size, licence=licence)
        else:
            shutil.copytree(source / "probes" / str(step), folder / "probes" / str(step))
    for path in source.glob("evals/*/*.json"):
        if path.parent.name.isdecimal():
            replace_text(folder / path.relative_to(source), path.read_text(encoding="utf-8"))
    lines = read_metrics(source)
    thinned = lines[:-1:stride] + lines[-1:] if (stride := -(-len(lines) // LINES)) > 1 else lines
    replace_text(folder / "metrics.jsonl", "".join(f"{json.dumps(line)}\n" for line in thinned))
    replace_text(folder / "config.json", to_json(without_places(config)))  # last: what has it is a run
    return folder


def without_places(config: Config) -> Config:
    """The configuration with every absolute path cut to its last part; a run keeps its step ("RUN@STEP")."""

    def cut(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: cut(part) for key, part in value.items()}
        if isinstance(value, list | tuple):
            return [cut(part) for part in value]
        return PurePath(value).name if isinstance(value, str) and PurePath(value).is_absolute() else value

    return from_json(json.dumps(cut(asdict(config))))
