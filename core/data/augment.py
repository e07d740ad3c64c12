"""The random decisions of multi-crop augmentation, apart from the pictures: boxes, flips, colours, blur.

Every image of a step has random numbers of its own, keyed by its position in the run; the decisions of a batch are
then computed together. Parameters and their order are those of the released code (config.CropsConfig).
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from core.config import CropsConfig, CropSizes
from core.data.order import CROPS, generator

TRIES = 10  # of a random box before the central one is taken
SIGMA = (0.1, 2.0)  # of the blur, in pixels of the crop
WINDOW_STEP = 16  # local crops inside global ones start at multiples of this many pixels

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # columns of factors, entries of order

# Columns of the random numbers of one crop.
AREA, SHAPE = slice(0, TRIES), slice(TRIES, 2 * TRIES)
TOP, LEFT, FLIP, JITTER, GRAYSCALE, BLUR, BLUR_SIGMA, SOLARIZE = range(2 * TRIES, 2 * TRIES + 8)
FACTORS, RANKS = slice(2 * TRIES + 8, 2 * TRIES + 12), slice(2 * TRIES + 12, 2 * TRIES + 16)
NUMBERS = 2 * TRIES + 16


class Colors(NamedTuple):
    """What happens to each of n pictures after cropping."""

    jitter: Bool[np.ndarray, "n"]
    factors: Float[np.ndarray, "n 4"]  # brightness, contrast, saturation, hue
    order: Int[np.ndarray, "n 4"]  # which of the four comes first, second, ...
    grayscale: Bool[np.ndarray, "n"]
    sigma: Float[np.ndarray, "n"]  # of the blur; 0: none
    solarize: Bool[np.ndarray, "n"]

    def part(self, chosen: slice) -> "Colors":
        """The decisions for some of the pictures."""
        return Colors(*(column[chosen] for column in self))


class Boxes(NamedTuple):
    """Where n crops are cut from their pictures, in pixels; flip mirrors the result."""

    top: Int[np.ndarray, "n"]
    left: Int[np.ndarray, "n"]
    height: Int[np.ndarray, "n"]
    width: Int[np.ndarray, "n"]
    flip: Bool[np.ndarray, "n"]


@dataclass(frozen=True)
class Views:
    """All decisions for a batch of B images, crop-major: crop 0 of all images, then crop 1, ..."""

    global_boxes: Boxes
    global_colors: Colors
    local_boxes: Boxes
    local_colors: Colors
    shared_colors: Colors | None  # of the whole pictures, before they are cropped
    windows: Int[np.ndarray, "n 2"] | None  # top and left of local crops inside their global crop


def draw_views(
    crops: CropsConfig,
    sizes: CropSizes,
    positions: Int[np.ndarray, "B"],
    heights: Int[np.ndarray, "B"],
    widths: Int[np.ndarray, "B"],
    *,
    seed: int,
) -> Views:
    """The decisions for the images at these positions of the run, given the sizes of their pictures."""
    count = 3 + crops.num_local  # the last row is for the whole picture
    numbers = np.stack([generator(seed, CROPS, int(position)).random((count, NUMBERS)) for position in positions], 1)
    first, local = numbers[:2].reshape(-1, NUMBERS), numbers[2:-1].reshape(-1, NUMBERS)
    # In released code the second global crop alone is solarised.
    second = np.repeat([False, True], len(positions))
    blur = np.repeat(crops.blur[:2], len(positions))
    own_jitter = not crops.share_jitter
    return Views(
        global_boxes=_boxes(first, heights, widths, crops.global_scale, crops),
        global_colors=_colors(first, crops, jitter=own_jitter, blur=blur, solarize=second * crops.solarize),
        local_boxes=_boxes(local, heights, widths, crops.local_scale, crops),
        local_colors=_colors(local, crops, jitter=own_jitter, blur=crops.blur[2], solarize=0.0),
        shared_colors=_colors(numbers[-1], crops, blur=0.0, solarize=0.0) if crops.share_jitter else None,
        windows=_windows(local, sizes) if crops.local_in_global else None,
    )


def _boxes(
    numbers: np.ndarray, heights: np.ndarray, widths: np.ndarray, scale: tuple[float, float], crops: CropsConfig
) -> Boxes:
    """Random resized crops as torchvision draws them: up to ten tries, then the largest central box."""
    repeats = len(numbers) // len(heights) if len(heights) else 0
    heights, widths = np.tile(heights, repeats), np.tile(widths, repeats)
    low, high = np.log(crops.aspect)
    areas = (heights * widths)[:, None] * (scale[0] + numbers[:, AREA] * (scale[1] - scale[0]))
    aspects = np.exp(low + numbers[:, SHAPE] * (high - low))
    rows, columns = np.rint(np.sqrt(areas / aspects)), np.rint(np.sqrt(areas * aspects))
    fits = (rows > 0) & (rows <= heights[:, None]) & (columns > 0) & (columns <= widths[:, None])
    chosen = (np.arange(len(numbers)), fits.argmax(axis=1))
    whole_rows, whole_columns = _central(heights, widths, crops.aspect)
    found = fits.any(axis=1)
    height = np.where(found, rows[chosen], whole_rows).astype(np.int64)
    width = np.where(found, columns[chosen], whole_columns).astype(np.int64)
    top = np.where(found, np.floor(numbers[:, TOP] * (heights - height + 1)), (heights - height) // 2)
    left = np.where(found, np.floor(numbers[:, LEFT] * (widths - width + 1)), (widths - width) // 2)
    return Boxes(top.astype(np.int64), left.astype(np.int64), height, width, numbers[:, FLIP] < crops.flip)


def _central(heights: np.ndarray, widths: np.ndarray, aspect: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    ratio = widths / heights
    rows = np.where(ratio < aspect[0], np.rint(widths / aspect[0]), heights)
    columns = np.where(ratio > aspect[1], np.rint(heights * aspect[1]), widths)
    return rows, columns


def _colors(
    numbers: np.ndarray,
    crops: CropsConfig,
    *,
    jitter: bool = True,
    blur: float | np.ndarray,
    solarize: float | np.ndarray,
) -> Colors:
    spread = np.array([crops.brightness, crops.contrast, crops.saturation, crops.hue])
    lowest = np.maximum([1 - spread[0], 1 - spread[1], 1 - spread[2], -spread[3]], [0, 0, 0, -0.5])
    highest = np.array([1 + spread[0], 1 + spread[1], 1 + spread[2], min(spread[3], 0.5)])
    sigma = SIGMA[0] + numbers[:, BLUR_SIGMA] * (SIGMA[1] - SIGMA[0])
    return Colors(
        jitter=(numbers[:, JITTER] < crops.jitter) & jitter,
        factors=(lowest + numbers[:, FACTORS] * (highest - lowest)).astype(np.float32),
        order=numbers[:, RANKS].argsort(axis=1),
        grayscale=(numbers[:, GRAYSCALE] < crops.grayscale) & jitter,
        sigma=np.where(numbers[:, BLUR] < blur, sigma, 0).astype(np.float32),
        solarize=numbers[:, SOLARIZE] < solarize,
    )


def _windows(numbers: np.ndarray, sizes: CropSizes) -> np.ndarray:
    """Where local crops start inside their global crop; as released, the last possible place is never taken."""
    places = max((sizes.global_size - sizes.local_size) // WINDOW_STEP, 1)
    return np.floor(numbers[:, [TOP, LEFT]] * places).astype(np.int64) * WINDOW_STEP
