"""Linear probe of segmentation: a batch norm and one linear layer on frozen patch features (paper section 6.1.2)."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from PIL import Image
from torch import Tensor, nn

from core.dense.extract import extract_batch
from core.dense.inputs import picture_geometry
from core.models import Backbone

IGNORED = 255


@dataclass(frozen=True)
class Labelled:
    """Patch features (h, w, D), half precision, and masks of the pictures' own sizes, 255 where nothing counts."""

    features: list[Tensor]
    masks: list[Tensor]


class LinearHead(nn.Module):
    """Dropout, batch norm over channels, a linear layer; in this order, as released."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.dropout, self.norm = nn.Dropout(0.1), nn.BatchNorm1d(dim)
        self.linear = nn.Linear(dim, classes)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Float[Tensor, "n h w D"]) -> Float[Tensor, "n C h w"]:
        n, h, w, _ = features.shape
        dropped = features
        if self.training:  # whole channels of an image, as Dropout2d
            dropped = features * self.dropout(features.new_ones(n, 1, 1, features.shape[-1]))
        return self.linear(self.norm(dropped.flatten(0, 2))).view(n, h, w, -1).permute(0, 3, 1, 2)


def confusion(prediction: Integer[Tensor, "h w"], mask: Integer[Tensor, "h w"], classes: int) -> Integer[Tensor, "C C"]:
    """How many pixels of each class (row) were taken for each class (column); those with label 255 are in none."""
    counted = mask != IGNORED
    pairs = mask[counted].long() * classes + prediction[counted].long()
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def mean_iou(
    predictions: Sequence[Integer[Tensor, "_ _"]], masks: Sequence[Integer[Tensor, "_ _"]], classes: int
) -> Float[Tensor, "C"]:
    """Intersection over union of every class over all pixels of all pictures together; NaN for a class that is nowhere.

    Pixels with label 255 count in nothing.
    """
    table = torch.zeros(classes, classes, dtype=torch.int64)
    for found, truth in zip(predictions, masks, strict=True):
        table += confusion(found, truth, classes)
    both = table.diagonal().double()
    either = table.sum(0) + table.sum(1) - table.diagonal()
    return torch.where(either > 0, both / either, torch.nan)


def train_head(
    data: Labelled, classes: int, *, steps: int, lr: float, weight_decay: float, batch: int = 16, seed: int = 0
) -> LinearHead:
    """A head after so many steps of AdamW with a warm-up and a cosine; features are not augmented.

    The loss is the cross entropy at the masks' own pixels, ignored ones left out.
    """
    torch.manual_seed(seed)
    head = LinearHead(data.features[0].shape[-1], classes).train()
    optimizer = torch.optim.AdamW(head.parameters(), lr=lr, weight_decay=weight_decay)
    warm = max(steps // 25, 1)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warm, 0.5 * (1 + np.cos(np.pi * s / steps)))
    )
    draw = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        chosen = torch.randperm(len(data.masks), generator=draw)[:batch].tolist()
        logits = head(torch.stack([data.features[index] for index in chosen]).float())
        losses = [
            F.cross_entropy(
                F.interpolate(logits[place][None], data.masks[index].shape, mode="bilinear", align_corners=False),
                data.masks[index][None].long(),
                ignore_index=IGNORED,
            )
            for place, index in enumerate(chosen)
        ]
        torch.stack(losses).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        rate.step()
    return head.eval()


@torch.no_grad()
def predict(head: LinearHead, data: Labelled) -> list[Integer[Tensor, "_ _"]]:
    """The likeliest class of every pixel: logits of patches, enlarged bilinearly."""
    found = []
    for features, mask in zip(data.features, data.masks, strict=True):
        logits = head(features[None].float())
        found.append(F.interpolate(logits, mask.shape, mode="bilinear", align_corners=False)[0].argmax(0))
    return found


def labelled_folder(name: str) -> Path:
    """A folder of images, masks and a split.tsv by its path, or "pets", the small one that comes with the code.

    Raises ValueError where there is none.
    """
    folder = Path(__file__).parent / "pets" if name == "pets" else Path(name).expanduser()
    if not (folder / "split.tsv").is_file():
        raise ValueError(f"{folder} is no folder of labelled images: it has no split.tsv beside images/ and masks/")
    return folder


def read(backbone: Backbone, folder: Path, split: str, *, size: int) -> Labelled:
    """The pictures of a split in `folder`/split.tsv, squeezed into a square of `size` pixels, with their masks."""
    with (folder / "split.tsv").open(encoding="utf-8") as file:
        keys = [row["key"] for row in csv.DictReader(file, delimiter="\t") if row["split"] == split]
    if not keys:
        raise ValueError(f"{folder / 'split.tsv'} names no picture of the split {split!r}")
    features, masks = [], []
    for key in keys:
        with Image.open(folder / "images" / f"{key}.jpg") as image:
            picture = np.asarray(image.convert("RGB"))
        geometry = picture_geometry(backbone, picture, size=size, keep_aspect=False)
        features.append(extract_batch(backbone, [picture], [geometry])[0].patches.half())
        masks.append(torch.from_numpy(np.asarray(Image.open(folder / "masks" / f"{key}.png")).astype(np.uint8)))
    return Labelled(features, masks)


def segmentation(
    backbone: Backbone,
    folder: Path,
    *,
    size: int = 448,
    steps: int = 400,
    rates: Sequence[float] = (1e-3,),
    decays: Sequence[float] = (1e-3,),
) -> dict[str, float]:
    """`miou` on the validation split, of the best of rates x decays there, and `iou/<class>`.

    The paper sweeps rates 1e-4, 3e-4, 1e-3 and weight decays 1e-4, 1e-3 for every backbone and reports the best, which
    is optimistic; one of each, the default, is not.
    """
    train, val = (read(backbone, folder, split, size=size) for split in ("train", "val"))
    classes = 1 + max(int(mask[mask != IGNORED].max()) for mask in train.masks + val.masks)
    best: dict[str, float] = {}
    for lr in rates:
        for decay in decays:
            head = train_head(train, classes, steps=steps, lr=lr, weight_decay=decay)
            ious = mean_iou(predict(head, val), val.masks, classes)
            if not best or float(ious.nanmean()) > best["miou"]:
                best = {f"iou/{index}": float(value) for index, value in enumerate(ious) if not value.isnan()}
                best["miou"] = float(ious.nanmean())
    return best
