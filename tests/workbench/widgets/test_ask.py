"""Asking in words in a real browser: typed, compared, shared out among phrases, ranked; the numbers are Python's."""

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import traitlets

from core.models import build_backbone
from core.text import build_dino_text
from core.text.tokenizer import clip_tokenizer
from tests.workbench.widgets.frames import FRAME
from workbench.ask import Asker, ask_about
from workbench.images import list_samples
from workbench.widgets import AskView

# Gives the page of a saved view somebody to ask, as a kernel is.
ALIVE = """() => {
    const { host } = gramscope, { set } = host.state, blob = host.blob, blobs = {};
    host.kind = "notebook";
    const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    host.blob = async (name) => (name in blobs ? bytes(blobs[name]) : blob(name));
    host.state.set = (name, value) => {
        set(name, value);
        if (name !== "phrases") return;
        window.pending = askPython(value).then((answer) => {
            Object.assign(blobs, answer.blobs);
            set("told", answer.told);
            set("answers", answer.answers);
        });
    };
    gramscope.follow();
}"""


@pytest.fixture(scope="module")
def asker() -> Asker:
    """A model that has learned nothing: what it says is known all the same."""
    torch.manual_seed(0)
    model = build_dino_text(
        build_backbone("vit_nano", patch_size=8), context=32, text_dim=32, text_heads=2, text_depth=1
    )
    return Asker("blank", model.eval(), clip_tokenizer(32), 32, {"sentence": "It knows nothing"})


@pytest.fixture(scope="module")
def photos(asker) -> list:
    paths = [sample.path for sample in list_samples() if max(sample.width, sample.height) <= 2048]
    return ask_about(asker, [paths[0], paths[2], paths[5]], size=96)


@pytest.fixture
def view(asker, photos) -> AskView:
    view = AskView(asker, photos)
    view.ask("a small cat", "two red roses", contrast=["grass"])
    return view


class Opened:
    """A view in a page, and the hands of a person."""

    def __init__(self, page: Any, view: AskView) -> None:
        self.page, self.view = page, view

    def js(self, code: str, value: Any = None) -> Any:
        return self.page.evaluate(code, value)

    def settle(self) -> None:
        self.js("() => window.pending")
        self.js("() => gramscope.fetching")
        self.js(FRAME)

    def hover(self, row: int, col: int) -> list[str]:
        """What stands beside the phrases with the pointer over a patch."""
        pack = self.view.photos[self.js("() => gramscope.photo")].pack
        box = self.page.locator("canvas").bounding_box()
        width, height = pack.geometry.width, pack.geometry.height
        side = pack.geometry.patch_size * width / pack.geometry.input_width
        x, y = (col + 0.5) * side / width, (row + 0.5) * side / height
        self.page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        self.js(FRAME)
        return self.page.locator(".gs-phrase output").all_inner_texts()

    def map(self, code: str, *values: Any) -> np.ndarray:
        found = self.js(f"values => Array.from({code}, v => isNaN(v) ? null : v)", values)
        return np.array([np.nan if value is None else value for value in found])


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Opened]]:
    pages, problems = [], []

    def go(view: AskView, *, alive: bool = True) -> Opened:
        path = view.save(tmp_path / f"{len(pages)}.html", title="Ask")
        page = browser.new_page(viewport={"width": 1100, "height": 900})
        pages.append(page)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)

        def ask(phrases: list[dict[str, str]]) -> dict[str, Any]:
            told = ""
            try:
                view.phrases = phrases
            except traitlets.TraitError as error:
                told = str(error)
            blobs = {name: base64.b64encode(content).decode() for name, content in view.blobs.items()}
            return {"blobs": blobs, "answers": view.answers, "told": told}

        page.expose_function("askPython", ask)
        page.goto(path.as_uri())
        page.wait_for_function("() => window.gramscope?.packs?.length && gramscope.vectors")
        if alive:
            page.evaluate(ALIVE)
        page.evaluate(FRAME)
        return Opened(page, view)

    yield go
    for page in pages:
        page.close()
    assert problems == []


