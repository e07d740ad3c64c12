"""The patch cloud in a real browser: lasso and photographs answer one another, and hovering stays in the page."""

import json
import math
import statistics
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import traitlets

from core.dense.color import fit_basis, to_rgb
from core.dense.extract import DenseFeatures
from core.dense.geometry import patch_centre, plan
from core.dense.similarity import cosine_map_to
from workbench.clouds import OKABE_ITO, Cloud, cloud
from workbench.images import Photo
from workbench.looks import Look
from workbench.packs import Pack, make_pack
from workbench.widgets.cloud import PatchCloud

WIDGETS = Path(__file__).parents[3] / "workbench" / "widgets"
ORIGIN = "http://gramscope.test/"  # answered by the test itself, never by a network
BACK = {"light": (255, 255, 255), "dark": (17, 24, 39)}

HOST = """
window.told = [];
window.asked = [];
const files = {};
const file = async (path) => new Uint8Array(await (files[path] ??= fetch(path).then((answer) => answer.arrayBuffer())));
const listeners = {};
const set = (name, value) => {
  state[name] = value;
  (listeners[name] ?? []).forEach((call) => call());
};
window.fromPython = set;
window.listening = () => Object.values(listeners).flat().length;
window.host = {
  kind: "app",
  state: {
    get: (name) => state[name],
    set: (name, value) => (told.push([name, value]), set(name, value)),
    on(name, call) {
      (listeners[name] ??= []).push(call);
      return () => listeners[name].splice(listeners[name].indexOf(call), 1);
    },
  },
  blob: (name) => file(`/blobs/${name}`),
  reader: (pack) => ({
    size: null,
    async read(start, end) {
      asked.push([pack, start, end]);
      return (await file(`/packs/${pack}`)).slice(start, end);
    },
  }),
};
window.frames = 0;
const whole = CanvasRenderingContext2D.prototype.putImageData;
CanvasRenderingContext2D.prototype.putImageData = function (...all) {
  if (this.canvas.className === "gc-plane") frames++;
  return whole.apply(this, all);
};
const { mount } = await import("/cloud.js");
window.view = mount(document.getElementById("view"), host);
await view.ready;
await new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)));
window.here = true;
"""


def opened(context: Any, widget: PatchCloud, *, body: str = "") -> Any:
    """A page that shows the widget's view, with all that its host would send."""
    page = context.new_page()

    def answer(route: Any) -> None:
        folder, _, name = route.request.url.removeprefix(ORIGIN).partition("/")
        if folder == "blobs":
            route.fulfill(body=widget.blobs[name])
        elif folder == "packs":
            pack = next(pack for pack in widget.packs if pack.id == name)
            route.fulfill(body=pack.read(0, pack.size))
        elif folder.endswith(".js"):
            route.fulfill(body=(WIDGETS / folder).read_bytes(), content_type="text/javascript")
        else:
            state = f"window.state = {json.dumps(widget.state)};"
            html = (
                "<!doctype html><meta name=viewport content='width=device-width'><style>body { margin: 16px; } "
                f"@media (prefers-color-scheme: dark) {{ body {{ background: #0b0f19; }} }}</style>{body}"
                f"<div id=view></div><script>{state}</script><script type=module>{HOST}</script>"
            )
            route.fulfill(body=html, content_type="text/html")

    page.route("**/*", answer)
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(ORIGIN)
    page.wait_for_function("window.here")
    return page


# ---------------------------------------------------------------- what is shown


def look(index: int, *, width: int = 200, height: int = 150, patch: int = 10, dim: int = 16) -> Look:
    """A grey photo with features that differ from patch to patch."""
    geometry = plan(width, height, patch, size=width)
    random = torch.Generator().manual_seed(index)
    patches = torch.randn(geometry.rows, geometry.cols, dim, generator=random) + 0.4
    features = DenseFeatures(
        patches=patches, cls=torch.zeros(dim), registers=torch.zeros(0, dim), geometry=geometry, layer=2, norm=True
    )
    pixels = np.full((height, width, 3), (120 + 40 * index) % 256, np.uint8)
    return Look(Photo(pixels, width, height, name=f"grey {index}"), features, "made up")


def lattice(looks: list[Look], step: int = 3) -> Cloud:
    """Every patch at a place that is easy to compute: column and row, the second photo to the right of the first."""
    cells = [
        (pack, row, col) for pack, look in enumerate(looks) for row, col in np.argwhere(look.valid.numpy()).tolist()
    ]
    packs, rows, cols = np.array(cells, np.int32).T
    places = np.stack([cols * step + packs * 80, -rows * step], axis=1).astype(np.float32)
    return Cloud(
        positions=places,
        pack=packs,
        row=rows,
        col=cols,
        method="umap",
        seed=0,
        total=len(cells),
        names=tuple(look.photo.name for look in looks),
        pictures=tuple(look.photo.digest for look in looks),
        grids=tuple(tuple(look.valid.shape) for look in looks),
    )


