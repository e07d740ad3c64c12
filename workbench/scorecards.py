"""The scorecard of a series of checkpoints, in words, as table and as curves: what notebooks and apps show of it."""

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from core.dense.degradation import PANEL
from core.dense.scorecard import Alarm, Line, kendall
from workbench.runs import RunSeries

LABELLED, UNLABELLED = "Dense quality, with labels", "Dense quality, without labels"
GLOBAL = "Global, not dense"
COLUMNS = ("Metric", "In decay it", "Now", "95 %", "tau with labels", "Alarm")


def rows_of(series: RunSeries) -> list[tuple[str, ...]]:
    """A row a metric, in the order of COLUMNS: its mean over images at the last checkpoint and the interval of that,
    Kendall's tau with the labelled proxy over this series, and its alarm in words. At the end stands what is global and
    not dense; its tau says which way it went."""
    rows: list[tuple[str, ...]] = []
    for line in series.scorecard():
        metric, now = PANEL[line.name], line.intervals[-1]
        alarm = "" if line.alarm is None or metric.reference else alarm_words(line.alarm, series)
        interval = "" if math.isnan(now.low) else f"{now.low:.3f} to {now.high:.3f}"
        rows.append((metric.title, metric.decay, _number(now.mean), interval, _number(line.tau), alarm))
    for title, values in _global(series).values():
        rows.append((title, "global, not dense", _number(values[-1]), "", _number(kendall(values, series.proxy())), ""))
    return rows


def _global(series: RunSeries) -> dict[str, tuple[str, list[float]]]:
    """Titles and numbers of what was measured of whole pictures."""
    asked = {
        "knn": ("k-NN accuracy", "knn", "top1_k10"),
        "rank_me": ("RankMe", "spectrum", "rank_me"),
        "lidar": ("LiDAR", "spectrum", "lidar"),
    }
    found = {name: (title, series.proxy(*where)) for name, (title, *where) in asked.items()}
    return {name: line for name, line in found.items() if not all(map(math.isnan, line[1]))}


def scorecard_html(series: RunSeries) -> str:
    """The rows as a table for a page or a notebook."""
    head = "".join(f"<th>{name}</th>" for name in COLUMNS)
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows_of(series))
    return f"<table class='card'><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


def curves_of(series: RunSeries) -> list[dict[str, Any]]:
    """The curves of the ribbon: labelled proxies, the panel with DSE, and what is global; empty ones are left out."""
    inside = series.proxy("objects", "auc")
    curves: list[dict[str, Any]] = [
        {"name": "miou", "title": "In-context mIoU", "decay": "falls", "group": LABELLED, "values": series.proxy()},
        {"name": "objects", "title": "Object AUC", "decay": "falls", "group": LABELLED, "values": inside},
        *(_curve(line, series) for line in series.scorecard()),
        {"name": "dse", "title": "DSE", "decay": "falls", "group": UNLABELLED, "values": series.together("dse")},
        *(
            {"name": name, "title": title, "group": GLOBAL, "values": values}
            for name, (title, values) in _global(series).items()
        ),
    ]
    curves = [curve | {"values": _numbers(curve["values"])} for curve in curves]
    return [curve for curve in curves if any(value is not None for value in curve["values"])]


def _curve(line: Line, series: RunSeries) -> dict[str, Any]:
    metric = PANEL[line.name]
    curve: dict[str, Any] = {
        "name": line.name,
        "title": metric.title + (f" to step {series.moments[0].step}" if metric.reference else ""),
        "decay": metric.decay,
        "group": UNLABELLED,
        "values": [each.mean for each in line.intervals],
        "low": _numbers([each.low for each in line.intervals]),
        "high": _numbers([each.high for each in line.intervals]),
    }
    if line.alarm is not None and not metric.reference:  # those that compare leave what they are compared with
        curve["alarm"] = {"since": line.alarm.since, "best": line.alarm.best, "words": alarm_words(line.alarm, series)}
    return curve


def alarm_words(alarm: Alarm, series: RunSeries) -> str:
    """What an alarm says, in a sentence."""
    best, since = series.moments[alarm.best], series.moments[alarm.since]
    worst = ", ".join(series.images[index] for index in alarm.worst)
    return f"Worse than at {best.title} since {since.title}; most on {worst}"


def _numbers(values: Sequence[float | None]) -> list[float | None]:
    """Plain numbers; JSON has no NaN."""
    return [None if value is None or math.isnan(value) else float(value) for value in values]
