"""The geometry of the page and that of Python give the same bits, for any picture, crop, padding and grid."""

import base64
import hashlib
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.dense.geometry import (
    Geometry,
    carried,
    displayed_to_pixel,
    grid_box,
    grid_lines,
    patch_centre,
    patch_to_polygon,
    pixel_to_displayed,
    pixel_to_patch,
    plan,
    same_patch,
    valid_cells,
)

MODULE = Path(__file__).parents[3] / "workbench" / "widgets" / "geometry.js"
SIZES = 500
FITS = ("contain", "cover", "fill")

PRELUDE = """
window.numbers = (value) => Array.isArray(value) || ArrayBuffer.isView(value) ? [...value].flatMap(numbers)
    : [value === null ? NaN : value];
window.base64 = (bytes) => {
    let text = "";
    for (let at = 0; at < bytes.length; at += 32768) text += String.fromCharCode(...bytes.subarray(at, at + 32768));
    return btoa(text);
};
"""


@pytest.fixture(scope="module")
def in_page(browser) -> Iterator[Callable[..., Any]]:
    """Runs `body`, a JavaScript function of the module `g` and a case, on many cases; all numbers it returned."""
    page = browser.new_page()
    page.route(
        "http://localhost/**",
        lambda route: (
            route.fulfill(body=MODULE.read_text(), content_type="text/javascript")
            if route.request.url.endswith(".js")
            else route.fulfill(body="<!doctype html>", content_type="text/html")
        ),
    )
    page.add_init_script(PRELUDE)
    page.goto("http://localhost/")

    def run(body: str, cases: list[Any]) -> np.ndarray:
        text = page.evaluate(
            f"""async (text) => {{
                const g = await import("/geometry.js");
                const body = {body};
                const found = Float64Array.from(JSON.parse(text).flatMap((item) => numbers(body(item))));
                return base64(new Uint8Array(found.buffer));
            }}""",
            json.dumps(cases),
        )
        return np.frombuffer(base64.b64decode(text), np.float64)

    run.page = page  # type: ignore[attr-defined]
    yield run
    page.close()


def numbers(value: Any) -> list[float]:
    """All numbers in nested tuples and arrays; None is NaN."""
    if isinstance(value, (tuple, list, np.ndarray)):
        return [number for part in value for number in numbers(part)]
    return [float("nan") if value is None else float(value)]


def assert_same_bits(found: np.ndarray, expected: Any) -> None:
    wanted = np.array(numbers(expected))
    assert len(found) == len(wanted)
    found, wanted = found.view(np.uint64), wanted.view(np.uint64)
    nan = np.float64("nan").view(np.uint64)
    different = np.flatnonzero(found != wanted)
    # What is no number has many bit patterns; it stands for null here.
    different = [i for i in different if not (np.isnan(found[i].view(np.float64)) and wanted[i] == nan)]
    assert not different, f"{len(different)} of {len(wanted)} numbers differ, the first at {different[0]}"


def some_geometry(rng: random.Random, orientation: int, width: int, height: int) -> Geometry:
    """Any geometry there is: crops, sizes, both patch sizes and both policies, every third padded on all sides."""
    upright = (height, width) if orientation >= 5 else (width, height)
    crop = None
    if rng.random() < 0.5:
        left, top = (rng.randrange(side) for side in upright)
        crop = (left, top, rng.randint(left + 1, upright[0]), rng.randint(top + 1, upright[1]))
    geometry = plan(
        width,
        height,
        rng.choice([14, 16]),
        size=rng.randint(1, 900) if rng.random() < 0.8 or max(width, height) > 1200 else None,
        orientation=orientation,
        crop=crop,
        keep_aspect=rng.random() < 0.7,
    )
    if rng.random() > 0.3:
        return geometry
    patch = geometry.patch_size
    left, top = rng.randint(0, 2 * patch), rng.randint(0, 2 * patch)
    right = -(left + geometry.input_width) % patch + patch * rng.randint(0, 2)
    bottom = -(top + geometry.input_height) % patch + patch * rng.randint(0, 2)
    return replace(geometry, pad=(left, top, right, bottom))


