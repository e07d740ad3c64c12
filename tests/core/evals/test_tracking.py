"""J and F beside a slow plain version and on constructed masks."""

import math

import numpy as np
import pytest

from core.evals.tracking import contour, contour_accuracy, jaccard, widened


def plain_contour(mask: np.ndarray) -> np.ndarray:
    """Pixel by pixel."""
    height, width = mask.shape
    found = np.zeros_like(mask)
    for y in range(height):
        for x in range(width):
            others = [(y, x + 1), (y + 1, x), (y + 1, x + 1)]
            found[y, x] = any(mask[v, u] != mask[y, x] for v, u in others if v < height and u < width)
    return found


def plain_f(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Every contour pixel asks for the nearest one of the other contour."""
    radius = math.ceil(0.008 * math.hypot(*truth.shape))
    ours, theirs = (np.argwhere(plain_contour(mask)) for mask in (predicted, truth))
    if not len(ours) or not len(theirs):
        return float(len(ours) == len(theirs))
    apart = np.sqrt(((ours[:, None] - theirs[None]) ** 2).sum(-1))
    precision, recall = (apart.min(1) <= radius).mean(), (apart.min(0) <= radius).mean()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def blobs(seed: int, height: int = 60, width: int = 90) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(height // 10, width // 10))
    return np.kron(noise, np.ones((10, 10))) > 0.3


@pytest.mark.parametrize("seed", range(4))
def test_contours_and_their_accuracy_are_those_of_the_slow_version(seed):
    predicted, truth = blobs(seed), blobs(seed + 10)
    predicted[20:30, 30:50] = truth[20:30, 30:50]
    assert np.array_equal(contour(predicted), plain_contour(predicted))
    assert contour_accuracy(predicted, truth) == pytest.approx(plain_f(predicted, truth), abs=1e-12)


def test_equal_masks_are_perfect_and_empty_ones_agree():
    mask, empty = blobs(1), np.zeros((60, 90), bool)
    assert jaccard(mask, mask) == contour_accuracy(mask, mask) == 1
    assert jaccard(empty, empty) == contour_accuracy(empty, empty) == 1
    assert jaccard(mask, empty) == contour_accuracy(mask, empty) == contour_accuracy(empty, mask) == 0


def test_a_contour_may_lie_a_pixel_off_and_not_far_off():
    truth = np.zeros((100, 100), bool)
    truth[20:80, 20:80] = True
    near, far = np.roll(truth, 1, axis=1), np.roll(truth, 10, axis=1)
    assert contour_accuracy(near, truth) == 1 > jaccard(near, truth)
    assert contour_accuracy(far, truth) < 0.7


def test_the_edge_of_the_picture_is_no_contour():
    everything = np.ones((20, 30), bool)
    assert not contour(everything).any()
    half = everything.copy()
    half[:, 15:] = False
    assert contour(half).sum() == 20


def test_a_widened_point_is_a_disk():
    point = np.zeros((21, 21), bool)
    point[10, 10] = True
    y, x = np.mgrid[:21, :21] - 10
    assert np.array_equal(widened(point, 4), x**2 + y**2 <= 16)
