"""The explorer's Follow tab: marked with the pointer, followed by the server; what is no video is refused."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.apps.explorer.acts import choose, upload
from workbench.video import write_video

VIEW = "[...document.querySelectorAll('#follow-view, #follow-view *')].find(e => e.view)?.view"


@pytest.fixture
def page(browser: Any, app: str) -> Iterator[Any]:
    """The tab with its clip, at the smallest input."""
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    page = context.new_page()
    page.goto(app)
    choose(page, "Input, long side", "256 px")
    page.get_by_role("tab", name="Follow", exact=True).click()
    page.wait_for_function(f"() => {VIEW}?.pictures?.length && {VIEW}.geometry.cols === 18", timeout=120_000)
    yield page
    context.close()


def mark(page: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    """A box between two places, given as shares of the picture."""
    page.get_by_role("radio", name="Box", exact=True).click()
    canvas = page.locator("#follow-view .gs-main")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in (start, end)]
    page.mouse.move(*places[0])
    page.mouse.down()
    page.mouse.move(*places[1], steps=3)
    page.mouse.up()


def short(path: Path) -> bytes:
    """Four frames with a bright square that moves."""
    frames = []
    for number in range(4):
        frame = np.full((96, 160, 3), 70, np.uint8)
        frame[30:60, 20 + 8 * number : 60 + 8 * number] = (230, 180, 30)
        frames.append(frame)
    return write_video(path, frames, 5).read_bytes()


@pytest.mark.long
def test_an_object_is_followed_by_the_server_and_asked_about_on_the_page(page, tmp_path):
    upload(page, "follow", "square.mp4", short(tmp_path / "a.mp4"), "video/mp4")
    page.wait_for_function(f"() => {VIEW}.frames === 4 && {VIEW}.pictures.length === 4", timeout=60_000)
    mark(page, (0.15, 0.35), (0.35, 0.6))
    follow = page.get_by_role("button", name="Follow", exact=True)
    follow.click()
    page.wait_for_function(f"() => {VIEW}.found && !{VIEW}.busy && {VIEW}.palette", timeout=120_000)
    page.evaluate(f"() => {VIEW}.go(3)")
    middle = page.evaluate(f"() => {VIEW}.digits(3).flatMap((d, at) => d ? [at % {VIEW}.geometry.cols] : [])")
    assert middle, "the object is still there in the last frame"
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    rows, cols, place = page.evaluate(
        f"() => [{VIEW}.geometry.rows, {VIEW}.geometry.cols, {VIEW}.digits(3).indexOf(1)]"
    )
    box = page.locator("#follow-view .gs-main").bounding_box()
    x, y = (place % cols + 0.5) / cols, (place // cols + 0.5) / rows
    page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
    page.locator("#follow-view .gs-read", has_text="votes: frame").wait_for()
    assert page.locator("#follow-view .gs-votes figure").count() >= 1
    assert asked == [], "votes are in the page"
    before = page.evaluate(f"() => [0, 1, 2, 3].map(frame => {VIEW}.digits(frame).join(''))")
    page.mouse.move(0, 0)
    page.evaluate(f"() => {VIEW}.go(2)")
    mark(page, (0.6, 0.1), (0.7, 0.3))  # what was missed
    page.get_by_role("button", name="Go on from here", exact=True).click()
    page.wait_for_function(f"() => {VIEW}.found?.marks[2] && !{VIEW}.busy", timeout=60_000)
    after = page.evaluate(f"() => [0, 1, 2, 3].map(frame => {VIEW}.digits(frame).join(''))")
    assert after[:2] == before[:2] and after[2] != before[2] and after[3] != before[3]
    with page.expect_download(timeout=60_000) as download:
        page.locator("#follow-view summary", has_text="Take it home").click()
        page.get_by_role("button", name="Masks, PNG").click()
    assert download.value.suggested_filename == "square_masks.zip"


@pytest.mark.long
def test_a_broken_upload_gets_a_sentence_and_nothing_is_lost(page):
    mark(page, (0.4, 0.4), (0.6, 0.6))
    before = page.evaluate(f"() => [{VIEW}.get('clip').name, {VIEW}.get('marks')[0]]")
    for name, content, words in (
        ("notes.mp4", b"Buy milk.\n" * 100, "notes.mp4: this is no video in a known format"),
        ("list.mp4", b"#EXTM3U\n#EXTINF:9,\nfile:///etc/passwd\n", "list.mp4: this is no video in a known format"),
    ):
        upload(page, "follow", name, content, "video/mp4")
        page.get_by_text(words).first.wait_for(timeout=30_000)
    assert page.evaluate(f"() => [{VIEW}.get('clip').name, {VIEW}.get('marks')[0]]") == before
    assert before[1].count("1") > 0
