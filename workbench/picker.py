"""Which checkpoint should be the Gram teacher? What each would show, what its loss would be, and the next stage.

The paper (section 4.3, table on the choice): teachers from early in training, seen at twice the resolution and averaged
down, heal dense features best.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from core.checkpoint import load_teacher, teacher_steps
from core.config import Config
from core.dense.degradation import PANEL, DenseMap, on_grid_of
from core.dense.extract import extract
from core.preview import first_terms
from core.probes import Probe, map_of, open_probes
from core.recipes import recipe
from workbench.runs import Run

SHOWN = ("local_distant", "cls_patch_cosine", "query_locality")  # metrics by which candidates are compared


@dataclass(frozen=True)
class Candidate:
    """A checkpoint as a Gram teacher: means of a few metrics over the probes, at the probes' size and at twice that
    brought down again, and the Gram loss that the next stage would begin with (None where it was not asked for)."""

    step: int
    once: dict[str, float]
    twice: dict[str, float]
    loss: float | None


def stage(run: Run, step: int, *, name: str = "nano_gram") -> Config:
    """The next stage of a run: the recipe `name` on its data, from its newest teacher, anchored to that of `step`.

    Raises ValueError for a step without an exported teacher, naming those there are.
    """
    known = teacher_steps(run.folder)
    if step not in known:
        raise ValueError(
            f"{run.name} exported no teacher of step {step}; there are: {', '.join(map(str, known)) or 'none'}"
        )
    base = recipe(name)
    return replace(
        base,
        data=run.config.data,
        init=replace(base.init, student=str(run.folder)),
        gram=replace(base.gram, teacher=f"{run.folder}@{step}"),
    )


def candidates(
    run: Run, steps: Sequence[int] | None = None, *, name: str = "nano_gram", predict: bool = True
) -> list[Candidate]:
    """What each exported teacher of a run would be like as a Gram teacher, in order of their steps."""
    probes = open_probes(run.config)
    found = []
    for step in teacher_steps(run.folder) if steps is None else steps:
        config = stage(run, step, name=name)
        maps = [both_sizes(run.folder, step, probe, run.config.run.probe_size) for probe in probes]
        once, twice = ([pair[at] for pair in maps] for at in (0, 1))
        loss = first_terms(config)["gram"] if predict else None
        found.append(Candidate(step, _means(once), _means(twice), loss))
    return found


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
