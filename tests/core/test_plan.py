"""The cost model: its arithmetic, the best split, and that one more student adds only its own cost."""

import itertools

import pytest

from core.plan import Costs, suggest, text


def test_a_step_costs_what_the_paper_says():
    costs = Costs(0.5, {"a": 2.0, "b": 4.0})
    assert costs.seconds(12, {"a": 2, "b": 4}) == {"a": 12 / 6 * 0.5 + 12 / 2 * 2.0, "b": 12 / 6 * 0.5 + 12 / 4 * 4.0}


def test_another_student_with_its_own_processes_adds_only_its_own_cost():
    """The paper's point: with processes of its own it even takes some of the teachers' work."""
    costs = Costs(0.5, {"a": 2.0, "b": 4.0})
    alone, both = Costs(0.5, {"a": 2.0}).seconds(12, {"a": 2})["a"], costs.seconds(12, {"a": 2, "b": 4})["a"]
    assert both < alone
    total = sum(costs.seconds(12, {"a": 2, "b": 4})[name] * count for name, count in {"a": 2, "b": 4}.items())
    assert total == pytest.approx(12 * 0.5 + 12 * 2.0 + 12 * 4.0)  # processor time: the teachers once


@pytest.mark.parametrize("everybody", [3, 5, 8, 12])
def test_the_suggested_split_is_the_best_of_all(everybody):
    batch = 48
    costs = Costs(0.1, {"s": 1.0, "m": 2.5, "l": 7.0})
    names = list(costs.students)
    splits = [
        dict(zip(names, counts, strict=True))
        for counts in itertools.product(range(1, everybody + 1), repeat=3)
        if sum(counts) == everybody and all(batch % count == 0 for count in counts)
    ]
    best = min(max(costs.seconds(batch, split).values()) for split in splits)
    assert max(costs.seconds(batch, suggest(costs, batch, everybody)).values()) == pytest.approx(best)


def test_too_few_processes_and_impossible_splits_are_refused():
    costs = Costs(0.1, {"a": 1.0, "b": 1.0})
    with pytest.raises(ValueError, match="2 students need at least 2 processes, got 1"):
        suggest(costs, 8, 1)
    with pytest.raises(ValueError, match=r"no split of 7 processes fits.*try 6 processes"):
        suggest(Costs(0.1, {"a": 1.0, "b": 1.0}), 4, 7)


def test_a_plan_reads_as_a_table():
    said = text(Costs(0.01, {"small": 0.02, "large": 0.06}), 12, {"small": 1, "large": 3})
    assert "small                        1         20.0      0.27     0%" in said
    assert "expected: 0.27 s a step, 44.4 images/s" in said
