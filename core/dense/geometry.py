"""Where a patch lies in the photograph, and which patch a pixel belongs to.

Pixels are those of the picture as a person sees it, that is after its EXIF orientation ("upright"). Their
coordinates are continuous: pixel i covers [i, i + 1), its centre is i + 0.5, and the right edge of the
picture is x = width. Model pixels are those of the resized crop that the network receives.

Every function is pure and uses only sums, products, quotients and comparisons of doubles, so that a twin in
another language gives the same bits. Nothing else in the project computes coordinates.
"""

import math
import operator
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Shaped

Box = tuple[int, int, int, int]  # left, top, right, bottom
Number = int | float  # said in full because beartype, unlike mypy, takes no int for a float
Point = tuple[Number, Number]  # x, y
Cell = tuple[int, int]  # row, column
Fit = Literal["contain", "cover", "fill"]


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """How one picture became a grid of patches: stored file, upright picture, crop, model input, grid.

    `crop` is in upright pixels, `plan` makes it the whole picture by default; `input_width` x `input_height`
    is the crop after resizing, `pad` what was added around it, both in model pixels. Both boxes are left,
    top, right, bottom. Raises ValueError when the parts do not fit together.
    """

    stored_width: int  # pixels of the file, before the orientation is applied
    stored_height: int
    orientation: int = 1  # EXIF tag 0x0112: 1 is upright, 5 to 8 swap the sides
    crop: Box
    input_width: int
    input_height: int
    pad: Box = (0, 0, 0, 0)
    patch_size: int

    def __post_init__(self) -> None:
        for name in ("stored_width", "stored_height", "input_width", "input_height", "patch_size"):
            object.__setattr__(self, name, _positive(name, getattr(self, name)))
        if self.orientation not in range(1, 9):
            raise ValueError(f"EXIF orientation is a code from 1 to 8, got {self.orientation!r}; 1 means upright")
        object.__setattr__(self, "orientation", int(self.orientation))
        crop = _box("crop", self.crop)
        if not (0 <= crop[0] < crop[2] <= self.width and 0 <= crop[1] < crop[3] <= self.height):
            raise ValueError(
                f"crop {crop} must be a box (left, top, right, bottom) of at least one pixel inside "
                f"the upright picture of {self.width}x{self.height}"
            )
        object.__setattr__(self, "crop", crop)
        object.__setattr__(self, "pad", _box("pad", self.pad))
        if min(self.pad) < 0:
            raise ValueError(f"pad {self.pad} must not be negative; to cut the picture set crop instead")
        for side in (self.padded_width, self.padded_height):
            if side % self.patch_size:
                raise ValueError(
                    f"padded input {self.padded_width}x{self.padded_height} is not a multiple of the patch "
                    f"size {self.patch_size}; pad {-side % self.patch_size} pixels more or let plan() choose"
                )

    @property
    def width(self) -> int:
        """Width of the upright picture in pixels."""
        return self.stored_height if self.orientation >= 5 else self.stored_width

    @property
    def height(self) -> int:
        """Height of the upright picture in pixels."""
        return self.stored_width if self.orientation >= 5 else self.stored_height

    @property
    def crop_width(self) -> int:
        return self.crop[2] - self.crop[0]

    @property
    def crop_height(self) -> int:
        return self.crop[3] - self.crop[1]

    @property
    def scale_x(self) -> float:
        """Model pixels per upright pixel, along x."""
        return self.input_width / self.crop_width

    @property
    def scale_y(self) -> float:
        """Model pixels per upright pixel, along y."""
        return self.input_height / self.crop_height

    @property
    def padded_width(self) -> int:
        """Width of what the network receives, in model pixels: a multiple of the patch size."""
        return self.pad[0] + self.input_width + self.pad[2]

    @property
    def padded_height(self) -> int:
        """Height of what the network receives, in model pixels: a multiple of the patch size."""
        return self.pad[1] + self.input_height + self.pad[3]

    @property
    def rows(self) -> int:
        return self.padded_height // self.patch_size

    @property
    def cols(self) -> int:
        return self.padded_width // self.patch_size

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain numbers and lists, ready for JSON; derived properties are left out."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Geometry":
        """The geometry that `to_dict` wrote; ValueError for unknown or missing keys."""
        names = {field.name for field in fields(cls)}
        if unknown := sorted(set(record) - names):
            raise ValueError(f"geometry has no field {', '.join(unknown)}; known: {', '.join(sorted(names))}")
        if missing := sorted(names - set(record)):
            raise ValueError(f"geometry record lacks {', '.join(missing)}; write it with Geometry.to_dict")
        parts: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in record.items()}
        return cls(**parts)