def test_maps_shares_and_ranks_are_those_of_python(show, view):
    opened = show(view, alive=False)
    for templates in (True, False):
        opened.js("on => gramscope.set('templates', on)", templates)
        view.templates = templates
        for photo in range(3):
            for at, text in enumerate(("a small cat", "two red roses", "grass")):
                here = opened.map("gramscope.all(gramscope.packs[values[0]])[values[1]]", photo, at)
                exact = view.cosines(text, photo).ravel()
                np.testing.assert_allclose(here, exact, atol=0.004)
                part = opened.map("gramscope.shares(gramscope.packs[values[0]])[values[1]]", photo, at)
                np.testing.assert_allclose(part, view.share(text, photo).ravel(), atol=0.05)  # 0.004 / 0.07
        ranked = [view.photos[at].look.photo.name for at, _ in opened.js("() => gramscope.ranking()")]
        assert ranked == [name for name, _ in view.ranking("a small cat")]
    shares = [view.share(text) for text in ("a small cat", "two red roses", "grass")]
    np.testing.assert_allclose(sum(shares), np.where(np.isnan(shares[0]), np.nan, 1), atol=1e-5)


def test_the_pointer_reads_every_phrase(show, view):
    opened = show(view, alive=False)
    words = opened.hover(2, 3)
    for text, told in zip(("a small cat", "two red roses", "grass"), words, strict=True):
        cosine, share = told.removesuffix(" %").split(" · ")
        assert float(cosine) == pytest.approx(view.cosines(text)[2, 3], abs=0.0045)
        assert float(share) / 100 == pytest.approx(view.share(text)[2, 3], abs=0.05)
    assert opened.page.locator(".gs-read").inner_text().startswith("row 2, col 3")
    opened.page.locator("canvas").focus()
    opened.page.keyboard.press("ArrowRight")
    opened.js(FRAME)
    assert opened.page.locator(".gs-read").inner_text().startswith("row 2, col 4")
    opened.page.keyboard.press("Escape")
    opened.js(FRAME)
    best = [f"{np.nanmax(view.cosines(text)):.2f}" for text in ("a small cat", "two red roses", "grass")]
    seen = [f"{float(told):.2f}" for told in opened.page.locator(".gs-phrase output").all_inner_texts()]
    assert [abs(float(a) - float(b)) < 0.011 for a, b in zip(seen, best, strict=True)] == [True] * 3


def test_a_phrase_is_typed_and_answered_and_can_be_taken_away(show, view):
    opened = show(view)
    field = opened.page.get_by_label("A phrase", exact=True)
    field.fill("  the   blue sky ")
    field.press("Enter")
    opened.settle()
    assert [phrase["text"] for phrase in view.phrases][-1] == "the blue sky"
    assert opened.js("() => gramscope.get('phrases')[gramscope.chosen].text") == "the blue sky"
    np.testing.assert_allclose(
        opened.map("gramscope.all(gramscope.pack)[3]"), view.cosines("the blue sky").ravel(), atol=0.004
    )
    assert field.input_value() == ""
    opened.page.get_by_role("button", name="the blue sky: asked for").click()
    opened.settle()
    assert view.phrases[3] == {"text": "the blue sky", "role": "contrast"}
    opened.page.get_by_role("button", name="Take away: two red roses").click()
    opened.settle()
    assert [phrase["text"] for phrase in view.phrases] == ["a small cat", "grass", "the blue sky"]
    opened.page.get_by_role("radio", name="grass").click()
    opened.js(FRAME)
    assert "grass" in opened.page.locator("figcaption span").inner_text()


def test_an_empty_field_and_a_thirteenth_phrase_get_a_sentence(show, view):
    opened = show(view)
    opened.page.get_by_role("button", name="Ask", exact=True).click()
    assert opened.page.locator(".gs-told").inner_text() == "Type a phrase first."
    view.phrases = [{"text": f"thing {number}"} for number in range(12)]
    full = show(view)
    field = full.page.get_by_label("A phrase", exact=True)
    field.fill("one more")
    field.press("Enter")
    assert "room for 12 phrases" in full.page.locator(".gs-told").inner_text()
    assert field.input_value() == "one more"  # nothing is lost


