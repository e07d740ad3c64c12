"""The view on the page: features leave the server once, then the browser answers alone."""

import io
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from core.dense.geometry import patch_centre, pixel_to_patch, plan
from core.dense.similarity import cosine_map
from core.models.weights import load_backbone
from tests.apps.explorer.acts import choose, upload
from workbench import extract, open_image
from workbench.images import list_samples

SAMPLES = list_samples()[0].path.parent
VIEW = "(id => [...document.querySelectorAll(`#${id}, #${id} *`)].find(e => e.view)?.view)"


@pytest.fixture
def visit(browser: Any, app: str) -> Iterator[Callable[..., Any]]:
    """Opens the explorer and waits until all features of the first tab are in the page."""
    contexts = []

    def go(fragment: str = "") -> Any:
        contexts.append(browser.new_context(viewport={"width": 1280, "height": 900}))
        page = contexts[-1].new_page()
        page.goto(app + fragment)
        complete(page, "similarity-view")
        return page

    yield go
    for context in contexts:
        context.close()


def complete(page: Any, view: str, condition: str = "true") -> None:
    """Waits until a view has all of its packs and the condition on them holds."""
    there = "v?.packs?.length && v.packs.every(p => p?.complete)"
    page.wait_for_function(
        f"id => {{ const v = {VIEW}(id); return {there} && ({condition}) }}", arg=view, timeout=120_000
    )


def canvas(page: Any, view: str = "similarity-view", pane: int = 0) -> dict[str, float]:
    place = page.locator(f"#{view} .gs-stage canvas").nth(pane)
    place.scroll_into_view_if_needed()
    return place.bounding_box()


def move(page: Any, x: float, y: float, size: tuple[int, int], **where: Any) -> None:
    """The pointer to a pixel of the photograph."""
    box = canvas(page, **where)
    page.mouse.move(box["x"] + x / size[0] * box["width"], box["y"] + y / size[1] * box["height"])


def readout(page: Any, view: str = "similarity-view", pane: int = 0) -> str:
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return page.locator(f"#{view} .gs-read").nth(pane).inner_text()


def test_hover_and_click_are_answered_by_the_page_alone_with_the_models_own_cosines(visit):
    page = visit()
    choose(page, "Input, long side", "512 px")
    complete(page, "similarity-view", "Math.max(v.packs[0].rows, v.packs[0].cols) === 37")
    page.wait_for_timeout(1000)
    photo = open_image(SAMPLES / "cat_bengal.jpg")
    features = extract(load_backbone("dinov2_vits14_saliency"), photo, size=512)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    canvas(page)
    x, y = patch_centre(features.geometry, 8, 11)
    move(page, x, y, photo.size)
    page.mouse.down()
    page.mouse.up()
    cosines = cosine_map(features.patches, [(8, 11)])
    for row, col in ((3, 4), (8, 11), (20, 30), (26, 18)):
        move(page, *patch_centre(features.geometry, row, col), photo.size)
        words = readout(page)
        assert f"row {row}, col {col}" in words
        assert float(re.search(r"cosine (-?[\d.]+)", words)[1]) == pytest.approx(float(cosines[row, col]), abs=0.0045)
    assert asked == []  # no message to the server, neither for hovering nor for clicking
    assert page.locator("#similarity-view .gs-note").inner_text().count("dinov2_vits14_saliency") == 1


@pytest.mark.long
def test_another_photo_and_another_layer_come_into_the_same_view(visit):
    page = visit()
    move(page, 250, 200, (500, 375))
    page.mouse.down()
    page.mouse.up()
    choose(page, "Layer", "11")
    complete(page, "similarity-view", "v.packs.every(p => p.header.layer === 10)")
    row, col = pixel_to_patch(plan(500, 375, 14, size=768), 250, 200)
    page.mouse.move(5, 5)
    assert f"row {row}, col {col}" in readout(page), "the pinned pixel stays"
    page.locator("#other-strip button").nth(3).click()
    complete(page, "similarity-view", "v.packs[1].header.picture.name !== 'cat_abyssinian_1.jpg'")
    assert f"row {row}, col {col}" in readout(page)
    page.locator("#photo-strip button").nth(7).click()
    complete(page, "similarity-view", "v.packs[0].header.picture.name !== 'cat_bengal.jpg'")
    complete(page, "similarity-view", "v.get('queries')[0].image === v.packs[0].header.picture.digest")


