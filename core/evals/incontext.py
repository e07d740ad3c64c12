"""In-context segmentation: patches take the labels of the patches they resemble most, nothing is trained.

The labelled proxy of dense quality that costs least (after Balazevic et al. 2023, "Towards in-context scene
understanding"): label(q) = sum over the k nearest of softmax(cosine / temperature) x their labels.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor

from core.dense.similarity import normalize
from core.evals.segmentation import IGNORED, Labelled, mean_iou, read
from core.models import Backbone


def patch_labels(
    mask: Integer[Tensor, "H W"], grid: tuple[int, int], classes: int
) -> tuple[Float[Tensor, "P C"], Float[Tensor, "P"]]:
    """For each cell of a picture squeezed into a grid the share of each class, and how much of it counts at all."""
    counted = mask != IGNORED
    shares = F.one_hot(torch.where(counted, mask, 0).long(), classes).permute(2, 0, 1).float() * counted
    shares = F.adaptive_avg_pool2d(shares, grid).flatten(1).T
    total = shares.sum(1)
    return shares / total.clamp(min=1e-6)[:, None], total


def memory(
    data: Labelled, classes: int, *, size: int, seed: int = 0
) -> tuple[Float[Tensor, "M D"], Float[Tensor, "M C"]]:
    """Unit features and labels of at most `size` patches, drawn from those of which at least half counts."""
    features, labels = [], []
    for patches, mask in zip(data.features, data.masks, strict=True):
        shares, counted = patch_labels(mask, (patches.shape[0], patches.shape[1]), classes)
        kept = counted >= 0.5
        features.append(patches.flatten(0, 1)[kept])
        labels.append(shares[kept])
    every, of = torch.cat(features), torch.cat(labels)
    chosen = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))[:size]
    return normalize(every[chosen]), of[chosen]


def in_context(
    train: Labelled, val: Labelled, *, k: int = 30, temperature: float = 0.02, size: int = 20_480, seed: int = 0
) -> dict[str, float]:
    """`miou` of `val` by the patches of `train`, and `iou/<class>`. Raises ValueError where nothing is labelled."""
    labelled = [mask[mask != IGNORED] for mask in train.masks + val.masks]
    if not any(len(values) for values in labelled):
        raise ValueError("no pixel of these masks has a label")
    classes = 1 + max(int(values.max()) for values in labelled if len(values))
    known, labels = memory(train, classes, size=size, seed=seed)
    found = []
    for patches, mask in zip(val.features, val.masks, strict=True):
        cosine, nearest = (normalize(patches.flatten(0, 1)) @ known.T).topk(min(k, len(known)), dim=1)
        votes = ((cosine / temperature).softmax(1)[:, :, None] * labels[nearest]).sum(1)
        votes = votes.T.unflatten(1, (patches.shape[0], patches.shape[1]))[None]
        found.append(F.interpolate(votes, mask.shape, mode="bilinear", align_corners=False)[0].argmax(0))
    ious = mean_iou(found, val.masks, classes)
    return {f"iou/{index}": float(value) for index, value in enumerate(ious) if not value.isnan()} | {
        "miou": float(ious.nanmean())
    }


def incontext(backbone: Backbone, folder: Path, *, size: int = 448) -> dict[str, float]:
    """`in_context` of a folder with images, masks and split.tsv, every picture squeezed into `size` pixels."""
    return in_context(read(backbone, folder, "train", size=size), read(backbone, folder, "val", size=size))