@pytest.fixture(scope="module")
def looks() -> list[Look]:
    """The second photo has a row of padding."""
    return [look(0), look(1, height=143)]


@pytest.fixture
def widget(looks) -> PatchCloud:
    return PatchCloud(*looks, cloud=lattice(looks))


@pytest.fixture
def context(browser) -> Iterator:
    context = browser.new_context(viewport={"width": 1100, "height": 1000})
    yield context
    context.close()


@pytest.fixture
def page(context, widget) -> Iterator:
    page = opened(context, widget)
    yield page
    assert page.errors == []


class Places:
    """Where points and patches are on the page, computed apart from it."""

    def __init__(self, page: Any, widget: PatchCloud) -> None:
        self.page, self.widget = page, widget
        self.box = page.locator(".gc-plane").bounding_box()
        positions = widget.cloud.positions.astype(float)
        low, high = positions.min(axis=0), positions.max(axis=0)
        self.centre = (low + high) / 2
        room = np.array([self.box["width"], self.box["height"]]) - 48
        self.scale = (room / (high - low)).min()

    def point(self, pack: int, row: int, col: int) -> tuple[float, float]:
        cloud = self.widget.cloud
        (index,) = np.flatnonzero((cloud.pack == pack) & (cloud.row == row) & (cloud.col == col))
        right, up = (cloud.positions[index] - self.centre) * self.scale
        return (
            self.box["x"] + self.box["width"] / 2 + float(right),
            self.box["y"] + self.box["height"] / 2 - float(up),
        )

    def patch(self, pack: int, row: int, col: int) -> tuple[float, float]:
        geometry = self.widget.packs[pack].geometry
        box = self.page.locator(".gc-album figure").nth(pack).locator("canvas").last.bounding_box()
        x, y = patch_centre(geometry, row, col)
        return box["x"] + x * box["width"] / geometry.width, box["y"] + y * box["height"] / geometry.height


@pytest.fixture
def places(page, widget) -> Places:
    return Places(page, widget)


def settled(page: Any) -> None:
    page.evaluate(
        "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 30))))"
    )


def pixel(page: Any, x: float, y: float) -> np.ndarray:
    """The colour that a person sees there."""
    import io

    from PIL import Image

    settled(page)
    shot = page.screenshot(clip={"x": math.floor(x), "y": math.floor(y), "width": 1, "height": 1})
    return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"))[0, 0].astype(int)


def away(page: Any) -> None:
    """The pointer leaves the view, and with it what it pointed at."""
    page.mouse.move(1, 1)
    settled(page)


def drag(page: Any, path: list[tuple[float, float]], *, keys: tuple[str, ...] = (), button: str = "left") -> None:
    page.mouse.move(*path[0])
    for key in keys:
        page.keyboard.down(key)
    page.mouse.down(button=button)
    for x, y in path[1:]:
        page.mouse.move(x, y, steps=4)
    page.mouse.up(button=button)
    for key in keys:
        page.keyboard.up(key)
    settled(page)


def around(places: Places, first: tuple[int, int, int], last: tuple[int, int, int], *, on: str = "point") -> list:
    """A rectangle around all that lies between two patches, half a step outside."""
    left, top = getattr(places, on)(*first)
    right, bottom = getattr(places, on)(*last)
    (x, y), (x2, y2) = getattr(places, on)(0, 0, 0), getattr(places, on)(0, 1, 1)
    step = ((x2 - x) / 2, (y2 - y) / 2)
    left, right, top, bottom = left - step[0], right + step[0], top - step[1], bottom + step[1]
    return [(left, top), (right, top), (right, bottom), (left, bottom), (left, top + 1)]


def block(pack: int, rows: range, cols: range) -> list[list[int]]:
    return [[pack, row, col] for row in rows for col in cols]


def told(page: Any, name: str) -> list:
    return [value for key, value in page.evaluate("told") if key == name]


def words(page: Any, part: str) -> str:
    settled(page)
    return page.locator(f".gc-{part}").inner_text()


@pytest.mark.long
def test_every_photo_has_its_colour_and_every_point_its_place(page, places):
    for patch in ([0, 0, 0], [0, 14, 19], [1, 3, 7], [1, 13, 0]):
        np.testing.assert_allclose(pixel(page, *places.point(*patch)), OKABE_ITO[patch[0]], atol=2)
    x, y = places.point(0, 4, 4)
    right, down = places.point(0, 5, 5)
    np.testing.assert_array_equal(pixel(page, (x + right) / 2, (y + down) / 2), BACK["light"])
    assert page.locator(".gc-keys button").all_inner_texts() == ["grey 0 (300)", "grey 1 (280)"]


@pytest.mark.long
def test_fine_and_coarse_screens_show_points_in_the_same_places(browser, widget):
    for ratio in (1.25, 3):
        context = browser.new_context(viewport={"width": 900, "height": 900}, device_scale_factor=ratio)
        page = opened(context, widget)
        places = Places(page, widget)
        for patch in ([0, 0, 0], [1, 13, 19]):
            np.testing.assert_allclose(pixel(page, *places.point(*patch)), OKABE_ITO[patch[0]], atol=2)
        context.close()


