"""Numbers on the frozen teacher while it trains, on the labelled validation split of the training data: k-NN, and how
many directions the CLS tokens use."""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageOps
from torch import Tensor, nn

from core.config import Config
from core.data import BrokenImage, Source, open_source
from core.dense.degradation import lidar, rank_me
from core.distributed import gather_with_grad, rank, size
from core.evals.knn import knn_accuracy


@dataclass(frozen=True)
class Labelled:
    """Square pictures (N, 3, s, s) uint8 and their classes (N,)."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Benchmark:
    """What k-NN is asked: one pair of training and validation pictures for each source that has labels."""

    parts: dict[str, tuple[Labelled, Labelled]]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def load_benchmark(config: Config, *, side: int, limit: int = 2000) -> Benchmark:
    """The labelled pictures of the run's sources, `side` pixels square, kept in memory as bytes.

    The whole picture's middle square, resized; at most `limit` a split, spread evenly. Sources without labels or
    without a validation split are left out; parts is then empty.
    """
    parts: dict[str, tuple[Labelled, Labelled]] = {}
    for source in config.data.sources:
        try:
            train, val = (_read(open_source(replace(source, split=split)), side, limit) for split in ("train", "val"))
        except (ValueError, FileNotFoundError):
            continue  # no such split
        classes = {label: index for index, label in enumerate(sorted({label for label, _ in train + val}))}
        if train and val and len(classes) > 1:
            name = source.name or Path(source.path).stem
            parts[name] = (_labelled(train, classes), _labelled(val, classes))
    return Benchmark(parts, config.data.image_mean, config.data.image_std)


def _read(source: Source, side: int, limit: int) -> list[tuple[str, np.ndarray]]:
    """(label, picture) of a source's labelled pictures; broken ones are left out."""
    chosen = np.linspace(0, len(source) - 1, min(limit, len(source))).astype(int).tolist()
    found = []
    for index in chosen:
        if (label := source.label(index)) is None:
            continue
        try:
            picture = source.read(index)
        except BrokenImage:
            continue
        found.append((label, np.asarray(ImageOps.fit(picture, (side, side), Image.Resampling.BICUBIC))))
    return found


def _labelled(pictures: list[tuple[str, np.ndarray]], classes: dict[str, int]) -> Labelled:
    images = torch.from_numpy(np.stack([picture for _, picture in pictures])).permute(0, 3, 1, 2).contiguous()
    return Labelled(images, torch.tensor([classes[label] for label, _ in pictures]))


@torch.no_grad()
def cls_features(
    backbone: nn.Module, images: Tensor, mean: tuple[float, ...], std: tuple[float, ...], *, batch: int = 64
) -> Float[Tensor, "N D"]:
    """CLS tokens of uint8 pictures, on the CPU, each process taking its share of every batch."""
    device = next(backbone.parameters()).device
    shift = torch.tensor(mean, device=device)[:, None, None]
    scale = torch.tensor(std, device=device)[:, None, None]
    own, features = batch // size() or 1, []
    for start in range(0, len(images), own * size()):
        mine = images[start : start + own * size()]
        index = (torch.arange(own) + own * rank()).clamp(max=len(mine) - 1)  # the last batch is filled up
        pictures = (mine[index].to(device).float() / 255 - shift) / scale
        cls = backbone(pictures, is_training=True)["x_norm_clstoken"].float()
        features.append(gather_with_grad(cls)[: len(mine)].cpu())
    return torch.cat(features)


def evaluate(backbone: nn.Module, benchmark: Benchmark) -> dict[str, float]:
    """k-NN accuracy of every part, beside what always answering its commonest class would get.

    `caltech101/top1_k10`, `caltech101/majority`, ..., and `top1_k10`, the mean over parts.
    """
    result: dict[str, float] = {}
    for part, (train, val) in benchmark.parts.items():
        known, asked = (cls_features(backbone, half.images, benchmark.mean, benchmark.std) for half in (train, val))
        numbers = knn_accuracy(known, train.labels, asked, val.labels)
        result |= {f"{part}/{name}": value for name, value in numbers.items()}
        result[f"{part}/majority"] = _majority(train.labels, val.labels)
    return _with_means(result)


def _with_means(of_parts: dict[str, float]) -> dict[str, float]:
    """Numbers of parts, `flowers/top1_k10`, and under their names alone the means over parts."""
    result = dict(of_parts)
    for name in sorted({key.rpartition("/")[2] for key in of_parts}):
        values = [value for key, value in of_parts.items() if key.rpartition("/")[2] == name]
        result[name] = sum(values) / len(values)
    return result


def spectrum(backbone: nn.Module, benchmark: Benchmark, *, limit: int = 256) -> dict[str, float]:
    """`rank_me` and `lidar` of the CLS tokens of four views of validation pictures, by part and their means over parts.

    At most `limit` pictures a part, spread evenly, which bounds LiDAR to one less. Global, not dense: both may rise
    while maps decay (core/dense/degradation.py has the formulas). Parts of fewer than two pictures are left out.
    """
    result: dict[str, float] = {}
    for part, (_, val) in benchmark.parts.items():
        count = len(val.images)
        if count < 2:
            continue
        chosen = val.images[torch.linspace(0, count - 1, min(limit, count)).long()]
        shown = corner_views(chosen)
        features = cls_features(backbone, shown.flatten(0, 1), benchmark.mean, benchmark.std)
        result[f"{part}/rank_me"] = rank_me(features)
        result[f"{part}/lidar"] = lidar(features.unflatten(0, shown.shape[:2]))
    return _with_means(result)


def corner_views(images: UInt8[Tensor, "N 3 s s"]) -> UInt8[Tensor, "N 4 3 s s"]:
    """The four corners of each picture at 3/4 of its side, enlarged to it; those on the right are mirrored."""
    side = images.shape[-1]
    cut = max(3 * side // 4, 1)
    found = []
    for top in (0, side - cut):
        for left in (0, side - cut):
            part = images[:, :, top : top + cut, left : left + cut].float()
            view = F.interpolate(part, size=(side, side), mode="bilinear", align_corners=False).round().to(torch.uint8)
            found.append(view.flip(-1) if left else view)
    return torch.stack(found, dim=1)


def _majority(train: Int[Tensor, "N"], val: Int[Tensor, "Q"]) -> float:
    commonest, _ = Counter(train.tolist()).most_common(1)[0]
    return float((val == commonest).float().mean())
