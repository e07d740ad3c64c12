"""The explorer in a real browser, its maps drawn by the server.

Clicks land, pictures answer, bad files get a sentence, users stay apart.
"""

import io
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import TimeoutError

from core.dense.geometry import pixel_to_displayed, pixel_to_patch, plan
from tests.apps.explorer.acts import choose, upload
from workbench.draw import QUERY
from workbench.images import list_samples

PATCH = 14  # of the weights that come with the project
SAMPLES = list_samples()[0].path.parent
ERRORS = "[data-testid=toast-body]"
# Where a picture stands once it has stood there for ten frames: what comes after it on the page may still move it.
AT_REST = """async (selector) => {
    const place = ({ left, top, width, height }) => [left, top, width, height];
    for (let at = 0, last = null, frames = 0; at < 3000; at++) {
        const picture = document.querySelector(selector), there = picture.complete && picture.naturalWidth;
        const now = there && place(picture.getBoundingClientRect());
        frames = now && last && picture === last.picture && `${now}` === `${last.now}` ? frames + 1 : 0;
        if (frames === 10) return now;
        last = { picture, now };
        await new Promise(requestAnimationFrame);
    }
    throw new Error(`${selector} does not come to rest`);
}"""


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Soft random blobs: something to look at that no two seeds share."""
    blobs = np.random.default_rng(seed).integers(0, 256, (max(2, height // 40), max(2, width // 40), 3), np.uint8)
    return Image.fromarray(blobs).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


@pytest.fixture
def visit(browser: Any, app: str) -> Iterator[Callable[..., Any]]:
    """Opens the explorer in a browser context of its own, small input first where size does not matter."""
    contexts = []

    def go(width: int = 1280, height: int = 900, *, size: str | None = "256 px", **options: Any) -> Any:
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, **options))
        page = contexts[-1].new_page()
        page.goto(app)
        page.locator("#similarity-drawn-by").get_by_text("the server").click()
        answered(page)
        if size:
            with new_picture(page, "#similarity-map img"):
                choose(page, "Input, long side", size)
            page.get_by_text("14 × 18 patches").wait_for()
        return page

    yield go
    for context in contexts:
        context.close()


def answered(page: Any) -> None:
    page.wait_for_selector("#similarity-matches table", timeout=90_000)


@contextmanager
def new_picture(page: Any, selector: str) -> Iterator[None]:
    """Waits until what is done inside has changed the picture."""
    before = page.get_attribute(selector, "src")
    yield
    changed = (
        "([s, old]) => {const e = document.querySelector(s); return e.src !== old && e.complete && e.naturalWidth}"
    )
    page.wait_for_function(changed, arg=[selector, before], timeout=60_000)


def says(page: Any, cell: tuple[int, int]) -> None:
    """Waits until the page names this cell as the query; the picture may be there a moment before the words."""
    words = f"Row {cell[0]}, column {cell[1]}"
    try:
        page.locator("#similarity-readout").get_by_text(words, exact=True).wait_for(timeout=60_000)
    except TimeoutError:
        pytest.fail(f"{words} in place of {page.inner_text('#similarity-readout')!r}", pytrace=False)


def click_pixel(page: Any, size: tuple[int, int], x: float, y: float, selector: str = "#similarity-map img") -> None:
    """A pointer click where this pixel of the photograph is shown, once the photograph is there and rests."""
    page.locator(selector).scroll_into_view_if_needed()
    left, top, width, height = page.evaluate(AT_REST, selector)
    at_x, at_y = pixel_to_displayed(x, y, box_width=width, box_height=height, width=size[0], height=size[1])
    page.mouse.click(left + at_x, top + at_y)


def shown(page: Any, selector: str = "#similarity-map img") -> np.ndarray:
    response = page.request.get(page.evaluate("s => document.querySelector(s).src", selector))
    return np.asarray(Image.open(io.BytesIO(response.body())).convert("RGB"))


def test_the_page_opens_with_an_answer_and_asks_nobody_else(browser, app):
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    outside, problems = [], []
    page.on("request", lambda request: outside.append(request.url) if "127.0.0.1" not in request.url else None)
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.goto(app)
    page.locator("#similarity-view .gs-matches li").nth(9).wait_for(timeout=90_000)
    page.locator("#similarity-drawn-by").get_by_text("the server").click()
    answered(page)
    says(page, (11, 18))
    for tab in ("PCA", "4K", "About", "Similarity"):
        page.get_by_role("tab", name=tab, exact=True).click()
        page.wait_for_timeout(700)
    assert [url for url in outside if not url.startswith(("data:", "blob:"))] == []
    assert problems == []
    assert all(page.locator("#similarity-map img, #similarity-other img").nth(i).get_attribute("alt") for i in (0, 1))
    page.context.close()


@pytest.mark.parametrize(
    ("viewport", "scale", "zoom"),
    [
        ((390, 844), 3, 1),
        pytest.param((1280, 900), 2, 0.8, marks=pytest.mark.long),
        pytest.param((1280, 900), 1, 1, marks=pytest.mark.long),
        pytest.param((1000, 700), 1, 1.25, marks=pytest.mark.long),
    ],
)
def test_a_click_lands_in_the_patch_under_the_pointer(visit, viewport, scale, zoom):
    page = visit(*viewport, device_scale_factor=scale)
    page.evaluate("zoom => { document.body.style.zoom = zoom }", zoom)
    landscape, portrait = (500, 375), (90, 160)
    for size in (landscape, portrait):
        if size == portrait:  # tiny: shown larger than it is
            with new_picture(page, "#similarity-map img"):
                upload(page, "photo", "tiny.jpg", encoded(picture(*size)))
        geometry = plan(*size, PATCH, size=256)
        width, height = size
        rim = width / 250  # a pixel or two of the screen: a click's place is a whole number of them
        for x, y in (
            (rim, rim),
            (width - rim, height - rim),
            (width * 0.31, height * 0.77),
            (width * 0.6, height * 0.2),
        ):
            expected = pixel_to_patch(geometry, x, y)
            with new_picture(page, "#similarity-map img"):
                click_pixel(page, size, x, y)
            says(page, expected)


@pytest.mark.long
def test_the_query_frame_is_drawn_where_the_click_was(visit):
    page = visit()
    with new_picture(page, "#similarity-map img"):
        click_pixel(page, (500, 375), 400, 300)
    red = np.abs(shown(page).astype(int) - np.array(QUERY)).sum(-1) < 90
    rows, cols = np.nonzero(red)
    height, width = red.shape
    near = (np.abs(cols / width - 0.8) < 0.12) & (np.abs(rows / height - 0.8) < 0.08)
    assert near.sum() > 100 and near.mean() > 0.9


@pytest.mark.long
def test_a_photograph_stored_sideways_is_shown_and_clicked_upright(visit):
    page = visit()
    stored = picture(120, 200, seed=3)
    exif = Image.Exif()
    exif[0x0112] = 6
    with new_picture(page, "#similarity-map img"):
        upload(page, "photo", "sideways.jpg", encoded(stored, exif=exif))
    geometry = plan(120, 200, PATCH, size=256, orientation=6)
    assert shown(page).shape[1] > shown(page).shape[0]
    with new_picture(page, "#similarity-map img"):
        click_pixel(page, (200, 120), 170, 30)
    says(page, pixel_to_patch(geometry, 170, 30))


@pytest.mark.long
def test_typing_adding_subtracting_and_starting_over(visit):
    page = visit()
    page.get_by_label("Row", exact=True).fill("3")
    page.get_by_label("Column", exact=True).fill("4")
    with new_picture(page, "#similarity-map img"):
        page.click("#similarity-ask")
    says(page, (3, 4))
    for mode, x in (("add to the query", 250), ("subtract from it", 450)):
        page.get_by_label(mode).check()
        with new_picture(page, "#similarity-map img"):
            click_pixel(page, (500, 375), x, 200)
    page.get_by_text("to the subtracted").wait_for()
    with new_picture(page, "#similarity-map img"):
        page.click("#similarity-clear")
    page.get_by_text("to the subtracted").wait_for(state="detached")
    page.get_by_label("Row", exact=True).fill("99")
    before = page.get_attribute("#similarity-map img", "src")
    page.click("#similarity-ask")
    page.wait_for_selector(ERRORS)
    assert "rows go from 0 to" in page.inner_text(ERRORS)
    assert page.get_attribute("#similarity-map img", "src") == before


@pytest.mark.long
def test_layer_and_size_keep_the_query_on_its_pixel(visit):
    page = visit()
    with new_picture(page, "#similarity-map img"):
        click_pixel(page, (500, 375), 260.5, 220.5)
    says(page, pixel_to_patch(plan(500, 375, PATCH, size=256), 260.5, 220.5))
    with new_picture(page, "#similarity-map img"):
        choose(page, "Input, long side", "512 px")
    says(page, pixel_to_patch(plan(500, 375, PATCH, size=512), 260.5, 220.5))
    first = shown(page)
    with new_picture(page, "#similarity-map img"):
        choose(page, "Layer", "3")
    page.get_by_text("layer 3, after").wait_for()
    assert np.abs(shown(page).astype(int) - first).mean() > 2


REFUSED = {
    "cut short": encoded(picture(300, 200))[:3000],
    "no picture": b"these are words, not a picture",
    "empty": b"",
    "a bomb": b"\x89PNG\r\n\x1a\n" + bytes.fromhex("0000000d49484452000f4240000f42400802000000") + b"\0" * 64,
}
ACCEPTED = {
    "moving": encoded(picture(80, 60), "GIF", save_all=True, append_images=[picture(80, 60, seed=1)]),
    "four inks": encoded(picture(80, 60).convert("CMYK")),
    "sixteen bits": encoded(Image.fromarray(np.linspace(0, 65535, 80 * 60).astype(np.uint16).reshape(60, 80)), "PNG"),
    "palette": encoded(picture(80, 60).quantize(16), "PNG", transparency=3),
}


@pytest.mark.long
def test_unusable_files_get_a_sentence_and_nothing_is_lost(visit):
    page = visit()
    before = page.get_attribute("#similarity-map img", "src")
    for name, data in REFUSED.items():
        upload(page, "photo", f"{name}.jpg", data)
        toast = page.locator(ERRORS).filter(has_text=name)
        toast.wait_for(timeout=20_000)
        words = toast.inner_text()
        assert "Traceback" not in words and "Error(" not in words and len(words) < 400, words
        assert page.get_attribute("#similarity-map img", "src") == before, name
    for name, data in ACCEPTED.items():
        with new_picture(page, "#similarity-map img"):
            upload(page, "photo", f"{name}.png", data)


@pytest.mark.long
def test_two_users_do_not_meet(visit):
    first, second = visit(), visit()
    with new_picture(first, "#similarity-map img"):
        upload(first, "photo", "mine.jpg", encoded(picture(160, 90)))
    with new_picture(second, "#similarity-map img"):
        click_pixel(second, (500, 375), 100, 300)
    says(second, pixel_to_patch(plan(500, 375, PATCH, size=256), 100, 300))
    with new_picture(first, "#similarity-map img"):
        click_pixel(first, (160, 90), 150, 75)
    says(first, pixel_to_patch(plan(160, 90, PATCH, size=256), 150, 75))
    shapes = [shown(page).shape[1::-1] for page in (first, second)]  # each still has the photograph of its own
    assert [width / height for width, height in shapes] == pytest.approx([160 / 90, 500 / 375], rel=0.02)


@pytest.mark.long
def test_locked_colours_stay_from_photo_to_photo(visit):
    page = visit()
    page.get_by_role("tab", name="PCA", exact=True).click()
    page.wait_for_selector("#pca-map img")
    first = shown(page, "#pca-map img")
    page.get_by_label("Lock the colours").check()
    page.get_by_text("Colours locked on").wait_for()
    with new_picture(page, "#pca-map img"):
        page.locator("#pca-strip button").nth(1).click()
    assert "Colours locked on" in page.inner_text("#pca-told")
    with new_picture(page, "#pca-map img"):
        page.locator("#pca-strip button").nth(0).click()
    assert np.array_equal(shown(page, "#pca-map img"), first)
    with new_picture(page, "#pca-map img"):
        page.get_by_label("Foreground only").check()
    assert shown(page, "#pca-map img").mean() < first.mean()


def requests_of(page: Any) -> list[int]:
    """Fills with one number for every function that the page asks of the server from now on."""
    asked: list[int] = []
    page.on("request", lambda r: asked.append(r.post_data_json["fn_index"]) if r.url.endswith("/join?") else None)
    return asked


def comes_to_rest(page: Any, asked: list[int]) -> None:
    """Waits until the page has asked nothing for two seconds; fails after a minute of asking."""
    for _ in range(30):
        before = len(asked)
        page.wait_for_timeout(2000)
        if len(asked) == before:
            return
    pytest.fail(f"the page goes on asking: {asked}")


@pytest.mark.long
def test_of_quick_clicks_the_last_one_stays_and_the_page_comes_to_rest(visit):
    page = visit()
    asked = requests_of(page)
    comes_to_rest(page, asked)
    asked.clear()
    for x in (60, 130, 200, 270, 340, 410):
        click_pixel(page, (500, 375), x, x / 2 + 60)
    says(page, pixel_to_patch(plan(500, 375, PATCH, size=256), 410, 265))
    comes_to_rest(page, asked)
    says(page, pixel_to_patch(plan(500, 375, PATCH, size=256), 410, 265))
    assert 2 <= len(asked) <= 12  # at most an answer and its charts for each click
    asked.clear()
    choose(page, "Layer", "11")
    page.get_by_text("layer 11, after").wait_for()
    comes_to_rest(page, asked)
    assert max(Counter(asked).values()) <= 2, asked  # a choice in a list comes twice from Gradio, and never again


@pytest.mark.long
def test_weights_that_cannot_be_had_leave_everything_as_it_was(visit):
    page = visit()
    before = page.get_attribute("#similarity-map img", "src"), page.inner_text("#licence")
    choose(page, "Weights", "dinov3_vits16 (DINOv3 License, gated, downloads)")
    page.wait_for_selector(ERRORS)
    words = page.inner_text(ERRORS)
    assert words.count("HF_HUB_OFFLINE") == 1 and "dinov2_vits14_saliency" in words  # what is wrong, and a way out
    page.wait_for_function("() => document.querySelector('#licence').innerText.includes('saliency')")
    assert page.get_by_label("Weights", exact=True).input_value() == "dinov2_vits14_saliency (comes with the project)"
    assert (page.get_attribute("#similarity-map img", "src"), page.inner_text("#licence")) == before
    with new_picture(page, "#similarity-map img"):
        click_pixel(page, (500, 375), 100, 300)


@pytest.mark.long
def test_drawing_settings_change_the_picture_and_no_opacity_is_the_photograph(visit):
    page = visit()
    page.get_by_role("button", name="Drawing").first.click()
    for label, option in (("Colour map", "magma"), ("Colour limits", "-1 to 1")):
        with new_picture(page, "#similarity-map img"):
            choose(page, label, option)
    assert "-1.00" in page.inner_text(".legend >> nth=0")
    with new_picture(page, "#similarity-map img"):
        page.get_by_label("bilinear").first.check()
    opacity = page.get_by_label("range slider for Opacity of the map").first
    with new_picture(page, "#similarity-map img"):
        opacity.press("Home")
    page.wait_for_timeout(1000)
    photo = Image.open(SAMPLES / "cat_bengal.jpg").resize((1024, 768), Image.Resampling.BILINEAR)
    # The frames and numbers of query and matches stay, so the middle and not the mean is compared.
    assert np.median(np.abs(shown(page).astype(int) - np.asarray(photo))) <= 2


@pytest.mark.long
def test_a_second_photo_changes_the_comparison_alone(visit):
    page = visit()
    before = page.get_attribute("#similarity-map img", "src")
    with new_picture(page, "#similarity-other img"):
        page.locator("#other-strip button").nth(3).click()
    with new_picture(page, "#similarity-other img"):
        upload(page, "other", "narrow.png", encoded(picture(70, 210), "PNG"))
    assert shown(page, "#similarity-other img").shape[:2] == (1024, 341)
    assert page.get_attribute("#similarity-map img", "src") == before


@pytest.mark.long
def test_everything_can_be_reached_and_set_with_the_keyboard(visit):
    page = visit()
    page.get_by_role("button", name="Drawing").first.click()
    name = "e => e.getAttribute('aria-label') || e.id || e.value || e.innerText"
    wanted = {"Weights", "Layer", "Input, long side", "Similarity", "PCA", "4K", "About", "new", "Row", "Column"}
    wanted |= {"similarity-clear", "similarity-ask", "photo-upload", "other-upload", "Colour map", "Colour limits"}
    wanted |= {"range slider for Opacity of the map", "Thumbnail 1 of 15", "Thumbnail 15 of 15"}
    reached = set()
    for _ in range(90):
        page.keyboard.press("Tab")
        reached.add(page.evaluate(f"({name})(document.activeElement)"))
    assert wanted - reached == set()
    assert page.evaluate("[...document.images].filter(e => !e.alt).map(e => e.src)") == []

    page.get_by_label("Layer", exact=True).focus()
    for key in ("ArrowUp", "ArrowUp", "Enter"):
        page.keyboard.press(key)
    page.get_by_text("layer 10, after").wait_for()
    page.get_by_label("Row", exact=True).fill("2")
    page.get_by_label("Column", exact=True).fill("9")
    page.keyboard.press("Enter")
    says(page, (2, 9))


@pytest.mark.long
def test_locked_colours_are_carried_to_another_layer(visit):
    page = visit()
    page.get_by_role("tab", name="PCA", exact=True).click()
    page.wait_for_selector("#pca-map img")
    page.get_by_label("Lock the colours").check()
    page.get_by_text("Colours locked on").wait_for()
    first = shown(page, "#pca-map img").astype(int)
    with new_picture(page, "#pca-map img"):
        choose(page, "Layer", "11")
    page.get_by_text("orthogonal Procrustes").wait_for()
    turned = shown(page, "#pca-map img").astype(int)
    page.get_by_label("Lock the colours").uncheck()
    page.get_by_text("Colours fitted on this photo").wait_for()
    free = shown(page, "#pca-map img").astype(int)
    assert 0 < np.abs(turned - first).mean() < np.abs(free - first).mean()


@pytest.mark.long
def test_another_large_photo_takes_the_place_of_one_that_is_being_looked_at(visit):
    page = visit(size=None)
    page.get_by_role("tab", name="4K", exact=True).click()
    page.locator("#large-drawn-by").get_by_text("the server").click()
    page.wait_for_selector("#large-map img")
    with new_picture(page, "#large-map img"):
        upload(page, "large", "first.jpg", encoded(picture(1500, 1100)))
    choose(page, "Tile", "512 px")
    page.click("#large-start")
    page.wait_for_function("document.querySelector('#large-state').innerText.match(/[1-9] of \\d+ tiles/)")
    with new_picture(page, "#large-map img"):
        upload(page, "large", "second.jpg", encoded(picture(400, 1000, seed=1)))
    page.get_by_text("Not looked at yet.").wait_for()
    page.wait_for_timeout(4000)
    assert "Not looked at yet." in page.inner_text("#large-state")
    photo = picture(400, 1000, seed=1).resize((410, 1024), Image.Resampling.BILINEAR)
    assert np.median(np.abs(shown(page, "#large-map img").astype(int) - np.asarray(photo))) <= 3
    with new_picture(page, "#large-map img"):
        page.click("#large-start")
    page.get_by_text(re.compile(r"All \d+ tiles")).wait_for(timeout=60_000)
    assert shown(page, "#large-map img").shape[:2] == (1024, 410)


@pytest.mark.long
def test_a_large_photo_sharpens_answers_meanwhile_and_stops(visit):
    page = visit(size=None)
    page.get_by_role("tab", name="4K", exact=True).click()
    page.locator("#large-drawn-by").get_by_text("the server").click()
    page.wait_for_selector("#large-map img")
    with new_picture(page, "#large-map img"):
        upload(page, "large", "wide.jpg", encoded(picture(1900, 1300), quality=90))
    choose(page, "Tile", "512 px")
    with new_picture(page, "#large-map img"):
        page.click("#large-start")
    page.wait_for_function(
        "document.querySelector('#large-state').innerText.match(/[1-9] of \\d+ tiles/)", timeout=60_000
    )
    with new_picture(page, "#large-part img"):
        click_pixel(page, (1900, 1300), 1500, 900, "#large-map img")
    page.click("#large-stop")
    page.get_by_text("of the photo is sharp").wait_for(timeout=20_000)
    told = page.inner_text("#large-state")
    page.wait_for_timeout(4000)
    assert page.inner_text("#large-state") == told, "tiles kept coming after Stop"
    with new_picture(page, "#large-part img"):
        click_pixel(page, (1900, 1300), 300, 300, "#large-map img")
    with new_picture(page, "#large-map img"):
        page.click("#large-start")
    page.get_by_text(re.compile(r"All \d+ tiles")).wait_for(timeout=120_000)
    assert "disagree by" in page.inner_text("#large-state")