@pytest.mark.long
def test_colours_are_mixed_channel_by_channel(page):
    random = np.random.default_rng(0)
    colors, shares = random.integers(0, 256, (200, 2, 3)), random.integers(0, 257, 200)
    mixed = page.evaluate(
        """async ([colors, shares]) => {
          const { mix, packed } = await import("/points.js");
          return colors.map(([a, b], i) => mix(packed(...a), packed(...b), shares[i]));
        }""",
        [colors.tolist(), shares.tolist()],
    )
    parts = np.array(mixed, np.int32).astype("<i4").view(np.uint8).reshape(-1, 4)
    share = shares[:, None] / 256
    np.testing.assert_allclose(parts[:, :3], colors[:, 0] * (1 - share) + colors[:, 1] * share, atol=1.01)
    assert (parts[:, 3] == 255).all()


# ---------------------------------------------------------------- lasso and photographs


@pytest.mark.long
def test_a_lasso_selects_the_points_inside_and_outlines_their_patches(page, places, widget):
    plain = pixel(page, *places.patch(0, 10, 10))
    drag(page, around(places, (0, 2, 3), (0, 4, 6)))
    assert told(page, "selection") == [block(0, range(2, 5), range(3, 7))]
    away(page)
    np.testing.assert_allclose(pixel(page, *places.patch(0, 3, 4)), plain, atol=3)  # as it was
    np.testing.assert_allclose(pixel(page, *places.patch(0, 10, 10)), plain / 2, atol=3)  # the rest is darker
    (x, y), (right, down) = places.patch(0, 2, 3), places.patch(0, 3, 4)
    edge = (x - (right - x) / 2, y)
    np.testing.assert_allclose(pixel(page, *edge), (255, 152, 0), atol=40)
    np.testing.assert_allclose(pixel(page, (x + right) / 2, down), plain, atol=3)  # no line inside a region
    np.testing.assert_allclose(pixel(page, *places.point(0, 3, 4)), OKABE_ITO[0], atol=2)
    faded = pixel(page, *places.point(0, 10, 10))
    assert (faded > np.array(OKABE_ITO[0]) * 0.2 + 190).all()
    assert words(page, "words") == "Selected: 12 in grey 0 (rows 2 to 4, columns 3 to 6)."
    assert "12 in grey 0" in page.locator(".gc-plane").get_attribute("aria-label")


def test_shift_adds_alt_removes_and_escape_lets_go(page, places):
    drag(page, around(places, (0, 2, 3), (0, 3, 4)))
    drag(page, around(places, (1, 5, 5), (1, 5, 6)), keys=("Shift",))
    drag(page, around(places, (0, 2, 3), (0, 2, 4)), keys=("Alt",))
    kept = block(0, range(3, 4), range(3, 5))
    assert told(page, "selection") == [
        block(0, range(2, 4), range(3, 5)),
        block(0, range(2, 4), range(3, 5)) + block(1, range(5, 6), range(5, 7)),
        kept + block(1, range(5, 6), range(5, 7)),
    ]
    page.keyboard.press("Escape")
    assert told(page, "selection")[-1] == []
    assert words(page, "words").startswith("Nothing is selected")


def test_without_a_keyboard_the_menu_says_what_a_lasso_does(page, places):
    drag(page, around(places, (0, 2, 3), (0, 2, 4)))
    page.select_option(".gc-way", "add")
    drag(page, around(places, (0, 8, 8), (0, 8, 8)))
    assert told(page, "selection")[-1] == [*block(0, range(2, 3), range(3, 5)), [0, 8, 8]]
    page.select_option(".gc-way", "remove")
    page.mouse.click(*places.point(0, 8, 8))
    assert told(page, "selection")[-1] == block(0, range(2, 3), range(3, 5))
    page.locator(".gc-clear").click()
    assert told(page, "selection")[-1] == []


def test_escape_breaks_a_lasso_off(page, places):
    path = around(places, (0, 2, 3), (0, 4, 6))
    page.mouse.move(*path[0])
    page.mouse.down()
    for place in path[1:]:
        page.mouse.move(*place, steps=4)
    page.locator(".gc-plane").focus()
    page.keyboard.press("Escape")
    page.mouse.up()
    assert page.evaluate("told") == []


def test_a_loop_within_a_lasso_is_inside_too(page, places):
    outer = around(places, (0, 1, 1), (0, 9, 9))
    drag(page, outer[:4] + outer)  # twice around: by the odd-even rule nothing would be inside
    assert told(page, "selection") == [block(0, range(1, 10), range(1, 10))]


