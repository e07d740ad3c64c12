"""The geometry agrees with Pillow's own turning and resizing, with counting pixels, and with itself."""

import io
import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from core.dense.geometry import (
    Geometry,
    displayed_to_pixel,
    grid_box,
    grid_lines,
    patch_centre,
    patch_to_polygon,
    pixel_to_displayed,
    pixel_to_patch,
    plan,
    same_patch,
    stored_to_upright,
    upright_to_stored,
    valid_cells,
)

many = settings(max_examples=600, deadline=None, derandomize=True, database=None)
some = settings(max_examples=150, deadline=None, derandomize=True, database=None)


@st.composite
def geometries(draw, longest: int = 3000, cropped: bool = True) -> Geometry:
    """Any plan there is: sides from 1 pixel up, all orientations, crops, sizes, patches, both policies."""
    width, height = draw(st.integers(1, longest)), draw(st.integers(1, longest))
    orientation = draw(st.integers(1, 8))
    upright = (height, width) if orientation >= 5 else (width, height)
    crop = None
    if cropped and draw(st.booleans()):
        left, top = (draw(st.integers(0, side - 1)) for side in upright)
        crop = (left, top, draw(st.integers(left + 1, upright[0])), draw(st.integers(top + 1, upright[1])))
    return plan(
        width,
        height,
        draw(st.sampled_from([8, 14, 16, 32])),
        size=draw(st.none() | st.integers(1, 2048)),
        orientation=orientation,
        crop=crop,
        keep_aspect=draw(st.booleans()),
    )


@st.composite
def padded_geometries(draw) -> Geometry:
    """Geometries as they may come from a file: padding on all four sides, whole cells of it included."""
    geometry = draw(geometries(longest=500))
    patch = geometry.patch_size
    left, top = draw(st.integers(0, 2 * patch)), draw(st.integers(0, 2 * patch))
    right = -(left + geometry.input_width) % patch + patch * draw(st.integers(0, 2))
    bottom = -(top + geometry.input_height) % patch + patch * draw(st.integers(0, 2))
    return replace(geometry, pad=(left, top, right, bottom))


def picture_rows_and_cols(geometry: Geometry) -> tuple[list[int], list[int]]:
    """The rows and columns that hold picture, read off a model input in which picture is 1 and padding 0."""
    left, top, right, bottom = geometry.pad
    across = np.pad(np.ones(geometry.input_width), (left, right)).reshape(geometry.cols, -1).any(axis=1)
    down = np.pad(np.ones(geometry.input_height), (top, bottom)).reshape(geometry.rows, -1).any(axis=1)
    return np.flatnonzero(down).tolist(), np.flatnonzero(across).tolist()


def some_cells(data, geometry: Geometry) -> list[tuple[int, int]]:
    """The four corners of the grid and a few cells between; plans have no wholly padded cell."""
    rows, cols = (0, geometry.rows - 1), (0, geometry.cols - 1)
    drawn = [
        (data.draw(st.integers(0, geometry.rows - 1)), data.draw(st.integers(0, geometry.cols - 1))) for _ in range(3)
    ]
    return [(row, col) for row in rows for col in cols] + drawn


# ---------------------------------------------------------------------------------------------- plan


@pytest.mark.long
@many
@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([14, 16]), st.integers(1, 2048))
def test_plan_keeps_the_aspect_to_the_pixel_and_pads_less_than_a_patch(width, height, patch, size):
    geometry = plan(width, height, patch, size=size)
    assert geometry.crop == (0, 0, width, height)
    assert max(geometry.input_width, geometry.input_height) == max(patch, math.floor(size / patch + 0.5) * patch)
    scale = max(geometry.input_width, geometry.input_height) / max(width, height)
    for side, model in ((width, geometry.input_width), (height, geometry.input_height)):
        assert abs(side * scale - model) <= 0.5 + 1e-9 or (model == 1 and side * scale < 1)
    left, top, right, bottom = geometry.pad
    assert left == top == 0 and right < patch and bottom < patch
    assert min(right, bottom) == 0
    assert (geometry.padded_width, geometry.padded_height) == (geometry.cols * patch, geometry.rows * patch)


@some
@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 8))
def test_plan_without_size_keeps_every_pixel(width, height, orientation):
    geometry = plan(width, height, 16, orientation=orientation)
    assert (geometry.input_width, geometry.input_height) == (geometry.width, geometry.height)
    assert geometry.scale_x == geometry.scale_y == 1
    assert {geometry.width, geometry.height} == {width, height}