def many_geometries() -> Iterator[tuple[random.Random, Geometry]]:
    """500 sizes from 1 pixel up in each of the eight orientations."""
    rng = random.Random(0)
    for _ in range(SIZES):
        longest = rng.choice([3, 40, 700, 5000])
        width, height = rng.randint(1, longest), rng.randint(1, longest)
        for orientation in range(1, 9):
            yield rng, some_geometry(rng, orientation, width, height)


def some_points(rng: random.Random, geometry: Geometry, cell: tuple[int, int]) -> list[tuple[float, float]]:
    """Points inside and outside of the picture, on borders of a cell, and a hair beside them."""
    on = patch_to_polygon(geometry, *cell)[rng.randrange(4)]
    return [
        (rng.uniform(-1, geometry.width + 1), rng.uniform(-1, geometry.height + 1)),
        on,
        (float(np.nextafter(on[0], -1e9)), float(np.nextafter(on[1], 1e9))),
        (geometry.crop[2], geometry.crop[3]),
    ]


def shown_cell(rng: random.Random, geometry: Geometry) -> tuple[int, int]:
    """A cell that is not wholly padding: the one under a point of the crop."""
    left, top, right, bottom = geometry.crop
    cell = pixel_to_patch(geometry, rng.uniform(left, right), rng.uniform(top, bottom))
    assert cell is not None
    return cell


@pytest.mark.long
def test_points_and_cells_agree_for_500_sizes_and_all_orientations(in_page):
    cases, expected = [], []
    for rng, geometry in many_geometries():
        cell = shown_cell(rng, geometry)
        points = some_points(rng, geometry, cell)
        cases.append([geometry.to_dict(), points, cell])
        expected.append(
            [
                (geometry.width, geometry.height, geometry.rows, geometry.cols),
                [pixel_to_patch(geometry, *point) for point in points],
                patch_to_polygon(geometry, *cell),
                patch_centre(geometry, *cell),
                grid_box(geometry),
            ]
        )
    assert len(cases) == 8 * SIZES
    found = in_page(
        """([record, points, cell]) => {
            const geometry = new g.Geometry(record);
            return [
                [geometry.width, geometry.height, geometry.rows, geometry.cols],
                points.map((point) => g.pixelToPatch(geometry, ...point)),
                g.patchToPolygon(geometry, ...cell),
                g.patchCentre(geometry, ...cell),
                g.gridBox(geometry),
            ];
        }""",
        cases,
    )
    assert_same_bits(found, expected)


@pytest.mark.long
def test_grid_lines_agree(in_page):
    geometries = [geometry for _, geometry in many_geometries()][::10]
    found = in_page("(record) => g.gridLines(new g.Geometry(record))", [item.to_dict() for item in geometries])
    assert_same_bits(found, [grid_lines(geometry) for geometry in geometries])


@pytest.mark.long
def test_valid_cells_agree(in_page):
    geometries = [geometry for _, geometry in many_geometries()][::3]
    found = in_page.page.evaluate(
        """async (records) => {
            const g = await import("/geometry.js");
            const masks = records.map((record) => g.validCells(new g.Geometry(record)));
            const joined = new Uint8Array(await new Blob(masks).arrayBuffer());
            return base64(new Uint8Array(await crypto.subtle.digest("SHA-256", joined)));
        }""",
        [geometry.to_dict() for geometry in geometries],
    )
    masks = b"".join(valid_cells(geometry).tobytes() for geometry in geometries)
    assert base64.b64decode(found) == hashlib.sha256(masks).digest()