def test_a_lasso_over_a_photo_selects_its_patches_and_never_padding(page, places, widget):
    drag(page, around(places, (1, 2, 3), (1, 4, 5), on="patch"))
    assert told(page, "selection") == [block(1, range(2, 5), range(3, 6))]
    away(page)
    np.testing.assert_allclose(pixel(page, *places.point(1, 3, 4)), OKABE_ITO[1], atol=2)
    assert (pixel(page, *places.point(1, 8, 8)) > 190).any()
    box = page.locator(".gc-album figure").nth(1).locator("canvas").last.bounding_box()
    left, top, right, bottom = box["x"] + 1, box["y"] + 1, box["x"] + box["width"] - 1, box["y"] + box["height"] - 1
    drag(page, [(left, top), (right, top), (right, bottom), (left, bottom), (left, top + 2)])
    assert told(page, "selection")[-1] == block(1, range(14), range(20))
    assert not widget.packs[1].valid[14].any()


# ---------------------------------------------------------------- hovering, and the query


def cosines(widget: PatchCloud, query: tuple[int, int, int], pack: int) -> np.ndarray:
    """As Python computes them from the codes."""
    codes = [torch.from_numpy(pack.codes.astype(np.float32)) for pack in widget.packs]
    vector = codes[query[0]][query[1], query[2]]
    return cosine_map_to(codes[pack], vector[None], valid=torch.from_numpy(widget.packs[pack].valid.copy())).numpy()


def test_hovering_a_point_shows_its_patch_and_tells_nobody(page, places, widget):
    page.evaluate("fromPython('query', [0, 2, 2])")
    before = len(page.evaluate("asked"))
    x, y = places.point(1, 6, 9)
    page.mouse.move(x + 2, y - 1)
    x, y = patch_centre(widget.packs[1].geometry, 6, 9)
    value = cosines(widget, (0, 2, 2), 1)[6, 9]
    assert (
        words(page, "read") == f"grey 1 · row 6, column 9 · pixel {math.floor(x)}, {math.floor(y)} · cosine {value:.3f}"
    )
    (x, y), (right, _) = places.patch(1, 6, 9), places.patch(1, 6, 10)
    np.testing.assert_allclose(pixel(page, x - (right - x) / 2, y), (255, 255, 255), atol=60)  # the frame
    for step in range(30):
        page.mouse.move(*places.point(0, step % 15, step % 20))
    settled(page)
    assert page.evaluate("told") == []
    assert len(page.evaluate("asked")) == before


def test_hovering_a_point_asks_nothing_new(page, places, widget):
    page.evaluate("fromPython('query', [0, 2, 2])")
    page.evaluate("fromPython('color_by', 'cosine')")
    away(page)
    before = [pixel(page, *places.point(1, row, 5)) for row in (2, 7, 12)]
    page.mouse.move(*places.point(1, 6, 9))
    np.testing.assert_array_equal([pixel(page, *places.point(1, row, 5)) for row in (2, 7, 12)], before)


def test_beside_all_points_nothing_is_hovered(page, places):
    page.mouse.move(*places.point(0, 6, 9))
    assert words(page, "read").startswith("grey 0")
    page.mouse.move(places.box["x"] + 3, places.box["y"] + 3)
    assert words(page, "read").startswith("Hover")
    away(page)
    assert words(page, "read").startswith("Hover")


def test_a_click_asks_and_a_second_one_lets_go(page, places):
    page.mouse.click(*places.point(0, 6, 9))
    page.wait_for_timeout(500)  # else it is a double click
    page.mouse.click(*places.point(0, 6, 9))
    page.mouse.click(*places.patch(1, 3, 3))
    assert told(page, "query") == [[0, 6, 9], None, [1, 3, 3]]


def test_hovering_a_photo_marks_the_point_and_asks_about_it_for_the_time_being(page, places, widget):
    from workbench.draw import lookup

    page.evaluate("fromPython('color_by', 'cosine')")
    assert words(page, "ends").startswith("no query yet")
    page.mouse.move(*places.patch(0, 4, 4))
    table = lookup("viridis").astype(int)
    expected = cosines(widget, (0, 4, 4), 1)
    for row, col in [(3, 7), (9, 12), (0, 0)]:
        color = table[round(max(float(expected[row, col]), 0) * 255)]
        np.testing.assert_allclose(pixel(page, *places.point(1, row, col)), color, atol=4)
    x, y = places.point(0, 4, 4)
    ring = [pixel(page, x + dx, y) for dx in (5, 6, 7, 8, 9)]
    assert min(np.abs(color - (229, 57, 53)).max() for color in ring) < 60 or min(color.max() for color in ring) < 90
    assert page.evaluate("told") == []
    page.mouse.click(*places.patch(0, 4, 4))
    assert told(page, "query") == [[0, 4, 4]]
    away(page)
    np.testing.assert_allclose(
        pixel(page, *places.point(1, 9, 12)), table[round(max(float(expected[9, 12]), 0) * 255)], atol=4
    )
    assert words(page, "ends") == "cosine to the query"


