import math

import numpy as np
import pytest

from core.data.masks import ASPECT, MIN_PATCHES, TRIES, batch_masks, block_mask
from core.data.order import generator


@pytest.mark.parametrize("grid", [(4, 4), (8, 8), (14, 14), (5, 9)])
def test_counts_are_exact(grid):
    cells = grid[0] * grid[1]
    for count in (0, 1, 3, cells // 4, cells // 2, cells):
        mask = block_mask(*grid, count, generator(0, count))
        assert mask.shape == grid and mask.sum() == count


def plain_block_mask(height: int, width: int, count: int, random: np.random.Generator) -> np.ndarray:
    """The scheme once more, patch by patch."""
    mask = [[False] * width for _ in range(height)]
    masked, largest = 0, int(0.5 * height * width)
    while masked < count:
        limit, added = min(count - masked, largest), 0
        for size, shape, place_y, place_x in random.random((TRIES, 4)):
            area = MIN_PATCHES + size * (limit - MIN_PATCHES)
            aspect = ASPECT[0] * (ASPECT[1] / ASPECT[0]) ** shape
            rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if rows < height and columns < width:
                top, left = math.floor(place_y * (height - rows + 1)), math.floor(place_x * (width - columns + 1))
                cells = [(y, x) for y in range(top, top + rows) for x in range(left, left + columns)]
                new = [(y, x) for y, x in cells if not mask[y][x]]
                if 0 < len(new) <= limit:
                    for y, x in new:
                        mask[y][x] = True
                    added = len(new)
                    break
        if not added:
            break
        masked += added
    rest = [index for index in range(height * width) if not mask[index // width][index % width]]
    for index in random.choice(rest, count - masked, replace=False):
        mask[index // width][index % width] = True
    return np.array(mask)


@pytest.mark.parametrize(("grid", "count"), [((14, 14), 80), ((14, 14), 19), ((8, 8), 32), ((4, 4), 5), ((6, 11), 33)])
def test_masks_are_those_of_the_plain_scheme(grid, count):
    for seed in range(20):
        expected = plain_block_mask(*grid, count, generator(seed))
        np.testing.assert_array_equal(block_mask(*grid, count, generator(seed)), expected)


def test_masks_are_blocks_and_not_noise():
    """Neighbours of masked patches are masked far more often than others."""
    masks = np.stack([block_mask(14, 14, 60, generator(seed)) for seed in range(50)])
    right = masks[:, :, 1:][masks[:, :, :-1]].mean()
    noise = np.random.default_rng(0).permuted(masks.reshape(50, -1), axis=1).reshape(masks.shape)
    assert right > 0.75 > 0.4 > noise[:, :, 1:][noise[:, :, :-1]].mean()


def test_ratios_are_spread_over_the_masked_crops():
    masks = batch_masks(64, (16, 16), generator(1))
    counts = np.sort(masks.sum(axis=1))
    assert (counts[:32] == 0).all()
    np.testing.assert_array_equal(counts[32:], [int(256 * ratio) for ratio in np.linspace(0.1, 0.5, 33)[1:]])


def test_any_crop_may_be_masked():
    masked = np.mean([batch_masks(8, (4, 4), generator(seed)).any(axis=1) for seed in range(400)], axis=0)
    np.testing.assert_allclose(masked, 0.5, atol=0.1)


@pytest.mark.parametrize(
    ("share", "ratios", "count"), [(0.0, (0.1, 0.5), 0), (1.0, (0.3, 0.3), 19), (0.5, (0.0, 0.0), 0)]
)
def test_shares_at_their_ends(share, ratios, count):
    masks = batch_masks(6, (8, 8), generator(0), masked_crops=share, mask_ratio=ratios)
    assert (masks.sum(axis=1).max(), masks.any(axis=1).sum()) == (count, round(6 * share) if count else 0)


def test_a_shift_rolls_and_keeps_counts():
    plain = batch_masks(8, (8, 8), generator(3))
    shifted = batch_masks(8, (8, 8), generator(3), shift=True)
    np.testing.assert_array_equal(np.sort(shifted.sum(axis=1)), np.sort(plain.sum(axis=1)))
    assert not np.array_equal(plain, shifted)


def test_global_random_numbers_are_left_alone():
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first = batch_masks(8, (8, 8), generator(3))
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002
    np.testing.assert_array_equal(first, batch_masks(8, (8, 8), generator(3)))
