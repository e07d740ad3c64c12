"""Which checkpoint should be the Gram teacher? What each would show, what its loss would be, and the next stage.

The paper (section 4.3, table on the choice): teachers from early in training, seen at twice the resolution and averaged
down, heal dense features best.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from core.checkpoint import load_teacher, teacher_steps
from core.config import Config
from core.dense.color import align, fit_basis, to_rgb
from core.dense.degradation import PANEL, DenseMap, on_grid_of
from core.dense.extract import extract
from core.doctor import check, report
from core.preview import first_terms
from core.probes import Probe, map_of, open_probes
from core.recipes.nano import anchored
from core.run_folder import create
from workbench.runs import Run

SHOWN = ("local_distant", "cls_patch_cosine", "query_locality")  # metrics by which candidates are compared


@dataclass(frozen=True)
class Candidate:
    """A checkpoint as a Gram teacher: means of a few metrics over the probes, at the probes' size and at twice that
    brought down again, the Gram loss that the next stage would begin with (None where it was not asked for), and the
    maps at both sizes, a pair a probe."""

    step: int
    once: dict[str, float]
    twice: dict[str, float]
    loss: float | None
    maps: list[tuple[DenseMap, DenseMap]] = field(repr=False, compare=False)


def stage(run: Run, step: int) -> Config:
    """The next stage of a run, with its model and data: from its newest teacher, anchored to that of `step`.

    Raises ValueError for a step without an exported teacher, naming those there are.
    """
    known = teacher_steps(run.folder)
    if step not in known:
        raise ValueError(
            f"{run.name} exported no teacher of step {step}; there are: {', '.join(map(str, known)) or 'none'}"
        )
    return anchored(run.config, student=str(run.folder), teacher=f"{run.folder}@{step}")


def write_stage(run: Run, step: int, folder: Path) -> Config:
    """Makes the folder of that stage, which `gramscope resume FOLDER` then trains, and returns its configuration.

    Raises ValueError for what the doctor marks red, FileExistsError for a folder that is there already.
    """
    config = stage(run, step)
    red = [finding for finding in check(config, folder=folder) if finding.level == "red"]
    if red:
        raise ValueError("the doctor does not let this stage pass:\n" + report(red))
    create(config, folder)
    return config


def candidates(run: Run, steps: Sequence[int] | None = None, *, predict: bool = True) -> list[Candidate]:
    """What each exported teacher of a run would be like as a Gram teacher, in order of their steps."""
    probes = open_probes(run.config)
    found = []
    for step in teacher_steps(run.folder) if steps is None else steps:
        maps = [both_sizes(run.folder, step, probe, run.config.run.probe_size) for probe in probes]
        once, twice = ([pair[at] for pair in maps] for at in (0, 1))
        loss = first_terms(stage(run, step))["gram"] if predict else None
        found.append(Candidate(step, _means(once), _means(twice), loss, maps))
    return found


def pictures(found: Sequence[Candidate], probe: int = 0) -> list[tuple[UInt8[np.ndarray, "h w 3"], ...]]:
    """A probe as each candidate maps it, in colours that can be compared: at its size, and from twice that.

    A pixel a patch. The colours are principal components of the first candidate's larger map, at the others turned to
    agree with them (orthogonal Procrustes on the same patches).
    """
    first = found[0].maps[probe][1]
    basis = fit_basis(first.patches, valid=first.valid)
    shown = []
    for candidate in found:
        once, twice = candidate.maps[probe]
        own = fit_basis(twice.patches, valid=twice.valid)
        own = (
            basis if candidate is found[0] else align(own, twice.patches, basis, first.patches, valid=twice.valid).basis
        )
        seen = once.valid  # without what was only padded
        shown.append(tuple(to_rgb(own, map.patches).numpy()[seen.any(1)][:, seen.any(0)] for map in (once, twice)))
    return shown


@torch.no_grad()
def both_sizes(folder: Path, step: int, probe: Probe, size: int | None) -> tuple[DenseMap, DenseMap]:
    """A probe as a teacher maps it, and at twice the size brought to the same grid, as Gram anchoring does."""
    backbone, _ = load_teacher(f"{folder}@{step}")
    long = max(probe.pixels.shape[:2]) if size is None else size
    once = map_of(extract(backbone, probe.pixels, size=long))
    return once, on_grid_of(map_of(extract(backbone, probe.pixels, size=2 * long)), once)


def _means(maps: Sequence[DenseMap]) -> dict[str, float]:
    values: Float[Tensor, "M N"] = torch.tensor([[PANEL[name].measure(map) for map in maps] for name in SHOWN])
    return dict(zip(SHOWN, values.nanmean(1).tolist(), strict=True))