def test_locked_colours_are_those_of_one_basis_for_all_photos(page, places, looks, widget):
    page.select_option(".gc-mode", "pca")
    assert told(page, "color_by") == ["pca"]
    basis = fit_basis([look.features.patches for look in looks], valid=[look.valid for look in looks])
    for patch in ([0, 4, 4], [1, 9, 12], [1, 0, 19]):
        color = to_rgb(basis, looks[patch[0]].features.patches)[patch[1], patch[2]].numpy().astype(int)
        np.testing.assert_allclose(pixel(page, *places.point(*patch)), color, atol=6)  # coded in 8 bits
        ground = pixel(page, *places.patch(*patch))
        grey = 120 + 40 * patch[0]
        np.testing.assert_allclose(ground, 0.7 * color + 0.3 * grey, atol=8)
    assert "for all photos" in words(page, "share")


def test_without_a_basis_there_are_no_pca_colours(context, looks):
    packs = [make_pack(look) for look in looks]
    page = opened(context, PatchCloud(*packs, cloud=lattice(looks), color_by="pca"))
    assert page.locator(".gc-mode").input_value() == "image"
    assert page.locator(".gc-mode option[value=pca]").is_disabled()
    assert page.errors == []


def test_patches_without_a_point_are_named_so(context, looks):
    whole = lattice(looks)
    kept = np.flatnonzero(~((whole.pack == 0) & (whole.row == 5)))
    thin = Cloud(
        **{**vars(whole), **{name: getattr(whole, name)[kept] for name in ("positions", "pack", "row", "col")}}
    )
    widget = PatchCloud(*looks, cloud=thin)
    assert "560 of 580 patches, drawn at random" in widget.about["caption"]
    page = opened(context, widget)
    page.mouse.move(*Places(page, widget).patch(0, 5, 5))
    assert words(page, "read").endswith("not in the cloud")
    assert page.errors == []


# ---------------------------------------------------------------- the camera


def test_the_wheel_zooms_at_the_pointer(page, places):
    x, y = map(round, places.point(0, 4, 4))  # wheel events come with whole pixels
    right, down = (x, y) - np.array([places.box["x"], places.box["y"]])
    beside = np.array([right - places.box["width"] / 2, places.box["height"] / 2 - down]) / places.scale
    under = places.centre + beside  # of the cloud
    page.mouse.move(x, y)
    for _ in range(6):
        page.mouse.wheel(0, -120)
    page.wait_for_timeout(500)
    np.testing.assert_allclose(pixel(page, x, y), OKABE_ITO[0], atol=2)
    camera = told(page, "camera")[-1]
    assert camera["zoom"] == pytest.approx(math.exp(6 * 120 * 0.002), rel=1e-6)
    np.testing.assert_allclose([camera["x"], camera["y"]] + beside / camera["zoom"], under, atol=0.01)


@pytest.mark.long
@pytest.mark.parametrize("how", ["right button", "Space"])
def test_dragging_with_the_right_button_or_space_moves_the_cloud(page, places, how):
    x, y = places.point(0, 4, 4)
    empty = (places.box["x"] + 6, places.box["y"] + 6)
    path = [empty, (empty[0] + 47, empty[1] + 33)]
    if how == "Space":
        drag(page, path, keys=(" ",))
    else:
        drag(page, path, button="right")
    away(page)
    np.testing.assert_allclose(pixel(page, x + 47, y + 33), OKABE_ITO[0], atol=2)
    page.wait_for_timeout(400)
    assert len(told(page, "camera")) == 1
    assert told(page, "selection") == []


def test_a_double_click_shows_all_again_and_asks_nothing(page, places):
    page.evaluate("fromPython('query', [1, 1, 1])")
    page.mouse.move(*places.point(0, 4, 4))
    page.mouse.wheel(0, -400)
    page.wait_for_timeout(400)
    page.mouse.dblclick(*places.point(0, 4, 4))
    assert told(page, "camera")[-1] == {}
    assert page.evaluate("state.query") == [1, 1, 1]
    away(page)
    np.testing.assert_allclose(pixel(page, *places.point(0, 9, 9)), OKABE_ITO[0], atol=2)


# ---------------------------------------------------------------- keyboard and touch


def test_the_keyboard_alone_walks_asks_selects_and_zooms(page):
    page.locator(".gc-plane").focus()
    page.evaluate("fromPython('query', [0, 4, 4])")
    settled(page)
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "Enter"):
        page.keyboard.press(key)
        settled(page)
    assert told(page, "query") == [[0, 5, 6]]
    page.keyboard.press("s")
    assert told(page, "selection") == [[[0, 5, 6]]]
    page.keyboard.press("s")
    assert told(page, "selection")[-1] == []
    page.keyboard.press("+")
    page.keyboard.press("Shift+ArrowLeft")
    page.wait_for_timeout(400)
    assert told(page, "camera")[-1]["zoom"] == pytest.approx(1.3)
    page.keyboard.press("0")
    assert told(page, "camera")[-1] == {}
    page.keyboard.press("Escape")  # nothing is selected: the query goes
    assert told(page, "query")[-1] is None


