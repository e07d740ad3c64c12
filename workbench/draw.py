"""Draws maps of patches onto the photograph they belong to: heat, colours, outlines, legend.

A `Canvas` is the photograph at a size fit for a screen, with the grid of one geometry laid over it. Every cell
covers exactly the part of the photograph that its patch saw.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import plotly.colors
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from core.dense.geometry import (
    Box,
    Geometry,
    Point,
    displayed_to_pixel,
    grid_box,
    patch_to_polygon,
    pixel_to_displayed,
)

# Perceptually even ones first; the last is for signed maps.
COLORMAPS = {"viridis": "Viridis", "cividis": "Cividis", "magma": "Magma", "blue-white-red": "RdBu_r"}
QUERY, NEGATIVE, MATCH = (229, 57, 53), (66, 133, 244), (255, 214, 10)
LONG_SIDE = 1024  # display pixels; a page never shows a picture larger than this, see `Canvas.cell_at`

Cell = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Canvas:
    """A photograph, or the part of it in `window`, at screen size under the grid of one geometry."""

    pixels: UInt8[np.ndarray, "H W 3"]  # upright, at the photograph's own size
    geometry: Geometry
    window: Box | None = None  # left, top, right, bottom in pixels of the photograph
    long_side: int = LONG_SIDE

    @property
    def frame(self) -> Box:
        """The part of the photograph that is shown, in its pixels."""
        return self.window or (0, 0, self.geometry.width, self.geometry.height)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the display in pixels."""
        left, top, right, bottom = self.frame
        scale = self.long_side / max(right - left, bottom - top)
        return max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))

    @cached_property
    def photo(self) -> UInt8[np.ndarray, "h w 3"]:
        """The photograph at display size, enlarged smoothly where it is smaller."""
        left, top, right, bottom = self.frame
        pixels = torch.from_numpy(np.array(self.pixels[top:bottom, left:right])).permute(2, 0, 1)[None]
        shown = F.interpolate(pixels, size=self.size[::-1], mode="bilinear", antialias=True)
        return shown[0].permute(1, 2, 0).contiguous().numpy()

    def pixel_at(self, x: float, y: float) -> Point | None:
        """The pixel (x, y) of the photograph under a display pixel.

        A page reports clicks in pixels of the picture it was sent, whatever size it shows it at, as long as that
        is no larger: the reason why the display is `long_side` wide however small the photograph is.
        """
        left, top, right, bottom = self.frame
        width, height = self.size
        box = {"box_width": width, "box_height": height, "width": right - left, "height": bottom - top}
        pixel = displayed_to_pixel(x, y, fit="fill", **box)
        return None if pixel is None else (pixel[0] + left, pixel[1] + top)

    @cached_property
    def _cells(self) -> tuple[Float[np.ndarray, "h"], Float[np.ndarray, "w"]]:
        """For every display row and column, where it lies in the grid, counted in cells."""
        width, height = self.size
        left, top, right, bottom = self.frame
        grid_left, grid_top, grid_right, grid_bottom = grid_box(self.geometry)
        x = left + (np.arange(width) + 0.5) * (right - left) / width
        y = top + (np.arange(height) + 0.5) * (bottom - top) / height
        rows = (y - grid_top) / (grid_bottom - grid_top) * self.geometry.rows
        cols = (x - grid_left) / (grid_right - grid_left) * self.geometry.cols
        return rows, cols

    @cached_property
    def _nearest(self) -> tuple[Int[np.ndarray, "h"], Int[np.ndarray, "w"]]:
        """For every display row and column, the row and column of its cell."""
        rows, cols = (places.astype(int) for places in self._cells)
        return rows.clip(0, self.geometry.rows - 1), cols.clip(0, self.geometry.cols - 1)

    @cached_property
    def inside(self) -> Bool[np.ndarray, "h w"]:
        """Display pixels that belong to the crop the model saw."""
        rows, cols = self._cells
        left, top, _, _ = (side / self.geometry.patch_size for side in self.geometry.pad)
        height, width = (
            side / self.geometry.patch_size for side in (self.geometry.input_height, self.geometry.input_width)
        )
        return np.outer((rows >= top) & (rows < top + height), (cols >= left) & (cols < left + width))

    def spread(self, grid: Shaped[np.ndarray, "H W *channels"], *, smooth: bool = False) -> np.ndarray:
        """A map at display size: each cell's value all over its patch, or bilinear between the cells' centres."""
        if smooth:
            rows, cols = self._cells
            down, across = _lerp(rows, grid.shape[0]), _lerp(cols, grid.shape[1])
            return np.tensordot(down, np.tensordot(grid.astype(np.float32), across, (1, 1)), (1, 0)).swapaxes(1, -1)
        rows, cols = self._nearest
        return grid.take(cols, axis=1).take(rows, axis=0)

    def heat(
        self,
        values: Float[Tensor, "H W"],
        *,
        limits: tuple[float, float] = (0.0, 1.0),
        colormap: str = "viridis",
        opacity: float = 0.7,
        smooth: bool = False,
    ) -> UInt8[np.ndarray, "h w 3"]:
        """The photograph under the map's colours; cells that are NaN (padding) show the photograph darkened."""
        grid = values.numpy()
        padded = np.isnan(grid)
        grid = _continued(grid) if padded.any() else grid
        low, high = limits
        index = ((grid - low) / max(high - low, 1e-12) * 255).clip(0, 255)
        if smooth:
            colors = lookup(colormap)[self.spread(index, smooth=True).round().astype(np.uint8)]
        else:
            colors = self.spread(lookup(colormap)[index.round().astype(np.uint8)])
        return self._mix(colors, padded, opacity)

    def colors(
        self,
        rgb: UInt8[Tensor, "H W 3"],
        *,
        hidden: Bool[Tensor, "H W"] | None = None,
        opacity: float = 1.0,
        smooth: bool = False,
    ) -> UInt8[np.ndarray, "h w 3"]:
        """The photograph under one colour a patch; `hidden` cells show the photograph darkened."""
        colors = self.spread(rgb.numpy(), smooth=smooth)
        return self._mix(colors.round().astype(np.uint8), None if hidden is None else hidden.numpy(), opacity)

    def _mix(
        self, colors: UInt8[np.ndarray, "h w 3"], hidden: Bool[np.ndarray, "H W"] | None, opacity: float
    ) -> UInt8[np.ndarray, "h w 3"]:
        shown = np.array(Image.blend(Image.fromarray(self.photo), Image.fromarray(colors), opacity))
        if hidden is not None and hidden.any():
            dark = self.spread(hidden) | ~self.inside
            shown[dark] = self.photo[dark] // 3
        elif not self.inside.all():
            shown[~self.inside] = self.photo[~self.inside] // 3
        return shown

    def outline(
        self,
        shown: UInt8[np.ndarray, "h w 3"],
        cells: Sequence[Cell],
        color: tuple[int, int, int],
        labels: Sequence[str] = (),
    ) -> UInt8[np.ndarray, "h w 3"]:
        """The picture with these cells framed, and a label beside each: colour alone would not reach everyone."""
        image = Image.fromarray(shown)
        pen = ImageDraw.Draw(image)
        for index, (row, col) in enumerate(cells):
            left, top, right, bottom = self._box(row, col)
            # A cell of a large picture is a few pixels: the frame keeps a size that can be seen.
            grow = max(0.0, (12 - (right - left)) / 2)
            box = (left - grow - 1, top - grow - 1, right + grow, bottom + grow)
            for width, ink in ((5, (0, 0, 0)), (3, color)):
                inset = (5 - width) / 2
                pen.rectangle(
                    (box[0] - 3 + inset, box[1] - 3 + inset, box[2] + 3 - inset, box[3] + 3 - inset),
                    outline=ink,
                    width=width,
                )
            if index < len(labels):
                self._label(pen, labels[index], box, color)
        return np.asarray(image)

    def _label(
        self,
        pen: ImageDraw.ImageDraw,
        text: str,
        box: tuple[float, float, float, float],
        color: tuple[int, int, int],
    ) -> None:
        font = ImageFont.load_default(size=18)
        x, y = box[2] + 6, box[1] - 12
        left, top, right, bottom = pen.textbbox((x, y), text, font=font)
        x -= max(0.0, right + 4 - self.size[0]) and right - left + box[2] - box[0] + 20
        y = min(max(y, 2), self.size[1] - (bottom - top) - 8)
        left, top, right, bottom = pen.textbbox((x, y), text, font=font)
        pen.rounded_rectangle((left - 5, top - 4, right + 5, bottom + 4), 4, fill=color)
        light = sum(color) > 380
        pen.text((x, y), text, font=font, fill=(0, 0, 0) if light else (255, 255, 255))

    def _box(self, row: int, col: int) -> tuple[float, float, float, float]:
        """The cell's rectangle in display pixels."""
        left, top, right, bottom = self.frame
        width, height = self.size
        box = {"box_width": width, "box_height": height, "width": right - left, "height": bottom - top}
        first, _, second, _ = patch_to_polygon(self.geometry, row, col)
        corners = [pixel_to_displayed(x - left, y - top, fit="fill", **box) for x, y in (first, second)]
        return *corners[0], *corners[1]


