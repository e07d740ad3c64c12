"""The explorer's Ask tab with the text model that comes with the project: typed, ranked, given another photograph."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.apps.explorer.acts import choose, upload
from workbench.ask import ask_about, load_asker
from workbench.images import list_samples

VIEW = "[...document.querySelectorAll('#ask-view, #ask-view *')].find(e => e.view)?.view"
SIZE = 256


@pytest.fixture
def page(browser: Any, app: str) -> Iterator[Any]:
    """The tab with its photographs, at the smallest input."""
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    page = context.new_page()
    page.goto(app)
    choose(page, "Input, long side", f"{SIZE} px")
    page.get_by_role("tab", name="Ask", exact=True).click()
    answered(page, 3)
    yield page
    context.close()


def answered(page: Any, phrases: int, photos: int = 6) -> None:
    page.wait_for_function(
        f"""([phrases, photos]) => {{ const v = {VIEW};
        return v?.packs.length === photos && v.packs.every(Boolean) && v.get('phrases').length === phrases
            && Math.abs(Math.max(v.pack.geometry.input_width, v.pack.geometry.input_height) - {SIZE}) < 8
            && v.all(v.pack).every(Boolean) && v.ranking().every(([, score]) => score !== null); }}""",
        arg=[phrases, photos],
        timeout=180_000,
    )


@pytest.mark.long
def test_a_typed_phrase_is_found_and_ranks_the_photographs(page):
    field = page.locator("#ask-view").get_by_label("A phrase", exact=True)
    field.fill("a cup on a table")
    field.press("Enter")
    answered(page, 4)
    asker = load_asker()
    names = page.evaluate(f"() => {VIEW}.packs.map(pack => pack.header.picture.name)")
    paths = {sample.path.name: sample.path for sample in list_samples()}
    asked = ask_about(asker, [paths[name] for name in names], size=SIZE)
    phrase = asker.phrase("a cup on a table")
    scores = [float(photo.whole @ phrase.templated_whole) for photo in asked]
    ranked = page.evaluate(f"() => {VIEW}.ranking().map(([at, score]) => [at, score])")
    assert [at for at, _ in ranked] == np.argsort(-np.array(scores), kind="stable").tolist()
    for at, score in ranked:
        assert score == pytest.approx(scores[at], abs=1e-4)
    assert names[ranked[0][0]] == "coffee_cup.jpg", "the model knows that much"
    page.locator("#ask-view .gs-ranked button").first.click()
    page.wait_for_function(f"() => {VIEW}.photo === {ranked[0][0]}")
    asked_of = []
    page.on("request", lambda request: asked_of.append(request.url))
    canvas = page.locator("#ask-view canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"])
    page.locator("#ask-view .gs-read", has_text="row ").wait_for()
    assert asked_of == [], "everything is in the page"
    row, col = page.evaluate(f"() => {VIEW}.hover")
    look = asked[ranked[0][0]].look
    here = page.evaluate(f"([row, col]) => {VIEW}.all({VIEW}.pack)[3][row * {VIEW}.pack.cols + col]", [row, col])
    assert here == pytest.approx(float(look.unit[row, col] @ phrase.templated_patch), abs=0.005)
    assert asker.numbers["sentence"] in page.locator("#ask-view .gs-note").inner_text()


@pytest.mark.long
def test_a_photograph_of_ones_own_joins_and_what_is_none_is_refused(page):
    upload(page, "ask", "notes.jpg", b"Buy milk.\n" * 100)
    page.get_by_text("notes.jpg").first.wait_for(timeout=30_000)
    answered(page, 3)
    file = io.BytesIO()
    Image.new("RGB", (200, 120), (240, 220, 30)).save(file, "JPEG")
    upload(page, "ask", "yellow.jpg", file.getvalue())
    answered(page, 3, 7)
    assert page.evaluate(f"() => {VIEW}.pack.header.picture.name") == "yellow.jpg"
    assert page.evaluate(f"() => {VIEW}.get('phrases').map(phrase => phrase.text)") == [
        "an animal", "a rocky hill", "the sky",
    ]  # fmt: skip
