"""Features on disk: one file a picture that comes back bit for bit, and a folder of such files as a cache.

A file is a plain safetensors file: `patches` (H, W, D), `cls` (D,), `registers` (R, D) and, of tiled pictures, `seam`
(H, W), all fp32; geometry, layer and norm stand in its metadata as JSON, with a checksum of everything.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import threading
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from core.dense.extract import DenseFeatures, Seam
from core.dense.geometry import Geometry
from core.models import Backbone
from core.models.architecture import UNSEEN, UNSEEN_POSITIONS
from core.models.files import replace

SUFFIX = ".safetensors"
FORMAT = "gramscope-features-1"  # count up when older files must not be read any more

# Threads of one process share the name of the temporary file, so they write one after the other.
_writing = threading.Lock()


class FeaturesError(ValueError):
    """A file that holds no features, or not all of them; the message is one sentence that says what to do."""


def save_features(features: DenseFeatures, path: str | os.PathLike[str], /, **labels: str) -> Path:
    """The path of the file, which appears complete or not at all; `labels` are kept beside the features.

    Raises ValueError for a path that does not end in .safetensors, for labels that are no text and for features that
    are not fp32; OSError when the disk is full.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise ValueError(f"{path} ends in {path.suffix!r}; features are kept in safetensors files, name it *{SUFFIX}")
    if others := sorted(name for name, value in labels.items() if not isinstance(value, str)):
        raise ValueError(f"labels are text; convert {', '.join(others)} with str()")
    arrays = {name: _array(name, tensor) for name, tensor in _tensors(features).items()}
    seam = features.seam
    record = {
        "geometry": features.geometry.to_dict(),
        "layer": features.layer,
        "norm": features.norm,
        "seam": seam and {"mean": _known(seam.mean), "worst": _known(seam.worst), "tiles": seam.tiles},
        "labels": labels,
    }
    metadata = {"format": FORMAT} | {name: json.dumps(value) for name, value in record.items()}
    metadata["sha256"] = _checksum(metadata, arrays)
    content = save(arrays, metadata)
    with _writing:
        replace(path, lambda file: file.write_bytes(content))
    return path


def load_features(path: str | os.PathLike[str]) -> DenseFeatures:
    """The features that `save_features` wrote, bit for bit; FeaturesError for any other or a damaged file."""
    return _read(Path(path))[0]


def load_labels(path: str | os.PathLike[str]) -> dict[str, str]:
    """The labels that `save_features` was given; FeaturesError as in `load_features`."""
    return _read(Path(path))[1]


def weights_digest(backbone: Backbone) -> str:
    """Sixteen hex digits that name what a backbone computes: equal weights from different files share them.

    SHA-256 over names, shapes, dtypes and bytes of the state dict, and over what changes features without a trace
    in it: the number of heads, how learned positions are resized, the mean and deviation of pixels.
    """
    content = hashlib.sha256()
    untold = {name: backbone.arguments.get(name) for name in (*UNSEEN, *UNSEEN_POSITIONS, "patch_size")}
    content.update(json.dumps([untold, backbone.pixel_mean, backbone.pixel_std]).encode())
    for name, tensor in sorted(backbone.state_dict().items()):
        content.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        content.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class FeatureKey:
    """What features depend on. Raises ValueError for digests that are none and for a layer counted from the end."""

    picture: str  # digest of the upright pixels, 16 hex digits, such as `workbench.images.Photo.digest`
    weights: str  # of `weights_digest`
    layer: int  # counted from 0, see `extract.layer_index`
    norm: bool = True
    size: int | None = None  # as asked of `extract`
    tile: int | None = None

    def __post_init__(self) -> None:
        for name in ("picture", "weights"):
            if not re.fullmatch("[0-9a-f]{16}", getattr(self, name)):
                raise ValueError(f"{name} is a digest of 16 hex digits, got {getattr(self, name)!r}")
        if min(self.layer, self.size or 0, self.tile or 0) < 0:
            raise ValueError(f"layer, size and tile cannot be negative here, got {self}; use extract.layer_index")

    @property
    def labels(self) -> dict[str, str]:
        """The fields as text."""
        return {field.name: str(getattr(self, field.name)) for field in fields(self)}

    @property
    def file_name(self) -> str:
        size = "own" if self.size is None else self.size
        tile = "auto" if self.tile is None else self.tile
        norm = "normed" if self.norm else "raw"
        return f"{self.picture}-{self.weights}-layer{self.layer}-{norm}-size{size}-tile{tile}{SUFFIX}"


# Of the files in a folder only these are counted and removed, and what a killed process left of one.
_OURS = re.compile(
    r"\.?[0-9a-f]{16}-[0-9a-f]{16}-layer\d+-(normed|raw)-size(own|\d+)-tile(auto|\d+)(\.\d+)?\.safetensors"
)