@pytest.mark.long
def test_cells_are_carried_between_grids_of_14_and_16_pixels(in_page):
    rng, cases, expected, carries = random.Random(1), [], [], []
    for _ in range(300):
        width, height, orientation = rng.randint(1, 900), rng.randint(1, 900), rng.randint(1, 8)
        a, b = (some_geometry(rng, orientation, width, height) for _ in range(2))
        cell = shown_cell(rng, a)
        cases.append([a.to_dict(), cell, b.to_dict()])
        expected.append(same_patch(a, *cell, b))
        a, b = (plan(width, height, patch, size=rng.randint(1, 500), orientation=orientation) for patch in (14, 16))
        carries.append((a, b))
    assert any(cell is None for cell in expected) and any(expected)
    same = "([a, cell, b]) => g.samePatch(new g.Geometry(a), ...cell, new g.Geometry(b)) ?? [null]"
    assert_same_bits(in_page(same, cases), expected)

    indices = [carried(np.arange(a.rows * a.cols).reshape(a.rows, a.cols), a, b) for a, b in carries]
    found = in_page(
        "([a, b]) => g.carriedIndex(new g.Geometry(a), new g.Geometry(b))",
        [[a.to_dict(), b.to_dict()] for a, b in carries],
    )
    assert_same_bits(found, indices)


def test_points_on_the_screen_agree_for_every_object_fit(in_page):
    rng, cases, there, back = random.Random(2), [], [], []
    for _ in range(SIZES):
        width, height = rng.randint(1, 5000), rng.randint(1, 5000)
        # Boxes of a zoomed page on a dense screen have fractional sides.
        box = {"box_width": rng.randint(1, 9000) / 3, "box_height": rng.randint(1, 9000) / 3}
        for fit in FITS:
            placed = {**box, "width": width, "height": height, "fit": fit}
            corner = pixel_to_displayed(width, height, **placed)
            point = (rng.uniform(-0.2, 1.2) * box["box_width"], rng.uniform(-0.2, 1.2) * box["box_height"])
            for x, y in (point, corner, (0, 0), (-0.0, box["box_height"])):
                cases.append([x, y, placed])
                there.append(displayed_to_pixel(x, y, **placed))
                back.append(pixel_to_displayed(x, y, **placed))
    assert any(point is None for point in there) and any(there)
    assert_same_bits(in_page("([x, y, placed]) => g.displayedToPixel(x, y, placed)", cases), there)
    assert_same_bits(in_page("([x, y, placed]) => g.pixelToDisplayed(x, y, placed)", cases), back)


@pytest.mark.parametrize(
    "call",
    [
        "g.patchToPolygon(padded, 0, 2)",  # wholly in the padding
        "g.patchCentre(padded, 2, 0)",  # outside of the grid
        "g.samePatch(padded, 0, 0, new g.Geometry({...record, stored_width: 31}))",
        "g.displayedToPixel(1, 1, {box_width: 0, box_height: 9, width: 9, height: 9})",
        "g.displayedToPixel(1, 1, {box_width: 9, box_height: 9, width: 9, height: 9, fit: 'none'})",
        "new g.Geometry({...record, pad: [0, 0, 1, 0]})",
        "new g.Geometry({...record, crop: [0, 0, 33, 32]})",
        "new g.Geometry({...record, crop: [8, 0, 8, 32]})",
        "new g.Geometry({...record, orientation: 9})",
        "new g.Geometry({...record, input_width: 0})",
        "new g.Geometry({...record, input_width: '32'})",
        "new g.Geometry({})",
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(in_page, call):
    record = {
        "stored_width": 32,
        "stored_height": 32,
        "orientation": 1,
        "crop": [0, 0, 32, 32],
        "input_width": 32,
        "input_height": 32,
        "pad": [0, 0, 16, 0],
        "patch_size": 16,
    }
    assert Geometry.from_dict(record).cols == 3
    message = in_page.page.evaluate(
        f"""async (record) => {{
            const g = await import("/geometry.js");
            const padded = new g.Geometry(record);
            try {{ {call}; }} catch (error) {{ return error.constructor === Error ? error.message : `${{error}}`; }}
        }}""",
        record,
    )
    assert message.endswith(".") and "undefined" not in message


def test_geometry_is_small():
    assert MODULE.stat().st_size <= 9000
