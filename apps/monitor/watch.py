"""What the monitor knows of a folder of runs; it looks again whenever it is asked."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.run_folder import runs_in
from workbench.packs import Pack
from workbench.runs import SHIPPED, STORY, Run, RunSeries, open_run
from workbench.scorecards import curves_of

Signature = tuple[tuple[str, int], ...]  # (run, step) of every moment


@dataclass(frozen=True)
class Shown:
    """A series as its views are told of it: packs by moment and image, and the state of the slider."""

    series: RunSeries
    table: list[list[Pack]]
    state: dict[str, Any]

    @property
    def packs(self) -> list[Pack]:
        """In the order of the slider: image after image, moment after moment."""
        return [pack for row in self.table for pack in row]


class Watch:
    """A folder of runs, or a run. The same series is measured and coloured once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._last: tuple[Signature, Shown] | None = None

    @property
    def names(self) -> list[str]:
        """Runs that are there, the one changed last at the end; damaged ones are left out."""
        return [path.name for path in self._paths() if _opens(path)]

    @property
    def latest(self) -> list[str]:
        """The run with probes that changed last, after those here that it goes on from; nothing where none has probes.

        A run that was left before its end, or that shows other images, is no part of the story.
        """
        if self.folder == SHIPPED:  # whose files are as old as their clone
            return list(STORY)
        story = [name for name in self.names if self.signature([name])][-1:]
        while story and (before := self._before(story[0])) and before not in story:
            try:
                RunSeries.of(self.runs([before, *story]))
            except ValueError:
                break
            story.insert(0, before)
        return story

    def runs(self, names: list[str]) -> list[Run]:
        """These runs, in the order in which they are given. Raises ValueError for one that is not there."""
        paths = {path.name: path for path in self._paths()}
        if missing := [name for name in names if name not in paths]:
            raise ValueError(f"{self.folder} holds no run {', '.join(missing)} any more")
        return [open_run(paths[name]) for name in names]

    def signature(self, names: list[str]) -> Signature:
        """What tells a series from an earlier one of the same runs; cheap to ask."""
        return tuple((run.name, step) for run in self.runs(names) for step in run.probe_steps)

    def show(self, names: list[str]) -> Shown:
        """The series of these runs. Raises ValueError where there are no probes, or of other images."""
        signature = self.signature(names)
        if self._last is None or self._last[0] != signature:
            series = RunSeries.of(self.runs(names))
            # The first of them, not the last: while a run trains, colours then stay as they are.
            table = series.colored(reference=_reference(len(series)))
            state = {
                "moments": [{"run": moment.run.name, "step": moment.step} for moment in series.moments],
                "images": series.images,
                "curves": curves_of(series),
                "queries": [_middle(pack) for pack in table[0]],
            }
            self._last = signature, Shown(series, table, state)
        return self._last[1]

    def progress(self, names: list[str]) -> str:
        """Where each run stands, a line each, for people."""
        lines = []
        for run in self.runs(names):
            last = run.metrics[-1] if run.metrics else {}
            total = last.get("total")
            told = f", total loss {total:.4g}" if isinstance(total, float) and math.isfinite(total) else ""
            lines.append(f"{run.name}: step {run.step} of {run.config.steps}{told}, {len(run.probe_steps)} checkpoints")
        return "\n".join(lines)

    def _before(self, name: str) -> str | None:
        """The run with probes whose last weights this one began with, if it is here."""
        (run,) = self.runs([name])
        before, _, step = Path(run.config.init.student).name.partition("@")
        if before not in self.names or not (steps := self.runs([before])[0].probe_steps):
            return None
        return before if not step or (step.isdecimal() and int(step) >= steps[-1]) else None

    def _paths(self) -> list[Path]:
        return [self.folder] if (self.folder / "config.json").is_file() else runs_in(self.folder)


def _middle(pack: Pack) -> dict[str, Any]:
    """A query to begin with, so that there is something to see."""
    width, height = pack.geometry.width, pack.geometry.height
    return {"image": pack.picture["digest"], "x": width / 2, "y": height / 2, "sign": 1}


def _reference(moments: int) -> int:
    """The second checkpoint, where there is one: the first may be that of an untrained net."""
    return min(1, moments - 1)


def _opens(path: Path) -> bool:
    try:
        open_run(path)
    except ValueError:
        return False
    return True