@pytest.mark.parametrize("size", range(224, 2049, 14))
def test_plan_sweep_gives_the_grid_that_was_asked_for(size):
    square = plan(640, 640, 14, size=size)
    assert (square.rows, square.cols, square.pad) == (size // 14, size // 14, (0, 0, 0, 0))
    wide = plan(640, 427, 14, size=size)
    assert wide.cols == size // 14 and wide.input_width == size
    assert wide.input_height == round(427 * size / 640) and wide.rows == -(-wide.input_height // 14)


def test_plan_rounds_the_long_side_to_the_nearest_patch():
    assert [plan(100, 50, 16, size=size).input_width for size in (1, 16, 23, 24, 224, 232, 519)] == [
        16, 16, 16, 32, 224, 240, 512
    ]  # fmt: skip


def test_squashing_gives_a_square_without_padding():
    geometry = plan(1200, 300, 16, size=256, keep_aspect=False)
    assert (geometry.rows, geometry.cols, geometry.pad) == (16, 16, (0, 0, 0, 0))
    assert geometry.scale_x == 256 / 1200 and geometry.scale_y == 256 / 300
    own = plan(1200, 300, 16, keep_aspect=False)
    assert (own.input_width, own.input_height, own.pad) == (1200, 304, (0, 0, 0, 0))


@pytest.mark.parametrize(("width", "height"), [(1, 1), (3, 5000), (5000, 3), (1, 17), (15, 15)])
@pytest.mark.parametrize("size", [None, 14, 224, 2048])
def test_tiny_and_thin_pictures_have_cells_and_points(width, height, size):
    geometry = plan(width, height, 14, size=size)
    assert valid_cells(geometry).any()
    assert pixel_to_patch(geometry, 0, 0) == (0, 0)
    assert pixel_to_patch(geometry, width, height) == (geometry.rows - 1, geometry.cols - 1)
    assert patch_to_polygon(geometry, geometry.rows - 1, geometry.cols - 1)[2] == (width, height)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stored_width": 0}, "at least 1"),
        ({"orientation": 0}, "from 1 to 8"),
        ({"orientation": 9}, "from 1 to 8"),
        ({"crop": (0, 0, 41, 30)}, "inside the upright picture of 40x30"),
        ({"crop": (10, 10, 10, 20)}, "at least one pixel"),
        ({"crop": (-1, 0, 10, 10)}, "inside the upright"),
        ({"pad": (0, 0, 1, 12)}, "pad 15 pixels more"),
        ({"pad": (-8, 0, 16, 0)}, "must not be negative"),
        ({"patch_size": 0}, "at least 1"),
        ({"input_height": 0}, "at least 1"),
    ],
)
def test_impossible_geometries_are_refused_with_the_reason(change, message):
    good = plan(40, 30, 16, size=40, keep_aspect=True)
    assert good.pad == (0, 0, 0, 12)
    with pytest.raises(ValueError, match=message):
        replace(good, **change)


@pytest.mark.parametrize("change", [{"stored_width": 10.5}, {"crop": (0, 0, 10)}, {"crop": (0.5, 0, 10, 9)}])
def test_fractions_of_pixels_and_short_boxes_are_refused(change):
    record = {**plan(40, 30, 16).to_dict(), **change}
    with pytest.raises((ValueError, TypeError)):  # a type error where annotations are checked
        Geometry.from_dict(record)


@pytest.mark.parametrize("arguments", [{"size": 0}, {"size": -5}, {"crop": (0, 0, 99, 1)}, {"orientation": 12}])
def test_impossible_plans_are_refused(arguments):
    with pytest.raises(ValueError):
        plan(40, 30, 16, **arguments)


@some
@given(padded_geometries())
def test_geometry_survives_json(geometry):
    record = geometry.to_dict()
    text = json.dumps(record)
    assert json.loads(text) == record
    assert Geometry.from_dict(json.loads(text)) == geometry


def test_geometry_records_with_unknown_or_missing_fields_are_refused():
    record = plan(40, 30, 16).to_dict()
    with pytest.raises(ValueError, match="no field colour"):
        Geometry.from_dict({**record, "colour": 1})
    del record["pad"]
    with pytest.raises(ValueError, match="lacks pad"):
        Geometry.from_dict(record)


# ---------------------------------------------------------------------------------------------- grid


@many
@given(geometries(), st.data())
def test_patch_centres_return_to_their_patch(geometry, data):
    for cell in some_cells(data, geometry):
        assert pixel_to_patch(geometry, *patch_centre(geometry, *cell)) == cell


