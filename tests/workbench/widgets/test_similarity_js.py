"""The similarity view in a real browser, opened from disk: what people do with it, and that it shows the truth."""

import base64
import itertools
import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from core.dense.cards import ModelCard
from core.dense.color import fit_basis, to_rgb
from core.dense.extract import DenseFeatures
from core.dense.geometry import (
    Cell,
    Geometry,
    Point,
    displayed_to_pixel,
    patch_centre,
    patch_to_polygon,
    pixel_to_displayed,
    pixel_to_patch,
    plan,
    same_patch,
)
from core.dense.reference import standing
from core.dense.similarity import top_k
from core.models.weights import load_backbone
from tests.workbench.widgets.frames import FRAME
from workbench.draw import lookup
from workbench.images import open_image
from workbench.looks import Look, look_at
from workbench.packs import Pack, make_pack, pack_features
from workbench.views import ViewError, decode_view, encode_view, packs_of, pane_values
from workbench.widgets.similarity import Similarity

WIDGETS = Path(__file__).parents[3] / "workbench" / "widgets"
SAMPLES = Path(__file__).parents[3] / "workbench" / "samples"
PARTS = '<script type="application/json" id="parts">'

SPY = """
window.written = [];  // what was written on canvases since it was emptied
const write = CanvasRenderingContext2D.prototype.fillText;
CanvasRenderingContext2D.prototype.fillText = function (text, ...all) {
    written.push(text);
    write.call(this, text, ...all);
};
"""
READY = """() => window.gramscope?.panes.length
    && gramscope.packs.every((pack, at) => pack?.complete || gramscope.failures[at])"""
COUNT = """() => {
    window.told = [];
    const { state } = gramscope.host, { set } = state;
    state.set = (name, value) => (told.push(name), set(name, value));
}"""
PIXELS = """(canvas) => {
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    let text = "";
    for (let at = 0; at < data.length; at += 32768) text += String.fromCharCode(...data.subarray(at, at + 32768));
    return [canvas.height, canvas.width, btoa(text)];
}"""


# ---------------------------------------------------------------- packs and pages


def features_of(geometry: Geometry, *, dim: int = 48, seed: int = 0, layer: int = 11) -> DenseFeatures:
    """Features with a common part and smooth regions, so that cosines spread as those of a model do."""
    generator = torch.Generator().manual_seed(seed)
    rows, cols = geometry.rows, geometry.cols
    coarse = torch.randn(1, dim, rows // 4 + 2, cols // 4 + 2, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(rows, cols), mode="bilinear")[0].permute(1, 2, 0)
    patches = (
        torch.randn(dim, generator=generator) * 0.5 + smooth + torch.randn(rows, cols, dim, generator=generator) / 2
    )
    return DenseFeatures(
        patches=patches,
        cls=torch.zeros(dim),
        registers=torch.zeros(0, dim),
        geometry=geometry,
        layer=layer,
        norm=True,
    )


def pack_of(
    width: int = 320, height: int = 240, patch: int = 16, *, picture: int = 0, colors: bool = False, **options: Any
) -> Pack:
    """Random features of a picture of random smooth colours; the same picture for the same number and size."""
    small = np.random.default_rng(picture).integers(0, 255, (4, 5, 3), np.uint8)
    pixels = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))
    size, labels = options.pop("size", None), options.pop("labels", None)
    card = ModelCard("random", options.pop("weights", "0" * 16), "none")
    features = features_of(plan(width, height, patch, size=size), **options)
    basis = fit_basis(features.patches, valid=features.valid) if colors else None
    photo = open_image(pixels, name="at home.png")
    return pack_features(features, card, photo, basis=basis, labels=labels)


class Opened:
    """A view in a page, with the hands of a person and the arithmetic of `core.dense.geometry`."""

    def __init__(self, page: Any, packs: list[Pack]) -> None:
        self.page, self.packs = page, packs

    def js(self, code: str, value: Any = None) -> Any:
        return self.page.evaluate(code, value)

    def settle(self) -> None:
        self.js(FRAME)

    def pack(self, pane: int = 0) -> Pack:
        return self.packs[self.js("(pane) => gramscope.panes[pane].spec.pack", pane)]

    def box(self, pane: int = 0) -> dict[str, float]:
        canvas = self.page.locator(".gs-stage canvas").nth(pane)
        canvas.scroll_into_view_if_needed()
        return canvas.bounding_box()

    def place(self, row: int, col: int, pane: int = 0, share: Point = (0.5, 0.5)) -> Point:
        """Where a patch, by default its middle, is in the window while nothing is zoomed."""
        geometry, box = self.pack(pane).geometry, self.box(pane)
        sides = {"box_width": box["width"], "box_height": box["height"]}
        corners = np.array(patch_to_polygon(geometry, row, col))
        pixel = (corners[2] - corners[0]) * share + corners[0]
        x, y = pixel_to_displayed(*pixel.tolist(), **sides, width=geometry.width, height=geometry.height)
        return box["x"] + x, box["y"] + y

    def hover(self, row: int, col: int, pane: int = 0, share: Point = (0.5, 0.5)) -> None:
        self.page.mouse.move(*self.place(row, col, pane, share))
        self.settle()

    def click(self, row: int, col: int, pane: int = 0, *, key: str | None = None, button: Any = "left") -> None:
        self.hover(row, col, pane)
        if key:
            self.page.keyboard.down(key)
        self.page.mouse.down(button=button)
        self.page.mouse.up(button=button)
        if key:
            self.page.keyboard.up(key)
        self.settle()

    def drag(self, start: Point, end: Point, steps: int = 5) -> None:
        self.page.mouse.move(*start)
        self.page.mouse.down()
        self.page.mouse.move(*end, steps=steps)
        self.page.mouse.up()
        self.settle()

    @property
    def queries(self) -> list[dict[str, Any]]:
        return self.js("gramscope.get('queries')")

    def pinned(self, pane: int = 0) -> list[tuple[Cell | None, int]]:
        """(cell, sign) of all queries, in the grid of a pane."""
        geometry = self.pack(pane).geometry
        return [(pixel_to_patch(geometry, query["x"], query["y"]), query["sign"]) for query in self.queries]

    def values(self, pane: int = 0) -> np.ndarray:
        self.settle()
        found = self.js("(pane) => [...(gramscope.panes[pane].answer().values ?? [])]", pane)
        pack = self.pack(pane)
        return np.array(found or [np.nan] * pack.rows * pack.cols, np.float32).reshape(pack.rows, pack.cols)

    def read(self, pane: int = 0) -> str:
        self.settle()
        return self.page.locator(".gs-read").nth(pane).inner_text()

    def pixels(self, expression: str) -> np.ndarray:
        """The RGBA pixels of a canvas, given in JavaScript."""
        self.settle()
        height, width, text = self.js(f"() => ({PIXELS})({expression})")
        return np.frombuffer(base64.b64decode(text), np.uint8).reshape(height, width, 4)

    def canvas(self, pane: int = 0) -> np.ndarray:
        return self.pixels(f"gramscope.panes[{pane}].canvas")

    def layer(self, pane: int = 0) -> np.ndarray:
        """The map before it is stretched over the photograph."""
        return self.pixels(f"gramscope.panes[{pane}].layers.get(gramscope.panes[{pane}].pack).canvas")

    @property
    def camera(self) -> dict[str, float]:
        return self.js("gramscope.get('camera')")

    @property
    def told(self) -> list[str]:
        return self.js("told")


