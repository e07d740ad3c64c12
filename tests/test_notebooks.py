"""Every notebook runs from top to bottom, as a reader would run it, and shows what it promises."""

from pathlib import Path

import jupytext
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("[0-9]*.py"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_its_pictures(path):
    notebook = jupytext.read(path)
    place = {"metadata": {"path": path.parent}}
    NotebookClient(notebook, timeout=240, kernel_name="python3", resources=place).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    kinds = [kind for output in outputs for kind in output.get("data", {})]
    assert kinds.count("image/png") >= 4, "the maps and the colours are pictures"
    assert any(kind.startswith("application/vnd.plotly") for kind in kinds)
    assert not any(output["output_type"] in ("error", "stream") for output in outputs), outputs


def test_notebooks_keep_no_outputs_and_no_functions():
    assert NOTEBOOKS
    for path in NOTEBOOKS:
        text = path.read_text()
        assert "\ndef " not in text, f"{path.name}: a function belongs in the workbench"
        assert all("outputs" not in cell or not cell["outputs"] for cell in jupytext.read(path).cells)
