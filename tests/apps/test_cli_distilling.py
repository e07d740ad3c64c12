"""gramscope distill: what it lists, refuses and plans, and a small set from start to resume."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from apps import cli, distilling
from core.config import load_config
from core.distill import build
from core.models.weights import save_backbone
from core.recipes import recipe
from core.run_folder import read_metrics
from core.sets import SETS
from core.students import students_in

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    """A teacher with the heads of nano_pretrain, as a run exports it; nothing was learned."""
    torch.manual_seed(0)
    student = build(recipe("nano_pretrain")).student
    heads = {name: module.state_dict() for name, module in student.items() if name != "backbone"}
    return save_backbone(student["backbone"], tmp_path_factory.mktemp("run") / "t.safetensors", heads=heads)


@pytest.fixture
def started(monkeypatch) -> list[Path]:
    """Receives the sets that would be trained."""
    folders: list[Path] = []
    monkeypatch.setattr(distilling, "train_set", folders.append)
    return folders


def refused(*words: object) -> str:
    with pytest.raises(SystemExit) as left:
        cli.main(["distill", *map(str, words)])
    assert isinstance(left.value.code, str), "left without a sentence"
    return left.value.code


def test_without_a_name_the_sets_are_listed(capsys):
    cli.main(["distill"])
    shown = capsys.readouterr().out
    assert all(re.search(rf"^  {name} ", shown, re.M) for name in SETS)
    assert max(map(len, shown.splitlines())) <= 100


def test_wrong_words_are_answered_with_a_sentence(teacher, started, tmp_path):
    base = ("nano_pair", "--teacher", teacher, "--out", tmp_path / "set")
    assert refused("nothing") == f"no set called 'nothing'; known: {', '.join(SETS)}"
    assert "give each of nano, tiny a number" in refused(*base, "--processes", "nano=0", "tiny=1")
    assert "leaves out tiny" in refused(*base, "--processes", "nano=1")
    assert "there is no setting optim.speed" in refused(*base, "--change", "optim.speed=3")
    assert "no student called 'large'" in refused(*base, "--change", "large:steps=3")
    assert "config.steps is of type int" in refused(*base, "--change", "steps=soon")
    assert "differs from nano in steps" in refused(*base, "--change", "tiny:steps=3")
    assert not started and not (tmp_path / "set").exists()


def test_a_teacher_that_is_not_there_stops_it_before_anything_is_written(started, tmp_path):
    assert "not started" in refused("nano_pair", "--teacher", tmp_path / "none", "--out", tmp_path / "set")
    assert not started and not (tmp_path / "set").exists()


def test_what_the_doctor_refuses_is_not_measured_either(teacher, started):
    assert "not started" in refused("nano_pair", "--teacher", teacher, "--plan", "--change", "crops.num_local=0")


def test_settings_reach_all_students_or_one(teacher, started, tmp_path):
    out = tmp_path / "set"
    words = ["--change", "steps=7", "tiny:optim.clip=0.5", "--processes", "nano=1", "tiny=2", "--no-doctor"]
    cli.main(["distill", "nano_pair", "--teacher", str(teacher), "--out", str(out), *words])
    assert started == [out]
    assert [(student.name, student.processes) for student in students_in(out)] == [("nano", 1), ("tiny", 2)]
    nano, tiny = (load_config(out / name) for name in ("nano", "tiny"))
    assert (nano.steps, tiny.steps, nano.optim.clip, tiny.optim.clip) == (7, 7, 3.0, 0.5)
    assert nano.distill.teacher == str(teacher) and tiny.model.arch == "vit_tiny"


def gramscope(*words: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "apps.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment)


@pytest.mark.long
def test_a_set_is_planned_trained_and_goes_on(teacher, tmp_path):
    out = tmp_path / "set"
    words = ["steps=2", "data.batch_size=8", "data.workers=0", "crops.num_local=2"]
    words += ["run.log_every=1", "run.evaluate_every=0"]
    base = ("distill", "nano_pair", "--teacher", teacher)
    planned = gramscope(*base, "--plan", "--on", 2, "--change", *words)
    assert re.search(r"nano +1 +[\d.]+ +[\d.]+ +\d+%", planned.stdout), planned.stderr
    assert "expected:" in planned.stdout

    done = gramscope(*base, "--out", out, "--processes", "nano=1", "tiny=1", "--change", *words)
    assert done.returncode == 0, done.stderr
    for name in ("nano", "tiny"):
        assert f"{name}: step 0 of 2" in done.stderr and f"done. {name}: " in done.stderr
        assert (out / name / "teacher" / "2.safetensors").exists()
    more = gramscope("resume", out, "--steps", 3)
    assert more.returncode == 0, more.stderr
    assert [line["step"] for line in read_metrics(out / "tiny")] == [0, 1, 2]