@pytest.fixture
def opened(browser, tmp_path: Path) -> Iterator[Callable[..., Opened]]:
    """Opens a saved view of packs from disk; fails when the page met an error that nobody told."""
    pages, problems = [], []

    def run(
        *packs: Pack, address: str = "", change: Callable[[dict], None] | None = None, script: str = "",
        context: dict[str, Any] | None = None, **state: Any,
    ) -> Opened:  # fmt: skip
        widget = Similarity(*packs, **state)
        path = widget.save(tmp_path / f"view{len(pages)}.html")
        if change:
            change_parts(path, change)
        page = browser.new_page(**{"viewport": {"width": 900, "height": 900}} | (context or {}))
        pages.append(page)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.add_init_script(SPY + script)
        page.goto(path.as_uri() + address)
        page.wait_for_function(READY)
        page.evaluate(COUNT)
        view = Opened(page, list(packs))
        view.settle()
        return view

    yield run
    for page in pages:
        page.close()
    assert not problems


def change_parts(path: Path, change: Callable[[dict], None]) -> None:
    """Changes what a saved page holds: its state, packs and modules."""
    before, _, rest = path.read_text().partition(PARTS)
    text, end, after = rest.partition("</script>")
    parts = json.loads(text)
    change(parts)
    path.write_text(before + PARTS + json.dumps(parts).replace("<", "\\u003c") + end + after)


@pytest.fixture(scope="module")
def looks() -> list[Look]:
    """Three photographs through the weights that come with the project."""
    backbone = load_backbone("dinov2_vits14_saliency")
    names = ("cat_bengal.jpg", "cat_abyssinian_1.jpg", "two_dogs.jpg")
    return [look_at(open_image(SAMPLES / name), backbone, size=280) for name in names]


@pytest.fixture(scope="module")
def photos(looks: list[Look]) -> list[Pack]:
    return [make_pack(look, others=[other for other in looks if other is not look], basis=look.basis) for look in looks]


@pytest.fixture(scope="module")
def small() -> Pack:
    return pack_of(colors=True)


def query_at(pack: Pack, row: int, col: int, sign: int = 1) -> dict[str, Any]:
    x, y = patch_centre(pack.geometry, row, col)
    return {"image": pack.picture["digest"], "x": x, "y": y, "sign": sign}


def expected(pack: Pack, *queries: dict[str, Any], **pane: Any) -> np.ndarray:
    return pane_values([pack], {"pack": 0, **pane}, queries)


# ---------------------------------------------------------------- pointer


@pytest.mark.long
def test_hovering_previews_without_a_word_to_the_host(opened, small):
    view = opened(small)
    assert np.isnan(view.values()).all()
    for row, col in ((3, 4), (11, 19), (0, 0)):
        view.hover(row, col)
        np.testing.assert_allclose(view.values(), expected(small, query_at(small, row, col)), atol=1e-5)
        words = re.match(r"row (\d+), col (\d+) · pixel (\d+), (\d+) · cosine 1.000", view.read())
        assert words and [int(part) for part in words.groups()[:2]] == [row, col]
        assert abs(int(words[3]) - 16 * col - 8) <= 1 and abs(int(words[4]) - 16 * row - 8) <= 1
    box = view.box()
    view.page.mouse.move(box["x"] + 2, box["y"] + 2)
    view.page.mouse.move(box["x"] + box["width"] - 2, box["y"] + box["height"] - 2, steps=80)
    view.page.mouse.move(box["x"] - 5, box["y"] - 5)
    view.settle()
    assert np.isnan(view.values()).all() and view.queries == [] and view.told == []


def test_a_click_pins_and_a_second_one_or_escape_lets_go(opened, small):
    view = opened(small)
    view.click(5, 7)
    assert view.pinned() == [((5, 7), 1)]
    view.hover(9, 9)  # reads, and leaves the map
    np.testing.assert_allclose(view.values(), expected(small, query_at(small, 5, 7)), atol=1e-5)
    assert view.read().startswith("row 9, col 9 ")
    view.click(6, 8)
    assert view.pinned() == [((6, 8), 1)]
    view.click(6, 8)
    assert view.queries == []
    view.click(2, 2)
    view.page.keyboard.press("Escape")
    assert view.queries == []
    assert set(view.told) == {"queries"}


@pytest.mark.long
def test_shift_adds_and_numbers_while_alt_and_the_right_button_subtract(opened, small):
    view = opened(small)
    view.click(1, 1, button="right")
    assert view.queries == [] and "Pin a patch first" in view.page.locator(".gs-note").inner_text()
    view.click(5, 7)
    view.click(9, 3, key="Shift")
    view.click(1, 1, button="right")
    view.js("written.length = 0")
    view.click(13, 17, key="Alt")
    assert view.pinned() == [((5, 7), 1), ((9, 3), 1), ((1, 1), -1), ((13, 17), -1)]
    assert {"+1", "+2", "−3", "−4"} <= set(view.js("written"))
    asked = [query_at(small, *cell, sign) for cell, sign in view.pinned()]
    np.testing.assert_allclose(view.values(), expected(small, *asked), atol=2e-5)
    assert view.page.locator(".gs-numbers span").nth(1).inner_text() == "cosine − cosine"
    view.click(1, 1, button="right")  # subtracts no longer
    view.click(9, 3)
    assert view.pinned() == [((5, 7), 1), ((13, 17), -1)]
    view.click(5, 7, button="right")  # nothing would be left to subtract from
    assert view.pinned() == [((5, 7), 1), ((13, 17), -1)]
    view.click(5, 7)
    assert view.queries == []


def test_pinned_points_are_dragged_and_the_map_follows(opened, small):
    view = opened(small)
    view.click(5, 7)
    view.click(9, 3, key="Shift")
    told = len(view.told)
    start, end = view.place(9, 3), view.place(2, 15)
    view.page.mouse.move(*start)
    view.page.mouse.down()
    view.page.mouse.move(*end, steps=6)
    view.settle()
    moved = [query_at(small, 5, 7), query_at(small, 2, 15)]
    np.testing.assert_allclose(view.values(), expected(small, *moved), atol=1e-5)
    assert len(view.told) == told  # the host hears of it at the end
    view.page.mouse.up()
    assert view.pinned() == [((5, 7), 1), ((2, 15), 1)] and view.told[told:] == ["queries"]
    box = view.box()
    view.drag(end, (box["x"] + box["width"] + 40, box["y"] + 30))  # stays where there was picture last
    assert view.pinned()[0] == ((5, 7), 1) and view.pinned()[1][0] is not None


def test_the_wheel_zooms_at_the_pointer(opened, small):
    view = opened(small)
    box = view.box()
    inside = "([x, y]) => gramscope.panes[0].pixelAt(gramscope.panes[0].place({ clientX: x, clientY: y }))"
    for x, y in ((0.2, 0.3), (0.93, 0.9), (0.5, 0.02)):
        view.js("gramscope.panes[0].wholePicture()")
        place = [round(box["x"] + x * box["width"]), round(box["y"] + y * box["height"])]
        view.page.mouse.move(*place)
        before = view.js(inside, place)
        for _ in range(4):
            view.page.mouse.wheel(0, -240)
            view.settle()
            np.testing.assert_allclose(view.js(inside, place), before, atol=1e-6)
        assert view.camera["zoom"] > 3
        cell = pixel_to_patch(small.geometry, *before)
        assert view.read().startswith(f"row {cell[0]}, col {cell[1]} ")
    for _ in range(20):
        view.page.mouse.wheel(0, 400)
    view.settle()
    assert view.camera == {"x": 0.5, "y": 0.5, "zoom": 1}


