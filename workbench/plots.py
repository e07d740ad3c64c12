"""Charts: is this cosine high, and how does a run get on?"""

import json
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots
from torch import Tensor

from core.dense.reference import NullCurves, histogram
from core.dense.similarity import block_cosines
from workbench.runs import Run, RunSeries

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")  # Okabe-Ito: told apart by everybody
BLUE, ORANGE, GREEN = COLORS[:3]
GRID = {"gridcolor": "rgba(128,128,128,0.25)", "zerolinecolor": "rgba(128,128,128,0.5)"}
TERMS = ("total", "dino_global", "dino_local", "ibot", "koleo", "gram")


def cosine_histogram(
    cosines: Float[Tensor, "H W"], null: NullCurves, *, mark: float | None = None, signed: bool = False
) -> go.Figure:
    """The query's cosines (bars) against random pairs of the same picture and of other pictures (lines).

    All are densities over the same fixed bins. `mark` draws a vertical line, `signed` widens the axis to -2..2 for
    maps with negative queries.
    """
    limits = (-2.0, 2.0) if signed else (-1.0, 1.0)
    figure = go.Figure()
    centres, density = _density(cosines, limits)
    figure.add_bar(
        x=centres,
        y=density,
        name="this query",
        marker_color=BLUE,
        opacity=0.55,
        width=centres[1] - centres[0],
    )
    curves = [("random pairs, same photo", null.same_image, ORANGE, "solid")]
    if null.other_images is not None:
        curves.append(("pairs with the other photo", null.other_images, GREEN, "dash"))
    for name, values, color, dash in curves:
        _, density = _density(values, limits)
        figure.add_scatter(
            x=centres, y=density, name=name, mode="lines", line={"color": color, "width": 2, "dash": dash}
        )
    if mark is not None:
        figure.add_vline(x=mark, line={"color": "gray", "width": 1, "dash": "dot"})
    return _styled(figure, "cosine", "density", x_range=limits)


def cosine_by_distance(null: NullCurves) -> go.Figure:
    """Mean cosine of patches by how many cells lie between them: how local the features are."""
    figure = go.Figure()
    shown = null.counts > 0
    figure.add_scatter(
        x=null.distances[shown].numpy(),
        y=null.by_distance[shown].numpy(),
        mode="lines",
        name="all pairs of the photo",
        line={"color": ORANGE, "width": 2},
    )
    return _styled(figure, "distance in cells (rows + columns)", "mean cosine", y_range=(-0.2, 1.0))


def knn_curve(runs: Sequence[str | Path], *, measure: str = "top1_k10") -> go.Figure:
    """k-NN accuracy of runs over their steps, and what always answering the commonest class would get.

    Reads evals/<step>/knn.json in each run's folder. Raises FileNotFoundError for a run that was never evaluated.
    """
    figure = go.Figure()
    for run, color in zip(map(Path, runs), COLORS, strict=False):
        steps, numbers = _evaluated(run)
        for name in sorted(key for key in numbers[0] if key.endswith(measure)):
            part = name.rpartition("/")[0]
            figure.add_scatter(
                x=steps,
                y=[entry[name] for entry in numbers],
                mode="lines+markers",
                name=f"{run.name}, {part or 'mean'}",
                line={"color": color, "width": 1 if part else 3, "dash": _dash(part, numbers[0])},
            )
        chance = numbers[0]["majority"]
        figure.add_scatter(
            x=[steps[0], steps[-1]],
            y=[chance, chance],
            mode="lines",
            name=f"{run.name}, commonest class",
            line={"color": "gray", "width": 1, "dash": "dot"},
        )
    return _styled(figure, "step", "k-NN accuracy", y_range=(0.0, 1.0))


