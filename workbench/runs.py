"""Training runs as they lie on disk: their numbers, their probes, and what became of dense quality over checkpoints.

    run = open_run("runs/nano")
    run.evaluation("knn")["top1_k10"]        # {0: 0.27, 500: 0.32, ...}
    series = RunSeries.of([run])             # its probes, a moment a checkpoint
    series.pack(series.moments[3], image=0)
    series.table("cls_patch_cosine")         # moments x images

A run that is still training may be opened; `refresh` looks again.
"""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from core.config import Config
from core.dense.color import align, fit_basis
from core.dense.degradation import PANEL, DenseMap
from core.dense.extract import DenseFeatures
from core.dense.geometry import carried
from core.dense.packs import Pack, PackError, open_pack, with_basis
from core.dense.scorecard import Decay, Line, scorecard
from core.probes import READINGS, Readings, map_of, packs_at, probe_steps, read_maps, readings_at
from core.run_folder import check_run, read_metrics

KEPT = 64  # opened packs; they are mapped, not read
SHIPPED = Path(__file__).with_name("series")  # small runs that come with the project
STORY = ("dense", "decay", "heal")  # of them, in the order in which they go on from each other


class Run:
    """A run's folder. Numbers are read when they are first asked for, and again after `refresh`."""

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder, self.config = folder, config
        self._metrics: list[dict[str, Any]] | None = None

    def __repr__(self) -> str:
        return f"Run({self.name!r}, {self.step} of {self.config.steps} steps, {len(self.probe_steps)} with probes)"

    @property
    def name(self) -> str:
        return self.folder.name

    def refresh(self) -> None:
        """Forgets what was read: a run goes on."""
        self._metrics = None

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; see core/metrics.py for what they hold."""
        if self._metrics is None:
            self._metrics = read_metrics(self.folder)
        return self._metrics

    @property
    def step(self) -> int:
        """Steps finished, as far as the metrics tell; they are written every few steps."""
        return self.metrics[-1]["step"] + 1 if self.metrics else 0

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of one number of the metrics. Raises KeyError, naming what there is."""
        found = [(line["step"], line[name]) for line in self.metrics if line.get(name) is not None]
        if not found:
            known = sorted({key for line in self.metrics for key in line} - {"step"})
            raise KeyError(f"{self.name} has no {name!r}; there are: {', '.join(known) or 'no metrics yet'}")
        steps, values = zip(*found, strict=True)
        return list(steps), list(values)

    def evaluation(self, name: str) -> dict[str, dict[int, float]]:
        """The numbers of an evaluation (`knn`, `incontext`, ...), each by step; empty where there was none."""
        found: dict[str, dict[int, float]] = {}
        files = {int(path.parent.name): path for path in self.folder.glob(f"evals/*/{name}.json")}
        for step in sorted(files):
            for key, value in json.loads(files[step].read_text(encoding="utf-8")).items():
                found.setdefault(key, {})[step] = math.nan if value is None else float(value)
        return found

    @property
    def probe_steps(self) -> list[int]:
        """Steps whose probes are all there: the panel is written last. Runs of old have none; then packs are enough."""
        steps = probe_steps(self.folder)
        whole = [step for step in steps if (self.folder / "probes" / str(step) / READINGS).exists()]
        return whole or [step for step in steps if packs_at(self.folder, step)]

    def packs(self, step: int) -> list[Path]:
        """The packs of a step, one a probe. Raises ValueError, naming the steps there are."""
        found = packs_at(self.folder, step)
        if not found:
            known = ", ".join(map(str, self.probe_steps)) or "none"
            raise ValueError(f"{self.name} has no probes of step {step}; there are: {known}")
        return found

    def readings(self, step: int) -> Readings:
        """The panel at a step: as training wrote it, or measured now from packs that have none."""
        if (found := readings_at(self.folder, step)) is not None:
            return found
        return _measured(tuple(self.packs(step)))


@lru_cache(maxsize=512)
def _measured(paths: tuple[Path, ...]) -> Readings:
    return read_maps([map_of(open_pack(path).features()) for path in paths], [], None)


def open_run(folder: str | os.PathLike[str]) -> Run:
    """The run in a folder. Raises ValueError, saying what is wrong, where there is none."""
    path = Path(folder).expanduser()
    return Run(path, check_run(path))


def shipped_run(name: str) -> Run:
    """A small run that comes with the project: `dense`, `decay`, `heal`, `heal_without` or `nano_pretrain`
    (workbench/series/README.md).

    Raises ValueError for another name.
    """
    known = sorted(path.parent.name for path in SHIPPED.glob("*/config.json"))
    if name not in known:
        raise ValueError(f"no run called {name!r} comes with the project; there are: {', '.join(known)}")
    return open_run(SHIPPED / name)


def shipped_seeds() -> list[dict[str, Any]]:
    """What three seeds of `dense`, `decay`, `heal` and `heal_without` came to, a row a checkpoint: {"run", "seed",
    "step", "at": steps over all runs, "miou", "objects", "knn", "cls_patch_cosine", "local_distant"}; measured on
    photographs that were held out (workbench/series/README.md)."""
    rows: list[dict[str, Any]] = json.loads((SHIPPED / "seeds.json").read_text(encoding="utf-8"))
    return rows


@dataclass(frozen=True)
class Moment:
    """One checkpoint: a step of a run."""

    run: Run
    step: int

    @property
    def title(self) -> str:
        return f"{self.run.name}, step {self.step}"