def test_the_page_scrolls_under_a_picture_that_is_not_zoomed(opened, small):
    view = opened(small, context={"viewport": {"width": 900, "height": 400}})
    box = view.box()
    view.js("scrollTo(0, 0)")
    view.page.mouse.move(box["x"] + 50, 200)
    view.page.mouse.wheel(0, 100)
    view.page.wait_for_function("scrollY > 50")
    assert view.camera["zoom"] == 1


def test_dragging_pans_a_zoomed_picture_but_never_beyond_its_rim(opened, small):
    view = opened(small)
    box = view.box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    view.drag(middle, (middle[0] + 80, middle[1] + 30))
    assert view.camera == {"x": 0.5, "y": 0.5, "zoom": 1}
    view.page.keyboard.press("Escape")
    view.page.mouse.wheel(0, -500)
    view.settle()
    view.page.wait_for_timeout(300)
    told, before = view.told, view.camera
    view.drag(middle, (middle[0] - 60, middle[1] + 40))
    after = view.camera
    assert after["x"] - before["x"] == pytest.approx(60 / box["width"] / before["zoom"], abs=1e-9)
    assert after["y"] - before["y"] == pytest.approx(-40 / box["height"] / before["zoom"], abs=1e-9)
    assert view.queries == []  # a pan is no click
    corners = "() => [gramscope.panes[0].placeOf(0, 0), gramscope.panes[0].placeOf(...gramscope.panes[0].size)]"
    for x, y in ((900, 700), (-1500, -900), (-1500, 900), (900, -900)):
        view.drag(middle, (middle[0] + x, middle[1] + y))
        (left, top), (right, bottom) = view.js(corners)
        assert left <= 1e-6 and top <= 1e-6 and right >= box["width"] - 1 and bottom >= box["height"] - 1
    view.page.wait_for_timeout(300)
    new = view.told[len(told) :]
    assert set(new) == {"camera"} and len(new) <= 5  # when a movement rests, not while it lasts


def test_a_double_click_shows_the_whole_picture_and_keeps_the_pins(opened, small):
    view = opened(small)
    view.click(5, 7)
    view.click(9, 3, key="Shift")
    pins = view.pinned()
    view.page.mouse.wheel(0, -300)
    view.settle()
    assert view.camera["zoom"] > 1
    box = view.box()
    view.page.mouse.dblclick(box["x"] + 30, box["y"] + 40)
    view.settle()
    assert view.camera == {"x": 0.5, "y": 0.5, "zoom": 1} and view.pinned() == pins


def test_holding_space_shows_the_photograph_alone(opened, small):
    view = opened(small, panes=[{"pack": 0}, {"pack": 0, "show": "photo"}])
    plain = view.canvas(1)  # the very same picture, no marks while nothing is pinned
    view.click(5, 7)
    view.page.mouse.move(1, 1)
    mapped = view.canvas(0)
    assert (mapped != plain).any()
    view.page.keyboard.down(" ")
    np.testing.assert_array_equal(view.canvas(0), plain)
    view.page.keyboard.up(" ")
    np.testing.assert_array_equal(view.canvas(0), mapped)


# ---------------------------------------------------------------- keys


def test_arrows_walk_patches_and_stop_at_the_rim(opened, small):
    view = opened(small)
    view.page.locator(".gs-stage canvas").focus()
    press = view.page.keyboard.press
    press("ArrowRight")
    assert view.pinned() == [((7, 9), 1)]  # begins in the middle
    for key, cell in (
        ("ArrowRight", (7, 10)), ("ArrowDown", (8, 10)), ("Shift+ArrowLeft", (8, 0)), ("ArrowLeft", (8, 0)),
        ("Shift+ArrowUp", (0, 0)), ("Shift+ArrowDown", (10, 0)), ("Shift+ArrowDown", (14, 0)),
        ("Shift+ArrowRight", (14, 10)), ("Shift+ArrowRight", (14, 19)), ("ArrowUp", (13, 19)),
    ):  # fmt: skip
        press(key)
        assert view.pinned() == [(cell, 1)], key


def test_arrows_stay_out_of_the_padding(opened):
    geometry = replace(plan(320, 240, 16, crop=(10, 20, 170, 116)), pad=(32, 16, 48, 64))
    pack = pack_features(features_of(geometry), ModelCard("random"), "padded.png")
    view = opened(pack)
    view.page.locator(".gs-stage canvas").focus()
    for keys, cell in (("Down", (6, 6)), ("Right", (6, 11)), ("Up", (1, 11)), ("Left", (1, 2))):
        for _ in range(3):
            view.page.keyboard.press(f"Shift+Arrow{keys}")
        assert view.pinned() == [(cell, 1)] and pack.valid[cell]


@pytest.mark.long
def test_everything_can_be_done_from_the_keyboard(opened, photos):
    view = opened(photos[0], photos[0], panes=[{"pack": 0, "show": "swipe", "other": 1}])
    page, press = view.page, view.page.keyboard.press
    page.mouse.move(1, 1)
    seen = []
    for _ in range(40):
        press("Tab")
        name, ring = view.js(
            """() => {
                const element = document.activeElement, { outlineStyle, outlineWidth } = getComputedStyle(element);
                const name = element.ariaLabel || element.labels?.[0]?.innerText || element.innerText;
                const ring = outlineStyle !== "none" && parseFloat(outlineWidth) >= 2;
                return [element === document.body ? "" : name, ring];
            }"""
        )
        if not name or name in seen:
            break
        assert ring, f"{name} has no focus ring"
        seen.append(name)
    assert seen[0] == "What this pane shows" and seen[1].startswith("Swipe with")
    assert seen[2:4] == ["Threshold of the mask", "Mask below the threshold"]
    order = ["Colours", "Limits", "Between", "Opacity", "Patch", "Clear", "1:1", "Full", "Copy", "Keys"]
    assert [name.split()[0] for name in seen[4:]] == order

    page.locator(".gs-stage canvas").focus()
    press("ArrowUp")
    press("Enter")  # one query more
    press("Shift+ArrowLeft")
    press("Alt+Enter")
    press("Shift+ArrowRight")
    assert [sign for _, sign in view.pinned()] == [1, 1, -1] and len({cell for cell, _ in view.pinned()}) == 3
    press("]")
    press("]")
    press("[")
    assert view.js("gramscope.panes[0].spec.split") == 0.55
    press("+")
    press("+")
    assert view.camera["zoom"] == pytest.approx(1.5625)
    press("-")
    press("0")
    assert view.camera["zoom"] == 1
    press("Control++")  # the browser's own
    assert view.camera["zoom"] == 1
    press("Escape")
    assert view.queries == []
    page.get_by_label("Patch", exact=True).fill("3, 4")
    press("Enter")
    assert view.pinned() == [((3, 4), 1)]
    page.get_by_label("Patch", exact=True).fill("300, 4")
    press("Enter")
    view.settle()
    assert "row 300" in page.locator(".gs-note").inner_text() and view.pinned() == [((3, 4), 1)]


