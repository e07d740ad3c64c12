"""Schedules against the reference's arrays, numpy and closed forms."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from safetensors import safe_open

from core.config import Config, DataConfig, OptimConfig
from core.schedules import Schedule, constant, lr_factor, rates_at, scaled


def test_schedules_are_the_golden_ones(shared):
    with safe_open(shared / "golden" / "schedules.safetensors", framework="np") as file:
        for name in file.keys():  # noqa: SIM118 - no dictionary
            told = json.loads(file.metadata()[name])
            schedule = Schedule(
                start=float(told["start"]),
                peak=float(told["peak"]),
                end=float(told["end"]),
                warmup=told["warmup_iterations"],
                cosine=told.get("cosine_iterations"),
            )
            expected = file.get_tensor(name)
            values = [schedule.at(step, told["total_iterations"]) for step in range(len(expected))]
            assert np.array_equal(np.array(values, expected.dtype), expected), name


def test_warmup_and_cosine_agree_with_numpy():
    schedule = Schedule(start=0.1, peak=2.0, end=0.5, warmup=7, cosine=13)
    angle = np.linspace(0, np.pi, 13)
    expected = np.concatenate(
        [np.linspace(0.1, 2.0, 7, endpoint=False), 0.5 + 1.5 * (1 + np.cos(angle)) / 2, np.full(10, 0.5)]
    )
    assert [schedule.at(step, 30) for step in range(30)] == pytest.approx(expected.tolist(), abs=1e-15)


def test_a_cosine_without_length_ends_with_the_run():
    schedule = Schedule(start=0.0, peak=1.0, end=0.25, warmup=10, cosine=None)
    assert schedule.at(10, 50) == 1.0
    assert schedule.at(49, 50) == 0.25


def test_equal_start_and_peak_of_zero_make_a_half_cosine_upwards():
    schedule = Schedule(start=0.0, peak=0.0, end=2.0, cosine=11)
    values = [schedule.at(step, 20) for step in range(20)]
    assert values[0] == 0
    assert values[5] == pytest.approx(1.0)
    assert values[10:] == [2.0] * 10
    assert all(a <= b for a, b in itertools.pairwise(values))


def test_the_older_form_reaches_its_peak_in_warmup_and_stops_above_its_end():
    schedule = Schedule(start=0.0, peak=1.0, end=0.1, warmup=5, cosine=None, inclusive=True)
    assert [schedule.at(step, 25) for step in range(5)] == pytest.approx(np.linspace(0, 1, 5).tolist())
    cosine = [0.1 + 0.5 * 0.9 * (1 + math.cos(math.pi * i / 20)) for i in range(20)]
    assert [schedule.at(step, 25) for step in range(5, 25)] == pytest.approx(cosine)
    assert schedule.at(25, 25) == 0.1


def test_a_stretched_cosine_is_cut_and_rescaled():
    length, stretch = 40, 0.25
    angle = np.linspace(0, np.pi, int(1.25 * length))[:length]
    shares = (np.cos(angle) + 1) / 2
    shares = (shares - shares[-1]) / (1 - shares[-1])
    schedule = Schedule(start=1.0, peak=1.0, end=0.2, cosine=None, inclusive=True, stretch=stretch)
    values = [schedule.at(step, length) for step in range(length)]
    assert values == pytest.approx((0.2 + 0.8 * shares).tolist())


def test_a_constant_is_constant():
    assert {constant(0.3).at(step, 5) for step in range(9)} == {0.3}


@pytest.mark.parametrize("wrong", [{"warmup": -1}, {"cosine": -2}, {"stretch": 0.5}])
def test_impossible_schedules_are_refused(wrong):
    with pytest.raises(ValueError, match=r"schedule|stretch"):
        Schedule(start=0.0, peak=1.0, end=0.0, **wrong)


@pytest.mark.parametrize(
    ("scaling", "batch", "base", "effective"),
    [
        ("sqrt_1024", 4096, 5e-5, 4.0e-4),
        ("sqrt_1024", 2048, 1e-3, 5.657e-3),
        ("sqrt_1024", 1776, 5e-5, 2.634e-4),
        ("linear_256", 1024, 1e-3, 4e-3),
        ("none", 4096, 1e-3, 1e-3),
    ],
)
def test_learning_rates_follow_the_batch(scaling, batch, base, effective):
    assert scaled(constant(base), lr_factor(scaling, batch)).peak == pytest.approx(effective, rel=1e-4)


def test_the_older_form_scales_its_peak_alone():
    assert scaled(Schedule(start=0.0, peak=1.0, end=0.1, inclusive=True), 2.0).end == 0.1


def test_last_layers_wait():
    optim = OptimConfig(lr=constant(0.5), scaling="none", freeze_last_layer=3)
    config = Config(steps=10, optim=optim, data=DataConfig(batch_size=8))
    assert [rates_at(step, config).last_layer_lr for step in (0, 2, 3)] == [0.0, 0.0, 0.5]
    assert rates_at(0, config).lr == 0.5


def test_a_run_without_gram_anchoring_has_no_gram_weight():
    config = Config(steps=10)
    assert rates_at(0, config).gram_weight == 0.0
    assert replace(config, steps=5) != config
