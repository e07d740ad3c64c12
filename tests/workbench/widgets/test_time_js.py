"""The checkpoint slider in a real browser, opened from disk."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.dense.cards import ModelCard
from core.dense.extract import DenseFeatures
from core.dense.geometry import pixel_to_patch, plan
from core.dense.packs import pack_features
from tests.workbench.widgets.frames import FRAME
from workbench.runs import RunSeries, open_run, shipped_run
from workbench.views import pane_values
from workbench.widgets.host import standalone
from workbench.widgets.time import TimeSlider

READY = "() => window.gramscope && !gramscope.bringing && gramscope.inner.packs.length"


@pytest.fixture(scope="module")
def run(make_run, tmp_path_factory):
    """Four checkpoints, the third seen at half the size."""
    return open_run(make_run(tmp_path_factory.mktemp("runs") / "nano", steps=(0, 10, 20, 30), sizes={20: 32}))


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Opens a view's saved page; the console must stay empty and nobody else be asked."""
    pages, problems = [], []

    def go(view: TimeSlider | str, **options: Any) -> Any:
        path = tmp_path / f"{len(pages)}.html"
        if isinstance(view, str):
            path.write_text(view)
        else:
            view.save(path)
        page = browser.new_page(**{"viewport": {"width": 1200, "height": 900}} | options)
        pages.append(page)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: problems.append(request.url) if request.url.startswith("http") else None)
        page.goto(path.as_uri())
        page.wait_for_function(READY)
        return page

    yield go
    for page in pages:
        page.close()
    assert problems == []


def at(page: Any) -> int:
    return page.evaluate("() => gramscope.get('time')")


def shown(page: Any, pane: int = 0) -> dict[str, Any]:
    """What a pane of the map shows: its pack's step, its values, and the cell of the pinned patch."""
    page.wait_for_function(READY)
    page.evaluate(FRAME)
    found = page.evaluate(
        """number => {
            const pane = gramscope.inner.panes[number], { values } = pane.answer();
            const pin = pane.pinned[0];
            const plain = values && [...values].map((value) => (value === value ? value : null));
            return {step: Number(pane.pack.header.labels.step), values: plain,
                    cell: pin && pane.cellOf(pin), pin, grid: [pane.pack.rows, pane.pack.cols]};
        }""",
        pane,
    )
    return found | {"values": np.array(found["values"] or [], dtype=float)}  # null as NaN


@pytest.mark.long
def test_it_shows_the_last_checkpoint_and_the_slider_goes_through_all(run, show):
    view = TimeSlider(run, point=(2, 3))
    page = show(view)
    assert (at(page), shown(page)["step"]) == (3, 30)
    assert page.locator(".gs-place").text_content() == "step 30"
    page.get_by_role("slider", name="Checkpoint").focus()
    for step in (20, 10, 0):
        page.keyboard.press("ArrowLeft")
        page.wait_for_function("step => gramscope.inner.panes[0].pack.header.labels.step === `${step}`", arg=step)
        found = shown(page)
        assert found["step"] == step
    wanted = pane_values([view.table[0][0]], {"pack": 0}, view.queries)
    assert found["values"].reshape(wanted.shape) == pytest.approx(wanted, abs=1e-5, nan_ok=True)


@pytest.mark.long
def test_the_pinned_patch_stays_on_its_pixel_when_the_grid_changes(run, show):
    page = show(TimeSlider(run, point=(3, 4)))
    seen = []
    page.locator(".gs-time canvas").first.focus()
    for time, key in enumerate(("Home", ".", ".", ".")):
        page.keyboard.press(key)
        page.wait_for_function("step => gramscope.inner.panes[0].pack.header.labels.step === `${step}`", arg=10 * time)
        seen.append(shown(page))
    assert [entry["step"] for entry in seen] == [0, 10, 20, 30]
    assert seen[2]["grid"][0] < seen[1]["grid"][0]
    assert all(entry["pin"] == seen[0]["pin"] for entry in seen)
    x, y = seen[0]["pin"]["x"], seen[0]["pin"]["y"]
    view = TimeSlider(run)
    for time, entry in enumerate(seen):
        assert tuple(entry["cell"]) == pixel_to_patch(view.table[time][0].geometry, x, y)