def test_the_keyboard_walks_the_patches_of_a_photo(page):
    page.locator(".gc-album figure").nth(1).locator("canvas").last.focus()
    for key in ("ArrowRight", "Shift+ArrowUp", "ArrowLeft", "Enter"):
        page.keyboard.press(key)
        settled(page)
    assert told(page, "query") == [[1, 0, 10]]
    page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("Shift+ArrowDown")  # into the padding: stays
    page.keyboard.press("Enter")
    assert told(page, "query")[-1] == [1, 10, 10]


def test_everything_can_be_reached_by_tab_and_has_a_name(page):
    names = []
    for _ in range(12):
        page.keyboard.press("Tab")
        names.append(
            page.evaluate(
                "((el) => el.ariaLabel || el.textContent.trim() || el.labels?.[0]?.textContent)(document.activeElement)"
            )
        )
    assert all(names[:9])
    assert any("grey 0 (300)" in name for name in names)
    assert sum(name == "grey 1" for name in names) == 1


def touch(session: Any, kind: str, *points: tuple[float, float]) -> None:
    touches = [{"x": x, "y": y, "id": index} for index, (x, y) in enumerate(points)]
    session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})


@pytest.mark.long
def test_fingers_tap_draw_and_zoom(browser, widget):
    context = browser.new_context(viewport={"width": 390, "height": 900}, has_touch=True, device_scale_factor=2)
    page = opened(context, widget)
    places, session = Places(page, widget), context.new_cdp_session(page)
    page.touchscreen.tap(*places.point(0, 6, 9))
    assert told(page, "query") == [[0, 6, 9]]
    page.touchscreen.tap(*places.patch(1, 3, 3))
    assert told(page, "query")[-1] == [1, 3, 3]
    path = around(places, (0, 2, 3), (0, 4, 6))
    touch(session, "touchStart", path[0])
    for (x, y), (x2, y2) in pairwise(path):
        for share in (0.25, 0.5, 0.75, 1):
            touch(session, "touchMove", (x + (x2 - x) * share, y + (y2 - y) * share))
    touch(session, "touchEnd")
    settled(page)
    assert told(page, "selection") == [block(0, range(2, 5), range(3, 7))]
    x, y = places.box["x"] + places.box["width"] / 2, places.box["y"] + places.box["height"] / 2
    touch(session, "touchStart", (x - 30, y), (x + 30, y))
    for gap in (40, 50, 60):
        touch(session, "touchMove", (x - gap, y), (x + gap, y))
    touch(session, "touchEnd")
    page.wait_for_timeout(400)
    assert told(page, "camera")[-1]["zoom"] == pytest.approx(2, rel=0.02)
    assert len(told(page, "selection")) == 1
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()


# ---------------------------------------------------------------- state, themes, ends


def test_what_python_sets_is_shown(page, places):
    page.evaluate("fromPython('selection', [[0, 4, 4], [1, 2, 2]])")
    page.evaluate("fromPython('query', [1, 5, 5])")
    assert words(page, "words") == (
        "Selected: 1 in grey 0 (rows 4 to 4, columns 4 to 4); 1 in grey 1 (rows 2 to 2, columns 2 to 2)."
    )
    page.evaluate("fromPython('color_by', 'cosine')")
    assert page.locator(".gc-mode").input_value() == "cosine"
    page.evaluate("fromPython('selection', [])")
    page.evaluate("fromPython('camera', {x: 12, y: -12, zoom: 3})")
    middle = places.box["x"] + places.box["width"] / 2, places.box["y"] + places.box["height"] / 2
    page.evaluate("fromPython('color_by', 'image')")
    np.testing.assert_allclose(pixel(page, *middle), OKABE_ITO[0], atol=2)
    assert page.evaluate("told") == []


def test_a_legend_button_hides_the_points_of_a_photo(page, places):
    key = page.locator(".gc-keys button").first
    key.click()
    away(page)
    assert key.get_attribute("aria-pressed") == "false"
    np.testing.assert_array_equal(pixel(page, *places.point(0, 4, 4)), BACK["light"])
    np.testing.assert_allclose(pixel(page, *places.point(1, 4, 4)), OKABE_ITO[1], atol=2)
    key.click()
    away(page)
    np.testing.assert_allclose(pixel(page, *places.point(0, 4, 4)), OKABE_ITO[0], atol=2)


