"""Training from a notebook on a Slurm of virtual nodes: JupyterLab in a real browser, two nodes that meet over gloo."""

import re
from pathlib import Path
from typing import Any

import pytest

from cluster import State, submissions
from core.run_folder import read_metrics

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("slurm")]  # first: kernels have Lab's environment

# Virtual nodes have names that lead nowhere: their address is said.
TARGETS = '[slurm]\nlauncher = "slurm"\npartition = "low"\naddress = "127.0.0.1"\ncpus = 1\nmemory = "3000M"\n'
TRAIN = """\
%%gramscope train smoke --on slurm --nodes 2 --out {run}
steps = {steps}
data.batch_size = 4
crops.num_local = 2
run.checkpoint_every = {every}
run.export_every = 0
run.probe_every = {every}
run.probes = 2
"""
FIRST = TRAIN.format(run="first", steps=6, every=3)
SECOND = TRAIN.format(run="second", steps=30, every=15)
KILL = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"


@pytest.fixture(scope="module")
def notebook(lab: Any) -> Any:
    """Cells that train six steps, train until the kernel is killed, and kill it; the magic is loaded."""
    file = lab.folder / "home" / ".config" / "gramscope" / "targets.toml"
    file.parent.mkdir(parents=True)
    file.write_text(TARGETS)
    lab.write("train.ipynb", ["%load_ext workbench.magic", FIRST, SECOND, KILL])
    notebook = lab.open("train.ipynb")
    notebook.run(0)
    return notebook


def shows(notebook: Any, state: str) -> None:
    """Waits until the newest card says that the run stands so."""
    script = "(state) => [...document.querySelectorAll('.gs-card .gs-state')].at(-1)?.textContent === state"
    notebook.page.wait_for_function(script, arg=state, timeout=150_000)


def steps_of_curve(notebook: Any) -> int:
    """Points of the newest card's curve of the whole loss."""
    points = notebook.page.locator(".gs-card").last.locator(".gs-chart polyline").first.get_attribute("points")
    return len(points.split())


def assert_two_nodes_trained(run: Path, steps: int) -> None:
    """Every step once, by one job whose two processes met over the network."""
    (made,) = submissions(run)
    assert (made.status().state, made.job.nodes, made.job.processes) == (State.DONE, 2, 1), made.logs()
    assert [line["step"] for line in read_metrics(run)] == list(range(steps))
    script = (made.place / "script").read_text()
    assert "#SBATCH --nodes=2\n" in script and "--nnodes 2 --nproc-per-node 1 " in script
    parts = (run / "checkpoints" / str(steps)).glob("*.distcp")
    assert sorted(part.name for part in parts) == ["__0_0.distcp", "__1_0.distcp"], "each process wrote its share"


def test_a_cell_trains_on_two_nodes_and_its_card_shows_the_end(lab, notebook):
    notebook.run(1)  # returns before anything is trained
    shows(notebook, "done")
    page, run = notebook.page, lab.folder / "work" / "first"
    (made,) = submissions(run)
    facts = page.locator(".gs-card .gs-note").first.text_content()
    assert "step 6 of 6" in facts and facts.endswith(f"slurm {made.handle['id']}")
    assert re.search(r"[\d.]+ images/s", facts)
    assert steps_of_curve(notebook) == 6
    assert page.locator(".gs-card .gs-maps img").count() == 2
    assert page.locator(".gs-card .gs-when output").text_content() == "step 6"
    assert_two_nodes_trained(run, 6)
    assert (run / "code" / "cell.py").read_text().endswith(FIRST.partition("\n")[2])
    assert notebook.errors == [] and notebook.elsewhere == []


def test_the_kernel_is_killed_and_another_one_shows_the_whole_curve(lab, notebook):
    run = lab.folder / "work" / "second"
    notebook.run(2)
    shows(notebook, "running")
    curve = "() => [...document.querySelectorAll('.gs-card')].at(-1).querySelector('polyline')"
    notebook.page.wait_for_function(curve, timeout=150_000)
    before = len(read_metrics(run))
    notebook.run(3, wait=False)
    notebook.page.get_by_text("The kernel for train.ipynb appears to have died").wait_for()
    assert before < 30 and submissions(run)[-1].status().state == State.RUNNING, "killed in the middle"
    notebook.page.close()

    lab.write("again.ipynb", ["%load_ext workbench.magic\n%gramscope attach second"])
    other = lab.open("again.ipynb")
    other.run(0)
    shows(other, "done")
    assert steps_of_curve(other) == 30
    assert_two_nodes_trained(run, 30)
    assert other.errors == []
    other.page.close()
