"""Every notebook runs from top to bottom, as a reader would run it, and shows what it promises."""

import time
from collections import Counter
from pathlib import Path

import jupytext
import pytest
from nbclient import NotebookClient

from cluster import submissions

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("[0-9]*.py"))
KINDS = {  # of output
    "image/png": "picture",
    "application/vnd.plotly.v1+json": "chart",
    "application/vnd.jupyter.widget-view+json": "view",
}
CARD = "<RunCard: "  # a view of a run: at its submission there is nothing yet to be seen in a picture
SHOWN = {  # a new notebook has a line here
    "01_first_look": {"picture": 4, "chart": 1},
    "02_patch_similarity": {"view": 6},
    "03_colour_of_parts": {"picture": 2, "view": 4},
    "04_watch_features_decay": {"view": 4, "chart": 3},
    "05_gram_anchoring": {"picture": 1, "view": 3, "chart": 3},
    "06_read_a_run": {"chart": 2},
    "07_launch_on_a_cluster": {"view": 1},
    "08_follow_an_object": {"view": 1},
    "09_ask_in_words": {"view": 2},
}


QUICK = {"01_first_look", "06_read_a_run"}  # the others take some ten seconds each


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=() if path.stem in QUICK else pytest.mark.long) for path in NOTEBOOKS],
    ids=lambda path: path.stem,
)
def test_a_notebook_runs_and_shows_its_pictures(path, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where it may write
    notebook = jupytext.read(path)
    place = {"metadata": {"path": path.parent}}
    NotebookClient(notebook, timeout=240, kernel_name="python3", resources=place).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not any(output["output_type"] in ("error", "stream") for output in outputs), outputs
    data = [output.get("data", {}) for output in outputs]
    shown = Counter(name for output in data for kind, name in KINDS.items() if kind in output)
    assert shown == SHOWN[path.stem]
    stills = sum("gramscope-still" in output.get("text/html", "") for output in data)
    cards = sum(output.get("text/plain", "").startswith(CARD) for output in data)
    assert stills == shown["view"] - cards, "a view leaves a picture for whoever opens the notebook without a kernel"
    runs = {record.parents[2] for record in tmp_path.rglob("jobs/*/job.json")}
    assert len(runs) == cards
    for run in runs:
        assert_trains_to_its_end(run)


def assert_trains_to_its_end(run: Path) -> None:
    """A job that a notebook started goes on without it."""
    (made,) = submissions(run)
    deadline = time.monotonic() + 120
    while not (status := made.status()).state.is_over:
        assert time.monotonic() < deadline, made.logs()
        time.sleep(0.2)
    assert status.state == "done", made.logs()


def test_notebooks_keep_no_outputs_and_no_functions():
    assert NOTEBOOKS
    for path in NOTEBOOKS:
        text = path.read_text()
        assert "\ndef " not in text, f"{path.name}: a function belongs in the workbench"
        assert all("outputs" not in cell or not cell["outputs"] for cell in jupytext.read(path).cells)


def test_a_notebook_is_a_story_of_few_short_cells():
    for path in NOTEBOOKS:
        cells = [cell for cell in jupytext.read(path).cells if cell.cell_type == "code"]
        assert 5 <= len(cells) <= 10, path.name
        assert all(len(cell.source.splitlines()) <= 15 for cell in cells), path.name
        title, *_, last = [cell.source for cell in jupytext.read(path).cells if cell.cell_type == "markdown"]
        assert title.startswith("# ") and title.splitlines()[0].endswith("?"), f"{path.name}: a story asks one question"
        assert last.startswith("## What to try next"), path.name
