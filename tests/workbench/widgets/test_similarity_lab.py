"""The similarity widget where it is at home: JupyterLab in a real browser, from the first hover to a dead kernel."""

from typing import Any

import nbformat
import pytest

from core.dense.geometry import patch_centre, plan
from workbench.images import list_samples, open_image

pytestmark = pytest.mark.long

PREPARED = """
from core.models.weights import load_backbone
from workbench.images import list_samples
from workbench.looks import look_at
from workbench.widgets import Similarity

backbone = load_backbone("dinov2_vits14_saliency")
samples = [sample.path for sample in list_samples()]
"""
STORY = [
    PREPARED + "view = Similarity(look_at(samples[1], backbone, size=336), point=(9, 9))\nview",
    "view.point",
    "view.point = (2, 3)",
    "import time\ntime.sleep(8)",
]
PHOTO = list_samples()[1].path
GEOMETRY = plan(*open_image(PHOTO).size, 14, size=336)
STILL = "img.gramscope-still"


def place(notebook: Any, row: int, col: int) -> tuple[float, float]:
    """Where a patch is on the page."""
    canvas = notebook.page.locator(".gs-stage canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    x, y = patch_centre(GEOMETRY, row, col)
    return box["x"] + x / GEOMETRY.width * box["width"], box["y"] + y / GEOMETRY.height * box["height"]


@pytest.fixture(scope="module")
def notebook(lab) -> Any:
    """The story, its first cell run and its view drawn."""
    lab.write("story.ipynb", STORY)
    notebook = lab.open("story.ipynb")
    notebook.run(0)
    notebook.reads("row 9, col 9")
    return notebook


def test_hovering_tells_the_kernel_nothing(notebook):
    page = notebook.page
    notebook.run(1)  # whatever the page had to say is said
    page.wait_for_timeout(500)
    before = len(notebook.sent)
    for step in range(60):
        page.mouse.move(*place(notebook, step * 17 // 60, step * 23 // 60))
        page.wait_for_timeout(16)
    page.mouse.move(*place(notebook, 5, 20))
    notebook.reads("row 5, col 20")
    page.wait_for_timeout(500)
    assert len(notebook.sent) == before


def test_a_click_is_read_in_python(notebook):
    before = len(notebook.sent)
    notebook.page.mouse.click(*place(notebook, 12, 20))
    assert notebook.run(1) == "(12, 20)"
    notebook.page.mouse.click(*place(notebook, 3, 15))
    assert notebook.run(1) == "(3, 15)"
    assert len(notebook.sent) - before < 8, "one message a click and one a cell, and what Lab asks for"


def test_the_view_follows_python(notebook):
    notebook.page.mouse.move(5, 5)  # beside the view: the read-out is then of the pinned patch
    notebook.run(2)
    notebook.reads("row 2, col 3")
    assert notebook.run(1) == "(2, 3)"


def test_the_live_view_takes_the_place_of_the_picture(notebook):
    assert notebook.page.locator(STILL).count() == 1
    assert not notebook.page.locator(STILL).is_visible()


def test_nothing_is_asked_of_the_network(notebook):
    assert notebook.elsewhere == [] and notebook.errors == []


def test_a_busy_kernel_is_waited_for(notebook):
    page = notebook.page
    notebook.run(0, wait=False)
    notebook.run(3, wait=False)  # before the page can ask for anything
    page.wait_for_function("document.querySelector('.jp-OutputArea')?.textContent.includes('Waiting for the kernel')")
    assert page.locator(STILL).is_visible(), "until then there is the picture"
    notebook.reads("row 9, col 9")
    assert not page.locator(STILL).is_visible()
    assert "Waiting" not in page.locator(".jp-OutputArea").first.text_content()


def test_a_page_that_is_loaded_again_shows_the_view_as_it_was(lab, notebook):
    notebook.run(2)
    notebook.command("docmanager:save")
    other = lab.open("story.ipynb")
    other.reads("row 2, col 3")
    assert not other.page.locator(STILL).is_visible()
    other.page.close()


def test_without_a_kernel_the_picture_is_there(lab, notebook):
    notebook.run(0)
    notebook.reads("row 9, col 9")
    notebook.command("docmanager:save")
    notebook.command("kernelmenu:shutdown")
    notebook.page.close()
    other = lab.open("story.ipynb")  # a kernel that has not run the cells, and the state of the view from the file
    other.page.get_by_text("Waiting for the kernel. If none is running, run the cell").wait_for()
    assert_readable(other)
    saved = nbformat.read(lab.folder / "work/story.ipynb", 4)
    assert "widgets" in saved.metadata
    saved.metadata.kernelspec = {"name": "elsewhere", "display_name": "Elsewhere", "language": "elsewhere"}
    del saved.metadata["language_info"]  # no kernel fits, and Lab asks
    nbformat.write(saved, lab.folder / "work/bare.ipynb")
    other = lab.open("bare.ipynb", kernel=False)
    other.page.locator(".jp-Dialog").get_by_role("button", name="No Kernel").click()
    other.page.get_by_text("Similarity of cat_bengal.jpg").wait_for()  # Lab's stand-in for the view
    assert other.kernel() is None
    assert_readable(other)


def assert_readable(notebook: Any) -> None:
    """The picture of the view is shown, large enough to be read, and nothing pretends to be alive."""
    still = notebook.page.locator(STILL)
    assert still.is_visible() and still.get_attribute("alt")
    assert still.evaluate("(image) => image.complete && Math.min(image.naturalWidth, image.clientWidth)") >= 700
    assert notebook.page.locator(".gs-view").count() == 0 and notebook.errors == []
    notebook.page.close()


def test_twenty_views_leave_less_than_a_megabyte_in_the_file(lab):
    sources = [PREPARED + "looks = [look_at(path, backbone, size=392) for path in samples]"]
    sources += [f"Similarity(looks[{i} % len(looks)], looks[{i + 1} % len(looks)], point=(9, 9))" for i in range(20)]
    path = lab.write("twenty.ipynb", sources)
    notebook = lab.open("twenty.ipynb")
    notebook.command("notebook:run-all-cells")
    notebook.command("docmanager:save")
    saved = nbformat.read(path, 4)
    states = saved.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"].values()
    assert sum("queries" in model["state"] for model in states) == 20
    assert not any(model.get("buffers") for model in states)
    outputs = [output for cell in saved.cells for output in cell.outputs]
    assert sum("gramscope-still" in output.get("data", {}).get("text/html", "") for output in outputs) == 20
    assert path.stat().st_size < 1_000_000
    assert notebook.errors == []
    notebook.page.close()