def test_the_map_is_told_in_words_too(opened, photos):
    view = opened(photos[0])
    canvas = view.page.locator(".gs-stage canvas")
    canvas.focus()
    view.page.keyboard.press("ArrowUp")
    view.settle()
    (cell, _) = view.pinned()[0]
    assert canvas.get_attribute("aria-label").startswith("Similarity: layer 12 · 280 px. row ")
    cosines = torch.from_numpy(view.values())
    apart = max(1, round(0.06 * max(cosines.shape)))
    best = top_k(cosines, 5, exclude=cell, radius=apart, spacing=apart)
    words = "; ".join(f"row {m.row}, column {m.col}, cosine {m.cosine:.2f}" for m in best)
    live = view.page.locator("[aria-live]")
    assert live.inner_text() == f"Row {cell[0]}, column {cell[1]}. Most alike: {words}."
    lines = view.page.locator(".gs-matches li").all_inner_texts()
    assert [line.split(",")[:2] for line in lines] == [[f"row {m.row}", f" col {m.col}: {m.cosine:.3f}"] for m in best]
    view.page.keyboard.press("Escape")
    view.settle()
    assert view.page.locator(".gs-matches li").count() == 0


# ---------------------------------------------------------------- touch


def fingers(view: Opened) -> Callable[..., None]:
    client = view.page.context.new_cdp_session(view.page)

    def touch(kind: str, *points: Point) -> None:
        client.send(
            "Input.dispatchTouchEvent",
            {"type": kind, "touchPoints": [{"x": x, "y": y, "id": at} for at, (x, y) in enumerate(points)]},
        )
        view.settle()

    return touch


def test_fingers_tap_preview_pinch_and_pan(opened, small):
    view = opened(small, context={"has_touch": True, "viewport": {"width": 420, "height": 800}})
    view.page.touchscreen.tap(*view.place(5, 7))
    view.settle()
    assert view.pinned() == [((5, 7), 1)]

    touch = fingers(view)
    told = len(view.told)
    touch("touchStart", view.place(2, 3))
    view.page.wait_for_timeout(500)
    view.settle()
    np.testing.assert_allclose(view.values(), expected(small, query_at(small, 2, 3)), atol=1e-5)  # above the pin
    touch("touchMove", view.place(10, 12))
    touch("touchMove", view.place(10, 13))
    np.testing.assert_allclose(view.values(), expected(small, query_at(small, 10, 13)), atol=1e-5)
    touch("touchEnd")
    np.testing.assert_allclose(view.values(), expected(small, query_at(small, 5, 7)), atol=1e-5)
    assert view.pinned() == [((5, 7), 1)] and len(view.told) == told and view.js("scrollY") == 0

    box = view.box()
    x, y = box["x"] + 0.6 * box["width"], box["y"] + 0.7 * box["height"]
    touch("touchStart", (x - 20, y))
    touch("touchStart", (x - 20, y), (x + 20, y))
    for step in range(1, 9):
        touch("touchMove", (x - 20 - 5 * step, y), (x + 20 + 5 * step, y))
    touch("touchEnd")
    assert view.camera["zoom"] == pytest.approx(3, rel=0.02)
    pixel = view.js("([x, y]) => gramscope.panes[0].pixelAt([x, y])", [x - box["x"], y - box["y"]])
    np.testing.assert_allclose(pixel, [0.6 * 320, 0.7 * 240], atol=1.5)
    assert view.pinned() == [((5, 7), 1)]

    before = view.camera
    touch("touchStart", (x, y))
    for step in range(1, 7):
        touch("touchMove", (x, y - 10 * step))
    touch("touchEnd")
    assert view.camera["y"] > before["y"] and view.js("scrollY") == 0 and view.pinned() == [((5, 7), 1)]


def test_a_finger_scrolls_the_page_over_a_picture_that_is_not_zoomed(opened, small):
    view = opened(small, context={"has_touch": True, "viewport": {"width": 420, "height": 350}})
    x, y = view.place(8, 10)
    touch = fingers(view)
    touch("touchStart", (x, y))
    for step in range(1, 12):
        touch("touchMove", (x, y - 12 * step))
    touch("touchEnd")
    view.page.wait_for_function("scrollY > 20")
    assert view.queries == [] and view.camera["zoom"] == 1


def test_a_finger_drags_a_pin(opened, small):
    view = opened(small, context={"has_touch": True, "viewport": {"width": 420, "height": 800}})
    view.page.touchscreen.tap(*view.place(5, 7))
    touch = fingers(view)
    (x, y), (x2, y2) = view.place(5, 7), view.place(12, 8)
    touch("touchStart", (x, y))
    for step in range(1, 9):
        touch("touchMove", (x + (x2 - x) * step / 8, y + (y2 - y) * step / 8))
    touch("touchEnd")
    assert view.pinned() == [((12, 8), 1)] and view.js("scrollY") == 0


# ---------------------------------------------------------------- what is shown


def test_threshold_and_opacity_are_live_and_told_at_the_end(opened, small):
    view = opened(small, queries=[query_at(small, 5, 7)])
    values = view.values()
    slider = view.page.get_by_label("Threshold of the mask")
    assert (view.layer()[..., 3] == 179).all()
    slider.evaluate("(input) => { input.value = 0.3; input.dispatchEvent(new Event('input')); }")
    masked = view.layer()
    np.testing.assert_array_equal(masked[..., 3] == 150, values < np.float32(0.3))
    assert (masked[masked[..., 3] == 150][:, :3] == 0).all()
    assert view.page.get_by_label("Mask below the threshold").is_checked() and view.told == []
    slider.evaluate("(input) => input.dispatchEvent(new Event('change'))")
    assert view.told == ["threshold"] and view.js("gramscope.host.state.get('threshold')") == 0.3
    slider.focus()
    view.page.keyboard.press("ArrowRight")
    np.testing.assert_array_equal(view.layer()[..., 3] == 150, values < np.float32(0.31))
    view.page.get_by_label("Mask below the threshold").uncheck()
    assert (view.layer()[..., 3] == 179).all()

    opacity = view.page.get_by_label("Opacity")
    opacity.evaluate("(input) => { input.value = 0.25; input.dispatchEvent(new Event('input')); }")
    assert (view.layer()[..., 3] == 64).all() and "opacity" not in view.told


def test_nearest_shows_one_colour_a_patch_and_bilinear_what_lies_between(opened, small):
    view = opened(small, queries=[query_at(small, 5, 7)], limits=[-1.0, 1.0], colormap="cividis", opacity=1.0)
    values = view.values()

    def colors(values: np.ndarray) -> np.ndarray:
        index = np.clip((values + 1) / 2 * 255, 0, 255)
        return lookup("cividis")[np.floor(index + 0.5).astype(int)].astype(int)

    assert abs(view.layer()[..., :3].astype(int) - colors(values)).max() <= 1
    whole = view.canvas()  # each patch in one colour, but for frames and the rim of the photograph
    across = whole.shape[1] / small.cols
    middle = whole[int(2.5 * across), int(3.2 * across) : int(3.8 * across), :3].astype(int)
    assert len(np.unique(middle, axis=0)) == 1

    view.page.get_by_label("Between patches").select_option("bilinear")
    smooth = view.layer()[..., :3].astype(int)
    factor = smooth.shape[0] // small.rows
    assert factor > 1 and view.js("gramscope.host.state.get('smooth')") is True
    down, right = (
        np.clip((np.arange(cells * factor) + 0.5) / factor - 0.5, 0, cells - 1) for cells in (small.rows, small.cols)
    )
    rows = np.array([np.interp(right, np.arange(small.cols), row) for row in values])
    fine = np.array([np.interp(down, np.arange(small.rows), col) for col in rows.T]).T
    assert abs(smooth - colors(fine)).max() <= 2


