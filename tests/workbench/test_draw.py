"""Every display pixel gets the colour of the patch that saw it; compared with slow loops over single pixels."""

import re
from itertools import product

import numpy as np
import plotly.colors
import pytest
import torch
from PIL import Image

from core.dense.geometry import patch_centre, patch_to_polygon, pixel_to_patch, plan, valid_cells
from workbench.draw import COLORMAPS, MATCH, QUERY, Canvas, legend, lookup

GEOMETRIES = {
    "padded at the bottom": plan(50, 37, 14, size=140),
    "padded at the right": plan(37, 50, 14, size=140),
    "of its own size": plan(90, 61, 14),
    "squashed": plan(50, 37, 16, size=96, keep_aspect=False),
    "stored sideways": plan(50, 37, 16, size=128, orientation=6),
    "a part of the photo": plan(90, 80, 14, size=98, crop=(11, 7, 71, 52)),
    "one cell": plan(50, 37, 14, size=14),
}
WINDOWS = (None, (9, 6, 31, 29))


def photo(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(0).integers(60, 256, (height, width, 3), dtype=np.uint8)


def canvas(name: str, window=None, long_side: int = 97) -> Canvas:
    geometry = GEOMETRIES[name]
    return Canvas(photo(geometry.width, geometry.height), geometry, window, long_side)


def cells_by_loop(drawn: Canvas) -> np.ndarray:
    """Row and column under the middle of every display pixel, -1 where the model saw nothing."""
    left, top, right, bottom = drawn.frame
    width, height = drawn.size
    cells = np.full((height, width, 2), -1)
    for y, x in product(range(height), range(width)):
        pixel = left + (x + 0.5) * (right - left) / width, top + (y + 0.5) * (bottom - top) / height
        if (cell := pixel_to_patch(drawn.geometry, *pixel)) is not None:
            cells[y, x] = cell
    return cells


@pytest.mark.long
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_cell_colours_exactly_the_display_pixels_of_its_patch(name, window):
    drawn = canvas(name, window)
    cells = cells_by_loop(drawn)
    grid = np.arange(drawn.geometry.rows * drawn.geometry.cols).reshape(drawn.geometry.rows, drawn.geometry.cols)
    seen = cells[..., 0] >= 0
    np.testing.assert_array_equal(drawn.inside, seen)
    expected = grid[cells[..., 0], cells[..., 1]]
    np.testing.assert_array_equal(drawn.spread(grid)[seen], expected[seen])


def test_one_hot_heat_lights_the_polygon_and_nothing_else():
    drawn = canvas("padded at the bottom", long_side=500)
    geometry = drawn.geometry
    for cell in ((0, 0), (3, 4), (geometry.rows - 1, geometry.cols - 1)):
        values = torch.zeros(geometry.rows, geometry.cols)
        values[cell] = 1
        lit = (drawn.heat(values, opacity=1.0) == lookup("viridis")[255]).all(-1)
        (left, top), _, (right, bottom), _ = patch_to_polygon(geometry, *cell)
        scale = 500 / 50
        x, y = (np.arange(500) + 0.5) / scale, (np.arange(drawn.size[1]) + 0.5) / (drawn.size[1] / 37)
        expected = np.outer((y >= top) & (y < bottom), (x >= left) & (x < right))
        np.testing.assert_array_equal(lit, expected)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_bilinear_is_the_weighted_mean_of_the_four_nearest_centres(name):
    drawn = canvas(name, long_side=40)
    rows, cols = drawn.geometry.rows, drawn.geometry.cols
    grid = np.random.default_rng(1).random((rows, cols)).astype(np.float32)
    smooth = drawn.spread(grid, smooth=True)
    down, across = drawn._cells
    for y, x in product(range(smooth.shape[0]), range(smooth.shape[1])):
        r, c = min(max(down[y] - 0.5, 0), rows - 1), min(max(across[x] - 0.5, 0), cols - 1)
        total = 0.0
        for row, col in product((int(r), int(r) + 1), (int(c), int(c) + 1)):
            weight = (1 - abs(r - row)) * (1 - abs(c - col))
            total += weight * grid[min(row, rows - 1), min(col, cols - 1)]
        assert smooth[y, x] == pytest.approx(total, abs=1e-5)


def test_bilinear_has_the_patch_value_at_every_patch_centre():
    geometry = plan(500, 375, 14, size=252)
    drawn = Canvas(photo(500, 375), geometry, long_side=500)
    grid = np.random.default_rng(1).random((geometry.rows, geometry.cols, 3)).astype(np.float32)
    smooth = drawn.spread(grid, smooth=True)
    assert smooth.shape == (375, 500, 3)
    for row, col in ((0, 0), (5, 7), (12, 17)):  # patches of 27.8 pixels that lie wholly in the picture
        x, y = patch_centre(geometry, row, col)
        patch = smooth[int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2].mean((0, 1))
        np.testing.assert_allclose(patch, grid[row, col], atol=0.05)


@pytest.mark.parametrize("smooth", [False, True])
def test_a_window_shows_the_same_as_the_whole(smooth):
    geometry = plan(160, 120, 14, size=112)
    whole = Canvas(photo(160, 120), geometry, long_side=160)  # one display pixel for one of the photograph
    part = Canvas(photo(160, 120), geometry, window=(37, 20, 117, 90), long_side=80)
    values = torch.rand(geometry.rows, geometry.cols, generator=torch.Generator().manual_seed(0))
    assert part.size == (80, 70)
    np.testing.assert_array_equal(part.photo, whole.photo[20:90, 37:117])
    np.testing.assert_array_equal(part.heat(values, smooth=smooth), whole.heat(values, smooth=smooth)[20:90, 37:117])


def test_padding_shows_the_photograph_darkened_and_pulls_on_nothing():
    drawn = canvas("padded at the bottom")
    valid = torch.from_numpy(valid_cells(drawn.geometry))
    assert not valid.all()
    values = torch.full(valid.shape, 0.25).masked_fill(~valid, torch.nan)
    values[0] = 0.9
    dark = drawn.spread(~valid.numpy())
    for smooth in (False, True):
        shown = drawn.heat(values, opacity=1.0, smooth=smooth)
        np.testing.assert_array_equal(shown[dark], drawn.photo[dark] // 3)
        # The row above the padding keeps its own value all over, also between the patches.
        last = drawn.spread(np.arange(len(valid))[:, None].repeat(valid.shape[1], 1)) == int(valid[:, 0].sum()) - 1
        assert (shown[last] == lookup("viridis")[64]).all()


def test_a_corner_that_alone_is_padding_is_darkened_too():
    geometry = plan(66, 66, 10)  # the last row and column are more than half full, their common cell is not
    valid = torch.from_numpy(valid_cells(geometry))
    assert valid[-1, :-1].all() and valid[:-1, -1].all() and not valid[-1, -1]
    drawn = Canvas(photo(66, 66), geometry, long_side=132)
    for smooth in (False, True):
        shown = drawn.heat(torch.full((7, 7), 0.5).masked_fill(~valid, torch.nan), opacity=1.0, smooth=smooth)
        dark = drawn.spread(~valid.numpy())
        np.testing.assert_array_equal(shown[dark], drawn.photo[dark] // 3)
        assert (shown[~dark] == lookup("viridis")[128]).all()


def test_what_the_model_did_not_see_is_darkened():
    drawn = canvas("a part of the photo")
    shown = drawn.heat(torch.ones(drawn.geometry.rows, drawn.geometry.cols))
    assert 0 < drawn.inside.mean() < 1
    np.testing.assert_array_equal(shown[~drawn.inside], drawn.photo[~drawn.inside] // 3)


def test_opacity_goes_from_the_photograph_to_the_map():
    drawn = canvas("squashed")
    values = torch.rand(drawn.geometry.rows, drawn.geometry.cols, generator=torch.Generator().manual_seed(0))
    nothing, half, all_of_it = (drawn.heat(values, opacity=opacity).astype(int) for opacity in (0.0, 0.5, 1.0))
    np.testing.assert_array_equal(nothing, drawn.photo)
    np.testing.assert_allclose(half, (nothing + all_of_it) / 2, atol=1)
    index = (values * 255).round().to(torch.uint8).numpy()
    np.testing.assert_array_equal(all_of_it, drawn.spread(lookup("viridis")[index]))


def test_limits_saturate_and_equal_limits_do_not_divide_by_zero():
    drawn = canvas("one cell")
    colors = lookup("magma")
    for value, limits, index in ((5.0, (0, 1), 255), (-5.0, (0, 1), 0), (0.0, (-1, 1), 128), (0.3, (0.3, 0.3), 0)):
        shown = drawn.heat(torch.full((1, 1), value), limits=limits, colormap="magma", opacity=1.0)
        assert (shown[drawn.inside] == colors[index]).all()


def test_hidden_cells_show_the_photograph_darkened_and_the_others_their_colour():
    drawn = canvas("squashed")
    shape = drawn.geometry.rows, drawn.geometry.cols
    rgb = torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    hidden = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.5
    shown, dark = drawn.colors(rgb, hidden=hidden), drawn.spread(hidden.numpy())
    np.testing.assert_array_equal(shown[dark], drawn.photo[dark] // 3)
    np.testing.assert_array_equal(shown[~dark], drawn.spread(rgb.numpy())[~dark])


@pytest.mark.parametrize("size", [(60, 40), (40, 60), (5000, 50), (3, 3)])
def test_the_long_side_is_that_of_the_screen_whatever_the_photo_has(size):
    drawn = Canvas(photo(*size), plan(*size, 14, size=140))
    assert max(drawn.size) == 1024 and min(drawn.size) >= 1
    assert drawn.photo.shape == (*drawn.size[::-1], 3)
    assert drawn.pixel_at(0, 0) == (0, 0)
    assert drawn.pixel_at(*drawn.size) == pytest.approx(size)
    assert drawn.pixel_at(drawn.size[0] + 5, 0) is None


def test_display_pixels_of_a_window_are_pixels_of_the_photograph():
    drawn = Canvas(photo(160, 120), plan(160, 120, 14), window=(37, 20, 117, 90), long_side=160)
    assert drawn.pixel_at(0, 0) == (37, 20)
    assert drawn.pixel_at(80, 70) == (77, 55)
    assert drawn.pixel_at(160, 140) == (117, 90)


@pytest.mark.parametrize("cell", [(0, 0), (4, 6), (9, 13)])
def test_the_frame_lies_around_the_patch_and_not_on_it(cell):
    geometry = plan(140, 100, 10)
    drawn = Canvas(photo(140, 100), geometry, long_side=1400)
    before = np.zeros((*drawn.size[::-1], 3), np.uint8)
    after = drawn.outline(before, [cell], QUERY)
    assert not before.any() and after.shape == before.shape
    (left, top), _, (right, bottom), _ = (tuple(10 * v for v in corner) for corner in patch_to_polygon(geometry, *cell))
    changed = (after == QUERY).all(-1)
    left, top, right, bottom = (round(v) for v in (left, top, right, bottom))
    assert not changed[top + 2 : bottom - 2, left + 2 : right - 2].any()  # the patch itself can be seen
    ys, xs = np.nonzero(changed)
    box = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
    expected = max(left - 4, 0), max(top - 4, 0), min(right + 4, 1400), min(bottom + 4, 1000)
    np.testing.assert_allclose(box, expected, atol=3)


def test_the_frame_of_a_patch_of_few_pixels_can_still_be_seen():
    geometry = plan(4096, 4096, 14)
    drawn = Canvas(photo(256, 256).repeat(16, 0).repeat(16, 1), geometry, long_side=512)
    after = drawn.outline(np.zeros((512, 512, 3), np.uint8), [(100, 100)], QUERY)
    ys, xs = np.nonzero((after == QUERY).all(-1))
    assert np.ptp(xs) >= 12 and np.ptp(ys) >= 12
    x, y = (value / 8 for value in patch_centre(geometry, 100, 100))
    assert abs(xs.mean() - x) < 1.5 and abs(ys.mean() - y) < 1.5


@pytest.mark.parametrize("text", ["query", "1", "−", "+"])
def test_labels_stay_inside_the_picture(text):
    geometry = plan(140, 100, 10)
    drawn = Canvas(photo(140, 100), geometry, long_side=1400)
    blank = np.zeros((*drawn.size[::-1], 3), np.uint8)

    def extent(cell: tuple[int, int]) -> tuple[int, int]:
        plain, labelled = (drawn.outline(blank, [cell], MATCH, labels) for labels in ((), (text,)))
        ys, xs = np.nonzero((plain != labelled).any(-1))
        return int(np.ptp(xs)), int(np.ptp(ys))

    middle = extent((5, 7))
    for cell in ((0, 0), (0, 13), (9, 0), (9, 13), (0, 7), (9, 7), (5, 13)):
        assert np.subtract(middle, extent(cell)).max() <= 2, f"the label of {cell} is cut off"


@pytest.mark.parametrize("name", COLORMAPS)
def test_colour_maps_begin_and_end_as_plotlys(name):
    table = lookup(name)
    assert table.shape == (256, 3) and table.dtype == np.uint8
    scale = plotly.colors.get_colorscale(COLORMAPS[name])
    for index, (_, color) in ((0, scale[0]), (255, scale[-1])):
        rgb = plotly.colors.hex_to_rgb(color) if color.startswith("#") else plotly.colors.unlabel_rgb(color)
        np.testing.assert_allclose(table[index], rgb, atol=1)


def test_sequential_maps_grow_lighter_all_the_way():
    for name in ("viridis", "cividis", "magma"):
        light = np.asarray(Image.fromarray(lookup(name)[None]).convert("LAB"))[0, :, 0].astype(int)
        assert (np.diff(light) >= -1).all() and light[-1] - light[0] > 120


def test_an_unknown_colour_map_names_the_known_ones():
    with pytest.raises(ValueError, match=r"'jet'.*viridis, cividis"):
        lookup("jet")


def test_the_legend_says_its_numbers_to_everyone():
    text = legend("magma", (-1, 1), "cosine")
    assert 'aria-label="cosine, from -1.00 to 1.00"' in text
    assert [float(number) for number in re.findall(r"<span>(-?[\d.]+)", text)] == [-1, 0, 1]
    stops = [tuple(map(int, stop)) for stop in re.findall(r"rgb\((\d+) (\d+) (\d+)\)", text)]
    assert stops[0] == tuple(lookup("magma")[0]) and stops[-1] == tuple(lookup("magma")[255])
