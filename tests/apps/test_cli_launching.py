"""The commands that reach clusters: what they print, what they refuse, and runs on this machine."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from apps import cli
from cluster import State, submissions
from core.config import load_config
from core.recipes import RECIPES, recipe
from core.run_folder import create, read_metrics

ROOT = Path(__file__).parents[2]
TINY = ["--data.batch-size", "2", "--crops.num-local", "2", "--run.probe-every", "0", "--run.export-every", "2"]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty working directory, and a person without targets of their own."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def gramscope(*words: object) -> None:
    cli.main([str(word) for word in words])


def refused(*words: object) -> str:
    with pytest.raises(SystemExit) as left:
        gramscope(*words)
    assert isinstance(left.value.code, str), "left without a sentence"
    return left.value.code


def until(holds: Callable[[], bool], run: Path, patience: float = 120) -> None:
    deadline = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < deadline, submissions(run)[-1].logs()
        time.sleep(0.1)


def state(run: Path) -> State:
    return submissions(run)[-1].status().state


# What would be submitted


def test_a_dry_run_prints_the_script_and_makes_nothing(here, capsys):
    gramscope("launch", "smoke", "--on", "slurm:gpu", "--nodes", 2, "--minutes", 90, "--out", "first", "--dry-run")
    script, notes = capsys.readouterr()
    folder = here / "first"
    assert script.startswith("#!/bin/bash\n#SBATCH --job-name=smoke\n#SBATCH --nodes=2\n")
    assert "#SBATCH --partition=gpu\n" in script and "#SBATCH --time=0-01:30:00\n" in script
    assert f"-m core.train {folder}" in script and f"export PYTHONPATH={folder}/code/source\n" in script
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0, "notes are no part of the script"
    assert "1 M parameters" in notes and "TFLOP a step" in notes
    assert list(here.iterdir()) == []


def test_settings_and_resources_reach_the_script(here, capsys):
    words = ["--data.batch-size", "6", "--processes", 3, "--cpus", 2, "--memory", "8G"]
    gramscope("launch", "smoke", "--on", "slurm", *words, "--dry-run")
    script = capsys.readouterr().out
    assert "--nproc-per-node 3" in script and "#SBATCH --cpus-per-task=6\n" in script
    assert "#SBATCH --mem=8G\n" in script and "export OMP_NUM_THREADS=2\n" in script


def test_a_named_target_says_what_a_run_costs_there(here, capsys):
    file = here.parent / "config" / "gramscope" / "targets.toml"
    file.parent.mkdir(parents=True)
    file.write_text('[h100]\nlauncher = "slurm"\npartition = "big"\nnodes = 32\ngpus = 8\ngpu = "H100"\n')
    gramscope("launch", "vit7b_pretrain", "--data", ROOT / "workbench" / "samples", "--on", "h100", "--dry-run")
    script, notes = capsys.readouterr()
    assert "#SBATCH --nodes=32\n" in script and "#SBATCH --gpus-per-node=8\n" in script
    assert "--nproc-per-node 8" in script
    assert "1,000,000 steps on 256 H100 at 35% of 989 TFLOP/s take 589 hours" in notes


def test_a_local_dry_run_is_what_would_be_started_here(here, capsys):
    gramscope("launch", "smoke", "--dry-run", "--processes", 2)
    script = capsys.readouterr().out
    assert "--nproc-per-node 2" in script and "--standalone" in script and "sbatch" not in script.lower()
    assert list(here.iterdir()) == []


# Refusals


def test_without_a_recipe_the_recipes_are_listed(capsys):
    gramscope("launch")
    shown = capsys.readouterr().out
    assert all(name in shown for name in RECIPES) and "gramscope launch smoke" in shown


@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["smok"], "no recipe called 'smok'; known: vitl, "),
        (
            ["smoke", "--on", "moon"],
            "no target called 'moon'; known: local, slurm, kubernetes, skypilot, ray;",
        ),
        (["smoke", "--nodes", 2], "this machine is one node, the job wants 2"),
        (["smoke", "--minutes", -3], "minutes is at least 0, got -3"),
        (["smoke", "--on", "slurm", "--memory", "much"], 'memory is a number with K, M, G or T, as "64G", not'),
        (["smoke", "--on", "kubernetes", "--dry-run"], "the target kubernetes names no image"),
        (["smoke", "--on", "ray:http://127.0.0.1:9"], "no Ray answers at http://127.0.0.1:9"),
        (["smoke", "--after", "nowhere"], "nowhere was never launched; gramscope launch RECIPE --on TARGET"),
        (["smoke", "--steps", 0], "steps is at least 1, got 0"),
        (["smoke", "--processes", 3], "not submitted; correct that, or submit all the same with --no-doctor"),
    ],
)
def test_what_cannot_be_gets_a_sentence_and_leaves_nothing(here, words, sentence):
    assert refused("launch", *words).startswith(sentence)
    assert not list(here.glob("runs/*"))


def test_what_the_doctor_objects_to_is_shown(here, capsys):
    refused("launch", "smoke", "--processes", 3)
    assert "RED    batch-world" in capsys.readouterr().err


def test_a_folder_that_holds_something_is_not_taken(here):
    create(recipe("smoke"), Path("mine"))
    assert "mine already holds the run" in refused("launch", "smoke", "--out", "mine")
    assert load_config(Path("mine")) == recipe("smoke")


@pytest.mark.parametrize("command", ["logs", "cancel", "requeue"])
def test_what_was_never_launched_is_said(here, command):
    create(recipe("smoke"), Path("mine"))
    assert refused(command, "mine") == "mine was never launched; gramscope launch RECIPE --on TARGET does that"


def test_the_status_of_a_run_needs_a_run_and_no_launch(here, capsys):
    assert refused("status", "nowhere") == "nowhere is no run folder: it has no config.json"
    create(recipe("smoke"), Path("mine"))
    gramscope("status", "mine")
    assert capsys.readouterr().out == "mine: not submitted, step 0 of 20\n"


def test_help_and_refusals_come_without_torch(here):
    code = (
        "import sys, apps.cli\n"
        "for words in (['launch'], ['launch', '--help'], ['launch', 'smok'], ['launch', 'smoke', '--help'],\n"
        "              ['launch', 'smoke', '--after', 'nowhere'], ['logs', 'nowhere'], ['cancel', 'nowhere']):\n"
        "    try: apps.cli.main(words)\n"
        "    except SystemExit: pass\n"
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert out.stderr.splitlines()[-1] == "False", out.stderr


# On this machine, for real


@pytest.mark.long
def test_a_run_is_launched_cancelled_and_goes_on_without_a_gap(here, capsys):
    run = Path("first")
    gramscope("launch", "smoke", *TINY, "--steps", "4000", "--run.checkpoint-every", "2", "--out", run)
    notes = capsys.readouterr().err
    assert f"run folder: {run.absolute()}\nhow it stands: gramscope status {run.absolute()}\n" in notes
    until(lambda: len(read_metrics(run)) >= 3, run)
    gramscope("status", run)
    assert capsys.readouterr().out.startswith("first: running (process ")
    gramscope("logs", run, "--lines", 1)
    assert len(capsys.readouterr().out.splitlines()) == 1

    gramscope("requeue", run)  # returns when it has saved and was started again
    finished = len(read_metrics(run))
    assert capsys.readouterr().out.startswith("first: running (process ")
    until(lambda: len(read_metrics(run)) >= finished + 2, run)
    gramscope("cancel", run)
    until(lambda: state(run) != State.RUNNING, run)
    capsys.readouterr()
    gramscope("status", run)
    finished = len(read_metrics(run))
    assert capsys.readouterr().out.startswith(f"first: stopped, step {finished} of 4000, ")
    assert [line["step"] for line in read_metrics(run)] == list(range(finished))


@pytest.mark.long
def test_a_second_stage_waits_for_the_first(here, capsys):
    small = [*TINY, "--steps", "2"]
    gramscope("launch", "smoke", *small, "--out", "first")
    gramscope("launch", "smoke", *small, "--init.student", "first", "--after", "first", "--out", "second", "--dry-run")
    assert f"while [ ! -e {here}/first/jobs/1/ended ]" in capsys.readouterr().out
    gramscope("launch", "smoke", *small, "--init.student", "first", "--after", "first", "--out", "second")
    until(lambda: state(Path("second")).is_over, Path("second"))
    for name in ("first", "second"):
        capsys.readouterr()
        gramscope("status", name)
        assert capsys.readouterr().out.startswith(f"{name}: done, step 2 of 2, "), submissions(Path(name))[-1].logs()
    assert load_config(Path("second")).init.student == "first"
