"""Which patches the student must guess: random blocks, an exact number of patches a crop (as released, after BEiT)."""

import math

import numpy as np
from jaxtyping import Bool

MIN_PATCHES = 4  # of one block
ASPECT = (0.3, 1 / 0.3)  # of one block, log-uniform
TRIES = 10


def block_mask(
    height: int, width: int, count: int, random: np.random.Generator, max_share: float = 0.5
) -> Bool[np.ndarray, "h w"]:
    """A grid with exactly `count` patches masked: overlapping blocks while they fit, then single patches."""
    mask = np.zeros((height, width), dtype=bool)
    largest = int(max_share * height * width)
    masked = 0
    while masked < count:
        added = _add_block(mask, min(count - masked, largest), random)
        if not added:
            break
        masked += added
    rest = np.flatnonzero(~mask)
    mask.flat[random.choice(rest, count - masked, replace=False)] = True
    return mask


def _add_block(mask: np.ndarray, limit: int, random: np.random.Generator) -> int:
    """Masks one more block of at most `limit` new patches; how many it added, 0 when no try did."""
    height, width = mask.shape
    low, high = math.log(ASPECT[0]), math.log(ASPECT[1])
    draws = random.random((TRIES, 4))  # one call: four numbers a try
    for size, shape, place_y, place_x in draws.tolist():
        area = MIN_PATCHES + size * (limit - MIN_PATCHES)  # below 4 patches the interval is simply turned round
        aspect = math.exp(low + shape * (high - low))
        rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if rows >= height or columns >= width:
            continue
        top, left = int(place_y * (height - rows + 1)), int(place_x * (width - columns + 1))
        block = mask[top : top + rows, left : left + columns]
        added = block.size - int(np.count_nonzero(block))
        if 0 < added <= limit:
            block[:] = True
            return added
    return 0


def batch_masks(
    crops: int,
    grid: tuple[int, int],
    random: np.random.Generator,
    *,
    masked_crops: float = 0.5,
    mask_ratio: tuple[float, float] = (0.1, 0.5),
    shift: bool = False,
) -> Bool[np.ndarray, "crops patches"]:
    """Masks of a batch of global crops: a share of them is masked, by ratios spread evenly over an interval."""
    height, width = grid
    masks = np.zeros((crops, height * width), dtype=bool)
    number = int(crops * masked_crops)
    ratios = np.linspace(*mask_ratio, number + 1)[1:]
    for row, ratio in zip(random.permutation(crops)[:number], ratios, strict=True):
        mask = block_mask(height, width, int(height * width * ratio), random)
        if shift:
            mask = np.roll(mask, (random.integers(height), random.integers(width)), axis=(0, 1))
        masks[row] = mask.ravel()
    return masks
