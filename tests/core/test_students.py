"""Sets of students: who may learn together, and that nobody's numbers depend on who else learns."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from core.checkpoint import Checkpoints
from core.config import (
    Config,
    CropsConfig,
    CropSizes,
    DataConfig,
    DinoConfig,
    DistillConfig,
    GramConfig,
    HeadConfig,
    IbotConfig,
    KoleoConfig,
    ModelConfig,
    OptimConfig,
    ParallelConfig,
    RunConfig,
    SourceConfig,
    TeacherConfig,
    load_config,
)
from core.data.loader import part_of
from core.distill import build
from core.models.weights import save_backbone
from core.run_folder import read_metrics
from core.schedules import constant
from core.students import check_together, create, is_set, students_in

ROOT = Path(__file__).parents[2]
HEAD = HeadConfig(prototypes=32, hidden=16, bottleneck=8)
STEPS = 4


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Photographs and a teacher with heads."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "pictures").mkdir()
    draw = np.random.default_rng(0)
    for number in range(24):
        pixels = draw.integers(0, 256, (6, 6, 3), np.uint8)
        Image.fromarray(pixels).resize((48, 48), Image.Resampling.BICUBIC).save(folder / "pictures" / f"{number}.png")
    torch.manual_seed(5)
    teacher = build(student_config(folder, distill=DistillConfig())).student
    heads = {name: module.state_dict() for name, module in teacher.items() if name != "backbone"}
    save_backbone(teacher["backbone"], folder / "teacher.safetensors", heads=heads)
    return folder


def student_config(place: Path, arch: str = "vit_nano", **changed) -> Config:
    config = Config(
        steps=STEPS,
        model=ModelConfig(arch=arch, patch_size=8 if arch.startswith("vit") else None, drop_path=0.1, layer_scale=0.5),
        dino=DinoConfig(head=HEAD),
        ibot=IbotConfig(head=HEAD),
        koleo=KoleoConfig(weight=0.1),
        crops=CropsConfig(sizes=(CropSizes(global_size=32, local_size=16),), num_local=2),
        data=DataConfig(sources=(SourceConfig(path=str(place / "pictures")),), batch_size=12, workers=0),
        optim=OptimConfig(
            lr=constant(1e-3), weight_decay=constant(0.04), momentum=constant(0.9), teacher_temp=constant(0.05),
            scaling="none", freeze_last_layer=0,
        ),
        parallel=ParallelConfig(precision="fp32", compile=False),
        run=RunConfig(log_every=1, checkpoint_every=2, export_every=0),
        distill=DistillConfig(
            teacher=str(place / "teacher.safetensors"),
            features=(TeacherConfig(name=str(place / "teacher.safetensors")),),
            chunk=2,
        ),
    )  # fmt: skip
    return replace(config, **changed)


def torchrun(folder: Path, processes: int) -> subprocess.Popen:
    """`python -m core.train` under torchrun. Starting that takes some seconds: `run_processes` does it faster."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.Popen(
        [*command, "-m", "core.train", str(folder)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def losses(run: Path) -> list[dict[str, float]]:
    """What a student's step came to, without times and speeds."""
    timed = ("time", "images_per_second", "step_seconds", "data_share", "memory_gib", "cpus_busy")
    return [{name: value for name, value in line.items() if name not in timed} for line in read_metrics(run)]


@pytest.fixture(scope="module")
def together(place, run_processes, tmp_path_factory) -> Path:
    """Two students on three processes, one of them with two."""
    configs = {"first": student_config(place), "second": student_config(place, seed=0)}
    configs["second"] = replace(configs["second"], model=replace(configs["second"].model, layer_scale=0.2))
    folder = create(configs, {"first": 1, "second": 2}, tmp_path_factory.mktemp("sets") / "set")
    run_processes("core.train", 3, folder)
    return folder


@pytest.mark.long
@pytest.mark.parametrize(("name", "processes"), [("first", 1), ("second", 2)])
def test_a_student_has_the_losses_it_has_alone_to_the_last_bit(together, run_processes, tmp_path, name, processes):
    config = load_config(together / name)
    alone = create({name: config}, {name: processes}, tmp_path / "set")
    run_processes("core.train", processes, alone)
    assert len(losses(alone / name)) == STEPS
    assert losses(alone / name) == losses(together / name)


@pytest.mark.long
def test_every_student_is_a_run_with_checkpoints_and_a_teacher(together):
    assert is_set(together) and [student.name for student in students_in(together)] == ["first", "second"]
    for name in ("first", "second"):
        assert Checkpoints(together / name / "checkpoints", keep=3)._whole() == [2, 4]
        assert (together / name / "teacher" / "4.safetensors").exists()
        assert f"step {STEPS - 1} of {STEPS}" in (together / name / "log.txt").read_text()


@pytest.mark.long
def test_students_go_on_from_the_newest_checkpoint_that_all_have(together, run_processes, tmp_path):
    """As after a kill between the checkpoint of one student and that of the other."""
    import shutil

    again = tmp_path / "set"
    shutil.copytree(together, again)
    shutil.rmtree(again / "second" / "checkpoints" / "4")
    for name in ("first", "second"):
        (again / name / "metrics.jsonl").write_text("")
    run_processes("core.train", 3, again)
    for name in ("first", "second"):
        assert losses(again / name) == losses(together / name)[2:]


@pytest.mark.long
def test_a_signal_to_one_process_lets_all_students_save_after_the_same_step(place, tmp_path):
    config = student_config(place, steps=5000, run=RunConfig(log_every=1, checkpoint_every=10_000, export_every=0))
    folder = create({"first": config, "second": config}, {"first": 1, "second": 2}, tmp_path / "set")
    process = torchrun(folder, 3)
    deadline = time.monotonic() + 120
    while len(losses(folder / "first")) < 3:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    saved = [Checkpoints(folder / name / "checkpoints", keep=1)._whole() for name in ("first", "second")]
    assert saved[0] == saved[1] and len(saved[0]) == 1, said


def test_who_cannot_learn_together_is_told_why(place):
    first = student_config(place)
    wrong = {
        "steps": (replace(first, steps=9), "differs from first in steps"),
        "teacher": (replace(first, distill=replace(first.distill, features=())), "in distill.features"),
        "none": (replace(first, distill=DistillConfig()), "has no frozen teacher"),
        "cells": (replace(first, distill=replace(first.distill, student_scale=0.5)), "stands for 16 px"),
    }
    for other, message in wrong.values():
        with pytest.raises(ValueError, match=message):
            check_together({"first": first, "second": other})
    with pytest.raises(ValueError, match="no name of a folder"):
        check_together({"../x": first})


def test_frozen_teachers_exclude_gram_anchoring(place):
    with pytest.raises(ValueError, match="do not go together"):
        student_config(place, gram=GramConfig(use=True, follow_ema=True))


@pytest.mark.parametrize(("batch", "chunk", "size"), [(12, 2, 3), (20, 4, 3), (1920, 4, 296), (8, 4, 3)])
def test_parts_that_do_not_divide_evenly_overlap_at_the_end_and_leave_nothing_out(place, batch, chunk, size):
    config = student_config(place)
    config = replace(config, data=replace(config.data, batch_size=batch), distill=replace(config.distill, chunk=chunk))
    parts = [part_of(config, rank, size) for rank in range(size)]
    assert {image for part in parts for image in range(part.start, part.stop)} == set(range(batch))
    assert len({part.stop - part.start for part in parts}) == 1
    assert all(part.start % chunk == part.stop % chunk == 0 for part in parts)
    for image in range(batch):  # as go_round finds its owner
        part = parts[image // (parts[0].stop - parts[0].start)]
        assert part.start <= image < part.stop


@pytest.mark.long
def test_another_number_of_processes_is_refused(together):
    process = torchrun(together, 2)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "students with 1, 2 processes need 3, there are 2" in said


def test_the_file_of_a_set_is_readable_json(together):
    assert json.loads((together / "students.json").read_text())[1] == {"name": "second", "processes": 2}
