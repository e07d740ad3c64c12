"""Keypoint transfer: does the patch under a keypoint find the same point of another object of its kind?"""

import csv
from itertools import permutations
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from core.dense.extract import extract_batch
from core.dense.inputs import picture_geometry
from core.models import Backbone


def transfer(
    source: Float[Tensor, "h w D"], target: Float[Tensor, "hh ww D"], points: Float[Tensor, "n 2"]
) -> Float[Tensor, "n 2"]:
    """Where points (x, y in 0..1 of the source) lie in the target: the centre of the patch with the highest cosine.

    Source features are sampled bilinearly between the centres of patches.
    """
    source, target = F.normalize(source, dim=-1), F.normalize(target, dim=-1)
    at = (points * 2 - 1)[None, None]
    queries = F.grid_sample(
        source.permute(2, 0, 1)[None], at, mode="bilinear", padding_mode="border", align_corners=False
    )[0, :, 0].T
    best = (queries @ target.flatten(0, 1).T).argmax(dim=1)
    rows, cols = target.shape[:2]
    return torch.stack([(best % cols + 0.5) / cols, (torch.div(best, cols, rounding_mode="floor") + 0.5) / rows], dim=1)


def keypoints(backbone: Backbone, folder: Path, *, size: int = 448, threshold: float = 0.1) -> dict[str, float]:
    """`pck`: the share of keypoints transferred to within `threshold` times the target object's longer side.

    The object's box is that of its keypoints (PF-WILLOW has no other). Every ordered pair of images of a class counts
    alike, then every class; `pck/<class>` are the classes' own. Pictures are squeezed into a square of `size` pixels.
    """
    entries = read_table(folder / "keypoints.tsv")
    maps = {}
    for key, _, _ in entries:
        with Image.open(folder / "images" / f"{key}.jpg") as image:
            picture = np.asarray(image.convert("RGB"))
        geometry = picture_geometry(backbone, picture, size=size, keep_aspect=False)
        maps[key] = extract_batch(backbone, [picture], [geometry])[0].patches
    scores: dict[str, list[float]] = {}
    for (key, kind, (points, sides)), (other, other_kind, (truth, other_sides)) in permutations(entries, 2):
        if kind == other_kind:
            found = transfer(maps[key], maps[other], points / sides) * other_sides
            reach = threshold * float((truth.amax(0) - truth.amin(0)).max())
            scores.setdefault(kind, []).append(float(((found - truth).norm(dim=1) <= reach).float().mean()))
    classes = {f"pck/{kind}": float(np.mean(values)) for kind, values in sorted(scores.items())}
    return classes | {"pck": float(np.mean(list(classes.values())))}


def read_table(path: Path) -> list[tuple[str, str, tuple[Tensor, Tensor]]]:
    """(image, class, (points in pixels, width and height)) of every line."""
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    names = [name for name in rows[0] if name[0] in "xy" and name[1:].isdigit()]
    return [
        (
            row["key"],
            row["class"],
            (
                torch.tensor([float(row[name]) for name in names]).unflatten(0, (-1, 2)),
                torch.tensor([float(row["width"]), float(row["height"])]),
            ),
        )
        for row in rows
    ]