class FeatureFolder:
    """A cache on disk: features by picture, weights and settings, one file each.

    `max_bytes` bounds the files together; those used longest ago go first. Other files in the folder are neither
    counted nor touched. Threads and processes may share a folder.
    """

    def __init__(self, path: str | os.PathLike[str], max_bytes: int | None = None) -> None:
        if max_bytes is not None and max_bytes < 1:
            raise ValueError(f"max_bytes is a bound of at least 1 byte, or None for no bound; got {max_bytes}")
        self.path, self.max_bytes = Path(path), max_bytes

    def get(self, key: FeatureKey) -> DenseFeatures | None:
        """The features under this key, or None. A damaged file warns and counts as none, so that `put` replaces it."""
        path = self.path / key.file_name
        if not path.exists():
            return None
        try:
            features, labels = _read(path)
            if labels != key.labels:
                raise FeaturesError(f"{path} holds features of {labels}, not those of its name")
        except FeaturesError as error:
            if path.exists():  # else another thread or process removed it
                warnings.warn(f"{error}. They are computed again", stacklevel=2)
            return None
        _touch(path)
        return features

    def put(self, key: FeatureKey, features: DenseFeatures) -> None:
        """Keep features under a key. A file above `max_bytes` on its own is not kept, which a warning says."""
        if (features.layer, features.norm) != (key.layer, key.norm):
            raise ValueError(
                f"features of layer {features.layer} (norm {features.norm}) do not belong under a key of layer "
                f"{key.layer} (norm {key.norm})"
            )
        path = save_features(features, self.path / key.file_name, **key.labels)
        _touch(path)
        if self.max_bytes is None:
            return
        with contextlib.suppress(FileNotFoundError):  # another process removed it
            if (size := path.stat().st_size) > self.max_bytes:
                path.unlink()
                warnings.warn(f"features of {size} bytes are not kept: the bound is {self.max_bytes}", stacklevel=2)
        self._trim(self.max_bytes)

    def _trim(self, max_bytes: int) -> None:
        used = []
        for path in self.path.iterdir():
            if _OURS.fullmatch(path.name):
                try:
                    stat = path.stat()
                except FileNotFoundError:  # another process was quicker
                    continue
                used.append((stat.st_mtime_ns, stat.st_size, path))
        total = sum(size for _, size, _ in used)
        for _, size, path in sorted(used):
            if total <= max_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size


def _touch(path: Path) -> None:
    """Mark as used now: by our own clock, as the file system's ticks only every few milliseconds."""
    now = time.time_ns()
    with contextlib.suppress(FileNotFoundError):  # another process removed it
        os.utime(path, ns=(now, now))


def _tensors(features: DenseFeatures) -> dict[str, Tensor]:
    tensors = {"patches": features.patches, "cls": features.cls, "registers": features.registers}
    return tensors if features.seam is None else tensors | {"seam": features.seam.map}


def _array(name: str, tensor: Float[Tensor, "..."]) -> Float[np.ndarray, "..."]:
    if tensor.dtype != torch.float32:
        raise ValueError(f"features are kept in fp32, {name} is {tensor.dtype}; convert it first")
    return np.ascontiguousarray(tensor.detach().cpu().numpy())


def _known(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value


def _checksum(metadata: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> str:
    content = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    for name, array in sorted(arrays.items()):
        content.update(f"{name} {array.shape}".encode())
        content.update(array.data)
    return content.hexdigest()


def _read(path: Path) -> tuple[DenseFeatures, dict[str, str]]:
    if not path.is_file():
        raise FeaturesError(f"there is no file {path}; check the path")
    try:
        with safe_open(path, "numpy") as file:
            metadata = dict(file.metadata() or {})
            if metadata.get("format") != FORMAT:
                raise FeaturesError(_why_foreign(path, metadata.get("format")))
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
    except (SafetensorError, OSError) as error:
        raise FeaturesError(
            f"{path} is damaged, cut short or no file of features ({error}); extract them again"
        ) from error
    if metadata.pop("sha256", None) != _checksum(metadata, arrays):
        raise FeaturesError(f"{path} is damaged: its checksum does not fit; extract the features again")
    record = {name: json.loads(text) for name, text in metadata.items() if name != "format"}
    return _features(record, {name: torch.from_numpy(array) for name, array in arrays.items()}), record["labels"]


def _why_foreign(path: Path, form: str | None) -> str:
    if form and form.startswith("gramscope-features-"):
        return f"{path} was written by another version ({form}, this one reads {FORMAT}); extract the features again"
    return f"{path} is a safetensors file of something else than features; choose one that save_features wrote"


def _features(record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> DenseFeatures:
    seam = None
    if (told := record["seam"]) is not None:
        mean, worst = (math.nan if told[name] is None else told[name] for name in ("mean", "worst"))
        seam = Seam(map=tensors["seam"], mean=mean, worst=worst, tiles=told["tiles"])
    return DenseFeatures(
        patches=tensors["patches"],
        cls=tensors["cls"],
        registers=tensors["registers"],
        geometry=Geometry.from_dict(record["geometry"]),
        layer=record["layer"],
        norm=record["norm"],
        seam=seam,
    )
