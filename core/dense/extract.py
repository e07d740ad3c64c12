"""From a picture to a map of features: exact where it fits, overlapping tiles with blended seams beyond.

    features = extract(load_backbone("dinov2_vits14_saliency"), image, size=1022)
    features.patches  # (rows, columns, D), fp32

The geometry of the result says where each patch lies in the picture; `core.dense.inputs` says what the backbone is
shown of it.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from core.dense.geometry import Cell, Geometry, grid_box, plan, valid_cells
from core.dense.inputs import (
    Picture,
    check_geometry,
    input_multiple,
    layer_index,
    normalised,
    picture_geometry,
    resized,
)
from core.dense.similarity import normalize
from core.models import Backbone
from core.models.convnext import ConvNeXt
from core.models.inference import for_inference

# Told after every block, stage or tile (and with 0 tiles when the coarse map is there): how many are done, of how
# many, and of what. Raising in it cancels.
Progress = Callable[[int, int, str], None]

EXACT_PATCHES = 16_384  # attention is quadratic: beyond this an exact pass takes minutes on a laptop
CONVNEXT_PATCH = 16  # px by which a ConvNeXt's patches are counted there: its stages have maps of several sizes
TILE = 1024  # model pixels of a tile's side when the picture is cut by itself
OVERLAP = 0.25  # of a tile's side, shared with each neighbour


@dataclass(frozen=True, eq=False, kw_only=True)
class Seam:
    """How far tiles disagree where they overlap: 1 - cosine of the two features, mean over pairs of tiles."""

    map: Float[Tensor, "H W"]  # NaN where no two tiles looked (yet)
    mean: float  # NaN when that is everywhere
    worst: float
    tiles: int


@dataclass(frozen=True, eq=False, kw_only=True)
class DenseFeatures:
    """What a backbone says about one picture: a map of patch features, the global token, the registers."""

    patches: Float[Tensor, "H W D"]
    cls: Float[Tensor, "D"]
    registers: Float[Tensor, "R D"]
    geometry: Geometry
    layer: int  # block (ViT) or stage (ConvNeXt), counted from 0
    norm: bool  # whether the model's final norm was applied
    seam: Seam | None = None  # only where tiles were used

    @property
    def valid(self) -> Bool[Tensor, "H W"]:
        """False where a cell lies in the padding: never to be counted."""
        return torch.from_numpy(valid_cells(self.geometry))


@dataclass(frozen=True, eq=False, kw_only=True)
class Glimpse:
    """The state of a tiled extraction: usable features now, and how far along they are."""

    done: int  # tiles
    total: int
    sharp: Bool[Tensor, "H W"]  # cells that tiles have covered; the others come from the coarse pass
    coarse: DenseFeatures  # of the coarse pass, on its own grid
    features: Callable[[], DenseFeatures]  # as they are when it is called; costs a copy of the map


def extract(
    backbone: Backbone,
    image: Picture,
    *,
    size: int | None = None,
    layer: int = -1,
    norm: bool = True,
    tile: int | None = None,
    progress: Progress | None = None,
    geometry: Geometry | None = None,
) -> DenseFeatures:
    """The features of one picture, in fp32 on the CPU.

    size: long side of the model input in pixels, at most 4096; None keeps the picture's own. layer: block (ViT)
    or stage (ConvNeXt), negative from the end. tile: side of the tiles in model pixels, 0 for one exact pass
    whatever its cost, None for exact up to 16,384 patches and tiles of 1024 px beyond. geometry: from
    `picture_geometry`, instead of `size`, for a crop or another aspect. The aspect ratio is kept and nothing is
    cut off: sides are padded to whole patches by repeating the border, and mostly padded cells are not `valid`.

    Memory grows with the number of patches, never with its square: an exact pass holds about twenty maps at a
    time, tiles hold four and one tile's pass. Nothing is kept of an extraction that `progress` cancels by raising.
    Raises ValueError for a layer or a size that is not there, and for a picture that is not 8-bit RGB.
    """
    if geometry is not None and size is not None:
        raise ValueError(f"size={size} and a geometry both say how large the input is; give one of them")
    geometry = geometry or picture_geometry(backbone, image, size=size, layer=layer)
    if not _tiled(backbone, geometry, tile):
        return extract_batch(backbone, [image], [geometry], layer=layer, norm=norm, progress=progress)[0]
    glimpse = None
    for glimpse in extract_tiles(backbone, image, geometry, layer=layer, norm=norm, tile=tile or TILE):
        if progress:
            progress(glimpse.done, glimpse.total, "tiles")
    assert glimpse is not None
    return glimpse.features()


def extract_batch(
    backbone: Backbone,
    images: list[Picture],
    geometries: list[Geometry],
    *,
    layer: int = -1,
    norm: bool = True,
    progress: Progress | None = None,
) -> list[DenseFeatures]:
    """The features of pictures that give grids of one shape, in one exact pass; arguments as in `extract`."""
    shapes = {(geometry.rows, geometry.cols) for geometry in geometries}
    if len(shapes) != 1:
        raise ValueError(f"a batch is of grids of one shape, got {sorted(shapes)}; extract_many sorts that out")
    shown = [resized(image, geometry) for image, geometry in zip(images, geometries, strict=True)]
    return _extract_shown(backbone, shown, geometries, layer, norm, progress)


@torch.inference_mode()
def _extract_shown(
    backbone: Backbone,
    shown: list[UInt8[Tensor, "3 h w"]],
    geometries: list[Geometry],
    layer: int,
    norm: bool,
    progress: Progress | None = None,
) -> list[DenseFeatures]:
    """The features of model inputs of one size, in one pass."""
    for geometry in geometries:
        check_geometry(backbone, geometry, layer)
    batch = torch.stack([normalised(backbone, pixels) for pixels in shown])
    patches, cls, registers = _run(backbone, batch, layer, norm, progress)
    return [
        DenseFeatures(
            patches=own(patches[index]),
            cls=own(cls[index]),
            registers=own(registers[index]),
            geometry=geometry,
            layer=layer_index(backbone, layer),
            norm=norm,
        )
        for index, geometry in enumerate(geometries)
    ]


def extract_many(
    backbone: Backbone,
    images: Iterable[Picture],
    *,
    size: int | None = None,
    layer: int = -1,
    norm: bool = True,
    batch_patches: int = 4096,
) -> Iterator[DenseFeatures]:
    """The features of many pictures in their order, small neighbours of one shape sharing a pass.

    `batch_patches` bounds the patches of a pass: more gains nothing on a CPU and costs memory. Pictures are taken
    from the iterable as they are needed, and of those that wait for a pass only the model input is kept.
    """
    waiting: list[tuple[UInt8[Tensor, "3 h w"], Geometry]] = []

    def flush() -> Iterator[DenseFeatures]:
        if waiting:
            shown, geometries = (list(column) for column in zip(*waiting, strict=True))
            waiting.clear()
            yield from _extract_shown(backbone, shown, geometries, layer, norm)

    for image in images:
        geometry = picture_geometry(backbone, image, size=size, layer=layer)
        if _tiled(backbone, geometry, None):
            yield from flush()
            yield extract(backbone, image, layer=layer, norm=norm, geometry=geometry)
            continue
        shape = (geometry.rows, geometry.cols)
        alike = not waiting or shape == (waiting[0][1].rows, waiting[0][1].cols)
        if not alike or (len(waiting) + 1) * shape[0] * shape[1] > batch_patches:
            yield from flush()
        waiting.append((resized(image, geometry), geometry))
    yield from flush()


def extract_tiles(
    backbone: Backbone,
    image: Picture,
    geometry: Geometry,
    *,
    layer: int = -1,
    norm: bool = True,
    tile: int = TILE,
    overlap: float = OVERLAP,
    first: Cell | None = None,
) -> Iterator[Glimpse]:
    """First a coarse map of the whole picture, then a sharper one after every tile: close it to cancel.

    Each tile is seen by the backbone as a picture of its own. Where tiles overlap their features are averaged with
    weights that fall off linearly towards a tile's inner borders, and `seam` reports how far they disagree. CLS and
    registers are those of the coarse pass, which saw the whole picture at the size of one tile. Tiles come row by row,
    or nearest first around the cell `first`.
    """
    if tile < 1:
        raise ValueError(f"tile is the side of the tiles in model pixels, at least 1, got {tile}")
    if not 0 <= overlap < 0.9:
        raise ValueError(f"overlap is a share of the tile's side from 0 to below 0.9, got {overlap}")
    check_geometry(backbone, geometry, layer)
    multiple = input_multiple(backbone)
    side = max(1, round(tile / multiple)) * multiple // geometry.patch_size
    step_cells = multiple // geometry.patch_size
    rows = tile_spans(geometry.rows, side, overlap, step_cells)
    cols = tile_spans(geometry.cols, side, overlap, step_cells)
    places = [(top, left) for top, _ in rows for left, _ in cols]
    height, width = rows[0][1] - rows[0][0], cols[0][1] - cols[0][0]
    if first is not None:
        row, col = first[0] + 0.5, first[1] + 0.5
        places.sort(key=lambda place: math.hypot(place[0] + height / 2 - row, place[1] + width / 2 - col))

    coarse = extract(backbone, image, layer=layer, norm=norm, tile=0, geometry=_coarse(backbone, geometry, side))
    blend = _Blend(coarse, geometry, layer_index(backbone, layer), norm)
    yield blend.glimpse(0, len(places))
    picture = resized(image, geometry)
    for done, (top, left) in enumerate(places):
        cut = picture[:, top * geometry.patch_size : (top + height) * geometry.patch_size]
        cut = cut[:, :, left * geometry.patch_size : (left + width) * geometry.patch_size]
        with torch.inference_mode():
            patches, _, _ = _run(backbone, normalised(backbone, cut)[None], layer, norm, None)
        blend.add(patches[0], top, left, overlap * side)
        yield blend.glimpse(done + 1, len(places))


def tile_spans(cells: int, side: int, overlap: float, multiple: int = 1) -> list[tuple[int, int]]:
    """Evenly spaced [start, end) spans of `side` cells that cover all cells with at least `overlap` shared.

    Starts are multiples of `multiple` cells (the ones a strided network can start at), as `cells` and `side` must
    be; no span is shorter than `side` unless `cells` is. Spans advance by one `multiple` at least, so those of one or
    two multiples may share less than asked.
    """
    assert cells % multiple == 0 and side % multiple == 0
    if side >= cells:
        return [(0, cells)]
    stride = max(multiple, math.floor(side * (1 - overlap)) // multiple * multiple)
    count = math.ceil((cells - side) / stride) + 1
    starts = [min(round(index * (cells - side) / (count - 1)), cells - side) for index in range(count)]
    starts = [start // multiple * multiple for start in starts[:-1]] + starts[-1:]
    return [(start, start + side) for start in starts]


class _Blend:
    """The weighted mean of tiles laid over a coarse map, and the sums that tell how far tiles disagree."""

    def __init__(self, coarse: DenseFeatures, geometry: Geometry, layer: int, norm: bool) -> None:
        self.coarse, self.geometry, self.layer, self.norm = coarse, geometry, layer, norm
        shape = (geometry.rows, geometry.cols)
        self.sum = torch.zeros(*shape, coarse.patches.shape[-1])
        self.weight = torch.zeros(shape)
        self.directions = torch.zeros_like(self.sum)  # sum of unit features: its length tells the agreement
        self.looks = torch.zeros(shape)
        self.tiles = 0

    def add(self, patches: Float[Tensor, "h w D"], top: int, left: int, ramp: float) -> None:
        rows, cols = patches.shape[:2]
        weight = torch.outer(
            _ramps(rows, ramp, top == 0, top + rows == self.geometry.rows),
            _ramps(cols, ramp, left == 0, left + cols == self.geometry.cols),
        )
        place = (slice(top, top + rows), slice(left, left + cols))
        self.sum[place] += patches * weight[..., None]
        self.weight[place] += weight
        self.directions[place] += normalize(patches)
        self.looks[place] += 1
        self.tiles += 1

    def glimpse(self, done: int, total: int) -> Glimpse:
        return Glimpse(done=done, total=total, sharp=self.weight > 0, coarse=self.coarse, features=self.features)

    def features(self) -> DenseFeatures:
        covered = self.weight > 0
        if covered.all():
            patches = self.sum / self.weight[..., None]
        else:
            patches = _carried_over(self.coarse, self.geometry)
            patches[covered] = self.sum[covered] / self.weight[covered][:, None]
        return DenseFeatures(
            patches=patches,
            cls=self.coarse.cls,
            registers=self.coarse.registers,
            geometry=self.geometry,
            layer=self.layer,
            norm=self.norm,
            seam=self.seam(),
        )

    def seam(self) -> Seam:
        # For n unit vectors, |sum|^2 = n + sum of the cosines of all ordered pairs: no pair is ever formed.
        pairs = self.looks * (self.looks - 1)
        cosine = (self.directions.square().sum(-1) - self.looks) / pairs
        gap = torch.where(pairs > 0, (1 - cosine).clamp(0, 2), torch.nan)
        seen = gap[pairs > 0]
        worst, mean = (float(seen.max()), float(seen.mean())) if len(seen) else (math.nan, math.nan)
        return Seam(map=gap, mean=mean, worst=worst, tiles=self.tiles)


def _carried_over(coarse: DenseFeatures, geometry: Geometry) -> Float[Tensor, "H W D"]:
    """A coarse map read bilinearly at the places of a finer grid's cells.

    Not stretched from grid to grid: their padding differs, which would move the picture by up to a coarse cell.
    """
    left, top, right, bottom = grid_box(coarse.geometry)
    fine_left, fine_top, fine_right, fine_bottom = grid_box(geometry)
    x = (torch.arange(geometry.cols) + 0.5) / geometry.cols * (fine_right - fine_left) + fine_left
    y = (torch.arange(geometry.rows) + 0.5) / geometry.rows * (fine_bottom - fine_top) + fine_top
    x, y = 2 * (x - left) / (right - left) - 1, 2 * (y - top) / (bottom - top) - 1  # -1..1, as grid_sample counts
    places = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[None]
    values = coarse.patches.permute(2, 0, 1)[None]
    read = F.grid_sample(values, places, mode="bilinear", padding_mode="border", align_corners=False)
    return read[0].permute(1, 2, 0).contiguous()


def _ramps(cells: int, ramp: float, at_start: bool, at_end: bool) -> Float[Tensor, "n"]:
    """Blend weights along one side of a tile: 1 inside, falling linearly to inner borders, never 0."""
    from_start = torch.arange(cells) + 0.5
    weight = torch.ones(cells)
    if not at_start:
        weight = torch.minimum(weight, from_start / max(ramp, 1))
    if not at_end:
        weight = torch.minimum(weight, from_start.flip(0) / max(ramp, 1))
    return weight


def _tiled(backbone: Backbone, geometry: Geometry, tile: int | None) -> bool:
    if tile is not None and tile < 0:
        raise ValueError(f"tile is a side in pixels, 0 for one exact pass or None to decide, got {tile}")
    side = max(geometry.padded_width, geometry.padded_height)
    if tile:
        return side > tile
    patch = CONVNEXT_PATCH if isinstance(backbone, ConvNeXt) else geometry.patch_size
    patches = geometry.padded_width * geometry.padded_height // patch**2
    return tile is None and patches > EXACT_PATCHES and side > TILE


def _coarse(backbone: Backbone, geometry: Geometry, side: int) -> Geometry:
    """The same crop shrunk so that its long side is one tile; as it is where that is all there is."""
    if side >= max(geometry.rows, geometry.cols):
        return geometry
    coarse = plan(
        geometry.stored_width,
        geometry.stored_height,
        input_multiple(backbone),
        size=side * geometry.patch_size,
        orientation=geometry.orientation,
        crop=geometry.crop,
    )
    return dataclasses.replace(coarse, patch_size=geometry.patch_size)


def _run(
    backbone: Backbone, batch: Float[Tensor, "B 3 h w"], layer: int, norm: bool, progress: Progress | None
) -> tuple[Float[Tensor, "B H W D"], Float[Tensor, "B D"], Float[Tensor, "B R D"]]:
    """Patches, CLS and registers of one layer, fp32 on the CPU; deeper blocks are not computed."""
    index = layer_index(backbone, layer)
    model: Any = for_inference(backbone)
    if isinstance(backbone, ConvNeXt):
        return _run_stages(backbone, model, batch, index, norm, progress)
    tokens = batch
    for done, (tokens,) in enumerate(model.run_blocks([batch])):  # noqa: B007 - the last one is what we want
        if progress:
            progress(done + 1, index + 1, "layers")
        if done == index:
            break
    tokens = (model.final_norm(tokens) if norm else tokens).float().cpu()
    prefix = 1 + backbone.num_registers
    grid = (batch.shape[-2] // backbone.patch_size, batch.shape[-1] // backbone.patch_size)
    return tokens[:, prefix:].unflatten(1, grid), tokens[:, 0], tokens[:, 1:prefix]


def _run_stages(
    backbone: ConvNeXt, model: Any, batch: Float[Tensor, "B 3 h w"], index: int, norm: bool, progress: Progress | None
) -> tuple[Float[Tensor, "B H W D"], Float[Tensor, "B D"], Float[Tensor, "B R D"]]:
    """`ConvNeXt.get_intermediate_layers` of one stage, telling progress after each."""
    features = batch
    for done in range(index + 1):
        features = model.stages[done](model.downsample_layers[done](features))
        if progress:
            progress(done + 1, index + 1, "layers")
    cls = features.mean(dim=(2, 3))
    if backbone.patch_size is not None:
        grid = (batch.shape[-2] // backbone.patch_size, batch.shape[-1] // backbone.patch_size)
        features = F.interpolate(features, size=grid, mode="bilinear", antialias=True)
    patches = features.permute(0, 2, 3, 1)
    if norm:
        patches, cls = model.norms[index](patches), model.norms[index](cls)
    registers = cls.new_zeros(len(cls), 0, cls.shape[-1])
    return patches.float().cpu(), cls.float().cpu(), registers.float().cpu()


def own(tensor: Tensor) -> Tensor:
    """A plain contiguous tensor of its own, whatever pass or batch it was a part of."""
    with torch.inference_mode(False):
        return tensor.detach().clone(memory_format=torch.contiguous_format)
