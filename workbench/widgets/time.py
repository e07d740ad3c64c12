"""The checkpoint slider as a notebook widget: a photograph through the checkpoints of a run, and the curves beneath."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import traitlets
from PIL import Image

from core.dense.geometry import patch_centre, pixel_to_patch
from core.dense.packs import Pack
from workbench.draw import COLORMAPS
from workbench.plots import moment_curves
from workbench.runs import Run, RunSeries, open_run
from workbench.scorecards import curves_of
from workbench.views import check_camera, check_limits, check_queries, draw_pane
from workbench.widgets.host import PackWidget

STILLS = 4  # checkpoints in the picture that stays without a kernel


class TimeSlider(PackWidget):
    """Checkpoints of a run, one photograph at a time, with the query and the colours held fixed.

        view = TimeSlider("runs/nano")                # a run, several stages, or a RunSeries
        view.point = (12, 30)                         # row and column in the grid of the first checkpoint
        view.time = 3; view.against = 0; view.compare = "difference"
        view.against = "control"                      # of several runs: that one's checkpoint of the same step
        view.save("decay.html")                       # opens from disk, with no server

    `curves` are the panel of dense quality with its intervals over the probe images, and what was evaluated with
    labels; their alarms say since when dense quality is worse than it was.
    """

    _entry = "time.js"
    moments = traitlets.List(traitlets.Dict()).tag(sync=True)  # {run, step}
    images = traitlets.List(traitlets.Unicode()).tag(sync=True)
    curves = traitlets.List(traitlets.Dict()).tag(sync=True)  # see ribbon.js
    time = traitlets.Int(0).tag(sync=True)
    image = traitlets.Int(0).tag(sync=True)
    show = traitlets.Enum(["similarity", "pca", "photo"], "similarity").tag(sync=True)
    against: Any = traitlets.Any(None, allow_none=True).tag(sync=True)  # a moment's number, or a run's name
    compare = traitlets.Enum(["beside", "swipe", "difference", "rank"], "beside").tag(sync=True)
    metric = traitlets.Unicode("").tag(sync=True)
    queries = traitlets.List(traitlets.Dict()).tag(sync=True)
    threshold = traitlets.Float(None, allow_none=True).tag(sync=True)
    opacity = traitlets.Float(0.7, min=0, max=1).tag(sync=True)
    colormap = traitlets.Enum(list(COLORMAPS), "viridis").tag(sync=True)
    limits = traitlets.List(traitlets.Float(), [0.0, 1.0], minlen=2, maxlen=2).tag(sync=True)
    smooth = traitlets.Bool(False).tag(sync=True)
    camera = traitlets.Dict(default_value={"x": 0.5, "y": 0.5, "zoom": 1}).tag(sync=True)

    def __init__(
        self, *source: RunSeries | Run | str | Path, point: tuple[int, int] | None = None, **state: Any
    ) -> None:
        self.series = series_of(source)
        self.table = self.series.colored()
        super().__init__(
            packs=[pack for row in self.table for pack in row],
            moments=[{"run": moment.run.name, "step": moment.step} for moment in self.series.moments],
            images=self.series.images,
            curves=curves_of(self.series),
            **{"time": len(self.series) - 1} | state,
        )
        if point is not None:
            self.point = point

    @property
    def point(self) -> tuple[int, int] | None:
        """Row and column of the first query, on the grid of the first checkpoint of the image on show."""
        pack = self.table[0][self.image]
        mine = [query for query in self.queries if query["image"] == pack.picture["digest"]]
        return pixel_to_patch(pack.geometry, mine[0]["x"], mine[0]["y"]) if mine else None

    @point.setter
    def point(self, cell: tuple[int, int] | None) -> None:
        pack = self.table[0][self.image]
        x, y = patch_centre(pack.geometry, *cell) if cell else (0, 0)
        self.queries = [{"image": pack.picture["digest"], "x": x, "y": y, "sign": 1}] if cell else []

    @property
    def pack(self) -> Pack:
        """What the slider shows."""
        return self.table[self.time][self.image]

    def plot(self, *names: str) -> go.FigureWidget:
        """Some of `curves`, the first three without names, as a chart: a click on a point moves the slider there, and
        a line in the chart follows the slider. Raises KeyError for a curve that is not there."""
        known = {curve["name"]: curve for curve in self.curves}
        if missing := [name for name in names if name not in known]:
            raise KeyError(f"no curve {', '.join(missing)}; there are: {', '.join(known)}")
        titles = [moment.title for moment in self.series.moments]
        figure = go.FigureWidget(moment_curves(titles, [known[name] for name in names or list(known)[:3]]))
        figure.add_vline(x=self.time, line={"color": "gray", "width": 1})

        def go_to(trace: Any, points: Any, state: Any) -> None:
            if points.point_inds:
                self.time = points.point_inds[0]

        def follow(change: Any) -> None:
            figure.update_shapes(x0=change.new, x1=change.new)

        traces: Any = figure.data
        for trace in traces:
            trace.on_click(go_to)
        self.observe(follow, "time")
        return figure

    def still(self) -> Image.Image:
        """A few checkpoints side by side."""
        chosen = np.unique(np.linspace(0, len(self.table) - 1, min(STILLS, len(self.table))).round().astype(int))
        packs = [self.table[time][self.image] for time in chosen.tolist()]
        style = {name: getattr(self, name) for name in ("colormap", "opacity", "smooth", "threshold")}
        style["limits"] = tuple(self.limits)
        drawn = [draw_pane([pack], {"pack": 0, "show": self.show}, self.queries, **style) for pack in packs]
        height = min(picture.shape[0] for picture in drawn)
        parts = [
            Image.fromarray(picture).resize((round(picture.shape[1] * height / picture.shape[0]), height))
            for picture in drawn
        ]
        whole = Image.new("RGB", (sum(part.width for part in parts) + 8 * (len(parts) - 1), height), "white")
        for part, left in zip(parts, np.cumsum([0] + [part.width + 8 for part in parts]), strict=False):
            whole.paste(part, (int(left), 0))
        return whole

    @traitlets.validate("time", "image", "against")
    def _there(self, proposal: Any) -> int | str | None:
        name, value = proposal.trait.name, proposal.value
        if isinstance(value, str):
            runs = list(dict.fromkeys(moment["run"] for moment in self.moments))
            if runs and value not in runs:
                raise traitlets.TraitError(f"against is a moment's number or a run, {', '.join(runs)}; not {value!r}")
            return value
        count = len(self.images) if name == "image" else len(self.moments)
        if value is not None and (not isinstance(value, int) or (count and not 0 <= value < count)):
            raise traitlets.TraitError(f"{name} is a number from 0 to {count - 1}, not {value}")
        return value

    @traitlets.validate("queries", "camera", "limits")
    def _checked(self, proposal: Any) -> Any:
        checks: dict[str, Callable[[Any, Any], object]] = {
            "queries": check_queries,
            "camera": check_camera,
            "limits": check_limits,
        }
        try:
            checks[proposal.trait.name](self.packs, proposal.value)
        except ValueError as error:
            raise traitlets.TraitError(str(error)) from error
        return proposal.value


def series_of(source: Sequence[RunSeries | Run | str | Path]) -> RunSeries:
    """The series that runs, or folders of runs, make one after the other."""
    if len(source) == 1 and isinstance(source[0], RunSeries):
        return source[0]
    runs: list[Run] = []
    for item in source:
        if isinstance(item, RunSeries):
            raise ValueError("give one series, or runs to make one of")
        runs.append(item if isinstance(item, Run) else open_run(item))
    return RunSeries.of(runs)
