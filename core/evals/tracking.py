"""Video segmentation by label propagation, by DAVIS's measures: region similarity J and contour accuracy F.

J&F of a sequence is the mean of both over its objects and over its frames, the first and the last left out (Perazzi et
al. 2016, Pont-Tuset et al. 2017).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer
from PIL import Image
from torch import Tensor

from core.dense.extract import extract_batch
from core.dense.inputs import picture_geometry
from core.dense.propagation import track
from core.models import Backbone


def jaccard(predicted: Bool[np.ndarray, "h w"], truth: Bool[np.ndarray, "h w"]) -> float:
    """Region similarity J: the intersection over the union of two masks; 1 where both are empty (DAVIS)."""
    union = np.count_nonzero(predicted | truth)
    return np.count_nonzero(predicted & truth) / union if union else 1.0


TOLERANCE = 0.008  # of the picture's diagonal: how far a contour may lie from the true one


def contour(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Pixels whose right, lower or lower right neighbour is on the other side; the picture's edge is no contour."""
    right, below, across = (np.zeros_like(mask) for _ in range(3))
    right[:, :-1] = mask[:, :-1] ^ mask[:, 1:]
    below[:-1] = mask[:-1] ^ mask[1:]
    across[:-1, :-1] = mask[:-1, :-1] ^ mask[1:, 1:]
    return right | below | across


def widened(contour: Bool[np.ndarray, "h w"], radius: int) -> Bool[np.ndarray, "h w"]:
    """Pixels within `radius` of the contour."""
    steps = torch.arange(-radius, radius + 1)
    disk = (steps[:, None] ** 2 + steps**2 <= radius**2).float()[None, None]
    wide = F.conv2d(torch.from_numpy(contour).float()[None, None], disk, padding=radius)
    return (wide[0, 0] > 0.5).numpy()


def contour_accuracy(predicted: Bool[np.ndarray, "h w"], truth: Bool[np.ndarray, "h w"]) -> float:
    """Contour accuracy F: the harmonic mean of how much of each contour lies near the other one."""
    radius = int(np.ceil(TOLERANCE * np.hypot(*truth.shape)))
    ours, theirs = contour(predicted), contour(truth)
    mine, wanted = np.count_nonzero(ours), np.count_nonzero(theirs)
    if not mine or not wanted:
        return float(mine == wanted)
    precision = np.count_nonzero(ours & widened(theirs, radius)) / mine
    recall = np.count_nonzero(theirs & widened(ours, radius)) / wanted
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def one_hot(mask: Integer[np.ndarray, "h w"], grid: tuple[int, int], objects: int) -> Float[Tensor, "r c K"]:
    """A mask on the patch grid, nearest pixel, as labels of background and `objects` objects."""
    picture = torch.from_numpy(mask.astype(np.float32))[None, None]
    small = F.interpolate(picture, grid, mode="nearest-exact")[0, 0].long()
    return F.one_hot(small, objects + 1).float()


def to_mask(labels: Float[Tensor, "r c K"], height: int, width: int) -> Integer[np.ndarray, "h w"]:
    """Soft labels as a mask of so many pixels: enlarged bilinearly, then the likeliest (paper, appendix D.5)."""
    large = F.interpolate(labels.permute(2, 0, 1)[None], (height, width), mode="bilinear", align_corners=False)[0]
    return large.argmax(dim=0).numpy()


def features_of(
    backbone: Backbone, frames: Sequence[Path], *, size: int, square: bool
) -> Iterator[Float[Tensor, "r c D"]]:
    """Patch features of frames, one after the other."""
    for path in frames:
        with Image.open(path) as image:
            picture = np.asarray(image.convert("RGB"))
        geometry = picture_geometry(backbone, picture, size=size, **({"keep_aspect": False} if square else {}))
        yield extract_batch(backbone, [picture], [geometry])[0].patches


def sequence_scores(
    backbone: Backbone,
    frames: Sequence[Path],
    masks: Sequence[Path],
    *,
    size: int = 448,
    square: bool = True,
    **how: Any,
) -> tuple[float, float]:
    """Mean J and mean F over a sequence's frames without the first and the last, and over its objects.

    size: long side of the model input in pixels; square: frames are squeezed into a square. how: options of `track`.
    """
    truth = [np.asarray(Image.open(path)).astype(np.int64) for path in masks]
    truth = [np.where(mask == 255, 0, mask) for mask in truth]
    objects = int(truth[0].max())
    features = list(features_of(backbone, frames, size=size, square=square))
    first = one_hot(truth[0], (features[0].shape[0], features[0].shape[1]), objects)
    height, width = truth[0].shape
    scores = []
    for number, labels in enumerate(track(features, first, **how)):
        if 0 < number < len(truth) - 1:
            found = to_mask(labels, height, width)
            pairs = [(found == k, truth[number] == k) for k in range(1, objects + 1)]
            scores += [(jaccard(*pair), contour_accuracy(*pair)) for pair in pairs]
    region, boundary = np.mean(scores, axis=0)
    return float(region), float(boundary)


def tracking(backbone: Backbone, folder: Path, **how: Any) -> dict[str, float]:
    """J and F of every sequence in `folder`/frames with masks in `folder`/masks; `j`, `f` and `j&f` are means."""
    scores: dict[str, tuple[float, float]] = {}
    for place in sorted(path for path in (folder / "frames").iterdir() if path.is_dir()):
        frames = sorted(place.glob("*.jpg"))
        masks = [folder / "masks" / place.name / f"{frame.stem}.png" for frame in frames]
        scores[place.name] = sequence_scores(backbone, frames, masks, **how)
    if not scores:
        raise ValueError(f"{folder / 'frames'} holds no sequences")
    region, boundary = np.mean(list(scores.values()), axis=0).tolist()
    each = {f"{name}/{what}": value for name, pair in scores.items() for what, value in zip("jf", pair, strict=True)}
    return each | {"j": region, "f": boundary, "j&f": (region + boundary) / 2}