def knn_stages(stages: Sequence[str | Path], *, measure: str = "top1_k10") -> go.Figure:
    """The same of runs that continue each other, one after the other: a colour a data set, a line where a stage begins.

    Between two stages there may be a jump: each is evaluated on crops of its own size. Raises FileNotFoundError for a
    run that was never evaluated.
    """
    figure, before, highest = go.Figure(), 0, 0.0
    for number, run in enumerate(map(Path, stages)):
        steps, numbers = _evaluated(run)
        at = [before + step for step in steps]
        parts = sorted(key for key in numbers[0] if key.endswith(measure))
        for name, color in zip(parts, COLORS, strict=False):
            part, values = name.rpartition("/")[0], [entry[name] for entry in numbers]
            highest = max(highest, *values)
            figure.add_scatter(
                x=at,
                y=values,
                mode="lines+markers",
                name=part or "mean",
                legendgroup=part,
                showlegend=number == 0,
                line={"color": color, "width": 2 if part else 4},
            )
        chance = numbers[0]["majority"]
        figure.add_scatter(
            x=[at[0], at[-1]],
            y=[chance, chance],
            mode="lines",
            name="commonest class",
            showlegend=number == 0,
            line={"color": "gray", "width": 1, "dash": "dot"},
        )
        # Turned, since a stage may be short; the first name stands level at the foot.
        figure.add_annotation(
            x=at[0],
            y=0,
            text=run.name,
            textangle=-90 if number else 0,
            showarrow=False,
            xanchor="left",
            yanchor="bottom",
        )
        if number:
            figure.add_vline(x=at[0], line={"color": "gray", "width": 1})
        before = at[-1]
    return _styled(figure, "step, over all stages", "k-NN accuracy", y_range=(0.0, highest * 1.05))


def run_curves(runs: Sequence[Run]) -> go.Figure:
    """The loss terms of runs over their steps: a colour a term, runs told apart by their dashes."""
    figure = go.Figure()
    for run, dash in zip(runs, ("solid", "dash", "dot", "dashdot"), strict=False):
        terms = [name for name in TERMS if any(line.get(name) is not None for line in run.metrics)]
        for name in terms:
            steps, values = run.curve(name)
            label = f"{run.name}, {name}" if len(runs) > 1 else name
            line = {"color": COLORS[TERMS.index(name) % len(COLORS)], "width": 1.5, "dash": dash}
            figure.add_scatter(x=steps, y=values, mode="lines", name=label, line=line)
    figure = _styled(figure, "step", "loss, unweighted")
    return figure.update_layout(height=420)


