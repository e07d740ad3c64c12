"""Following in a real browser: painted with the pointer, followed by Python, scrubbed, corrected, asked who voted."""

import base64
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import traitlets
from PIL import Image

from core.dense.follow import Rules
from core.dense.geometry import plan
from core.dense.propagation import track
from tests.workbench.widgets.frames import FRAME
from workbench.clips import Clip, read
from workbench.video import open_video
from workbench.widgets.follow import FollowView

ROWS, COLS, FRAMES = 8, 12, 6

# Gives the page of a saved view somebody to ask, as a kernel is.
ALIVE = """() => {
    const { host } = gramscope, { set } = host.state, blob = host.blob, blobs = {};
    const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    host.kind = "notebook";
    host.blob = async (name) => (name in blobs ? bytes(blobs[name]) : blob(name));
    host.state.set = (name, value) => {
        set(name, value);
        if (name !== "asked") return;
        const [marks, rules] = ["marks", "rules"].map(host.state.get);
        window.pending = askPython(value, { marks, rules }).then((answer) => {
            Object.assign(blobs, answer.blobs);
            for (const [name, value] of Object.entries(answer.state)) set(name, value);
        });
    };
    gramscope.follow();
}"""


def moving_clip() -> Clip:
    """Every patch has features of its own, and the world moves to the left by one patch a frame."""
    draw = torch.Generator().manual_seed(0)
    world = torch.randn(ROWS, COLS + FRAMES, 32, generator=draw)
    colors = np.random.default_rng(0).integers(60, 200, (ROWS, COLS + FRAMES, 3), np.uint8)
    pictures = []
    for at in range(FRAMES):
        file = io.BytesIO()
        Image.fromarray(colors[:, at : at + COLS]).resize((COLS * 16, ROWS * 16), Image.Resampling.NEAREST).save(
            file, "JPEG", quality=95
        )
        pictures.append(file.getvalue())
    return Clip(
        name="world.mp4", rate=5.0, geometry=plan(COLS * 16, ROWS * 16, 16), pictures=pictures,
        features=torch.stack([world[:, at : at + COLS] for at in range(FRAMES)]),
    )  # fmt: skip


@pytest.fixture
def clip() -> Clip:
    return moving_clip()


@pytest.fixture
def mask() -> torch.Tensor:
    mask = torch.zeros(ROWS, COLS, dtype=torch.long)
    mask[2:5, 7:10] = 1
    return mask


