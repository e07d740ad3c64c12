"""Feature packs: everything a view needs to know of one photograph through one backbone, in a single file.

    pack = pack_features(extract(backbone, pixels), card_of(backbone), "cat.jpg")
    pack = open_pack(save_pack(pack, "cat.dfp"))
    pack.rows_of(0, 16)  # decoded features of the first rows; the others are not read

Features are coded in 8 bits a channel with the measured error in the header, so 4096 x 4096 pixels through a ViT-S/14
take 34 MB. Files are mapped into memory: opening one reads no codes. `core.dense.packfile` has the format.
"""

import dataclasses
import io
import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int8
from PIL import Image
from torch import Tensor

from core.dense.cards import ModelCard
from core.dense.coding import cosine_error, decode, encode, principal_axes, rotate, rotate_back, rotation_for
from core.dense.color import ColorBasis
from core.dense.extract import DenseFeatures, Seam
from core.dense.geometry import Geometry, valid_cells
from core.dense.packfile import CHUNK_ROWS, FORMAT, PackError, assemble, check_block, check_chunk, parse, view
from core.dense.reference import NullCurves, null_curves
from core.models.files import replace

__all__ = ["SUFFIX", "Pack", "PackError", "Picture", "open_pack", "pack_features", "save_pack", "with_basis"]

SUFFIX = ".dfp"
PREVIEW, LARGE_PREVIEW = 1024, 2048  # px of the long side; the large one for pictures that are larger still

_writing = threading.Lock()  # threads of a process share the name of the temporary file


@runtime_checkable
class Picture(Protocol):
    """A photograph: its name and digest, and its pixels, upright (height, width, 3) uint8."""

    @property
    def name(self) -> str: ...

    @property
    def digest(self) -> str: ...

    @property
    def pixels(self) -> np.ndarray: ...


