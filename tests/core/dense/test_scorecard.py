"""Means, intervals, rank correlations and the alarm of a run's readings."""

import math

import numpy as np
import pytest
from scipy.stats import kendalltau

from core.dense.scorecard import alarm, interval, kendall, scorecard


def falling(images: int = 20, spread: float = 0.02) -> np.ndarray:
    """Eight checkpoints: quality rises for three, then falls; each image has a level of its own."""
    draw = np.random.default_rng(0)
    course = np.array([0.2, 0.3, 0.4, 0.38, 0.33, 0.28, 0.22, 0.2])
    return course[:, None] + draw.normal(0, 0.3, images) + draw.normal(0, spread, (8, images))


def test_the_interval_covers_the_truth_as_often_as_it_says():
    draw = np.random.default_rng(1)
    inside = [(found := interval(draw.normal(5, 2, 40), seed=n)).low < 5 < found.high for n in range(300)]
    assert 0.90 < np.mean(inside) < 0.98


def test_the_interval_of_one_number_is_that_number():
    assert interval(np.array([3.0, math.nan])) == (3, 3, 3)
    assert all(map(math.isnan, interval(np.array([math.nan]))))


@pytest.mark.parametrize("seed", range(5))
def test_tau_is_that_of_scipy(seed):
    draw = np.random.default_rng(seed)
    a, b = draw.integers(0, 6, 25).astype(float), draw.normal(size=25)
    assert kendall(a, b) == pytest.approx(kendalltau(a, b).statistic, abs=1e-12)
    assert kendall(a, -a) == pytest.approx(-1)


def test_tau_of_nothing():
    assert math.isnan(kendall([1, 1, 1], [1, 2, 3]))
    assert math.isnan(kendall([1], [1]))
    assert kendall([1, math.nan, 2], [1, 0, 2]) == 1
    with pytest.raises(ValueError, match="one length"):
        kendall([1, 2], [1, 2, 3])


def test_a_lasting_fall_rings_since_it_began_and_names_the_worst():
    table = falling()
    table[-1, [4, 7, 11]] -= [0.5, 0.3, 0.4]
    found = alarm(table, "falls")
    assert found is not None
    assert (found.since, found.best) == (3, 2)
    assert found.worst == (4, 11, 7)
    assert found.loss.low > 0.15
    assert alarm(-table, "rises") == found


def test_no_alarm_while_it_rises_wavers_or_has_healed():
    table = falling()
    assert alarm(table[:3], "falls") is None
    assert alarm(table[::-1][:6], "falls") is None  # rises from 0.2 to 0.4
    healed = np.concatenate([table, table[2:3] + 0.01])
    assert alarm(healed, "falls") is None
    assert alarm(np.concatenate([table[:3], table[6:7], table[2:3]]), "falls") is None  # one bad checkpoint
    flat = np.random.default_rng(3).normal(0, 1, (8, 20))
    assert alarm(flat, "falls") is None


def test_images_of_very_different_levels_do_not_hide_a_fall():
    """Compared image by image: their levels differ by more than the fall of 0.2."""
    table = falling(images=6) + np.linspace(-1, 1, 6)
    assert alarm(table, "falls") is not None
    first, last = interval(table[2]), interval(table[-1])
    assert first.low < last.high  # intervals of the means overlap


def test_a_line_a_metric():
    table = falling()
    course = table.mean(1)
    lines = scorecard({"good": table, "odd": table[::-1]}, {"good": "falls"}, proxy=course)
    good, odd = lines
    assert [line.name for line in lines] == ["good", "odd"]
    assert good.tau == pytest.approx(1)
    assert good.alarm is not None and odd.alarm is None
    assert [each.mean for each in good.intervals] == pytest.approx(course)
    assert math.isnan(scorecard({"good": table}, {})[0].tau)
    with pytest.raises(ValueError, match="same checkpoints"):
        scorecard({"good": table}, {}, proxy=course[:3])