def plan(
    width: int,
    height: int,
    patch_size: int,
    *,
    size: int | None = None,
    orientation: int = 1,
    crop: Box | None = None,
    keep_aspect: bool = True,
) -> Geometry:
    """The geometry of a file of `width` x `height` stored pixels that is shown to the model at `size`.

    `size` is the long side of the model input in pixels, rounded to the nearest multiple of `patch_size`
    (ties go up, at least one patch). The short side keeps the aspect ratio to the nearest pixel (at least
    one) and is padded at the bottom or right up to the next multiple; nothing is cut off. Without `size` the
    crop keeps its own resolution and both sides are padded. `keep_aspect=False` squashes instead of padding:
    both sides become `size`, or without `size` each becomes its own nearest multiple. ValueError for sizes
    below 1 or a crop outside the picture.
    """
    patch_size = _positive("patch_size", patch_size)
    if crop is None:
        crop = (0, 0, height, width) if orientation >= 5 else (0, 0, width, height)
    # One cell over the whole crop: checks file, orientation and crop before anything is computed from them.
    cell = Geometry(
        stored_width=width,
        stored_height=height,
        orientation=orientation,
        crop=crop,
        input_width=patch_size,
        input_height=patch_size,
        patch_size=patch_size,
    )
    target = long_side = 1
    if size is not None:
        target = _nearest_multiple(_positive("size", size), patch_size)
        long_side = max(cell.crop_width, cell.crop_height)

    if keep_aspect:
        input_width = max(1, _nearest(cell.crop_width * target, long_side))
        input_height = max(1, _nearest(cell.crop_height * target, long_side))
    elif size is None:
        input_width = _nearest_multiple(cell.crop_width, patch_size)
        input_height = _nearest_multiple(cell.crop_height, patch_size)
    else:
        input_width = input_height = target
    return replace(
        cell,
        input_width=input_width,
        input_height=input_height,
        pad=(0, 0, -input_width % patch_size, -input_height % patch_size),
    )


def pixel_to_patch(geometry: Geometry, x: Number, y: Number) -> Cell | None:
    """The (row, col) whose polygon holds the upright point (x, y), or None outside the crop.

    A cell owns its left and top border; the crop's right and bottom edge belong to the last cell.
    """
    row, col = _cell_at(_axis(geometry, 1), y), _cell_at(_axis(geometry, 0), x)
    return None if row is None or col is None else (row, col)


def patch_to_polygon(geometry: Geometry, row: int, col: int) -> tuple[Point, Point, Point, Point]:
    """The four corners of a cell in upright pixels, clockwise from top-left, clipped to the crop.

    Together the polygons tile the crop. ValueError for a cell outside the grid, and for one that lies wholly
    in the padding: it shows no part of the picture.
    """
    left, right = _borders(_axis(geometry, 0), col, "column")
    top, bottom = _borders(_axis(geometry, 1), row, "row")
    return (left, top), (right, top), (right, bottom), (left, bottom)


def patch_centre(geometry: Geometry, row: int, col: int) -> Point:
    """The middle (x, y) of a cell's polygon in upright pixels: always inside the picture and the cell.

    ValueError as in `patch_to_polygon`.
    """
    (left, top), _, (right, bottom), _ = patch_to_polygon(geometry, row, col)
    return left + (right - left) / 2, top + (bottom - top) / 2


def grid_lines(geometry: Geometry) -> tuple[list[float], list[float]]:
    """The x of the cols + 1 vertical and the y of the rows + 1 horizontal borders, clipped to the crop."""
    xs = [_border(_axis(geometry, 0), index) for index in range(geometry.cols + 1)]
    ys = [_border(_axis(geometry, 1), index) for index in range(geometry.rows + 1)]
    return xs, ys