@dataclass(frozen=True, eq=False, repr=False)
class Pack:
    """An open pack: arrays are read-only views of the file, and those that were rotated are handed out turned back.

    `path` is None for a pack in memory.
    """

    header: dict[str, Any]
    path: Path | None
    _data: np.ndarray  # every byte of the file
    _start: int  # of the blocks

    def __repr__(self) -> str:
        return f"Pack({self.picture['name']!r}, {self.model.name!r}, {self.rows}x{self.cols}x{self.dim}, id={self.id})"

    @property
    def id(self) -> str:
        """Sixteen hex digits that name the whole content."""
        return self.header["id"]

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self._data)

    def read(self, start: int, stop: int) -> bytes:
        """The bytes of the file from `start` to before `stop`; ValueError when there are not so many."""
        if not 0 <= start <= stop <= self.size:
            raise ValueError(f"bytes {start} to {stop} are not all in a pack of {self.size} bytes")
        return self._data[start:stop].tobytes()

    @property
    def rows(self) -> int:
        return self.header["rows"]

    @property
    def cols(self) -> int:
        return self.header["cols"]

    @property
    def dim(self) -> int:
        """Channels of the codes: fewer than the model's when the pack was reduced."""
        return self.header["dim"]

    @cached_property
    def geometry(self) -> Geometry:
        return Geometry.from_dict(self.header["geometry"])

    @cached_property
    def model(self) -> ModelCard:
        return ModelCard(**self.header["model"])

    @property
    def picture(self) -> dict[str, str | None]:
        """`name` and `digest` of the photograph."""
        return self.header["picture"]

    @property
    def layer(self) -> int | None:
        return self.header["layer"]

    @property
    def norm(self) -> bool | None:
        return self.header["norm"]

    @property
    def error(self) -> dict[str, Any]:
        """How far cosines of the codes are from those of the fp32 features: `cosine_max`, `cosine_mean`, `pairs`."""
        return self.header["error"]

    @property
    def labels(self) -> dict[str, str]:
        return self.header["labels"]

    @property
    def texts(self) -> list[str] | None:
        return self.header["texts"]

    def block(self, name: str) -> np.ndarray:
        """One of the blocks as it is stored."""
        return view(self._data, self.header, self._start, name)

    @property
    def codes(self) -> Int8[np.ndarray, "H W D"]:
        """The codes as they are stored, rotated: cosines among them need no turning back."""
        return self.block("codes")

    @property
    def scales(self) -> Float[np.ndarray, "H W"]:
        return self.block("scales")

    @property
    def norms(self) -> Float[np.ndarray, "H W"]:
        """Lengths of the features before they were coded."""
        return self.block("norms")

    @property
    def valid(self) -> Bool[np.ndarray, "H W"]:
        """False where a cell lies in the padding."""
        return self.block("valid").view(np.bool_)

    @cached_property
    def cls(self) -> Float[np.ndarray, "D"]:
        """The global token; NaN where the pack was made of patches alone."""
        return self._turned_back("cls")

    @cached_property
    def registers(self) -> Float[np.ndarray, "R D"]:
        return self._turned_back("registers")

    @cached_property
    def text(self) -> Float[np.ndarray, "T D"] | None:
        """The vectors of `texts`."""
        return self._turned_back("text") if self.texts else None

    @property
    def null_same(self) -> Float[np.ndarray, "N"]:
        """Cosines of random pairs of the picture, ascending; none when it has a single valid patch."""
        return self.block("null_same")

    @property
    def null_other(self) -> Float[np.ndarray, "M"] | None:
        """Cosines of random pairs with other pictures, ascending."""
        return self.block("null_other") if "null_other" in self.header["blocks"] else None

    @property
    def null_distance(self) -> Float[np.ndarray, "L"]:
        """Mean cosine at Manhattan distance 1, 2, ... on the grid; NaN where there is no pair."""
        return self.block("null_distance")

    @property
    def preview(self) -> bytes:
        """A JPEG of the upright photograph."""
        return self.block("preview").tobytes()

    @cached_property
    def basis(self) -> ColorBasis | None:
        """The colour basis that was packed with the features."""
        if (told := self.header["basis"]) is None:
            return None
        return ColorBasis(
            mean=torch.from_numpy(self._turned_back("basis_mean")),
            axes=torch.from_numpy(self._turned_back("basis_components")),
            low=torch.from_numpy(self.block("basis_low").copy()),
            high=torch.from_numpy(self.block("basis_high").copy()),
            explained=torch.tensor(told["explained"], dtype=torch.float32),
            source=told["source"],
        )

    @cached_property
    def seam(self) -> Seam | None:
        """What is known of the seams of a tiled picture: mean, worst, tiles. Their map is not kept, it is NaN."""
        if (told := self.header["seam"]) is None:
            return None
        mean, worst = (math.nan if told[name] is None else told[name] for name in ("mean", "worst"))
        return Seam(map=torch.full((self.rows, self.cols), math.nan), mean=mean, worst=worst, tiles=told["tiles"])

    def rows_of(self, start: int, stop: int) -> Float[np.ndarray, "n W D"]:
        """The decoded features of the rows from `start` to before `stop`; no other rows are read.

        ValueError for rows that are not there. PackError when codes are damaged, as far as whole chunks of sixteen
        rows can tell.
        """
        if not 0 <= start <= stop <= self.rows:
            raise ValueError(f"rows {start} to {stop} are not all in a map of {self.rows} rows")
        features = np.empty((stop - start, self.cols, self.dim), np.float32)
        first = start
        while first < stop:
            last = min(first - first % CHUNK_ROWS + CHUNK_ROWS, stop)
            if first % CHUNK_ROWS == 0 and (last % CHUNK_ROWS == 0 or last == self.rows):
                check_chunk(self.codes, self.header, first // CHUNK_ROWS, _called(self.path))
            codes, scales = (torch.from_numpy(block[first:last].copy()) for block in (self.codes, self.scales))
            features[first - start : last - start] = decode(codes, scales, self.header["rotation"]).numpy()
            first = last
        return features

    def features(self) -> DenseFeatures:
        """What was packed, as `extract` returned it but for the coding error.

        An unknown layer is -1 and an unknown norm False. Of a reduced pack the channels are those that were kept.
        """
        return DenseFeatures(
            patches=torch.from_numpy(self.rows_of(0, self.rows)),
            cls=torch.from_numpy(self.cls.copy()),
            registers=torch.from_numpy(self.registers.copy()),
            geometry=self.geometry,
            layer=-1 if self.layer is None else self.layer,
            norm=bool(self.norm),
            seam=self.seam,
        )

    def verify(self) -> None:
        """Read every byte; PackError when one is not what it was."""
        for name in self.header["blocks"]:
            check_block(self._data, self.header, self._start, name, _called(self.path))

    def _turned_back(self, name: str) -> np.ndarray:
        stored = torch.from_numpy(self.block(name).copy())
        return stored.numpy() if self.header["rotation"] is None else rotate_back(stored.double()).float().numpy()


def _called(path: Path | None) -> str:
    return "the pack" if path is None else str(path)


def open_pack(source: str | os.PathLike[str] | bytes | bytearray | memoryview) -> Pack:
    """The pack in a file, which is mapped into memory, or in bytes.

    The header and all blocks but the codes are checked; `Pack.verify` checks these too. Raises PackError for
    everything that is no whole pack of this version.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        data = np.frombuffer(source, np.uint8)
        data.flags.writeable = False
        header, start = parse(data, "the pack")
        return Pack(header, None, data, start)
    path = Path(source)
    try:
        if not path.is_file():
            raise PackError(f"there is no file {path}; check the path")
        empty = path.stat().st_size == 0  # and cannot be mapped
        data = np.zeros(0, np.uint8) if empty else np.asarray(np.memmap(path, np.uint8, "r"))
    except OSError as error:
        raise PackError(f"{path} cannot be opened ({error.strerror or error}); check that you may read it") from error
    header, start = parse(data, str(path))
    return Pack(header, path, data, start)


def save_pack(pack: Pack, path: str | os.PathLike[str]) -> Path:
    """The path of the file, which appears complete or not at all.

    Raises ValueError for a path that does not end in .dfp; OSError when the disk is full.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise ValueError(f"{path} ends in {path.suffix!r}; a feature pack is called *{SUFFIX}")
    content = pack._data
    with _writing:
        replace(path, lambda file: file.write_bytes(content.data))
    return path


# Making


def pack_features(
    features: DenseFeatures,
    card: ModelCard,
    photo: Picture | str,
    *,
    others: Sequence[DenseFeatures] = (),
    curves: Callable[[], NullCurves] | None = None,
    basis: ColorBasis | None = None,
    texts: Sequence[str] | None = None,
    text_vectors: Float[Tensor, "T D"] | None = None,
    dims: int | None = None,
    labels: Mapping[Any, Any] | None = None,  # checked below: text, with a sentence for what is not
    preview: int | None = None,
    growing: bool = False,
) -> Pack:
    """The pack of features, in memory.

    others: features of other photographs through the same weights, for cosines between pictures. basis: colours to
    keep. texts: phrases, with their vectors in the space of the patches. dims: cut the channels down to so many
    principal ones; the worst cosine error of that stands in `reduced`, and it can be large. curves: gives the
    reference cosines, when somebody keeps them. preview: most pixels of the long side of the picture that is kept
    beside the map; without it as many as a view has use for. growing: the map is not complete, patches of zeros are
    not there yet, and there are no reference cosines, which take three quarters of the time. Instead of the photo its
    name will do, then the preview is grey. A layer of -1 is one that nobody knows, and its norm then too. Raises
    ValueError for parts that do not fit together.
    """
    patches, dim = features.patches, features.patches.shape[-1]
    labels = dict(labels or {})
    _check_parts(features, photo, others, basis, texts, text_vectors, dims, labels)
    axes = principal_axes(patches, dims) if dims is not None and dims < dim else None
    rotation = rotation_for(dim if axes is None else len(axes))

    def turned(vectors: Tensor) -> np.ndarray:
        vectors = vectors.detach().cpu().double()
        vectors = vectors if axes is None else vectors @ axes.T.double()
        return (vectors if rotation is None else rotate(vectors)).float().numpy()

    coded = encode(patches, axes)
    blocks = {
        "scales": coded.scales.numpy(),
        "norms": coded.norms.numpy(),
        "valid": valid_cells(features.geometry),
        "cls": turned(features.cls),
        "registers": turned(features.registers),
        **_null_blocks(features, curves or (lambda: _curves(features, others)), growing),
        "preview": np.frombuffer(_preview(photo, features.geometry, preview), np.uint8),
        "codes": coded.codes.numpy(),
    }
    if basis is not None:
        blocks |= {"basis_mean": turned(basis.mean), "basis_components": turned(basis.axes)}
        blocks |= {"basis_low": basis.low.cpu().numpy(), "basis_high": basis.high.cpu().numpy()}
    if texts and text_vectors is not None:
        blocks["text"] = turned(text_vectors)
    named = {"name": photo, "digest": None} if isinstance(photo, str) else {"name": photo.name, "digest": photo.digest}
    known, seam = features.layer >= 0, features.seam
    header = {
        "format": FORMAT,
        "model": dataclasses.asdict(card),
        "picture": named,
        "layer": features.layer if known else None,
        "norm": features.norm if known else None,
        "rows": patches.shape[0],
        "cols": patches.shape[1],
        "dim": coded.codes.shape[-1],
        "geometry": features.geometry.to_dict(),
        "rotation": rotation,
        "reduced": _reduced(patches, axes),
        "error": cosine_error(patches, coded.codes)._asdict(),
        "seam": seam and {"mean": _number(seam.mean), "worst": _number(seam.worst), "tiles": seam.tiles},
        "basis": basis and {"source": basis.source, "explained": basis.explained.tolist()},
        "texts": list(texts) if texts else None,
        "versions": {"gramscope": _our_version(), "torch": str(torch.__version__)},
        "labels": labels,
    }
    return open_pack(assemble(header, blocks))


def with_basis(pack: Pack, basis: ColorBasis) -> Pack:
    """The same pack, in memory, with other colours. Raises ValueError for a basis of other channels than the pack's."""
    if len(basis.mean) != pack.dim:
        raise ValueError(f"the basis has {len(basis.mean)} channels and {_called(pack.path)} {pack.dim}; fit it on it")
    rotated = pack.header["rotation"] is not None
    mean, axes = (rotate(x.double()).float() if rotated else x for x in (basis.mean, basis.axes))
    blocks = {name: pack.block(name) for name in pack.header["blocks"]} | {
        "basis_mean": mean.numpy(),
        "basis_components": axes.numpy(),
        "basis_low": basis.low.cpu().numpy(),
        "basis_high": basis.high.cpu().numpy(),
    }
    told = {"source": basis.source, "explained": basis.explained.tolist()}
    kept = {name: value for name, value in pack.header.items() if name not in ("id", "bytes", "blocks")}
    return open_pack(assemble(kept | {"basis": told}, blocks))


def _check_parts(
    features: DenseFeatures,
    photo: Picture | str,
    others: Sequence[DenseFeatures],
    basis: ColorBasis | None,
    texts: Sequence[str] | None,
    text_vectors: Tensor | None,
    dims: int | None,
    labels: Mapping[Any, Any],
) -> None:
    geometry, (rows, cols, dim) = features.geometry, features.patches.shape
    if (rows, cols) != (geometry.rows, geometry.cols) or not dim:
        raise ValueError(
            f"the features are a map of {rows}x{cols}x{dim} and the geometry has {geometry.rows}x{geometry.cols} "
            "cells; give the geometry they were extracted with"
        )
    if not isinstance(photo, str) and photo.pixels.shape[1::-1] != (geometry.width, geometry.height):
        raise ValueError(
            f"the photograph has {photo.pixels.shape[1]}x{photo.pixels.shape[0]} px and the geometry is of one with "
            f"{geometry.width}x{geometry.height} px; give the photograph the features are of"
        )
    wide = [("CLS", features.cls), ("the registers", features.registers)]
    wide += [("another look", other.patches) for other in others]
    wide += [] if basis is None else [("the basis", basis.mean)]
    wide += [] if text_vectors is None else [("the text vectors", text_vectors)]
    for what, vectors in wide:
        if vectors.shape[-1] != dim:
            raise ValueError(
                f"{what} came with {vectors.shape[-1]} channels, the patches with {dim}; give what belongs"
            )
    phrases, vectors_given = len(texts or ()), 0 if text_vectors is None else len(text_vectors)
    if phrases != vectors_given:
        raise ValueError(f"{phrases} texts came with {vectors_given} vectors; give one for each")
    if dims is not None and not 1 <= dims <= dim:
        raise ValueError(f"dims is the number of channels to keep, 1 to {dim}, got {dims}")
    if odd := sorted(
        str(key) for key, value in labels.items() if not isinstance(key, str) or not isinstance(value, str)
    ):
        raise ValueError(f"labels are text; convert {', '.join(odd)} with str()")


def _reduced(patches: Float[Tensor, "H W D"], axes: Float[Tensor, "E D"] | None) -> dict[str, Any] | None:
    """What was cut away, with the worst cosine error of that alone."""
    if axes is None:
        return None
    error = cosine_error(patches, patches.float() @ axes.T)
    return {"from": patches.shape[-1], "how": "pca", "cosine_max": error.cosine_max}


def _curves(features: DenseFeatures, others: Sequence[DenseFeatures]) -> NullCurves:
    return null_curves(
        features.patches,
        [other.patches for other in others] or None,
        features.valid,
        others_valid=[other.valid for other in others] or None,
    )


def _null_blocks(features: DenseFeatures, told: Callable[[], NullCurves], growing: bool) -> dict[str, np.ndarray]:
    if growing or int(features.valid.sum()) < 2:  # no pairs
        distances = features.geometry.rows + features.geometry.cols - 2
        return {"null_same": np.zeros(0), "null_distance": np.full(distances, np.nan)}
    curves = told()
    blocks = {"null_same": curves.same_image.sort().values, "null_distance": curves.by_distance}
    if curves.other_images is not None:
        blocks["null_other"] = curves.other_images.sort().values
    return {name: block.cpu().numpy() for name, block in blocks.items()}


def _preview(photo: Picture | str, geometry: Geometry, most: int | None) -> bytes:
    longest = max(geometry.width, geometry.height)
    side = min(longest, most or (LARGE_PREVIEW if longest > LARGE_PREVIEW else PREVIEW))
    size = (max(1, round(geometry.width * side / longest)), max(1, round(geometry.height * side / longest)))
    image = Image.new("RGB", size, "grey") if isinstance(photo, str) else Image.fromarray(photo.pixels)
    file = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS).save(file, "JPEG", quality=85)
    return file.getvalue()


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value


def _our_version() -> str | None:
    try:
        return version("gramscope")
    except PackageNotFoundError:  # the folders are used as they lie
        return None
