from dataclasses import replace

import numpy as np
import pytest

from core.config import CropsConfig, CropSizes
from core.data.augment import HUE, SIGMA, draw_views

CROPS = CropsConfig(num_local=4)
SIZES = CropSizes(global_size=96, local_size=32)


def draw(count: int = 2000, height: int = 300, width: int = 400, first: int = 0, seed: int = 0, **changes):
    positions = np.arange(first, first + count)
    crops, sizes = replace(CROPS, **changes), SIZES
    return draw_views(crops, sizes, positions, np.full(count, height), np.full(count, width), seed=seed)


def leaves(views) -> list[np.ndarray]:
    parts = [views.global_boxes, views.global_colors, views.local_boxes, views.local_colors]
    return [column for part in parts for column in part]


def uniform(values: np.ndarray, low: float, high: float) -> None:
    """Moments of a uniform distribution to within five standard errors, and its whole interval."""
    values = (values - low) / (high - low)
    error = 5 / np.sqrt(12 * values.size)
    assert values.min() >= 0 and values.max() <= 1
    assert values.min() < 0.02 and values.max() > 0.98
    assert abs(values.mean() - 1 / 2) < error
    assert abs((values**2).mean() - 1 / 3) < 1.1 * error


def test_decisions_belong_to_the_position():
    """A batch cut in two, or another number of processes, draws the same for every image."""
    whole, parts = draw(8), [draw(4), draw(4, first=4)]
    for column, *pieces in zip(leaves(whole), *map(leaves, parts), strict=True):
        crops = [piece.reshape(-1, 4, *piece.shape[1:]) for piece in pieces]
        np.testing.assert_array_equal(column.reshape(-1, 8, *column.shape[1:]), np.concatenate(crops, axis=1))
    assert not np.array_equal(whole.global_boxes.top, draw(8, seed=1).global_boxes.top)


def test_areas_and_aspects_are_those_of_random_resized_crops():
    views = draw(height=2000, width=2000)  # large: rounding to pixels does not matter, and most tries fit
    for boxes, (low, high) in ((views.global_boxes, CROPS.global_scale), (views.local_boxes, CROPS.local_scale)):
        area, aspect = boxes.height * boxes.width / 2000**2, boxes.width / boxes.height
        assert low * 0.99 <= area.min() and area.max() <= high * 1.01
        assert aspect.min() >= 0.745 and aspect.max() <= 1.342
    local = views.local_boxes  # here every first try fits
    uniform(local.height * local.width / 2000**2, 0.0499, 0.3201)
    uniform(np.log(local.width / local.height), np.log(0.749), np.log(1 / 0.749))


def plain_box(numbers: np.ndarray, height: int, width: int, scale: tuple[float, float]) -> tuple[int, int]:
    """Height and width as torchvision's documentation has it: ten tries, then the centre."""
    for area_number, shape_number in zip(numbers[:10], numbers[10:20], strict=True):
        area = height * width * (scale[0] + area_number * (scale[1] - scale[0]))
        aspect = np.exp(np.log(3 / 4) + shape_number * (np.log(4 / 3) - np.log(3 / 4)))
        columns, rows = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if 0 < columns <= width and 0 < rows <= height:
            return rows, columns
    if width / height < 3 / 4:
        return round(width / (3 / 4)), width
    if width / height > 4 / 3:
        return height, round(height * (4 / 3))
    return height, width


@pytest.mark.parametrize(("height", "width"), [(96, 96), (60, 200), (200, 60), (7, 300), (1, 1), (96, 128)])
def test_boxes_are_those_of_the_plain_loop(height, width):
    from core.data.augment import NUMBERS
    from core.data.order import CROPS as KEY
    from core.data.order import generator

    views = draw(50, height=height, width=width)
    numbers = np.stack([generator(0, KEY, position).random((7, NUMBERS)) for position in range(50)], axis=1)
    crops = numbers[:2].reshape(100, NUMBERS)
    expected = [plain_box(row, height, width, CROPS.global_scale) for row in crops]
    boxes = views.global_boxes
    assert list(zip(boxes.height.tolist(), boxes.width.tolist(), strict=True)) == expected


