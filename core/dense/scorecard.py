"""What the panel says over the checkpoints of a run: means with intervals, which metric to trust here, and an alarm.

Readings are tables of checkpoints by images, the same images at every checkpoint. Nothing is summed up into one score.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

DRAWS = 2000  # of the bootstrap
LEVEL = 0.95
PATIENCE = 2  # checkpoints in a row that must be worse
WORST = 3  # images that an alarm names

Decay = Literal["rises", "falls"]


class Interval(NamedTuple):
    """A mean over images and where it would lie, in 95 of 100 cases, had other images like these been chosen."""

    mean: float
    low: float
    high: float


class Alarm(NamedTuple):
    """Dense quality fell and stayed down: since which checkpoint, against which, by how much (mean over images, for the
    worse positive), and the images that lost most, most first."""

    since: int
    best: int
    loss: Interval
    worst: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One metric over the checkpoints: its intervals, its rank correlation with the labelled proxy (NaN without one;
    1: it falls when the proxy falls, -1: it rises then), and its alarm if there is one."""

    name: str
    intervals: tuple[Interval, ...]
    tau: float
    alarm: Alarm | None


def interval(values: Float[np.ndarray, "N"], *, seed: int = 0) -> Interval:
    """The mean and its percentile bootstrap interval; images without a number are left out, all NaN gives NaN."""
    values = np.asarray(values, dtype=np.float64)
    values = values[~np.isnan(values)]
    if not len(values):
        return Interval(math.nan, math.nan, math.nan)
    draws = np.random.default_rng(seed).integers(len(values), size=(DRAWS, len(values)))
    low, high = np.quantile(values[draws].mean(1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(values.mean()), float(low), float(high))


def kendall(first: ArrayLike, second: ArrayLike) -> float:
    """Kendall's tau-b of two series, -1 to 1; pairs with a NaN are left out, NaN where one of the series is constant
    or has fewer than two numbers. Raises ValueError for series of different lengths."""
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"tau compares two series of one length, got {len(a)} and {len(b)}")
    kept = ~(np.isnan(a) | np.isnan(b))
    a, b = a[kept], b[kept]
    upper = np.triu_indices(len(a), 1)
    up, along = (np.sign(x[:, None] - x[None, :])[upper] for x in (a, b))
    moved = math.sqrt(np.count_nonzero(up) * np.count_nonzero(along))
    return float((up * along).sum() / moved) if moved else math.nan


def alarm(readings: Float[np.ndarray, "S N"], decay: Decay, *, seed: int = 0) -> Alarm | None:
    """The latest lasting loss: the last PATIENCE checkpoints, and maybe more before, are worse than the best one before
    them, image by image, by more than the bootstrap interval. None as long as that is not so."""
    worse = np.asarray(readings, dtype=np.float64) * (1 if decay == "rises" else -1)  # higher is worse
    if len(worse) <= PATIENCE:
        return None
    means = np.array([np.nanmean(row) if not np.isnan(row).all() else np.inf for row in worse])
    best = int(np.argmin(means[:-PATIENCE]))
    losses = [interval(row - worse[best], seed=seed) for row in worse]
    since = len(worse)
    while since - 1 > best and losses[since - 1].low > 0:
        since -= 1
    if len(worse) - since < PATIENCE:
        return None
    last = np.nan_to_num(worse[-1] - worse[best], nan=-np.inf)
    order = np.argsort(-last, kind="stable")[:WORST]
    return Alarm(since, best, losses[-1], tuple(int(index) for index in order))


def scorecard(
    readings: Mapping[str, Float[np.ndarray, "S N"]],
    decay: Mapping[str, Decay],
    proxy: ArrayLike | None = None,
    *,
    seed: int = 0,
) -> list[Line]:
    """A line a metric, in the order of `readings`. decay: which way each goes when dense quality falls; one that is not
    named has no alarm. proxy: labelled dense quality of every checkpoint, higher is better.

    Raises ValueError when tables have different numbers of checkpoints.
    """
    steps = {len(table) for table in readings.values()} | ({len(np.asarray(proxy))} if proxy is not None else set())
    if len(steps) > 1:
        raise ValueError(f"readings and proxy must speak of the same checkpoints, got {sorted(steps)} of them")
    lines = []
    for name, table in readings.items():
        intervals = tuple(interval(row, seed=seed) for row in table)
        tau = math.nan if proxy is None else kendall([each.mean for each in intervals], proxy)
        found = alarm(table, decay[name], seed=seed) if name in decay else None
        lines.append(Line(name=name, intervals=intervals, tau=tau, alarm=found))
    return lines
