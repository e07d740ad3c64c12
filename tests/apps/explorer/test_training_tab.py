"""The tab on training: the runs that come with the project, in a real browser, with nothing set up."""

import pytest

VIEW = "[...document.querySelectorAll('#training-view, #training-view *')].find(e => e.view)?.view"
pytestmark = pytest.mark.long


def test_all_stories_are_told_and_a_pinned_patch_stays_where_it_is(browser, app):
    context = browser.new_context(viewport={"width": 1280, "height": 1300})
    page = context.new_page()
    page.goto(app)
    page.get_by_role("tab", name="Training", exact=True).click()
    told = f"run => {{ const v = {VIEW}; return v?.get('moments').at(-1)?.run === run }}"
    page.wait_for_function(told, arg="heal", timeout=120_000)
    ready = f"() => {VIEW}?.inner?.panes[0]?.pack?.complete"
    page.wait_for_function(ready, timeout=60_000)

    stage = page.locator("#training-view .gs-stage canvas").first
    box = stage.bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.4)
    pinned = page.evaluate(f"() => {VIEW}.get('queries')")
    readout = page.locator("#training-view .gs-read").first.inner_text()
    page.locator("#training-view input[type=range]").first.focus()
    page.keyboard.press("End")
    page.wait_for_function(f"() => {VIEW}.inner.panes[0].pack?.header.labels.run === 'heal'", timeout=30_000)
    assert page.evaluate(f"() => {VIEW}.get('queries')") == pinned
    assert page.locator("#training-view .gs-read").first.inner_text().split("·")[0] == readout.split("·")[0]

    page.get_by_label("decays, then goes on without an anchor").check()
    page.wait_for_function(told, arg="heal_without", timeout=60_000)
    page.get_by_label("trains from scratch").check()
    page.wait_for_function(told, arg="nano_pretrain", timeout=60_000)
    context.close()