def test_boxes_lie_inside_and_reach_every_border():
    for height, width in ((300, 400), (60, 80), (10, 9)):
        views = draw(height=height, width=width)
        for boxes in (views.global_boxes, views.local_boxes):
            assert min(boxes.top.min(), boxes.left.min()) == 0
            assert (boxes.top + boxes.height).max() == height and (boxes.left + boxes.width).max() == width


def test_places_are_uniform():
    boxes = draw(height=1000, width=1000).local_boxes
    uniform((boxes.top + 0.5) / (1000 - boxes.height + 1), 0, 1)
    uniform((boxes.left + 0.5) / (1000 - boxes.width + 1), 0, 1)


def test_chances_are_those_of_the_configuration():
    views = draw(4000)
    first, second = (views.global_colors.part(slice(i * 4000, (i + 1) * 4000)) for i in range(2))
    local, near = views.local_colors, 0.04
    assert views.global_boxes.flip.mean() == pytest.approx(0.5, abs=near)
    for colors, blur in ((first, 0.0), (second, 0.9), (local, 0.5)):
        assert colors.jitter.mean() == pytest.approx(0.8, abs=near)
        assert colors.grayscale.mean() == pytest.approx(0.2, abs=near)
        assert (colors.sigma > 0).mean() == pytest.approx(blur, abs=near)
    assert not first.solarize.any() and not local.solarize.any() and not (first.sigma > 0).any()
    assert second.solarize.mean() == pytest.approx(0.2, abs=near)
    assert draw(flip=0.0).global_boxes.flip.sum() == 0


def test_strengths_are_uniform_between_their_ends():
    colors = draw().local_colors
    for column, (low, high) in enumerate([(0.6, 1.4), (0.6, 1.4), (0.8, 1.2), (-0.1, 0.1)]):
        uniform(colors.factors[:, column].astype(float), low - 1e-6, high + 1e-6)
    uniform(colors.sigma[colors.sigma > 0].astype(float), SIGMA[0] - 1e-6, SIGMA[1] + 1e-6)
    wild = draw(brightness=1.5, hue=0.9).local_colors.factors
    assert wild[:, 0].min() >= 0 and abs(wild[:, HUE]).max() <= 0.5


def test_all_orders_of_the_colour_jitter_are_about_as_frequent():
    order = draw(6000).local_colors.order  # 24,000 of them
    counts = np.unique(order @ 4 ** np.arange(4), return_counts=True)[1]
    assert len(counts) == 24
    assert ((counts - 1000) ** 2 / 1000).sum() < 49.7  # chi-square, 23 degrees of freedom, p = 0.001


def test_crops_of_one_image_are_drawn_apart():
    boxes = draw(1, height=1000, width=1000)
    places = {*boxes.global_boxes.top.tolist(), *boxes.local_boxes.top.tolist()}
    assert len(places) == 6


def test_a_shared_jitter_is_taken_from_the_crops():
    views = draw(share_jitter=True)
    for colors in (views.global_colors, views.local_colors):
        assert not colors.jitter.any() and not colors.grayscale.any() and (colors.sigma > 0).any()
    shared = views.shared_colors
    assert shared is not None and len(shared.jitter) == 2000
    assert shared.jitter.mean() == pytest.approx(0.8, abs=0.04) and not (shared.sigma > 0).any()
    assert draw().shared_colors is None


def test_windows_start_at_patches_and_never_at_the_last_place():
    windows = draw(local_in_global=True).windows
    assert windows is not None and windows.shape == (4 * 2000, 2)
    assert set(windows.ravel().tolist()) == {0, 16, 32, 48}  # (96 - 32) // 16 places
    assert draw().windows is None