class Opened:
    """A view in a page, and the hands of a person."""

    def __init__(self, page: Any, view: FollowView) -> None:
        self.page, self.view = page, view

    def js(self, code: str, value: Any = None) -> Any:
        return self.page.evaluate(code, value)

    def place(self, row: int, col: int) -> tuple[float, float]:
        box = self.page.locator(".gs-main").bounding_box()
        return box["x"] + (col + 0.5) / COLS * box["width"], box["y"] + (row + 0.5) / ROWS * box["height"]

    def hover(self, row: int, col: int) -> str:
        self.page.mouse.move(*self.place(row, col))
        self.js(FRAME)
        return self.page.locator(".gs-read").inner_text()

    def drag(self, start: tuple[int, int], end: tuple[int, int], steps: int = 3) -> None:
        self.page.mouse.move(*self.place(*start))
        self.page.mouse.down()
        self.page.mouse.move(*self.place(*end), steps=steps)
        self.page.mouse.up()
        self.js(FRAME)

    def marks(self) -> dict[int, torch.Tensor]:
        return {int(k): read(v, ROWS, COLS) for k, v in self.js("() => gramscope.get('marks')").items()}

    def tool(self, name: str) -> None:
        self.page.get_by_role("radio", name=name, exact=True).click()

    def press(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).click()
        self.js("() => window.pending")
        self.js("() => gramscope.fetching")
        self.js(FRAME)

    def frame(self) -> int:
        return self.js("() => gramscope.get('frame')")


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Opened]]:
    pages, problems = [], []

    def go(view: FollowView, *, alive: bool = True, **options: Any) -> Opened:
        path = view.save(tmp_path / f"{len(pages)}.html", title="Follow")
        page = browser.new_page(**{"viewport": {"width": 1100, "height": 900}} | options)
        pages.append(page)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)

        def ask(asked: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
            view.marks, view.rules = state["marks"], state["rules"]
            view.asked = asked
            view._work.join()
            names = ("result", "grown", "made", "told", "progress")
            blobs = {name: base64.b64encode(content).decode() for name, content in view.blobs.items()}
            return {"blobs": blobs, "state": {name: getattr(view, name) for name in names}}

        page.expose_function("askPython", ask)
        page.goto(path.as_uri())
        page.wait_for_function("() => window.gramscope?.pictures?.length")
        if alive:
            page.evaluate(ALIVE)
        page.evaluate(FRAME)
        return Opened(page, view)

    yield go
    for page in pages:
        page.close()
    assert problems == []


@pytest.mark.long
def test_a_painted_object_is_followed_scrubbed_and_asked_about(show, clip):
    opened = show(FollowView(clip))
    assert opened.page.get_by_role("button", name="Follow", exact=True).is_disabled()
    bar = opened.page.locator(".gs-follow").locator("..")
    assert bar.evaluate("(bar) => getComputedStyle(bar).backgroundColor") == "rgba(0, 0, 0, 0)", (
        "only its button has one"
    )
    opened.page.get_by_label("Size of the brush in patches").fill("1")
    opened.drag((2, 7), (2, 10))
    opened.page.mouse.click(*opened.place(6, 1))
    painted = opened.marks()[0]
    wanted = torch.zeros(ROWS, COLS, dtype=torch.long)
    wanted[2, 7:11] = wanted[6, 1] = 1
    assert torch.equal(painted, wanted)
    opened.press("Undo")
    wanted[6, 1] = 0
    assert torch.equal(opened.marks()[0], wanted)
    opened.press("Follow")
    truth = torch.stack(list(track(clip.features, torch.nn.functional.one_hot(wanted, 2).float()))).argmax(-1)
    seen = opened.js("n => Array.from({length: n}, (_, at) => gramscope.digits(at))", FRAMES)
    assert torch.equal(torch.tensor(seen).view(FRAMES, ROWS, COLS), truth)
    opened.page.locator(".gs-main").focus()
    for _ in range(3):
        opened.page.keyboard.press("ArrowRight")
    assert opened.frame() == 3
    words = opened.hover(2, 5)
    votes = opened.view.votes(3, (2, 5))
    assert words.startswith("row 2, col 5 · object 1 · votes: ")
    for vote in votes:
        assert f"frame {vote.frame + 1} row {vote.row}, col {vote.col} {round(100 * vote.weight)} %" in words
    voted = sorted({vote.frame for vote in votes})
    assert opened.page.locator(".gs-votes figcaption").all_inner_texts() == [
        f"frame {frame + 1} · {round(100 * sum(v.weight for v in votes if v.frame == frame))} %" for frame in voted
    ]
    opened.page.keyboard.press("Home")
    assert opened.frame() == 0 and "marked by hand" in opened.hover(2, 7)


def test_the_map_over_the_frame_is_in_the_objects_colour_and_place(show, clip, mask):
    view = FollowView(clip, marks={0: mask}, opacity=1.0)
    view.follow()
    opened = show(view)
    opened.js("() => gramscope.go(2)")
    opened.js(FRAME)
    inside, outside = (
        opened.js(
            """([x, y]) => { const c = document.querySelector(".gs-main"), r = c.width / c.clientWidth;
            return [...c.getContext("2d").getImageData(x * c.clientWidth * r, y * c.clientHeight * r, 1, 1).data] }""",
            [(col + 0.5) / COLS, (row + 0.5) / ROWS],
        )
        for row, col in ((3, 6), (6, 2))
    )
    assert inside[:3] == [0, 114, 178]
    picture = clip.picture(2)[6 * 16 + 8, 2 * 16 + 8]
    assert np.abs(np.array(outside[:3]) - picture).max() < 12


def test_a_frame_is_corrected_and_what_comes_before_stays(show, clip, mask):
    view = FollowView(clip, marks={0: mask})
    view.follow()
    opened = show(view)
    before = view.found
    opened.js("() => gramscope.go(3)")
    opened.tool("Erase")
    opened.page.get_by_label("Size of the brush in patches").fill("1")
    opened.drag((2, 4), (4, 4))
    assert "changed" in opened.page.locator(".gs-told").inner_text()
    corrected = opened.marks()[3]
    wanted = before.masks[3].clone()
    wanted[2:5, 4] = 0
    assert torch.equal(corrected, wanted), "a correction begins with what was followed"
    opened.press("Go on from here")
    assert view.found is not before and torch.equal(view.found.labels[:3], before.labels[:3])
    assert (view.found.masks[4:] != before.masks[4:]).any()
    assert opened.js("() => gramscope.digits(4)") == view.found.masks[4].flatten().tolist()


def test_box_growth_and_several_objects(show, clip):
    clip.features[0, 1:4, 1:4] = clip.features[0, 1, 1].clone()
    opened = show(FollowView(clip))
    opened.tool("Box")
    opened.drag((5, 8), (6, 10))
    opened.page.get_by_role("radio", name="Object 2").click()
    opened.tool("Grow")
    opened.page.mouse.click(*opened.place(2, 2))
    opened.js("() => window.pending")
    opened.js(FRAME)
    wanted = torch.zeros(ROWS, COLS, dtype=torch.long)
    wanted[5:7, 8:11], wanted[1:4, 1:4] = 1, 2
    assert torch.equal(opened.marks()[0], wanted)
    opened.press("Follow")
    assert opened.view.found.labels.shape[-1] == 3


def test_everything_goes_by_keyboard(show, clip):
    opened = show(FollowView(clip))
    opened.page.locator(".gs-main").focus()
    for key in ("3", "x", "Shift+ArrowUp", "Enter", "Shift+ArrowRight", "Shift+ArrowDown", "Enter"):
        opened.page.keyboard.press(key)
    wanted = torch.zeros(ROWS, COLS, dtype=torch.long)
    wanted[ROWS // 2 - 1 : ROWS // 2 + 1, COLS // 2 : COLS // 2 + 2] = 3
    assert torch.equal(opened.marks()[0], wanted)
    opened.page.keyboard.press("f")
    opened.js("() => window.pending")
    assert opened.view.found is not None
    opened.page.keyboard.press("End")
    assert opened.frame() == FRAMES - 1
    opened.page.keyboard.press("Control+z")
    assert opened.marks() == {}


def test_playing_reaches_the_end_and_stops(show, clip):
    opened = show(FollowView(clip))
    opened.page.get_by_role("button", name="Play", exact=True).click()
    opened.page.wait_for_function(f"() => gramscope.get('frame') === {FRAMES - 1} && !gramscope.playing")
    assert opened.page.get_by_role("button", name="Play", exact=True).is_visible()


def test_rules_are_set_by_sliders_and_used(show, clip, mask):
    opened = show(FollowView(clip, marks={0: mask}))
    opened.page.locator("summary", has_text="How votes are counted").click()
    opened.page.get_by_label("Votes a patch").fill("2")
    opened.page.get_by_label("Radius, patches").fill("41")
    opened.press("Follow")
    assert opened.view.found.rules == Rules(topk=2, radius=None)


def test_masks_and_video_are_taken_home(show, clip, mask, tmp_path):
    view = FollowView(clip, marks={0: mask})
    view.follow()
    opened = show(view)
    opened.page.locator("summary", has_text="Take it home").click()
    for button, name in (("Masks, PNG", "world_masks.zip"), ("Video, MP4", "world_followed.mp4")):
        with opened.page.expect_download() as download:
            opened.press(button)
        assert download.value.suggested_filename == name
        download.value.save_as(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "world_masks.zip") as archive:
        assert len(archive.namelist()) == FRAMES
    video = open_video(tmp_path / "world_followed.mp4")
    assert (video.width, video.height, len(list(video.frames()))) == (COLS * 16, ROWS * 16, FRAMES)


def test_a_saved_file_plays_and_shows_votes_and_says_that_it_cannot_follow(show, clip, mask):
    view = FollowView(clip, marks={0: mask})
    view.follow()
    opened = show(view, alive=False)
    assert "A saved view plays the clip and shows who voted" in opened.page.locator(".gs-told").inner_text()
    assert not opened.page.locator(".gs-follow").is_visible() and not opened.page.locator(".gs-tools").is_visible()
    opened.page.get_by_label("Frame", exact=True).fill("2")
    assert opened.frame() == 2
    assert "votes: frame" in opened.hover(3, 6)
    opened.page.mouse.click(*opened.place(0, 0))
    assert opened.marks().keys() == {0}, "nothing can be painted"


def test_what_cannot_be_is_said_in_a_sentence(clip):
    view = FollowView(clip)
    view.asked = {"id": "1", "action": "follow"}
    view._work.join()
    assert "nothing is marked" in view.told and view.progress == {}
    with pytest.raises(ValueError, match="nothing has been followed yet"):
        view.votes(0, (0, 0))
    with pytest.raises(traitlets.TraitError, match="frames 0 to 5"):
        view.frame = 6
    with pytest.raises(ValueError, match="a mark is 96 digits"):
        view.mark(0, torch.zeros(3, 3, dtype=torch.long))


def test_cancel_is_heard_on_the_way_and_loses_nothing(clip, mask):
    view = FollowView(clip, marks={0: mask})
    before = view.follow()
    view.mark(0, mask.roll(1, 1))
    view.observe(lambda change: change.new and view._act(traitlets.Bunch(new={"action": "cancel"})), "progress")
    view.asked = {"id": "2", "action": "follow"}
    view._work.join()
    assert view.told.startswith("Cancelled") and view.found is before and view.progress == {}


def test_the_state_of_a_view_is_plain_and_small(clip, mask):
    view = FollowView(clip, marks={0: mask})
    view.follow()
    assert len(json.dumps(view.state)) < 3000
    assert view.still().size == (COLS * 16, ROWS * 16)
    assert "world.mp4" in repr(view)