@pytest.mark.long
@many
@given(geometries(), st.data())
def test_cells_own_their_left_and_top_border(geometry, data):
    for row, col in some_cells(data, geometry):
        (left, top), top_right, (right, bottom), bottom_left = patch_to_polygon(geometry, row, col)
        assert top_right == (right, top) and bottom_left == (left, bottom)
        assert left < right and top < bottom
        assert pixel_to_patch(geometry, left, top) == (row, col)
        assert pixel_to_patch(geometry, math.nextafter(right, left), math.nextafter(bottom, top)) == (
            row,
            col,
        )
        beyond = (min(row + 1, geometry.rows - 1), min(col + 1, geometry.cols - 1))
        assert pixel_to_patch(geometry, right, bottom) == beyond


@settings(some, max_examples=60)
@given(padded_geometries())
def test_polygons_tile_the_crop_by_area(geometry):
    rows, cols = picture_rows_and_cols(geometry)
    step = max(1, len(rows) // 4)  # whole rows of polygons, every few rows, and the heights of all rows
    heights = [
        patch_to_polygon(geometry, row, cols[0])[3][1] - patch_to_polygon(geometry, row, cols[0])[0][1] for row in rows
    ]
    for row in rows[::step]:
        polygons = [patch_to_polygon(geometry, row, col) for col in cols]
        areas = [(right - left) * (bottom - top) for (left, top), _, (right, bottom), _ in polygons]
        assert sum(areas) == pytest.approx(geometry.crop_width * heights[row - rows[0]], rel=1e-12)
        for polygon, neighbour in itertools.pairwise(polygons):
            assert polygon[1] == neighbour[0] and polygon[2] == neighbour[3]
    assert sum(heights) == pytest.approx(geometry.crop_height, rel=1e-12)


@settings(some, max_examples=60)
@given(padded_geometries())
def test_grid_lines_are_the_sides_of_the_polygons(geometry):
    xs, ys = grid_lines(geometry)
    assert (len(xs), len(ys)) == (geometry.cols + 1, geometry.rows + 1)
    assert (xs[0], ys[0], xs[-1], ys[-1]) == geometry.crop
    rows, cols = picture_rows_and_cols(geometry)
    for row, col in [*((rows[-1], col) for col in cols), *((row, cols[-1]) for row in rows)]:
        polygon = patch_to_polygon(geometry, row, col)
        assert polygon[0] == (xs[col], ys[row]) and polygon[2] == (xs[col + 1], ys[row + 1])


@settings(some, max_examples=60)
@given(geometries(longest=40))
def test_every_pixel_lies_in_exactly_one_polygon(geometry):
    owners = np.zeros((geometry.height, geometry.width), int)
    named = np.zeros_like(owners)
    y, x = np.mgrid[: geometry.height, : geometry.width] + 0.5
    if geometry.rows * geometry.cols > 400:  # a few hundred cells an example are enough
        geometry = plan(
            geometry.stored_width,
            geometry.stored_height,
            16,
            orientation=geometry.orientation,
            crop=geometry.crop,
        )
    for row, col in itertools.product(*picture_rows_and_cols(geometry)):
        (left, top), _, (right, bottom), _ = patch_to_polygon(geometry, row, col)
        inside = (left <= x) & (x < right) & (top <= y) & (y < bottom)
        owners += inside
        named += inside * (row * geometry.cols + col)
    left, top, right, bottom = geometry.crop
    expected = np.zeros_like(owners)
    expected[top:bottom, left:right] = 1
    np.testing.assert_array_equal(owners, expected)
    for line, column in [
        *((line, left) for line in range(top, bottom)),
        *((top, c) for c in range(left, right)),
    ]:
        cell = pixel_to_patch(geometry, column + 0.5, line + 0.5)
        assert cell is not None and cell[0] * geometry.cols + cell[1] == named[line, column]


@many
@given(geometries())
def test_the_far_edges_belong_to_the_last_cell_and_beyond_is_nothing(geometry):
    left, top, right, bottom = geometry.crop
    last = (geometry.rows - 1, geometry.cols - 1)
    assert pixel_to_patch(geometry, right, bottom) == last
    assert pixel_to_patch(geometry, left, top) == (0, 0)
    for x, y in [
        (math.nextafter(right, math.inf), top),
        (math.nextafter(left, -math.inf), top),
        (left, math.nextafter(bottom, math.inf)),
        (left, math.nextafter(top, -math.inf)),
        (math.nan, top),
    ]:
        assert pixel_to_patch(geometry, x, y) is None


def test_cells_without_a_polygon_say_why():
    geometry = replace(plan(32, 16, 16), pad=(20, 0, 12, 16))
    assert (geometry.rows, geometry.cols) == (2, 4)
    assert patch_to_polygon(geometry, 0, 1) == ((0, 0), (12, 0), (12, 16), (0, 16))
    with pytest.raises(ValueError, match=r"column 0 lies wholly in the padding.*choose 1 to 3"):
        patch_to_polygon(geometry, 0, 0)
    with pytest.raises(ValueError, match="row 1 lies wholly in the padding"):
        patch_centre(geometry, 1, 1)
    for cell in [(0, 4), (2, 1), (-1, 1), (0, -1)]:
        with pytest.raises(ValueError, match="outside the grid"):
            patch_to_polygon(geometry, *cell)


@some
@given(padded_geometries())
def test_cells_with_less_than_half_their_pixels_in_the_picture_are_padding(geometry):
    patch, (left, top, _, _) = geometry.patch_size, geometry.pad
    canvas = np.zeros((geometry.padded_height, geometry.padded_width), int)
    canvas[top : top + geometry.input_height, left : left + geometry.input_width] = 1
    share = canvas.reshape(geometry.rows, patch, geometry.cols, patch).mean(axis=(1, 3))
    expected = share >= 0.5 if share.max() >= 0.5 else share >= share.max() / 2
    np.testing.assert_array_equal(valid_cells(geometry), expected)


def test_half_a_cell_of_picture_is_enough():
    assert valid_cells(plan(16 + 8, 16, 16)).tolist() == [[True, True]]
    assert valid_cells(plan(16 + 7, 16, 16)).tolist() == [[True, False]]
    assert valid_cells(plan(16 + 10, 16 + 10, 16)).tolist() == [[True, True], [True, False]]


@settings(some, max_examples=60)
@given(padded_geometries())
def test_the_grid_box_spaces_its_cells_like_the_polygons(geometry):
    left, top, right, bottom = grid_box(geometry)
    width, height = (right - left) / geometry.cols, (bottom - top) / geometry.rows
    rows, cols = picture_rows_and_cols(geometry)
    for row, col in [(rows[0], cols[0]), (rows[-1], cols[-1]), (rows[len(rows) // 2], cols[len(cols) // 2])]:
        x, y = patch_to_polygon(geometry, row, col)[0]
        assert x == pytest.approx(max(left + col * width, geometry.crop[0]), abs=1e-9)
        assert y == pytest.approx(max(top + row * height, geometry.crop[1]), abs=1e-9)


def owners_of_pixels(geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """The row of every line and the column of every pixel column of the crop, by asking pixel_to_patch."""
    left, top, right, bottom = geometry.crop
    rows = [pixel_to_patch(geometry, left, y + 0.5)[0] for y in range(top, bottom)]
    cols = [pixel_to_patch(geometry, x + 0.5, top)[1] for x in range(left, right)]
    return np.array(rows), np.array(cols)


@pytest.mark.parametrize(
    ("width", "height", "size", "crop"),
    [(96, 64, 192, None), (128, 128, 64, None), (90, 60, 480, (10, 7, 75, 52)), (100, 37, 224, None)],
)
def test_a_one_hot_map_drawn_over_the_grid_box_lights_its_patch_only(width, height, size, crop):
    geometry = plan(width, height, 16, size=size, crop=crop)
    rows, cols = owners_of_pixels(geometry)
    for row, col in [
        (0, 0),
        (geometry.rows // 2, geometry.cols // 3),
        (geometry.rows - 1, geometry.cols - 1),
    ]:
        heat = np.zeros((geometry.rows, geometry.cols), np.uint8)
        heat[row, col] = 255
        # Pillow stretches the part of the map that lies under the crop, nearest cell for every pixel.
        left, top, right, bottom = grid_box(geometry)
        per_x, per_y = geometry.cols / (right - left), geometry.rows / (bottom - top)
        part = [
            (side - start) * per
            for side, start, per in zip(geometry.crop, (left, top) * 2, (per_x, per_y) * 2, strict=True)
        ]
        drawn = Image.fromarray(heat).resize(
            (geometry.crop_width, geometry.crop_height), Image.Resampling.NEAREST, box=part
        )
        np.testing.assert_array_equal(np.asarray(drawn) == 255, np.outer(rows == row, cols == col))


@pytest.mark.parametrize(("width", "height", "size"), [(300, 200, 224), (200, 300, 448), (97, 31, 320)])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_white_patch_in_the_file_reaches_the_model_in_its_own_cell(width, height, size, orientation):
    geometry = plan(width, height, 16, size=size, orientation=orientation)
    rows, cols = owners_of_pixels(geometry)
    for row, col in [(0, 0), (1, 2), (geometry.rows - 1, 1)]:
        wanted = np.outer(rows == row, cols == col).astype(np.uint8) * 255
        back = {1: None, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90}[orientation]
        stored = Image.fromarray(wanted) if back is None else Image.fromarray(wanted).transpose(back)
        upright = saved_and_turned(stored, orientation)
        resized = upright.resize((geometry.input_width, geometry.input_height), Image.Resampling.BILINEAR)
        canvas = np.zeros((geometry.padded_height, geometry.padded_width))
        canvas[: geometry.input_height, : geometry.input_width] = resized
        light = canvas.reshape(geometry.rows, 16, geometry.cols, 16).sum(axis=(1, 3))
        assert np.unravel_index(light.argmax(), light.shape) == (row, col)
        assert light[row, col] > 0.5 * light.sum()


@some
@given(geometries(cropped=False), st.sampled_from([8, 14, 16]), st.integers(14, 2048), st.data())
def test_the_same_patch_is_the_one_under_the_centre(geometry, patch, size, data):
    other = plan(geometry.stored_width, geometry.stored_height, patch, size=size, orientation=geometry.orientation)
    for cell in some_cells(data, geometry):
        found = same_patch(geometry, *cell, other)
        assert found is not None
        (left, top), _, (right, bottom), _ = patch_to_polygon(other, *found)
        x, y = patch_centre(geometry, *cell)
        assert left <= x <= right and top <= y <= bottom
        assert same_patch(geometry, *cell, geometry) == cell


def test_grids_of_14_and_16_pixels_agree_in_the_picture_not_by_index():
    coarse, fine = plan(1120, 560, 16, size=1120), plan(1120, 560, 14, size=1120)
    assert (coarse.rows, coarse.cols, fine.rows, fine.cols) == (35, 70, 40, 80)
    assert same_patch(coarse, 34, 69, fine) == (39, 79)
    assert same_patch(fine, 39, 79, coarse) == (34, 69)
    assert same_patch(coarse, 20, 40, fine) == (23, 46)
    left_half = plan(1120, 560, 14, crop=(0, 0, 560, 560))
    assert same_patch(coarse, 20, 40, left_half) is None
    with pytest.raises(ValueError, match="1120x560 and 560x1120"):
        same_patch(coarse, 0, 0, plan(560, 1120, 16))


# ---------------------------------------------------------------------------------------------- orientation


def saved_and_turned(stored: Image.Image, orientation: int) -> Image.Image:
    """What Pillow shows of a file with this orientation tag."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    stored.save(buffer, "PNG", exif=exif)
    return ImageOps.exif_transpose(Image.open(buffer))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("width", "height"), [(5, 3), (3, 5), (1, 4), (4, 4), (1, 1)])
def test_orientation_agrees_with_pillow_for_every_pixel(orientation, width, height):
    geometry = plan(width, height, 16, orientation=orientation)
    for x, y in itertools.product(range(width), range(height)):
        marked = np.zeros((height, width), np.uint8)
        marked[y, x] = 255
        upright = np.asarray(saved_and_turned(Image.fromarray(marked), orientation))
        assert upright.shape == (geometry.height, geometry.width)
        ((row, col),) = np.argwhere(upright)
        assert stored_to_upright(geometry, x + 0.5, y + 0.5) == (col + 0.5, row + 0.5)
        assert upright_to_stored(geometry, col + 0.5, row + 0.5) == (x + 0.5, y + 0.5)


@some
@given(geometries(), st.floats(0, 1), st.floats(0, 1))
def test_orientation_and_back_is_the_same_point_inside_the_picture(geometry, a, b):
    x, y = a * geometry.stored_width, b * geometry.stored_height
    upright = stored_to_upright(geometry, x, y)
    assert 0 <= upright[0] <= geometry.width and 0 <= upright[1] <= geometry.height
    assert upright_to_stored(geometry, *upright) == pytest.approx((x, y), abs=1e-9)


# ---------------------------------------------------------------------------------------------- display


@pytest.mark.long
@many
@given(
    geometries(),
    st.floats(20, 4000),
    st.floats(20, 4000),
    st.sampled_from(["contain", "cover", "fill"]),
    st.floats(1, 3),
    st.data(),
)
def test_a_click_on_a_displayed_patch_lands_in_that_patch(geometry, box_width, box_height, fit, ratio, data):
    shown = {
        "box_width": box_width,
        "box_height": box_height,
        "width": geometry.width,
        "height": geometry.height,
        "fit": fit,
    }
    for cell in some_cells(data, geometry):
        x, y = pixel_to_displayed(*patch_centre(geometry, *cell), **shown)
        if not (-1e-6 <= x <= box_width + 1e-6 and -1e-6 <= y <= box_height + 1e-6):
            assert fit == "cover"  # the rim is hidden, give or take rounding
            assert displayed_to_pixel(x, y, **shown) is None
            continue
        pixel = displayed_to_pixel(x, y, **shown)
        assert pixel is not None and pixel_to_patch(geometry, *pixel) == cell

        # A mouse reports whole device pixels; where a patch is larger than two of them, that must not matter.
        corners = patch_to_polygon(geometry, *cell)
        (left, top), (right, bottom) = (pixel_to_displayed(*corners[i], **shown) for i in (0, 2))
        mouse_x, mouse_y = (round(value * ratio) / ratio for value in (x, y))
        inside = 0 <= mouse_x <= box_width and 0 <= mouse_y <= box_height
        if inside and min(right - left, bottom - top) * ratio > 2:
            pixel = displayed_to_pixel(mouse_x, mouse_y, **shown)
            assert pixel is not None and pixel_to_patch(geometry, *pixel) == cell


@some
@given(
    geometries(),
    st.floats(20, 2000),
    st.floats(20, 2000),
    st.floats(0.25, 4),
    st.floats(0.01, 0.99),
    st.floats(0.01, 0.99),
)
def test_zoom_that_scales_box_and_pointer_alike_changes_nothing(geometry, width, height, zoom, a, b):
    picture = {"width": geometry.width, "height": geometry.height, "fit": "cover"}
    plain = displayed_to_pixel(a * width, b * height, box_width=width, box_height=height, **picture)
    zoomed = displayed_to_pixel(
        a * width * zoom, b * height * zoom, box_width=width * zoom, box_height=height * zoom, **picture
    )
    assert plain == pytest.approx(zoomed, rel=1e-9, abs=1e-9)


def test_contain_leaves_bars_and_cover_hides_the_rim():
    wide = {"box_width": 400, "box_height": 400, "width": 200, "height": 100}
    assert displayed_to_pixel(200, 99, **wide) is None
    assert displayed_to_pixel(200, 100, **wide) == (100, 0)
    assert displayed_to_pixel(400, 300, **wide) == (200, 100)
    assert displayed_to_pixel(200, 301, **wide) is None
    assert displayed_to_pixel(0, 0, **wide, fit="cover") == (50, 0)
    assert displayed_to_pixel(400, 400, **wide, fit="cover") == (150, 100)
    assert pixel_to_displayed(0, 0, **wide, fit="cover") == (-200, 0)
    assert displayed_to_pixel(0, 0, **wide, fit="fill") == (0, 0)
    assert displayed_to_pixel(100, 100, **wide, fit="fill") == (50, 25)


@some
@given(st.floats(1, 3000), st.floats(1, 3000), st.integers(1, 5000), st.integers(1, 5000))
def test_the_rim_of_the_displayed_picture_is_part_of_it(box_width, box_height, width, height):
    shown = {"box_width": box_width, "box_height": box_height, "width": width, "height": height}
    for fit in ("contain", "fill"):
        pixel = displayed_to_pixel(*pixel_to_displayed(width, height, **shown, fit=fit), **shown, fit=fit)
        assert pixel == pytest.approx((width, height), abs=1e-6)
        assert pixel_to_patch(plan(width, height, 16, size=64), *pixel) is not None


def test_elements_that_cannot_show_a_picture_are_refused():
    with pytest.raises(ValueError, match="laid out"):
        displayed_to_pixel(0, 0, box_width=0, box_height=10, width=5, height=5)
    # A type error where annotations are checked; both name the three.
    with pytest.raises((ValueError, TypeError), match=r"contain.*cover.*fill"):
        pixel_to_displayed(0, 0, box_width=10, box_height=10, width=5, height=5, fit="scale-down")