def grid_box(geometry: Geometry) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of the whole grid with its padding, in upright pixels.

    Draw a (rows, cols) map stretched over this box, clipped to the picture, and every cell covers its patch;
    stretched over the picture instead, it slips by up to one patch.
    """
    x, y = _axis(geometry, 0), _axis(geometry, 1)
    left, right = (x.start + (side - x.pad) * x.length / x.model for side in (0, geometry.padded_width))
    top, bottom = (y.start + (side - y.pad) * y.length / y.model for side in (0, geometry.padded_height))
    return left, top, right, bottom


def valid_cells(geometry: Geometry) -> Bool[np.ndarray, "H W"]:
    """True where a cell shows picture; a cell with less than half of its area in the picture is padding.

    A picture thinner than half a patch fills no cell that far. Then the measure is half of the fullest cell,
    so that a map is never empty.
    """
    area = np.outer(_overlaps(_axis(geometry, 1)), _overlaps(_axis(geometry, 0)))
    full = geometry.patch_size**2
    return 2 * area >= (full if 2 * area.max() >= full else area.max())


def same_patch(geometry_a: Geometry, row: int, col: int, geometry_b: Geometry) -> Cell | None:
    """The cell of `geometry_b` at the centre of a cell of `geometry_a`, or None where b was cropped away.

    Grids of 14 and 16 pixels, or of different input sizes, agree in the picture, not by index. ValueError
    when the two records describe pictures of different size, or as in `patch_to_polygon`.
    """
    if (geometry_a.width, geometry_a.height) != (geometry_b.width, geometry_b.height):
        raise ValueError(
            f"the records describe pictures of {geometry_a.width}x{geometry_a.height} and {geometry_b.width}x"
            f"{geometry_b.height} pixels; points can be carried over only between grids of the same picture"
        )
    return pixel_to_patch(geometry_b, *patch_centre(geometry_a, row, col))


def carried(grid: Shaped[np.ndarray, "H W *channels"], geometry_a: Geometry, geometry_b: Geometry) -> np.ndarray:
    """A map on the grid of `geometry_a` as the cells of `geometry_b` see it: each takes the cell at its centre.

    Rows and columns are found apart, so the cost is that of the copy. ValueError where `geometry_b` reaches beyond
    the crop of `geometry_a`, and as in `same_patch`.
    """
    rows = [same_patch(geometry_b, row, 0, geometry_a) for row in range(geometry_b.rows)]
    cols = [same_patch(geometry_b, 0, col, geometry_a) for col in range(geometry_b.cols)]
    if any(cell is None for cell in (*rows, *cols)):
        raise ValueError(f"crop {geometry_b.crop} reaches beyond {geometry_a.crop}: there is nothing to carry over")
    return grid[[cell[0] for cell in rows if cell]][:, [cell[1] for cell in cols if cell]]


def stored_to_upright(geometry: Geometry, x: Number, y: Number) -> Point:
    """Where a point of the stored file appears in the upright picture (EXIF 2.32, tag Orientation)."""
    if geometry.orientation >= 5:
        x, y = y, x
    return _mirrored(geometry, x, y)


def upright_to_stored(geometry: Geometry, x: Number, y: Number) -> Point:
    """Where a point of the upright picture is kept in the stored file: the inverse of `stored_to_upright`."""
    x, y = _mirrored(geometry, x, y)
    return (y, x) if geometry.orientation >= 5 else (x, y)


def displayed_to_pixel(
    x: Number,
    y: Number,
    *,
    box_width: Number,
    box_height: Number,
    width: int,
    height: int,
    fit: Fit = "contain",
) -> Point | None:
    """The upright pixel under a point of an element that shows the picture, or None beside the picture.

    `x`, `y` and the box are CSS pixels, measured from the top-left corner of the element's content box; `fit`
    is its CSS object-fit, with the default object-position (centred). Browsers turn a photograph upright by
    themselves, so `width` and `height` are upright too.

    devicePixelRatio does not enter: pointer events and getBoundingClientRect both speak CSS pixels, however
    many device pixels a screen puts into one. Only a canvas whose backing store was enlarged by the ratio
    must be divided by it first. CSS zoom and transforms do not enter either as long as point and box come
    from the same source (clientX - rect.left beside rect.width; not offsetX beside rect.width).
    """
    scale_x, scale_y, left, top = _placement(box_width, box_height, width, height, fit)
    slack = 1e-6  # of a pixel: rounding at the very rim must not lose the last row
    if not (-slack <= x <= box_width + slack and -slack <= y <= box_height + slack):
        return None
    pixel_x, pixel_y = (x - left) / scale_x, (y - top) / scale_y
    if not (-slack <= pixel_x <= width + slack and -slack <= pixel_y <= height + slack):
        return None
    return min(max(pixel_x, 0.0), float(width)), min(max(pixel_y, 0.0), float(height))


def pixel_to_displayed(
    x: Number,
    y: Number,
    *,
    box_width: Number,
    box_height: Number,
    width: int,
    height: int,
    fit: Fit = "contain",
) -> Point:
    """Where an upright pixel appears in the element, in CSS pixels: the inverse of `displayed_to_pixel`.

    With fit="cover" the point may lie outside the box: that part of the picture is hidden.
    """
    scale_x, scale_y, left, top = _placement(box_width, box_height, width, height, fit)
    return left + x * scale_x, top + y * scale_y


class _Axis(NamedTuple):
    """One direction of a geometry; the arithmetic along x and y is the same."""

    start: int  # of the crop, upright pixels
    length: int  # of the crop, upright pixels
    model: int  # of the crop, model pixels
    pad: int  # before the crop, model pixels
    cells: int
    patch: int


def _axis(geometry: Geometry, along: Literal[0, 1]) -> _Axis:
    """The x (0) or y (1) direction of a geometry."""
    return _Axis(
        start=geometry.crop[along],
        length=(geometry.crop_width, geometry.crop_height)[along],
        model=(geometry.input_width, geometry.input_height)[along],
        pad=geometry.pad[along],
        cells=(geometry.cols, geometry.rows)[along],
        patch=geometry.patch_size,
    )


def _border(axis: _Axis, index: int) -> float:
    """Upright coordinate of the border before cell `index`, clipped to the crop."""
    model = min(max(index * axis.patch - axis.pad, 0), axis.model)  # clipped as an integer: both ends stay exact
    return axis.start + model * axis.length / axis.model


def _cell_at(axis: _Axis, value: Number) -> int | None:
    if not axis.start <= value <= axis.start + axis.length:
        return None
    first, last = axis.pad // axis.patch, (axis.pad + axis.model - 1) // axis.patch
    cell = math.floor(((value - axis.start) * axis.model / axis.length + axis.pad) / axis.patch)
    cell = min(max(cell, first), last)
    # The quotient may round across a border; the borders that the polygons have decide.
    if value < _border(axis, cell):
        return cell - 1
    return cell + 1 if cell < last and value >= _border(axis, cell + 1) else cell


def _borders(axis: _Axis, index: int, name: str) -> tuple[float, float]:
    if not 0 <= index < axis.cells:
        raise ValueError(f"{name} {index} is outside the grid; choose 0 to {axis.cells - 1}")
    first, last = axis.pad // axis.patch, (axis.pad + axis.model - 1) // axis.patch
    if not first <= index <= last:
        raise ValueError(
            f"{name} {index} lies wholly in the padding and shows no picture; choose {first} to {last}, see valid_cells"
        )
    return _border(axis, index), _border(axis, index + 1)


def _overlaps(axis: _Axis) -> np.ndarray:
    """Model pixels of picture in every cell along one axis."""
    starts = np.arange(axis.cells, dtype=np.int64) * axis.patch
    overlap = np.minimum(starts + axis.patch, axis.pad + axis.model) - np.maximum(starts, axis.pad)
    return np.maximum(overlap, 0)


def _mirrored(geometry: Geometry, x: Number, y: Number) -> Point:
    if geometry.orientation in (2, 3, 6, 7):
        x = geometry.width - x
    if geometry.orientation in (3, 4, 7, 8):
        y = geometry.height - y
    return x, y


def _placement(
    box_width: Number, box_height: Number, width: int, height: int, fit: str
) -> tuple[float, float, float, float]:
    """CSS pixels per upright pixel along x and y, and the top-left corner of the picture in the box."""
    if min(box_width, box_height, width, height) <= 0:
        raise ValueError(
            f"element of {box_width}x{box_height} showing a picture of {width}x{height}: all four must be "
            f"positive; wait until the element is laid out and the picture loaded"
        )
    scale_x, scale_y = box_width / width, box_height / height
    if fit == "contain":
        scale_x = scale_y = min(scale_x, scale_y)
    elif fit == "cover":
        scale_x = scale_y = max(scale_x, scale_y)
    elif fit != "fill":
        raise ValueError(f"no object-fit called {fit!r}; known: contain, cover, fill")
    return scale_x, scale_y, (box_width - width * scale_x) / 2, (box_height - height * scale_y) / 2


def _nearest(numerator: int, denominator: int) -> int:
    """The quotient rounded to the nearest whole number, ties up, in integers: no float decides a size."""
    return (2 * numerator + denominator) // (2 * denominator)


def _nearest_multiple(value: int, step: int) -> int:
    return max(1, _nearest(value, step)) * step


def _whole(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number of pixels, got {value!r}; round it first") from None


def _positive(name: str, value: Any) -> int:
    if (number := _whole(name, value)) < 1:
        raise ValueError(f"{name} must be at least 1 pixel, got {number}")
    return number


def _box(name: str, value: Any) -> Box:
    if len(value) != 4:
        raise ValueError(f"{name} must be (left, top, right, bottom), got {value!r}")
    left, top, right, bottom = (_whole(name, side) for side in value)
    return left, top, right, bottom