def _continued(grid: Float[np.ndarray, "H W"]) -> Float[np.ndarray, "H W"]:
    """The map with the values at its rim continued into the padding, which then pulls on nothing between patches."""
    rows = (~np.isnan(grid)).any(1).nonzero()[0]
    grid = grid[np.arange(len(grid)).clip(rows[0], rows[-1])]
    valid, cols = ~np.isnan(grid), np.arange(grid.shape[1])
    first, last = valid.argmax(1), len(cols) - 1 - valid[:, ::-1].argmax(1)
    return np.take_along_axis(grid, cols.clip(first[:, None], last[:, None]), axis=1)


def _lerp(places: Float[np.ndarray, "n"], cells: int) -> Float[np.ndarray, "n cells"]:
    """The matrix that interpolates linearly between cell centres, constant beyond the outermost ones."""
    centred = np.clip(places - 0.5, 0, cells - 1)
    first = np.floor(centred).astype(int)
    second = np.minimum(first + 1, cells - 1)
    matrix = np.zeros((len(places), cells), dtype=np.float32)
    index = np.arange(len(places))
    share = (centred - first).astype(np.float32)
    matrix[index, first] += 1 - share
    matrix[index, second] += share
    return matrix


@lru_cache
def lookup(colormap: str) -> UInt8[np.ndarray, "256 3"]:
    """The 256 colours of a colour map; ValueError for an unknown one."""
    if colormap not in COLORMAPS:
        raise ValueError(f"no colour map called {colormap!r}; known: {', '.join(COLORMAPS)}")
    samples = plotly.colors.sample_colorscale(COLORMAPS[colormap], np.linspace(0, 1, 256).tolist(), colortype="tuple")
    return (np.array(samples) * 255).round().astype(np.uint8)


def legend(colormap: str, limits: tuple[float, float], label: str) -> str:
    """A colour bar with its numbers, as HTML."""
    stops = ", ".join(f"rgb({r} {g} {b})" for r, g, b in lookup(colormap)[::15])
    low, high = limits
    middle = f"{(low + high) / 2:.2f}"
    return (
        f'<figure class="legend" role="img" aria-label="{label}, from {low:.2f} to {high:.2f}">'
        f'<div class="bar" style="background: linear-gradient(to right, {stops})"></div>'
        f"<figcaption><span>{low:.2f}</span><span>{middle} &nbsp;{label}</span><span>{high:.2f}</span></figcaption>"
        "</figure>"
    )