def moment_curves(titles: Sequence[str], curves: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Curves of `workbench.scorecards.curves_of` one under the other, a point a checkpoint, with their intervals.

    Checkpoints stand side by side at equal distances, as under the slider. Raises ValueError for no curves.
    """
    if not curves:
        raise ValueError("a figure needs a curve; a series without probes has none")
    count, at = len(curves), list(range(len(titles)))
    names = [f"<b>{curve['title']}</b>" for curve in curves]
    figure = make_subplots(count, 1, shared_xaxes=True, vertical_spacing=0.22 / max(count, 2), subplot_titles=names)
    for row, (curve, color) in enumerate(zip(curves, cycle(COLORS)), start=1):
        if "low" in curve:
            edge = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "row": row, "col": 1}
            figure.add_scatter(x=at, y=curve["low"], **edge)
            figure.add_scatter(x=at, y=curve["high"], fill="tonexty", fillcolor="rgba(128,128,128,0.25)", **edge)
        figure.add_scatter(
            x=at, y=curve["values"], mode="lines+markers", name=curve["title"], text=list(titles), row=row, col=1,
            line={"color": color, "width": 2}, marker={"size": 8}, hovertemplate="%{text}<br>%{y:.4g}<extra></extra>",
        )  # fmt: skip
    shown = sorted({*at[:: max(len(at) // 8, 1)], at[-1]})
    figure = _styled(figure, "", "").update_layout(height=60 + 160 * count, showlegend=False, hovermode="closest")
    figure.update_xaxes(tickvals=shown, ticktext=[titles[number] for number in shown], **GRID)
    figure.update_yaxes(**GRID)
    return figure.update_layout(margin={"t": 28}).update_annotations(font_size=12, x=0, xanchor="left")


def seed_curves(rows: Sequence[Mapping[str, Any]], measures: Mapping[str, str]) -> go.Figure:
    """What several seeds of runs that continue each other say: a plot a measure, a colour a run, a thin line a seed and
    a thick one their mean.

    rows: {"run", "seed", "at": steps over all runs, and a number a measure}; measures: their names and titles. A line
    begins where the run before it ended, so that branches leave one point. Raises ValueError for no rows.
    """
    if not rows:
        raise ValueError("a figure needs rows; there are none")
    runs = list(dict.fromkeys(row["run"] for row in rows))
    colors = dict(zip(runs, cycle(COLORS)))
    titles = [f"<b>{title}</b>" for title in measures.values()]
    figure = make_subplots(
        len(measures), 1, shared_xaxes=True, vertical_spacing=0.2 / len(measures), subplot_titles=titles
    )
    for number, name in enumerate(measures, start=1):
        for run in runs:
            lines = [_line(rows, run, seed, name) for seed in dict.fromkeys(row["seed"] for row in rows)]
            at = lines[0][0]
            style = {"mode": "lines", "row": number, "col": 1, "name": run, "legendgroup": run}
            for _, values in lines:
                line = {"color": colors[run], "width": 1}
                figure.add_scatter(x=at, y=values, line=line, opacity=0.5, showlegend=False, hoverinfo="skip", **style)
            mean = np.mean([values for _, values in lines], axis=0)
            figure.add_scatter(x=at, y=mean, line={"color": colors[run], "width": 3}, showlegend=number == 1, **style)
    figure = _styled(figure, "", "").update_layout(height=80 + 150 * len(measures), margin={"t": 56})
    figure.update_layout(legend={"y": 1 + 26 / (150 * len(measures))})
    figure.update_xaxes(**GRID).update_yaxes(**GRID)
    figure.update_xaxes(title="step, over all runs", row=len(measures), col=1)
    return figure.update_annotations(font_size=12, x=0, xanchor="left")


def _line(rows: Sequence[Mapping[str, Any]], run: str, seed: Any, name: str) -> tuple[list[int], list[float]]:
    """Where a run of a seed was measured and what came out, from the end of the run before it."""
    own = sorted((row["at"], row[name]) for row in rows if (row["run"], row["seed"]) == (run, seed))
    before = [(row["at"], row[name]) for row in rows if row["seed"] == seed and row["at"] < own[0][0]]
    points = [max(before), *own] if before else own
    return [at for at, _ in points], [value for _, value in points]


def gram_sheet(series: RunSeries, image: int = 0, *, side: int = 64, columns: int = 5) -> go.Figure:
    """The matrices of cosines of one image over the checkpoints of a series, as means over blocks, in one colour scale.

    Patches stand row by row of the photograph. Dense decay shows as squares that fade into one grey.
    """
    count = len(series)
    rows = -(-count // columns)
    figure = make_subplots(
        rows, min(columns, count), subplot_titles=[moment.title for moment in series.moments],
        horizontal_spacing=0.02, vertical_spacing=0.3 / max(rows, 2),
    )  # fmt: skip
    for at, moment in enumerate(series.moments):
        map = series.map(moment, image)
        blocks = block_cosines(map.unit, side).numpy()
        figure.add_heatmap(z=blocks, coloraxis="coloraxis", row=at // columns + 1, col=at % columns + 1)
    figure.update_xaxes(visible=False, constrain="domain")
    figure.update_yaxes(visible=False, autorange="reversed", scaleanchor="x", constrain="domain")
    for number in range(2, count + 1):
        figure.update_layout({f"yaxis{number}": {"scaleanchor": f"x{number}"}})
    figure.update_annotations(font_size=11)
    scale = {"colorscale": "Viridis", "cmin": 0, "cmax": 1, "colorbar": {"title": "cosine", "thickness": 10}}
    return figure.update_layout(
        coloraxis=scale, height=60 + 190 * rows, margin={"l": 8, "r": 8, "t": 30, "b": 8},
        paper_bgcolor="rgba(0,0,0,0)", font={"color": "#808890", "size": 12},
    )  # fmt: skip


def _evaluated(run: Path) -> tuple[list[int], list[dict[str, float]]]:
    """Steps at which a run was evaluated, and what came out."""
    found = sorted((int(path.parent.name), path) for path in run.glob("evals/*/knn.json"))
    if not found:
        raise FileNotFoundError(f"{run} holds no evals/<step>/knn.json; set run.evaluate_every")
    return [step for step, _ in found], [json.loads(path.read_text(encoding="utf-8")) for _, path in found]


def _dash(part: str, names: dict[str, float]) -> str:
    """Parts are told apart by their dashes, as runs are by colours."""
    parts = sorted({name.rpartition("/")[0] for name in names} - {""})
    return "solid" if not part else ("dash", "dot", "dashdot", "longdash")[parts.index(part) % 4]


def _density(values: Tensor, limits: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    counts, edges = histogram(values, limits=limits)
    width = float(edges[1] - edges[0])
    centres = ((edges[1:] + edges[:-1]) / 2).numpy()
    return centres, counts.numpy() / max(int(counts.sum()), 1) / width


def _styled(
    figure: go.Figure,
    x: str,
    y: str,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
) -> go.Figure:
    figure.update_layout(
        height=260,
        margin={"l": 48, "r": 12, "t": 8, "b": 40},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": "#808890", "size": 12},
        hovermode="x unified",
        bargap=0,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        xaxis={"title": x, "range": x_range, **GRID},
        yaxis={"title": y, "range": y_range, **GRID},
    )
    return figure
