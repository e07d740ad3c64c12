"""Does a patch of an object find the rest of it? Inside one photograph, without training and without other photographs.

What a person sees who clicks a patch, as a number: the share of pairs of another patch of the object and one off it in
which the first resembles the clicked one more (area under the ROC curve, 0.5 by chance). This project's own measure. It
asks for structure within a picture, where `incontext` asks whether patches of different pictures agree.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from core.dense.scorecard import interval
from core.dense.similarity import normalize
from core.evals.segmentation import IGNORED, Labelled, read
from core.models import Backbone

WHOLE = 0.9  # of what counts of a patch, for the patch to be on an object
SEEN = 4  # patches on an object and off it, at least


def on_and_off(
    mask: Integer[Tensor, "y x"], value: int, grid: tuple[int, int]
) -> tuple[Bool[Tensor, "P"], Bool[Tensor, "P"]]:
    """Which patches lie on the object and which have nothing of it; where less than half counts they are neither."""
    counted, object_ = (mask != IGNORED).float(), (mask == value).float()
    counts, share = (F.adaptive_avg_pool2d(x[None], grid)[0].flatten() for x in (counted, object_))
    seen = counts >= 0.5
    return seen & (share >= WHOLE * counts), seen & (share == 0)


def object_auc(
    patches: Float[Tensor, "h w D"], on: Bool[Tensor, "P"], off: Bool[Tensor, "P"]
) -> Float[Tensor, "n"] | None:
    """For each patch of the object how well its cosine tells the object's other patches from those off it, ties
    counting half; None where there are fewer than SEEN of either."""
    if min(int(on.sum()), int(off.sum())) < SEEN:
        return None
    unit = normalize(patches.flatten(0, 1))
    share = share_below(unit[on] @ unit[on].T, unit[on] @ unit[off].T)
    return (share.sum(1) - share.diagonal()) / (len(share) - 1)


def share_below(values: Float[Tensor, "n p"], others: Float[Tensor, "n q"]) -> Float[Tensor, "n p"]:
    """For each value the share of its row of others that are smaller, equal ones counting half."""
    others, values = others.sort(dim=1).values, values.contiguous()
    below = torch.searchsorted(others, values) + torch.searchsorted(others, values, right=True)
    return below.double() / (2 * others.shape[1])


def in_objects(*parts: Labelled) -> dict[str, float]:
    """`auc` over all photographs of these parts, /low and /high of its 95 % interval over photographs, and `images`;
    empty where no object is large enough.

    Every patch of an object counts alike, then every object of a photograph, then every photograph.
    """
    found = []
    for data in parts:
        for patches, mask in zip(data.features, data.masks, strict=True):
            grid = (patches.shape[0], patches.shape[1])
            values = sorted({int(value) for value in mask.unique()} - {0, IGNORED})
            each = [object_auc(patches.float(), *on_and_off(mask, value, grid)) for value in values]
            known = [float(auc.mean()) for auc in each if auc is not None]
            found += [float(np.mean(known))] if known else []
    if not found:
        return {}
    number = interval(np.array(found))
    return {"auc": number.mean, "auc/low": number.low, "auc/high": number.high, "images": float(len(found))}


def objects(backbone: Backbone, folder: Path, *, size: int = 224) -> dict[str, float]:
    """`in_objects` of a folder with images, masks (0 is no object, 255 does not count) and split.tsv, every picture
    squeezed into `size` pixels.

    Both splits are asked, for nothing is learned from either. Raises ValueError where no object is large enough.
    """
    found = in_objects(*(read(backbone, folder, split, size=size) for split in ("train", "val")))
    if not found:
        raise ValueError(f"no object in {folder} has {SEEN} patches on it and {SEEN} off it at {size} pixels")
    return found
