"""Video segmentation by label propagation: the region similarity J of masks followed from the first frame."""

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


def sequence_j(
    backbone: Backbone,
    frames: Sequence[Path],
    masks: Sequence[Path],
    *,
    size: int = 448,
    square: bool = True,
    **how: Any,
) -> float:
    """Mean J over a sequence's frames without the first and the last, and over its objects (DAVIS, semi-supervised).

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
            scores.append([jaccard(found == k, truth[number] == k) for k in range(1, objects + 1)])
    return float(np.mean(scores))


def tracking(backbone: Backbone, folder: Path, **how: Any) -> dict[str, float]:
    """J of every sequence in `folder`/frames with its masks in `folder`/masks, and `j`, their mean."""
    scores = {}
    for place in sorted(path for path in (folder / "frames").iterdir() if path.is_dir()):
        frames = sorted(place.glob("*.jpg"))
        masks = [folder / "masks" / place.name / f"{frame.stem}.png" for frame in frames]
        scores[place.name] = sequence_j(backbone, frames, masks, **how)
    if not scores:
        raise ValueError(f"{folder / 'frames'} holds no sequences")
    return {f"{name}/j": value for name, value in scores.items()} | {"j": float(np.mean(list(scores.values())))}
