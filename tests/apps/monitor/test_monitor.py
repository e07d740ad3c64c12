"""The monitor in a real browser."""

import re

import pytest

from apps.monitor.teacher import free_name, likely, spread
from workbench.runs import open_run

SLIDER = "() => [...document.querySelectorAll('#slider, #slider *')].find(e => e.view)?.view"
pytestmark = pytest.mark.long


@pytest.fixture
def visit(browser, serve, tmp_path):
    """Opens the monitor on a folder of runs."""
    opened = []

    def go(runs):
        server = serve(tmp_path, "monitor", runs)
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        opened.append((server, page))
        page.goto(server.__enter__())
        return page

    yield go
    for server, page in opened:
        page.close()
        server.__exit__(None, None, None)


def moments(page) -> list[int]:
    return page.evaluate(f"() => ({SLIDER})()?.get('moments').map(({{ step }}) => step) ?? []")


def test_a_run_is_shown_and_a_new_step_comes_without_reloading(visit, make_run, tmp_path):
    folder = make_run(tmp_path / "runs" / "nano", steps=(0, 10))
    page = visit(tmp_path / "runs")
    page.wait_for_function(f"() => ({SLIDER})()?.inner?.packs.some((pack) => pack?.complete)", timeout=60_000)
    assert moments(page) == [0, 10]
    page.evaluate("() => (window.kept = true)")  # gone after a reload
    page.evaluate(f"() => ({SLIDER})().go(0)")
    pinned = page.evaluate(f"() => ({SLIDER})().get('queries')")
    assert len(pinned) == 3  # a patch in the middle of every image, to begin with
    page.evaluate(f"() => ({SLIDER})().host.state.set('queries', [])")
    make_run.probe(folder, 20)
    page.wait_for_function(f"() => ({SLIDER})().get('moments').length === 3", timeout=30_000)
    assert moments(page) == [0, 10, 20] and page.evaluate("() => window.kept")
    assert page.evaluate(f"() => ({SLIDER})().get('queries')") == []  # what was let go of stays so
    page.wait_for_function(f"() => ({SLIDER})().inner.panes[0].pack?.header.labels.step === '20'", timeout=30_000)


def test_every_tab_has_its_content(visit, make_run, tmp_path):
    make_run(tmp_path / "runs" / "nano")
    page = visit(tmp_path / "runs")
    page.wait_for_function(f"() => ({SLIDER})()?.inner?.packs.length", timeout=60_000)
    page.get_by_role("tab", name="Scorecard").click()
    assert page.locator("#scorecard tbody tr").count() >= 12
    page.get_by_role("tab", name="Gram lens").click()
    page.wait_for_function(
        "() => [...document.querySelectorAll('#lens, #lens *')].find(e => e.view)?.view.packs?.length"
    )
    page.get_by_role("tab", name="Training").click()
    page.wait_for_selector(".js-plotly-plot .scatterlayer")


def test_a_folder_without_runs_says_so(visit, tmp_path):
    (tmp_path / "runs").mkdir()
    page = visit(tmp_path / "runs")
    page.get_by_text("Choose a run.").wait_for(timeout=30_000)
    page.get_by_text("There are no checkpoints with probes yet.").wait_for(timeout=30_000)


def test_a_gram_teacher_is_chosen_and_the_next_stage_written(visit, taught, tmp_path):
    page = visit(taught.folder.parent)
    page.wait_for_function(f"() => ({SLIDER})()", timeout=60_000)
    page.locator("#runs input").click()
    page.get_by_role("option", name="nano", exact=True).click()
    page.keyboard.press("Escape")
    page.get_by_role("tab", name="Gram teacher").click()
    page.get_by_role("button", name="Compare the checkpoints").click()
    page.wait_for_selector("#picker-sheet img", timeout=120_000)
    assert page.locator("#picker-sheet thead th").all_text_contents() == ["", "step 10", "step 20"]
    assert page.locator("#picker-sheet img").count() == 4
    page.get_by_label("Name of the next stage, a folder beside the run").fill("anchored")
    page.get_by_role("button", name="Write the next stage").click()
    page.get_by_text(re.compile("gramscope resume")).wait_for(timeout=60_000)
    written = open_run(taught.folder.parent / "anchored")
    assert re.fullmatch(rf"{re.escape(str(taught.folder))}@(10|20)", written.config.gram.teacher)
    page.get_by_role("button", name="Write the next stage").click()  # it is there now
    page.get_by_text(re.compile("already holds the run")).wait_for(timeout=30_000)


def test_candidates_are_spread_over_the_run():
    assert spread(range(0, 1000, 10), 5) == [0, 250, 500, 740, 990]
    assert spread([3, 4]) == [3, 4] and spread([]) == []


def test_the_choice_begins_with_what_was_measured_or_early():
    steps = [0, 500, 1500, 3000, 4500]
    assert likely(steps, {}) == 500
    assert likely(steps, {0: 0.5, 1500: 0.6, 4500: 0.4, 77: 0.9}) == 1500


def test_the_next_stage_gets_a_name_that_is_free(make_run, tmp_path):
    run = open_run(make_run(tmp_path / "nano", steps=(0,)))
    assert free_name(run) == "nano_gram"
    (tmp_path / "nano_gram").mkdir()
    assert free_name(run) == "nano_gram_2"