def test_keys_step_jump_and_show_the_checkpoint_before(run, show):
    page = show(TimeSlider(run, point=(2, 3)))
    page.locator(".gs-time canvas").first.focus()
    for key, time in ((",", 2), (",", 1), (".", 2), ("Home", 0), (",", 0), ("End", 3), (".", 3)):
        page.keyboard.press(key)
        assert at(page) == time, key
    shown(page)
    page.keyboard.down("g")
    assert shown(page)["step"] == 20 and at(page) == 3
    page.keyboard.up("g")
    assert shown(page)["step"] == 30


def test_pointer_on_a_curve_moves_the_slider(run, show):
    page = show(TimeSlider(run))
    box = page.locator(".gs-curve").first.bounding_box()
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 8, y)
    page.mouse.down()
    assert at(page) == 0
    page.mouse.move(box["x"] + 8 + (box["width"] - 16) * 2 / 3, y, steps=4)
    assert at(page) == 2
    page.mouse.up()
    assert page.evaluate("() => gramscope.host.state.get('time')") == 2


def test_the_slider_stands_over_the_cursor_of_the_curves(run, show):
    page = show(TimeSlider(run))
    for time in (0, 1, 3):
        page.evaluate("time => gramscope.go(time)", time)
        middles = page.evaluate(
            """() => {
                const range = document.querySelector('.gs-ribbon input[type=range]').getBoundingClientRect();
                const thumb = range.left + 8 + (range.width - 16) * gramscope.get('time') / 3;
                const cursor = document.querySelector('.gs-curve i:not(.gs-other)').getBoundingClientRect();
                return [thumb, cursor.left + cursor.width / 2];
            }"""
        )
        assert middles[0] == pytest.approx(middles[1], abs=1.5)


WRITTEN = """() => [...document.querySelectorAll('.gs-ticks span')].filter((tick) => tick.style.visibility !== 'hidden')
    .map((tick) => [tick.textContent, tick.getBoundingClientRect().left, tick.getBoundingClientRect().right])"""


@pytest.mark.parametrize(("width", "run"), [(1800, "decay"), (1000, "heal"), (390, "dense")])
def test_steps_under_the_slider_never_stand_on_one_another(width, run, show):
    """Runs' first steps and the last step go before others; which find room is a matter of width."""
    story = RunSeries.of([shipped_run(name) for name in ("dense", "decay", "heal")])
    page = show(TimeSlider(story), viewport={"width": 900, "height": 900})
    page.set_viewport_size({"width": width, "height": 900})
    page.wait_for_function(f"run => ({WRITTEN})().some(([text]) => text === run)", arg=run)
    page.evaluate(FRAME)
    found = page.evaluate(WRITTEN)
    assert (found[0][0], found[-1][0]) == ("dense", "100")
    assert all(left >= right for (_, _, right), (_, left, _) in itertools.pairwise(found))


def test_best_and_worst_of_the_marked_curve(run, show):
    view = TimeSlider(run, metric="miou")  # 0.5, 0.4, 0.3, 0.2
    page = show(view)
    page.get_by_role("button", name="Best").click()
    assert at(page) == 0
    page.get_by_role("button", name="Worst").click()
    assert at(page) == 3
    page.get_by_role("radio", name="CLS-patch cosine: mark").check()
    values = next(curve["values"] for curve in view.curves if curve["name"] == "cls_patch_cosine")
    page.get_by_role("button", name="Best").click()
    assert at(page) == int(np.argmin(values))  # it rises in decay
    page.get_by_role("button", name="Worst").click()
    assert at(page) == int(np.argmax(values))


def test_a_checkpoint_compared_with_itself_differs_by_exactly_nothing(run, show):
    page = show(TimeSlider(run, point=(2, 3), against=1, compare="difference", time=1))
    values = shown(page)["values"]
    assert (values[~np.isnan(values)] == 0).all() and not np.isnan(values).all()
    page.evaluate("() => gramscope.go(0)")
    assert np.nanmax(np.abs(shown(page)["values"])) > 0.05