def test_padding_is_dark_and_pulls_on_nothing(opened):
    pack = pack_of(310, 100, 16, size=304)
    view = opened(pack, queries=[query_at(pack, 2, 3)], smooth=True, limits=[-1.0, 1.0])
    values = view.values()
    np.testing.assert_allclose(values, expected(pack, query_at(pack, 2, 3)), atol=1e-5)
    assert np.isnan(values[-1]).all()
    fine = view.layer()
    factor = len(fine) // pack.rows
    assert (fine[-factor:] == [0, 0, 0, 170]).all()
    rim, inside = fine[-factor - 1, :, :3], fine[-factor - factor // 2, :, :3]
    assert len(np.unique(inside, axis=0)) > 5
    assert abs(rim.astype(int) - inside).max() <= 2  # the last row of values goes on to its rim


def test_the_legend_has_the_numbers_of_the_colours(opened, small):
    view = opened(small, queries=[query_at(small, 5, 7)])
    numbers = view.page.locator(".gs-numbers").first.locator("span")
    assert numbers.all_inner_texts() == ["0.00", "cosine", "1.00"]
    view.page.get_by_label("Limits").select_option("-1 to 1")
    view.page.get_by_label("Colours").select_option("magma")
    view.settle()
    assert numbers.all_inner_texts() == ["-1.00", "cosine", "1.00"]
    bar = view.js("getComputedStyle(gramscope.panes[0].legend.bar).backgroundImage")
    first, last = (", ".join(map(str, color)) for color in lookup("magma")[[0, 255]])
    assert f"right, rgb({first})" in bar and bar.endswith(f"rgb({last}))")
    assert view.page.locator(".gs-numbers").nth(1).locator("span").all_inner_texts() == ["-1", "0", "1"]
    view.page.get_by_label("What this pane shows").select_option("photo")
    view.settle()
    assert view.page.locator(".gs-legend").first.is_hidden()


@pytest.mark.long
def test_pca_colours_are_those_of_python(opened, photos):
    for pack in photos:
        view = opened(pack, panes=[{"pack": 0, "show": "pca"}])
        features = pack.features()
        assert pack.basis is not None
        colors = to_rgb(pack.basis, features.patches, valid=features.valid).numpy().astype(int)
        shown = view.layer()
        valid = np.array(pack.valid)
        assert abs(shown[..., :3].astype(int) - colors)[valid].max() <= 1
        assert (shown[..., 3] == 255).all()


def test_cosines_agree_with_those_of_the_features_in_torch(opened, looks, photos):
    rng = random.Random(0)
    for look, pack in zip(looks, photos, strict=True):
        view = opened(pack)
        worst = 0.0
        for _ in range(12):
            row, col = rng.randrange(pack.rows), rng.randrange(pack.cols)
            view.hover(row, col)
            truth = look.similarity([(row, col)]).numpy()
            found = view.values()
            assert (np.isnan(found) == np.isnan(truth)).all()
            worst = max(worst, float(np.nanmax(abs(found - truth))))
            if not np.isnan(truth[row, col]):
                assert "cosine 1.000" in view.read()
        assert worst <= 0.004
        assert f"within {pack.error['cosine_max']:.4f} of fp32" in view.page.locator(".gs-note").inner_text()


@pytest.mark.long
def test_percentiles_are_those_of_python(opened, photos):
    view = opened(*photos[:2])
    view.click(8, 9)
    cosines = [-0.4, -0.01, 0.0, 0.3, 0.55, 0.8, 0.97, 1.0]
    for pane, null in ((0, photos[0].null_same), (1, photos[1].null_other)):
        all_of = "([pane, all]) => all.map((value) => gramscope.panes[pane].legend.standing(value))"
        found = view.js(all_of, [pane, cosines])
        for cosine, answer in zip(cosines, found, strict=True):
            truth = standing(cosine, torch.from_numpy(np.array(null)))
            assert abs(answer["percentile"] - truth.percentile) <= 1e-6 and abs(answer["z"] - truth.z) <= 1e-6
    view.hover(12, 3)
    value = float(view.values()[12, 3])
    truth = standing(value, torch.from_numpy(np.array(photos[0].null_same)))
    usual = photos[0].null_distance[4 + 6 - 1]
    assert f"above {truth.percentile:.1f} % of random pairs, z {truth.z:.1f}" in view.read()
    assert view.read().endswith(f"usual at this distance {usual:.2f}")
    view.hover(5, 5, 1)
    assert "of random pairs with other photos" in view.read(1)
    view.click(2, 12, key="Alt")  # a difference of cosines has no place among cosines
    assert "random pairs" not in view.read()


# ---------------------------------------------------------------- several panes


@pytest.mark.long
def test_identical_packs_differ_by_exactly_nothing(opened, small):
    for show in ("difference", "rank"):
        view = opened(small, small, panes=[{"pack": 0, "show": show, "other": 1}])
        view.click(5, 7)
        assert (view.values() == 0).all()
        assert view.page.locator(".gs-numbers span").all_inner_texts()[:3:2] == ["≤ -0.50", "≥ 0.50"]


@pytest.mark.long
@pytest.mark.parametrize("show", ["difference", "rank"])
def test_differences_are_those_of_python(opened, show):
    packs = [pack_of(330, 250, 14, seed=1, dim=32), pack_of(330, 250, 16, size=272, seed=2), pack_of(330, 250, seed=3)]
    panes = [{"pack": a, "show": show, "other": b} for a, b in itertools.permutations(range(3), 2)]
    view = opened(*packs, panes=panes)
    view.click(5, 7)
    view.click(9, 3, key="Shift")
    for index, pane in enumerate(panes):
        truth = pane_values(packs, pane, view.queries)
        found = view.values(index)
        assert (np.isnan(found) == np.isnan(truth)).all() and np.nanmax(abs(found)) > 0.05
        wrong = abs(found - truth)[~np.isnan(truth)]
        if show == "difference":
            assert wrong.max() <= 1e-4
        else:  # two cosines that fp32 cannot tell apart may change places
            assert wrong.max() <= 2.1 / min(pack.rows * pack.cols for pack in packs) and (wrong > 1e-4).mean() < 0.02


def test_ranks_forget_everything_but_the_order(browser):
    page = browser.new_page()
    page.route(
        "http://localhost/**",
        lambda route: route.fulfill(
            body=(WIDGETS / route.request.url.split("/")[-1]).read_text() if ".js" in route.request.url else "<p>",
            content_type="text/javascript" if ".js" in route.request.url else "text/html",
        ),
    )
    page.goto("http://localhost/")
    values = np.random.default_rng(0).normal(size=400).astype(np.float32)
    values[[3, 50]], values[7:20] = np.nan, 0.25
    whole = """async (values) => {
        const { ranks } = await import("/heat.js");
        const scales = [(value) => value, (value) => Math.atan(value) * 5 - 2, (value) => value ** 3];
        return scales.map((scale) => [...ranks(Float32Array.from(values, scale))]);
    }"""
    plain, squeezed, cubed = (np.array(found) for found in page.evaluate(whole, values.tolist()))
    page.close()
    np.testing.assert_array_equal(plain, squeezed)
    np.testing.assert_array_equal(plain, cubed)
    kept = values[~np.isnan(values)]
    slow = [((kept < value).sum() + (kept == value).sum() / 2) / len(kept) for value in kept]
    np.testing.assert_allclose(plain[~np.isnan(values)], slow, atol=1e-6)
    assert np.isnan(plain[[3, 50]]).all()


def test_the_divider_of_a_swipe_is_dragged(opened):
    packs = [pack_of(seed=1), pack_of(seed=2)]
    view = opened(*packs, panes=[{"pack": 0}, {"pack": 1}, {"pack": 0, "show": "swipe", "other": 1}])
    view.js("gramscope.set('queries', [" + json.dumps(query_at(packs[0], 5, 7)) + "])")
    view.js("(matches) => gramscope.panes.forEach((pane) => (pane.matches = () => []))")  # frames would differ
    box = view.box(2)
    at = (box["x"] + box["width"] / 2, box["y"] + 20)
    view.page.mouse.move(*at)
    assert view.js("gramscope.panes[2].canvas.style.cursor") == "ew-resize"
    view.drag(at, (box["x"] + 0.3 * box["width"], box["y"] + 60))
    view.page.mouse.move(1, 1)
    assert view.js("gramscope.panes[2].spec.split") == pytest.approx(0.3, abs=0.005)
    assert len(view.queries) == 1
    left, right, both = (view.canvas(pane) for pane in range(3))
    divider = round(0.3 * both.shape[1])
    np.testing.assert_array_equal(both[:, : divider - 8], left[:, : divider - 8])
    np.testing.assert_array_equal(both[:, divider + 8 :], right[:, divider + 8 :])
    view.page.locator(".gs-stage canvas").nth(2).focus()
    view.page.keyboard.down("b")  # the other map in the place of this one
    np.testing.assert_array_equal(view.canvas(2), right)
    view.page.keyboard.up("b")
    np.testing.assert_array_equal(view.canvas(2), both)


@pytest.mark.long
def test_panes_of_14_and_16_pixels_agree_in_the_picture(opened):
    fine, coarse = pack_of(337, 251, 14, seed=1), pack_of(337, 251, 16, size=208, seed=2)
    view = opened(fine, coarse)
    rng = random.Random(3)
    for pane in [0, 1] * 10:
        a, b = (fine, coarse) if pane == 0 else (coarse, fine)
        row, col = rng.randrange(a.rows), rng.randrange(a.cols)
        view.hover(row, col, pane, (rng.uniform(0.15, 0.85), rng.uniform(0.15, 0.85)))
        there = same_patch(a.geometry, row, col, b.geometry)
        assert view.read(pane).startswith(f"row {row}, col {col} ")
        assert view.read(1 - pane).startswith(f"row {there[0]}, col {there[1]} ")
        np.testing.assert_allclose(view.values(1 - pane), expected(b, query_at(b, *there)), atol=1e-5)
        if rng.random() < 0.3:  # pinned, it stays the very same patch
            view.click(row, col, pane)
            assert view.pinned(1 - pane) == [(there, 1)]
            view.page.keyboard.press("Escape")


def test_a_query_reaches_into_another_photograph(opened, looks, photos):
    view = opened(*photos[:2])
    view.hover(8, 9)
    truth = looks[0].similarity_in(looks[1], [(8, 9)]).numpy()
    assert np.nanmax(abs(view.values(1) - truth)) <= 0.004
    assert "Hover to read" in view.read(1)
    view.click(8, 9)
    view.click(4, 4, 1, key="Shift")
    assert [query["image"] for query in view.queries] == [pack.picture["digest"] for pack in photos[:2]]
    for pane in (0, 1):
        truth = pane_values(photos[:2], {"pack": pane}, view.queries)
        np.testing.assert_allclose(view.values(pane), truth, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("other", [{"weights": "1" * 16}, {"dim": 32}, {"layer": 5}])
def test_other_weights_do_not_answer_for_another_photograph(opened, small, other):
    view = opened(small, pack_of(picture=1, **other))
    view.click(5, 7)
    assert np.isnan(view.values(1)).all()
    assert view.read(1) == "The query lies in a photograph that these weights have not seen."


def test_zoom_is_linked_until_it_is_set_free(opened):
    packs = [pack_of(seed=1), pack_of(seed=2)]
    view = opened(*packs)
    cameras = "gramscope.panes.map((pane) => pane.camera.zoom)"
    view.hover(7, 9)
    view.page.mouse.wheel(0, -200)
    view.settle()
    assert len(set(view.js(cameras))) == 1 and view.js(cameras)[0] > 1
    view.page.get_by_label("Linked zoom").uncheck()
    view.box(1)
    view.page.mouse.move(*view.place(7, 9, 1))
    view.page.mouse.wheel(0, -200)
    view.settle()
    first, second = view.js(cameras)
    assert second > first > 1
    view.page.wait_for_timeout(300)
    assert view.js("gramscope.host.state.get('panes').map((pane) => pane.camera.zoom)") == [first, second]
    view.page.get_by_label("Linked zoom").check()
    assert view.js(cameras) == [first, first]


def test_the_menu_offers_what_the_packs_allow(opened, small):
    bare = pack_of(seed=5, layer=5)
    view = opened(small, bare, pack_of(picture=2))
    menus = view.js("gramscope.panes.map((pane) => [...pane.menu.options].map((option) => option.text))")
    pairs = [f"{show} layer 6" for show in ("Difference to", "Rank difference to", "Swipe with")]
    assert menus[0] == ["Similarity", "PCA colours", "Photo", *pairs]
    assert menus[1][:2] == ["Similarity", "Photo"] and menus[2] == ["Similarity", "Photo"]
    view.page.get_by_label("What this pane shows").first.select_option("Difference to layer 6")
    assert view.js("gramscope.host.state.get('panes')[0]") == {"pack": 0, "show": "difference", "other": 1}
    assert view.page.locator("figcaption span").first.inner_text() == "layer 12 − layer 6"


# ---------------------------------------------------------------- addresses


def full_state(packs: list[Pack]) -> dict[str, Any]:
    return {
        "panes": [
            {"pack": 0, "show": "similarity"}, {"pack": 1, "show": "pca"},
            {"pack": 1, "show": "swipe", "other": 0, "split": 0.3}, {"pack": 0, "show": "difference", "other": 1},
        ],
        "queries": [query_at(packs[0], 5, 7), query_at(packs[0], 2, 11, -1)],
        "threshold": 0.1, "opacity": 0.85, "colormap": "magma", "limits": [-1.0, 1.0], "smooth": True,
        "camera": {"x": 0.4, "y": 0.45, "zoom": 1.7}, "selection": [[0, 1, 1], [1, 2, 3]],
    }  # fmt: skip


@pytest.mark.long
def test_an_address_brings_back_every_pixel(opened):
    packs = [pack_of(seed=1, colors=True, layer=5), pack_of(seed=2, colors=True, size=288)]
    state = full_state(packs)
    view = opened(*packs, **state)
    pictures = [view.canvas(pane) for pane in range(4)]
    view.js("() => { navigator.clipboard.writeText = async (text) => { window.copied = text; }; }")
    view.page.get_by_title("Copy an address").click()
    view.page.wait_for_function("window.copied")
    address = "#" + view.js("copied").split("#")[1]
    assert len(address) < 2000 and packs[0].picture["name"] not in json.dumps(decode_view(address))

    python = Similarity(*packs, **state)
    assert decode_view(address) == decode_view(python.to_url())
    assert Similarity.from_url(address, *packs).state == python.state
    more = [pack_of(seed=9), *packs]
    for fragment, given in (
        (address, packs), (python.to_url(), packs), (address, packs[::-1]), (address, more),
    ):  # fmt: skip
        again = opened(*given, address=fragment)
        for pane, picture in enumerate(pictures):
            np.testing.assert_array_equal(again.canvas(pane), picture)

    again = pack_of(seed=1, colors=True, layer=5, labels={"made": "again"})  # the same features, and another id
    assert again.id != packs[0].id
    view = opened(packs[1], again, address=address)
    for pane, picture in enumerate(pictures):
        np.testing.assert_array_equal(view.canvas(pane), picture)

    plain = opened(*packs)  # an address that is followed later
    plain.js("(fragment) => { location.hash = fragment; }", address)
    plain.page.wait_for_function("gramscope.panes.length === 4")
    for pane, picture in enumerate(pictures):
        np.testing.assert_array_equal(plain.canvas(pane), picture)


def test_an_address_resets_what_it_does_not_name(opened, small):
    fresh = Similarity(small).to_url()
    view = opened(small, address=fresh, threshold=0.5, opacity=0.2, queries=[query_at(small, 5, 7)])
    assert view.js("['threshold', 'opacity', 'queries'].map((name) => gramscope.get(name))") == [None, 0.7, []]


def test_an_address_of_other_packs_says_what_is_missing_and_how_to_build_it(opened, small):
    other = pack_of(picture=3, seed=4)
    address = Similarity(small, other, threshold=0.5).to_url()
    view = opened(small, address=address)
    with pytest.raises(ViewError) as error:
        packs_of(decode_view(address), [small])
    note = view.page.locator(".gs-note").inner_text()
    assert note == f"This address shows another view: {error.value}." and other.id in note
    assert view.js("gramscope.get('threshold')") is None
    view.click(5, 7)  # the file's own view works on
    np.testing.assert_allclose(view.values(), expected(small, query_at(small, 5, 7)), atol=1e-5)


def test_an_address_waits_for_packs_that_come_later(opened, small):
    other = pack_of(picture=3, seed=4)
    address = Similarity(small, queries=[query_at(small, 5, 7)], threshold=0.5).to_url()
    view = opened(other, small, address=address, change=lambda parts: parts["state"].update(pack_ids=[other.id]))
    note = view.page.locator(".gs-note")
    assert f"the pack {small.id} is missing" in note.inner_text()
    view.js("(ids) => gramscope.host.state.set('pack_ids', ids)", [other.id, small.id])
    view.js("gramscope.opening")
    view.settle()
    assert view.js("gramscope.packs.map((pack) => pack.id)") == [small.id]
    assert view.js("gramscope.get('threshold')") == 0.5 and len(view.queries) == 1
    assert "missing" not in note.inner_text()


def test_a_notebook_and_a_host_with_an_address_of_its_own_do_not_follow_that_of_the_page(opened, small):
    address = Similarity(small, threshold=0.5).to_url()
    view = opened(small)
    view.js("(address) => history.replaceState(null, '', address)", address)
    found = view.js(
        """async () => {
            const found = [];
            for (const more of [{ kind: "notebook" }, { address: "" }, {}]) {
                const view = new gramscope.constructor(document.body, { ...gramscope.host, ...more });
                await view.opening;
                found.push(view.get("threshold"), view.root.innerText.includes("Copy link"));
                view.destroy();
            }
            return found;
        }"""
    )
    assert found == [None, False, None, True, 0.5, True]


@pytest.mark.long
@pytest.mark.parametrize("address", ["#view=", "#view=abc", "#view=%%%", "#other", "#view=" + encode_view({"a": 1})])
def test_an_address_that_is_none_is_refused_in_a_sentence(opened, small, address):
    view = opened(small, address=address)
    note = view.page.locator(".gs-note").inner_text()
    assert ("copy it again" in note) == (address not in ("#view=", "#other"))
    view.click(5, 7)
    assert view.pinned() == [((5, 7), 1)]


# ---------------------------------------------------------------- hosts


def test_without_webgl2_and_wasm_plain_arrays_answer_and_say_so(opened, small):
    script = """
        const getContext = HTMLCanvasElement.prototype.getContext;
        HTMLCanvasElement.prototype.getContext = function (kind, ...all) {
            return kind.startsWith("webgl") ? null : getContext.call(this, kind, ...all);
        };
        delete globalThis.WebAssembly;
    """
    view = opened(small, script=script)
    note = view.page.locator(".gs-note")
    assert note.inner_text().startswith("typed arrays · ")
    assert "no WebGL2" in note.get_attribute("title") and "WASM SIMD is missing" in note.get_attribute("title")
    view.click(5, 7)
    np.testing.assert_allclose(view.values(), expected(small, query_at(small, 5, 7)), atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("where", ["header", "codes", "nothing"])
def test_a_damaged_pack_gets_a_sentence_and_the_other_panes_live_on(opened, small, where):
    other = pack_of(seed=7)

    def damage(parts: dict[str, Any]) -> None:
        content = bytearray(base64.b64decode(parts["packs"][other.id]))
        content[{"header": 60, "codes": -5, "nothing": 0}[where]] ^= 1
        parts["packs"][other.id] = base64.b64encode(content if where != "nothing" else b"<html>404").decode()

    view = opened(small, other, change=damage)
    status = view.page.locator(".gs-status")
    words = {"header": "damaged", "codes": "rows 0 to 14 do not match", "nothing": "not a feature pack"}[where]
    assert status.nth(0).is_hidden() and words in status.nth(1).inner_text()
    assert status.nth(1).inner_text().endswith(".")
    view.click(5, 7)
    np.testing.assert_allclose(view.values(), expected(small, query_at(small, 5, 7)), atol=1e-5)


def test_what_cannot_be_shown_is_said_in_its_pane(opened, small):
    bare = pack_of(seed=5)
    wrong = [
        ({"pack": 7}, "There is no pack 7"), ({"pack": 0, "show": "dream"}, "not dream"),
        ({"pack": 1, "show": "pca"}, "no colours"), ({"pack": 0, "show": "swipe", "other": 9}, "There is no pack 9"),
        ({"pack": 0, "show": "difference"}, "nothing to compare"),
        ({"pack": 0, "show": "difference", "other": 2}, "mean nothing"),
    ]  # fmt: skip
    panes = [{"pack": 0}, *(pane for pane, _ in wrong)]
    view = opened(
        small, bare, pack_of(200, 100), queries=[query_at(small, 5, 7)],
        change=lambda parts: parts["state"].update(panes=panes),
    )  # fmt: skip
    status = view.page.locator(".gs-status")
    assert status.nth(0).is_hidden()
    assert [words in text for (_, words), text in zip(wrong, status.all_inner_texts()[1:], strict=True)] == [True] * 6
    np.testing.assert_allclose(view.values(), expected(small, query_at(small, 5, 7)), atol=1e-5)


def test_packs_that_are_replaced_keep_the_query_and_free_what_they_held(opened, small):
    other = pack_of(seed=8, size=448)
    view = opened(small, other, panes=[{"pack": 0}])
    view.click(5, 7)
    view.js("(ids) => gramscope.host.state.set('pack_ids', ids)", [other.id])
    view.js("gramscope.opening")
    view.packs = [other]
    there = same_patch(small.geometry, 5, 7, other.geometry)
    assert view.pinned() == [(there, 1)]
    np.testing.assert_allclose(view.values(), expected(other, query_at(other, *there)), atol=1e-5)
    assert view.js("gramscope.packs.length") == 1
    view.js("gramscope.destroy()")
    assert view.page.locator(".gs-view").count() == 0


def luminance(color: str) -> float:
    parts = [int(part) / 255 for part in color[color.index("(") + 1 : -1].split(",")[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


@pytest.mark.long
@pytest.mark.parametrize(
    ("scheme", "setting", "dark"),
    [
        ("light", "", False), ("dark", "", True), ("light", "document.body.className = 'dark'", True),
        ("dark", "document.body.dataset.jpThemeLight = 'true'", False),
        ("light", "document.body.dataset.jpThemeLight = 'false'", True),
        ("light", "document.body.className = 'vscode-dark'", True),
    ],
)  # fmt: skip
def test_words_stand_out_in_light_and_in_dark(opened, small, scheme, setting, dark):
    view = opened(small, context={"color_scheme": scheme})
    if setting:
        view.js(setting)
    color = "(name) => getComputedStyle(document.querySelector(name)).color"
    ground = 0.0056 if dark else 1.0  # #111 and white
    for name in (".gs-read", ".gs-note", "figcaption span", ".gs-numbers span", ".gs-bar label", "select"):
        text = luminance(view.js(color, name))
        assert (max(text, ground) + 0.05) / (min(text, ground) + 0.05) > 4.5, name


def test_nothing_moves_by_itself_where_motion_is_reduced(opened, small):
    button = "getComputedStyle(document.querySelector('.gs-bar button')).transitionDuration"
    assert opened(small).js(button) != "0s"
    assert opened(small, context={"reduced_motion": "reduce"}).js(button) == "0s"


def test_two_views_of_a_page_share_one_style(opened, small):
    view = opened(small)
    view.js("() => { window.second = new gramscope.constructor(document.body, gramscope.host); }")
    assert view.js("document.querySelectorAll('style[data-gramscope]').length") == 1


# ---------------------------------------------------------------- the picked patch

FITS = ("contain", "cover", "fill")
ZOOMS = ("", "zoom: 0.8", "zoom: 1.25", "zoom: 1.7", "transform: scale(0.7)", "transform: scale(1.3)")
RATIOS = (1, 1.5, 2, 3)


def turned_pack(rng: random.Random, orientation: int) -> Pack:
    """A map of a picture of any size and orientation, cropped at times; without a photograph to keep it small."""
    width, height = rng.randint(20, 900), rng.randint(20, 900)
    upright = (height, width) if orientation >= 5 else (width, height)
    crop = None
    if rng.random() < 0.3:
        left, top = (rng.randrange(side // 2) for side in upright)
        crop = (left, top, rng.randint(left + 8, upright[0]), rng.randint(top + 8, upright[1]))
    geometry = plan(width, height, rng.choice([14, 16]), size=rng.randint(30, 330), orientation=orientation, crop=crop)
    return pack_features(features_of(geometry, dim=8), ModelCard("random"), "no photograph")


def near_a_border(geometry: Geometry, pixel: Point, reach: Point) -> bool:
    """Whether another cell, or none, begins within so many pixels: window coordinates are rounded."""
    around = [(pixel[0] + x * reach[0], pixel[1] + y * reach[1]) for x, y in itertools.product((-1, 0, 1), repeat=2)]
    return len({pixel_to_patch(geometry, *point) for point in around}) > 1


def pick_patches(browser: Any, tmp_path: Path, sizes: int) -> dict[str, int]:
    """Real pointer moves over `sizes` pictures; every cell that is shown must be the one that the geometry says."""
    rng, checked = random.Random(sizes), dict.fromkeys(("inside", "outside", "skipped", "full screen"), 0)
    for ratio in RATIOS:
        packs = [turned_pack(rng, 1 + index % 8) for index in range(sizes // len(RATIOS))]
        path = Similarity(*packs).save(tmp_path / f"{ratio}.html")
        change_parts(path, lambda parts: parts["state"].update(pack_ids=[]))  # one at a time, given below
        page = browser.new_page(device_scale_factor=ratio, viewport={"width": 800, "height": 700})
        problems: list[str] = []
        page.on("pageerror", lambda error, problems=problems: problems.append(str(error)))
        page.goto(path.as_uri())
        page.wait_for_function("window.gramscope")
        page.evaluate(
            """() => {
                document.head.append(Object.assign(document.createElement("style"), { id: "case" }));
                window.show = async ([id, fit, css]) => {
                    const { state } = gramscope.host;
                    document.getElementById("case").textContent = css;
                    state.set("fit", fit);
                    state.set("pack_ids", [id]);
                    await gramscope.opening;
                    const { x, y, width, height } = gramscope.panes[0].canvas.getBoundingClientRect();
                    scrollBy(x + width / 2 - innerWidth / 2, y + height / 2 - innerHeight / 2);
                    await new Promise(requestAnimationFrame);
                };
                window.under = async () => {
                    await new Promise(requestAnimationFrame);
                    return gramscope.hover && [gramscope.hover.x, gramscope.hover.y];
                };
            }"""
        )
        for index, pack in enumerate(packs):
            full = index == len(packs) * 4 // 5
            if full:
                page.evaluate("document.getElementById('case').textContent = ''")
                page.get_by_title("This view alone").click()
                page.wait_for_function("document.fullscreenElement && innerWidth === screen.width")
            fit, zoom = rng.choice(FITS), rng.choice(ZOOMS)
            width, height = rng.randint(60, 420), rng.randint(60, 420)
            css = (
                f".gs-stage.gs-stage.gs-stage {{ aspect-ratio: auto; width: {width}.3px; height: {height}.7px }} "
                f"figure {{ width: auto !important }} "
                f"#view {{ margin: {rng.randint(0, 900)}px 0 900px {rng.randint(0, 400)}px; }} "
                f".gs-panes {{ {zoom}; transform-origin: 0 0 }}"
            )
            page.evaluate("show", [pack.id, fit, css])
            box = page.locator(".gs-stage canvas").bounding_box()
            geometry = pack.geometry
            sides = {"box_width": box["width"], "box_height": box["height"], "fit": fit}
            sides |= {"width": geometry.width, "height": geometry.height}
            for _ in range(2):
                place = (round(box["x"] + rng.random() * box["width"]), round(box["y"] + rng.random() * box["height"]))
                page.mouse.move(*place)
                found = page.evaluate("under")
                pixel = displayed_to_pixel(place[0] - box["x"], place[1] - box["y"], **sides)
                corner = pixel_to_displayed(0, 0, **sides), pixel_to_displayed(geometry.width, geometry.height, **sides)
                reach = tuple(
                    1.6 * side / (high - low)
                    for side, low, high in zip((geometry.width, geometry.height), *corner, strict=True)
                )
                if pixel is None or near_a_border(geometry, pixel, reach):
                    checked["skipped"] += 1
                    if pixel is None:
                        assert found is None or near_a_border(geometry, tuple(found), (9e9, 9e9))
                    continue
                cell = pixel_to_patch(geometry, *pixel)
                shown = pixel_to_patch(geometry, *found) if found else None
                assert shown == cell, (geometry, fit, zoom, ratio, place, box)
                checked["inside" if cell else "outside"] += 1
                checked["full screen"] += page.evaluate("Number(!!document.fullscreenElement)")
        page.close()
        assert not problems
    return checked


@pytest.mark.long
def test_the_picked_patch_is_the_one_under_the_pointer(browser, tmp_path):
    checked = pick_patches(browser, tmp_path, 64)
    assert checked["inside"] > 40 and checked["full screen"] > 8


@pytest.mark.long
def test_the_picked_patch_is_right_for_500_sizes(browser, tmp_path):
    checked = pick_patches(browser, tmp_path, 500)
    assert checked["inside"] > 350 and checked["outside"] > 20 and checked["full screen"] > 80