@pytest.mark.long
def test_the_server_takes_over_what_is_asked_and_gives_it_back(visit):
    page = visit()
    move(page, 300, 250, (500, 375))
    page.mouse.down()
    page.mouse.up()
    row, col = pixel_to_patch(plan(500, 375, 14, size=768), 300, 250)
    page.locator("#similarity-drawn-by").get_by_text("the server").click()
    page.locator("#similarity-readout").get_by_text(f"Row {row}, column {col}", exact=True).wait_for(timeout=30_000)
    page.get_by_label("Row", exact=True).fill("5")
    page.get_by_label("Column", exact=True).fill("6")
    page.keyboard.press("Enter")
    page.locator("#similarity-readout").get_by_text("Row 5, column 6", exact=True).wait_for(timeout=30_000)
    page.locator("#similarity-drawn-by").get_by_text("this page").click()
    page.locator("#similarity-view .gs-read", has_text="row 5, col 6").wait_for(timeout=30_000)


@pytest.mark.long
def test_a_large_photo_is_hovered_while_it_sharpens(visit):
    page = visit()
    page.get_by_role("tab", name="4K", exact=True).click()
    blobs = np.random.default_rng(0).integers(0, 256, (28, 38, 3), np.uint8)
    image = Image.fromarray(blobs).resize((1500, 1100), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "PNG")
    upload(page, "large", "wide.png", file.getvalue(), "image/png")
    page.wait_for_timeout(2000)
    choose(page, "Tile", "512 px")
    page.click("#large-start")
    complete(page, "large-view")  # the coarse map
    move(page, 1200, 300, (1500, 1100), view="large-view")
    assert "row" in readout(page, "large-view")
    page.wait_for_function("document.querySelector('#large-state').innerText.match(/[1-9] of \\d+ tiles/)")
    page.click("#large-stop")
    page.get_by_text("of the photo is sharp").wait_for(timeout=20_000)
    complete(page, "large-view", "v.packs.length === 2")  # with what was sharp when it was stopped
    page.click("#large-start")
    page.get_by_text(re.compile(r"All \d+ tiles")).wait_for(timeout=120_000)
    complete(page, "large-view", "v.packs.length === 2 && v.packs[1].nullSame?.length")
    x, y = patch_centre(plan(1500, 1100, 14, size=1500), 20, 30)
    move(page, x, y, (1500, 1100), view="large-view")
    assert re.search(r"row 20, col 30 .* cosine -?[\d.]+ .* random pairs", readout(page, "large-view"))


@pytest.mark.long
def test_a_map_that_is_kept_stands_beside_that_of_another_layer(visit):
    page = visit()
    page.click("#similarity-keep")
    page.get_by_text("This map stays.").wait_for()
    choose(page, "Layer", "6")
    complete(page, "similarity-view", "v.packs.length === 3 && v.packs[0].header.layer === 5")
    move(page, 250, 200, (500, 375))
    row, col = pixel_to_patch(plan(500, 375, 14, size=768), 250, 200)
    assert [f"row {row}, col {col}" in readout(page, pane=pane) for pane in (0, 2)] == [True, True]
    page.locator("#similarity-view select").nth(0).select_option("difference:2")
    move(page, 250, 200, (500, 375))
    assert "difference" in readout(page)
    page.click("#similarity-drop")
    complete(page, "similarity-view", "v.packs.length === 2")