@pytest.mark.long
@pytest.mark.parametrize(
    ("scheme", "change", "shown"),
    [
        ("dark", "", "dark"),
        ("light", "document.body.classList.add('dark')", "dark"),  # Gradio
        ("light", "document.body.dataset.jpThemeLight = 'false'", "dark"),  # JupyterLab
        ("dark", "document.body.dataset.jpThemeLight = 'true'", "light"),
        ("dark", "document.body.classList.add('vscode-light')", "light"),
        ("dark", "document.getElementById('view').className = 'gradio-container'; document.body.id = 'g'", "light"),
    ],
)
def test_the_theme_of_the_host_goes_before_that_of_the_system(browser, widget, scheme, change, shown):
    context = browser.new_context(viewport={"width": 900, "height": 900}, color_scheme=scheme)
    page = opened(context, widget)
    places = Places(page, widget)
    page.evaluate(f"() => {{ {change} }}")
    np.testing.assert_array_equal(pixel(page, places.box["x"] + 5, places.box["y"] + 5), BACK[shown])
    np.testing.assert_allclose(pixel(page, *places.point(0, 4, 4)), OKABE_ITO[0], atol=2)
    context.close()


def test_what_changes_while_the_view_is_hidden_is_there_when_it_comes_back(page, places):
    page.evaluate("""async () => {
      const view = document.getElementById("view");
      document.body.classList.add("dark");
      await null; // it is heard of
      view.style.display = "none"; // for one frame, as JupyterLab does
      await new Promise((done) => requestAnimationFrame(done));
      view.style.display = "";
    }""")
    page.wait_for_timeout(500)
    np.testing.assert_array_equal(pixel(page, places.box["x"] + 5, places.box["y"] + 5), BACK["dark"])


def test_nothing_moves_by_itself(page, places):
    page.mouse.dblclick(*places.point(0, 4, 4))
    settled(page)
    assert page.evaluate("document.getAnimations().length") == 0
    before = page.evaluate("frames")
    page.wait_for_timeout(300)
    assert page.evaluate("frames") == before


def test_destroy_leaves_nothing_behind(page, places):
    page.mouse.move(*places.point(0, 4, 4))
    page.evaluate("view.destroy()")
    before = page.evaluate("frames")
    page.mouse.move(*places.point(0, 5, 5))
    page.keyboard.press(" ")
    page.evaluate("fromPython('color_by', 'cosine')")
    page.set_viewport_size({"width": 700, "height": 700})
    page.wait_for_timeout(300)
    assert page.evaluate("frames") == before
    assert page.evaluate("document.getElementById('view').children.length") == 0
    assert page.evaluate("listening()") == 0
    assert page.evaluate("told") == []


def test_what_cannot_be_opened_is_said_in_one_sentence(context, looks):
    class Damaged(Pack):
        def read(self, start: int, stop: int) -> bytes:
            return b"no pack" + super().read(start, stop)[7:]

    widget = PatchCloud(*looks, cloud=lattice(looks))
    pack = widget.packs[1]
    widget.packs[1] = Damaged(pack.header, pack.path, pack._data, pack._start)
    page = opened(context, widget)
    assert "not a feature pack" in words(page, "words")
    assert page.errors == []


def test_two_views_on_a_page_do_not_disturb_each_other(page, places, widget):
    page.evaluate("""async () => {
      const second = document.body.appendChild(document.createElement("div"));
      const { mount } = await import("/cloud.js");
      window.second = mount(second, host);
      await window.second.ready;
    }""")
    drag(page, around(places, (0, 2, 3), (0, 2, 4)))
    assert page.locator(".gc-words").all_inner_texts() == ["Selected: 2 in grey 0 (rows 2 to 2, columns 3 to 4)."] * 2
    page.evaluate("second.destroy()")
    drag(page, around(places, (0, 3, 3), (0, 3, 4)))
    assert words(page, "words").startswith("Selected: 2 in grey 0 (rows 3")


# ---------------------------------------------------------------- the widget in Python


def test_state_is_checked_and_the_selection_is_a_map_as_well(widget):
    widget.selection = [(0, 1, 2), np.array([1, 3, 4])]
    widget.query = (1, np.int64(2), 3)
    assert widget.selection == [[0, 1, 2], [1, 3, 4]]
    assert widget.query == [1, 2, 3]
    assert np.argwhere(widget.mask(1)).tolist() == [[3, 4]]
    assert widget.mask(0).shape == (15, 20)
    for bad in ([[0, 15, 0]], [[2, 0, 0]], [[0, -1, 0]], [[0, 0, 20]]):
        with pytest.raises(traitlets.TraitError, match="the pictures are 0 with 15x20, 1 with 15x20"):
            widget.selection = bad
    with pytest.raises(traitlets.TraitError, match="no patch"):
        widget.query = [0, 99, 0]
    with pytest.raises(traitlets.TraitError):
        widget.color_by = "rainbow"


def test_points_and_features_stay_out_of_the_synced_state(widget):
    state = {name: getattr(widget, name) for name in widget.keys if not name.startswith("_")}
    assert len(json.dumps({name: state[name] for name in widget.state})) < 600
    positions = np.frombuffer(widget.blobs["positions"], "<f4").reshape(-1, 2)
    np.testing.assert_array_equal(positions, widget.cloud.positions)
    cells = np.frombuffer(widget.blobs["cells"], "<u2").reshape(-1, 3)
    np.testing.assert_array_equal(cells.T, [widget.cloud.pack, widget.cloud.row, widget.cloud.col])