def test_words_are_worth_what_their_absence_changes(show, view):
    opened = show(view, alive=False)
    found = opened.js("() => gramscope.worths()")
    assert [item["word"] for item in found] == ["a", "small", "cat"]
    view.templates = False
    whole = view.cosines("a small cat").ravel()
    order = np.argsort(-np.where(np.isnan(whole), -9, whole), kind="stable")
    best = order[: max(1, round(0.05 * np.isfinite(whole).sum()))]
    for item, rest in zip(found, ("small cat", "a cat", "a small"), strict=True):
        without = view.cosines(rest).ravel()
        assert item["worth"] == pytest.approx(float((whole - without)[best].mean()), abs=0.02)


def test_likeliest_phrases_have_their_colours_and_contrasts_stay_clear(show, view):
    view.opacity, view.smooth, view.show = 1.0, False, "labels"
    opened = show(view, alive=False)
    maps = np.stack([view.cosines(text) for text in ("a small cat", "two red roses", "grass")])
    winner = np.where(np.isnan(maps[0]), -1, np.nan_to_num(maps, nan=-9).argmax(0))
    gap = np.diff(np.sort(np.nan_to_num(maps, nan=-9), axis=0), axis=0)[-1]
    colours = {0: [0, 114, 178, 255], 1: [230, 159, 0, 255], 2: [0, 0, 0, 0]}
    seen = np.array(
        opened.js(
            """() => { const c = gramscope.layer.canvas;
            return [...c.getContext("2d").getImageData(0, 0, c.width, c.height).data] }"""
        )
    ).reshape(*winner.shape, 4)
    sure = (gap > 0.01) & (winner >= 0)
    assert sure.sum() > 10
    for row, col in zip(*np.nonzero(sure), strict=True):
        assert seen[row, col].tolist() == colours[int(winner[row, col])]
    legend = opened.page.locator(".gs-numbers span").all_inner_texts()
    assert "likeliest phrase" in legend[1]


def test_the_scale_is_one_for_all_photographs_and_is_said(show, view):
    opened = show(view, alive=False)
    every = [view.cosines("a small cat", at) for at in range(3)]
    low, scale, high = opened.page.locator(".gs-numbers span").all_inner_texts()
    assert float(low) == pytest.approx(min(np.nanmin(values) for values in every), abs=0.01)
    assert float(high) == pytest.approx(max(np.nanmax(values) for values in every), abs=0.01)
    assert "in all photographs" in scale
    opened.page.locator(".gs-show").select_option("share")
    opened.js(FRAME)
    assert opened.page.locator(".gs-numbers span").all_inner_texts() == [
        "0.00", "share of the patch, softmax at temperature 0.070", "1.00",
    ]  # fmt: skip
    opened.page.get_by_label("Temperature of the shares").fill("-1")
    opened.js(FRAME)
    assert "temperature 0.10" in opened.page.locator(".gs-numbers span").all_inner_texts()[1]


def test_a_photograph_is_chosen_from_the_ranking(show, view):
    opened = show(view, alive=False)
    names = [view.photos[at].look.photo.name for at, _ in opened.js("() => gramscope.ranking()")]
    buttons = opened.page.locator(".gs-ranked button")
    assert [buttons.nth(at).get_attribute("title") for at in range(3)] == names
    buttons.nth(2).click()
    opened.js(FRAME)
    assert opened.page.locator("figcaption span").inner_text().startswith(names[2])
    assert buttons.nth(2).get_attribute("aria-checked") == "true"


def test_a_saved_view_says_what_it_cannot_do_and_who_answered(show, view):
    opened = show(view, alive=False)
    assert opened.page.get_by_role("button", name="Ask", exact=True).is_disabled()
    assert "knows these phrases only" in opened.page.locator(".gs-told").inner_text()
    note = opened.page.locator(".gs-note").inner_text()
    assert "blank on VisionTransformer" in note and "It knows nothing" in note and "by-product" in note


def test_state_in_python_is_checked(view, asker, photos):
    for name, value in (("phrases", [{"text": ""}]), ("photo", 3), ("temperature", 0.0)):
        with pytest.raises(traitlets.TraitError):
            setattr(view, name, value)
    assert [phrase["text"] for phrase in view.phrases] == ["a small cat", "two red roses", "grass"]
    with pytest.raises(ValueError, match="none of the phrases"):
        view.share("a dog")
    with pytest.raises(ValueError, match="needs photographs"):
        AskView(asker, [])
    assert json.loads(json.dumps(view.state))["phrases"] == view.phrases
    width, height = view.still().size
    assert width > 100 and height > 100