class RunSeries:
    """Checkpoints of one run, or of several stages one after the other, all looking at the same probe images."""

    def __init__(self, moments: Sequence[Moment], images: Sequence[str]) -> None:
        self.moments, self.images = list(moments), list(images)

    def __len__(self) -> int:
        return len(self.moments)

    def __repr__(self) -> str:
        return f"RunSeries({len(self.moments)} moments, {len(self.images)} images)"

    @classmethod
    def of(cls, runs: Sequence[Run]) -> "RunSeries":
        """All checkpoints with probes, run after run. Raises ValueError where there are none, or of other images."""
        moments = [Moment(run, step) for run in runs for step in run.probe_steps]
        if not moments:
            of = ", ".join(run.name for run in runs)
            raise ValueError(f"{of or 'no run'}: no probes yet; train with run.probe_every")
        shown: dict[tuple[str, ...], Moment] = {}
        names: list[str] = []
        for moment in moments:
            packs = [_open(path) for path in moment.run.packs(moment.step)]
            names = [str(pack.picture["name"]) for pack in packs]
            shown.setdefault(tuple(str(pack.picture["digest"]) for pack in packs), moment)
        if len(shown) > 1:
            first, second = list(shown.values())[:2]
            raise ValueError(f"{first.title} and {second.title} look at different images; open them one by one")
        return cls(moments, names)

    def pack(self, moment: Moment, image: int) -> Pack:
        """What a moment's teacher saw of an image. Raises IndexError for an image that is not there."""
        paths = moment.run.packs(moment.step)
        if not 0 <= image < len(paths):
            raise IndexError(f"there is no image {image} among {len(paths)}")
        return _open(paths[image])

    def map(self, moment: Moment, image: int) -> DenseMap:
        """The same, ready to be measured."""
        return map_of(self.pack(moment, image).features())

    def colored(self, *, reference: int = -1) -> list[list[Pack]]:
        """All packs, [moment][image], with colours that can be followed: one basis over all images a moment, fitted on
        the moment `reference`, and at the others turned to agree with it on the same patches (orthogonal Procrustes).

        Between moments of another grid than the reference's the middles of patches are compared.
        """
        packs = [[self.pack(moment, image) for image in range(len(self.images))] for moment in self.moments]
        maps = [[pack.features() for pack in row] for row in packs]
        patches = [[x.patches for x in row] for row in maps]
        valid = [[x.valid for x in row] for row in maps]
        bases = [fit_basis(x, valid=mask) for x, mask in zip(patches, valid, strict=True)]
        at = range(len(bases))[reference]
        for moment, row in enumerate(maps):
            if moment == at:
                continue
            theirs = [_on_grid(there, here) for there, here in zip(maps[at], row, strict=True)]
            bases[moment] = align(
                bases[moment],
                torch.cat([x.patches[x.valid] for x in row]),
                bases[at],
                torch.cat([x[here.valid] for x, here in zip(theirs, row, strict=True)]),
            ).basis
        return [[with_basis(pack, basis) for pack in row] for row, basis in zip(packs, bases, strict=True)]

    def table(self, metric: str, *, against: Moment | None = None) -> Float[np.ndarray, "S N"]:
        """A metric of the panel at every moment for every image. One that compares does so with the moment `against`,
        or with the first one. Raises KeyError for a metric that is not in the panel."""
        if metric not in PANEL:
            raise KeyError(f"no metric {metric!r}; there are: {', '.join(PANEL)}")
        if not PANEL[metric].reference:
            return np.array([moment.run.readings(moment.step).images[metric] for moment in self.moments])
        against = self.moments[0] if against is None else against
        references = [self.map(against, image) for image in range(len(self.images))]
        return np.array(
            [
                [
                    PANEL[metric].measure(self.map(moment, image), reference)
                    for image, reference in enumerate(references)
                ]
                for moment in self.moments
            ]
        )

    def together(self, name: str) -> list[float]:
        """DSE or one of its parts (`core.dense.degradation.Structure`) at every moment; NaN where there is none."""
        return [moment.run.readings(moment.step).together.get(name, math.nan) for moment in self.moments]

    def proxy(self, evaluation: str = "incontext", name: str = "miou") -> list[float]:
        """A labelled number at every moment; NaN where the run did not evaluate there."""
        found = {
            id(run): run.evaluation(evaluation).get(name, {})
            for run in {id(m.run): m.run for m in self.moments}.values()
        }
        return [found[id(moment.run)].get(moment.step, math.nan) for moment in self.moments]

    def scorecard(self, *, against: Moment | None = None, proxy: Sequence[float] | None = None) -> list[Line]:
        """A line a metric: intervals over images, tau against the labelled proxy of this series, alarm."""
        tables = {name: self.table(name, against=against) for name in PANEL}
        decay: dict[str, Decay] = {name: metric.decay for name, metric in PANEL.items()}
        proxy = self.proxy() if proxy is None else list(proxy)
        return scorecard(tables, decay, None if all(map(math.isnan, proxy)) else proxy)


def _on_grid(there: DenseFeatures, here: DenseFeatures) -> Float[Tensor, "H W D"]:
    """Patches of one map at the places of another one's: the patch that the middle of each lies in."""
    if there.geometry == here.geometry:
        return there.patches
    return torch.from_numpy(carried(there.patches.numpy(), there.geometry, here.geometry))


@lru_cache(maxsize=KEPT)
def _opened(path: Path, changed: int) -> Pack:
    return open_pack(path)


def _open(path: Path) -> Pack:
    """A pack, opened once; one that was written again is opened again."""
    try:
        return _opened(path, path.stat().st_mtime_ns)
    except PackError as error:
        raise ValueError(f"{path} cannot be shown: {error}") from error