def test_a_cloud_of_other_pictures_is_refused(looks):
    with pytest.raises(ValueError, match="at least one picture"):
        PatchCloud()
    for sources in (looks[::-1], looks[:1], [looks[0], look(5)]):
        with pytest.raises(ValueError, match="give the same pictures in the same order"):
            PatchCloud(*sources, cloud=lattice(looks))


def test_without_a_cloud_one_is_made(looks):
    widget = PatchCloud(*looks, method="pca")
    np.testing.assert_array_equal(widget.cloud.positions, cloud(looks, "pca").positions)
    assert widget.still().size == (720, 480)


def test_a_saved_file_answers_alone(context, widget, tmp_path):
    widget.color_by = "cosine"
    path = widget.save(tmp_path / "cloud.html", "Two greys")
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(path.as_uri())
    page.wait_for_selector(".gc-keys button")
    page.evaluate("gramscope.ready")
    places = Places(page, widget)
    drag(page, around(places, (0, 2, 3), (0, 2, 4)))
    assert words(page, "words") == "Selected: 2 in grey 0 (rows 2 to 2, columns 3 to 4)."
    page.mouse.click(*places.patch(1, 3, 3))
    assert words(page, "ends") == "cosine to the query"
    assert errors == []


def test_the_view_stays_small():
    assert (WIDGETS / "cloud.js").stat().st_size <= 20 * 1024


# ---------------------------------------------------------------- speed


def frames_of(browser: Any, page: Any, act: Any) -> list[dict[str, Any]]:
    """What the browser recorded of every frame: `dur` on the clock and `tdur` of the processor, in microseconds."""
    browser.start_tracing(page=page, categories=["devtools.timeline"])
    act()
    settled(page)
    events = json.loads(browser.stop_tracing())["traceEvents"]
    return [event for event in events if event["name"] == "FireAnimationFrame" and "tdur" in event]


def spread(values: list[float]) -> str:
    milliseconds = [value / 1000 for value in values]
    return f"{statistics.median(milliseconds):.1f} ms, p95 {statistics.quantiles(milliseconds, n=20)[-1]:.1f} ms"


@pytest.fixture(scope="module")
def large() -> PatchCloud:
    """50,000 points in forty clumps, patches of five photos."""
    looks = [look(index, width=1000, height=1000, dim=64) for index in range(5)]
    cells = np.argwhere(np.ones((5, 100, 100))).astype(np.int32)
    random = np.random.default_rng(0)
    clumps = random.normal(size=(40, 2)) * 6
    positions = clumps[random.integers(0, 40, len(cells))] + random.normal(size=(len(cells), 2))
    points = Cloud(
        **{**vars(lattice(looks[:1])), "pack": cells[:, 0], "row": cells[:, 1], "col": cells[:, 2]}
        | {"positions": positions.astype(np.float32), "total": len(cells), "grids": ((100, 100),) * 5}
        | {"names": tuple(look.photo.name for look in looks), "pictures": tuple(look.photo.digest for look in looks)}
    )
    return PatchCloud(*looks, cloud=points)


@pytest.mark.long
@pytest.mark.parametrize("ratio", [1, 2])
def test_how_long_a_frame_of_50000_points_takes(browser, large, ratio):
    context = browser.new_context(viewport={"width": 1280, "height": 1000}, device_scale_factor=ratio)
    page = opened(context, large)
    page.wait_for_timeout(1000)
    places = Places(page, large)
    middle = (places.box["x"] + places.box["width"] / 2, places.box["y"] + places.box["height"] / 2)

    def circle(size: float, steps: int) -> None:
        for step in range(steps):
            page.mouse.move(middle[0] + size * math.cos(step / 9), middle[1] + size * math.sin(step / 9))

    def pan() -> None:
        page.mouse.down(button="right")
        circle(60, 100)
        page.mouse.up(button="right")

    def zoom() -> None:
        for step in range(100):
            page.mouse.wheel(0, -60 if step < 50 else 60)

    def hover() -> None:
        circle(150, 150)

    def photo() -> None:
        for step in range(60):
            page.mouse.move(*places.patch(1, 20 + step // 2, 20 + step))

    for name, act in (("pan", pan), ("zoom", zoom), ("hover", hover), ("hover a photo, by cosine", photo)):
        if act is photo:
            page.evaluate("fromPython('color_by', 'cosine')")
            page.wait_for_timeout(500)
        page.mouse.move(*middle)
        settled(page)
        frames = frames_of(browser, page, act)
        assert len(frames) > 20
        cpu, clock = (spread([frame[name] for frame in frames]) for name in ("tdur", "dur"))
        print(
            f"\n{len(large.cloud):,} points at {ratio}:1, {name}: {cpu} of the processor a frame ({clock} on the clock)"
        )
    assert page.errors == []
    context.close()
