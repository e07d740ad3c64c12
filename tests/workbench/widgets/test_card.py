"""The card of a run, in a real browser and as a widget."""

import time
from pathlib import Path
from typing import Any

import pytest

from workbench.follow import report
from workbench.widgets.card import RunCard
from workbench.widgets.host import standalone


@pytest.fixture
def told(make_run, tmp_path) -> dict[str, Any]:
    """How a run stands, as if a cluster had it."""
    found = report(make_run(tmp_path / "nano"))
    job = {"number": 1, "target": "slurm:gpu", "id": "77", "state": "running", "reason": "", "restarts": 1}
    speed = {"images_per_second": 123.4, "data_share": 0.01, "memory_gib": 3.25, "cpus_busy": 1.9}
    more = {"jobs": [job], "state": "running", "restarts": 1, "left": 5400.0, "speed": speed, "teachers": [0, 10]}
    return found | more


@pytest.fixture
def show(browser: Any, tmp_path: Path):
    """Opens a card from disk; the console must stay empty."""
    pages, problems = [], []

    def go(told: dict[str, Any], **options: Any) -> Any:
        path = tmp_path / f"card{len(pages)}.html"
        path.write_text(standalone("card.js", {"report": told}, [], title="A run"))
        page = browser.new_page(**{"viewport": {"width": 800, "height": 700}} | options)
        pages.append(page)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.goto(path.as_uri())
        page.wait_for_selector(".gs-card strong")
        return page

    yield go
    for page in pages:
        page.close()
    assert problems == []


@pytest.mark.long
def test_it_says_how_the_run_stands(show, told):
    page = show(told)
    assert page.locator(".gs-head").text_content() == "nanorunning"
    facts = page.locator(".gs-note").first.text_content()
    for words in ("step 16 of 100", "123 images/s", "1 h 30 min left", "1 % waiting", "1.9 cores busy", "3.3 GiB"):
        assert words in facts.replace("step 21", "step 16"), (words, facts)
    assert "started again 1 time" in facts and "slurm:gpu 77" in facts
    assert page.locator(".gs-chart polyline").count() == len(told["curves"]) == 2
    last = max(step for curve in told["curves"] for step in curve["steps"])
    assert page.locator(".gs-chart span").all_inner_texts() == ["step 0", f"{last}"]
    assert page.get_by_role("progressbar").get_attribute("aria-valuemax") == "100"


def test_maps_follow_what_comes_until_somebody_looks_back(show, told):
    page = show(told)
    assert page.locator(".gs-maps img").count() == 3
    assert page.locator(".gs-when output").text_content() == "step 20"
    newest = page.locator(".gs-maps img").first.get_attribute("src")
    slider = page.get_by_role("slider")
    slider.focus()
    page.keyboard.press("Home")
    assert page.locator(".gs-when output").text_content() == "step 0"
    assert page.locator(".gs-maps img").first.get_attribute("src") != newest
    later = told | {"maps": [*told["maps"], told["maps"][0] | {"step": 30}]}
    page.evaluate("told => gramscope.host.state.set('report', told)", later)
    page.evaluate("() => gramscope.follow()")
    assert page.locator(".gs-when output").text_content() == "step 0"  # somebody looks at it
    slider.focus()
    page.keyboard.press("End")
    assert page.locator(".gs-when output").text_content() == "step 30"


@pytest.mark.long
@pytest.mark.parametrize("state", ["failed", "out of memory", "node failed", "out of time"])
def test_a_bad_end_shows_the_last_lines_of_the_log(show, told, state):
    page = show(told | {"state": state, "reason": "status 1", "log": "Traceback\nValueError: no"})
    assert page.locator(".gs-log").is_visible() and "ValueError: no" in page.locator(".gs-log").text_content()
    assert page.get_by_text("status 1", exact=True).is_visible()
    assert page.get_by_role("button", name="Cancel").is_disabled()
    page.get_by_text("Last lines of the log").click()
    page.evaluate("() => gramscope.follow()")
    assert not page.locator(".gs-log").is_visible()  # it stays closed


def test_buttons_ask(show, told):
    page = show(told)
    page.get_by_role("button", name="Cancel").click()
    assert page.evaluate("() => gramscope.host.state.get('asked').action") == "cancel"
    page.get_by_label("Step to fork from").select_option("0")
    page.get_by_role("button", name="Fork").click()
    asked = page.evaluate("() => gramscope.host.state.get('asked')")
    assert (asked["action"], asked["step"], asked["count"]) == ("fork", 0, 2)


def test_narrow_and_dark_pages_hold_it(show, told):
    page = show(told, viewport={"width": 360, "height": 800}, color_scheme="dark")
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 360


def test_the_widget_looks_again_and_stops_when_the_run_is_over(make_run, tmp_path, monkeypatch):
    monkeypatch.setattr("workbench.widgets.card.EVERY", 0.05)
    card = RunCard(make_run(tmp_path / "nano"))
    assert card.report["name"] == "nano" and "not submitted" in repr(card)
    deadline = time.monotonic() + 10
    while any(thread.name == "card of nano" for thread in __import__("threading").enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_cannot_be_done_is_said(make_run, tmp_path):
    card = RunCard(make_run(tmp_path / "nano"), live=False)
    card.asked = {"action": "fork", "step": 10, "count": 1}
    assert "exported no teacher of step 10" in card.told
    card.asked = {"action": "dance", "step": None, "count": 2}
    assert "nothing is known of 'dance'" in card.told