@pytest.mark.long
def test_two_checkpoints_side_by_side_share_the_query(run, show):
    page = show(TimeSlider(run, point=(2, 3)))
    page.get_by_label("Compare with").select_option("0")
    page.wait_for_function("() => gramscope.inner.panes.length === 2 && !gramscope.bringing")
    assert (shown(page, 0)["step"], shown(page, 1)["step"]) == (0, 30)
    assert shown(page, 0)["cell"] == shown(page, 1)["cell"] == [2, 3]
    page.locator(".gs-time > .gs-bar select").nth(3).select_option("swipe")
    page.wait_for_function("() => gramscope.inner.panes.length === 1")
    assert page.evaluate("() => gramscope.inner.panes[0].other.header.labels.step") == "0"


@pytest.mark.long
def test_runs_are_compared_at_the_same_step(make_run, tmp_path, show):
    steps = {"with": (0, 10, 20), "without": (0, 10, 25)}
    runs = [open_run(make_run(tmp_path / name, steps=of, seed=40 * (name == "with"))) for name, of in steps.items()]
    page = show(TimeSlider(*runs, point=(2, 3), time=1, against="without"))
    label = "() => gramscope.inner.panes.map((pane) => Object.values(pane.pack.header.labels))"
    assert page.evaluate(label) == [["without", "10"], ["with", "10"]]
    page.evaluate("() => gramscope.go(2)")
    page.wait_for_function("() => gramscope.inner.panes[0].pack.header.labels.step === '25'")
    assert page.evaluate(label) == [["without", "25"], ["with", "20"]]
    menu = page.get_by_label("Compare with")
    assert menu.input_value() == "run without"
    menu.select_option(label="with, same step")
    page.wait_for_function("() => gramscope.inner.panes[0].pack.header.labels.run === 'with'")
    assert page.evaluate(label) == [["with", "20"], ["with", "20"]]
    menu.select_option("")
    page.wait_for_function("() => gramscope.inner.panes.length === 1")


def test_play_goes_to_the_end_and_stops(run, show):
    page = show(TimeSlider(run, time=1))
    page.get_by_role("button", name="Play").click()
    page.wait_for_function("() => gramscope.get('time') === 3 && !gramscope.playing", timeout=10_000)
    assert page.get_by_role("button", name="Play").is_visible()


def test_another_image_keeps_the_time(run, show):
    page = show(TimeSlider(run, time=1))
    page.get_by_label("Image").select_option("2")
    page.wait_for_function("() => gramscope.inner.panes[0].pack.header.picture.name === gramscope.get('images')[2]")
    assert shown(page)["step"] == 10


def test_dark_and_narrow_pages_hold_everything(run, show):
    page = show(TimeSlider(run), viewport={"width": 390, "height": 844}, color_scheme="dark")
    width = page.evaluate("() => document.documentElement.scrollWidth")
    assert width <= 390
    color = page.evaluate("() => getComputedStyle(document.querySelector('.gs-time')).color")
    assert color == "rgb(229, 231, 235)"


@pytest.mark.long
def test_fifty_checkpoints_of_48_x_48_x_384_are_scrubbed_without_a_server(show):
    """Random features: what counts is that every one arrives, and only those around the slider are kept."""
    draw = torch.Generator().manual_seed(0)
    geometry = plan(768, 768, 16, size=768)
    packs = []
    for step in range(50):
        patches = torch.randn(48, 48, 384, generator=draw)
        features = DenseFeatures(
            patches=patches, cls=patches[0, 0], registers=patches[0, :0], geometry=geometry, layer=11, norm=True
        )
        card = ModelCard(f"after {step}", f"{step:016x}")
        packs.append(pack_features(features, card, "noise", labels={"step": str(step)}, growing=True))
    state = {
        "pack_ids": [pack.id for pack in packs],
        "moments": [{"run": "noise", "step": step} for step in range(50)],
        "images": ["noise"],
        "curves": [],
        "time": 0,
        "queries": [{"image": None, "x": 100, "y": 100, "sign": 1}],
    }
    page = show(standalone("time.js", state, packs, title="Fifty"))
    page.get_by_role("slider", name="Checkpoint").focus()
    for time in (1, 2, 3, 10, 11, 49, 25):
        page.evaluate("time => gramscope.go(time, false)", time)
        page.wait_for_function(
            "time => gramscope.inner.panes[0].pack?.header.labels.step === `${time}`", arg=time, timeout=20_000
        )
    found = shown(page)
    assert found["step"] == 25 and np.nanmax(found["values"]) == pytest.approx(1, abs=1e-3)
    assert page.evaluate("() => gramscope.inner.packs.length") <= 8
