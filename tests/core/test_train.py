"""The loop: it ends, resumes, is interrupted, is killed, and meets numbers that are none."""

import json
import os
import shutil
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
    GramConfig,
    HeadConfig,
    IbotConfig,
    ModelConfig,
    OptimConfig,
    ParallelConfig,
    RunConfig,
    SourceConfig,
    to_json,
)
from core.evals.incontext import incontext
from core.evals.objects import objects
from core.evals.segmentation import labelled_folder
from core.models.weights import load_backbone
from core.schedules import Schedule, constant
from core.train import Run, Signals, seed_step, train

ROOT = Path(__file__).parents[2]
HEAD = HeadConfig(prototypes=32, hidden=16, bottleneck=8)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Two classes of little pictures, in a training and a validation split."""
    folder = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    for split, count in (("train", 20), ("val", 6)):
        for name, tint in (("red", 0), ("blue", 2)):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 120, (48, 40, 3), dtype=np.uint8)
                pixels[..., tint] += 120
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder


def tiny(pictures: Path, **changes) -> Config:
    config = Config(
        name="tiny",
        steps=12,
        model=ModelConfig(arch="vit_nano", patch_size=8, drop_path=0.2, rope_jitter=1.2),
        dino=DinoConfig(head=HEAD),
        ibot=IbotConfig(head=HEAD),
        gram=GramConfig(use=True, load_ema_at=0, refresh_every=3, refresh_max=2),
        crops=CropsConfig(
            sizes=(
                CropSizes(global_size=32, local_size=16, gram_size=32, probability=0.5),
                CropSizes(global_size=16, local_size=16, gram_size=32, probability=0.5),
            ),
            num_local=2,
        ),
        data=DataConfig(sources=(SourceConfig(path=str(pictures)),), batch_size=4, workers=0),
        optim=OptimConfig(lr=Schedule(start=0.0, peak=1e-3, end=1e-3, warmup=4), scaling="none", freeze_last_layer=2),
        parallel=ParallelConfig(precision="fp32", compile=False),
        run=RunConfig(log_every=1, checkpoint_every=4, export_every=6, evaluate_every=6, keep=10),
    )
    return replace(config, **changes)


def start(folder: Path, config: Config) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(to_json(config))
    return folder


def lines(folder: Path) -> list[dict]:
    """What the run wrote, without clocks and memory."""
    clocks = {"time", "images_per_second", "step_seconds", "data_share", "memory_gib", "cpus_busy"}
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in clocks} for line in read]


def tensors(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """Every number of a checkpoint."""
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    file = folder / f"{step}.pt"
    dcp_to_torch_save(str(folder / "checkpoints" / str(step)), str(file))
    return torch.load(file, weights_only=True)


@pytest.fixture(scope="module")
def whole(pictures, tmp_path_factory) -> Path:
    """A run that nobody disturbed."""
    folder = start(tmp_path_factory.mktemp("runs") / "whole", tiny(pictures))
    assert train(folder) == 12
    return folder


def assert_same_run(folder: Path, whole: Path) -> None:
    assert lines(folder) == lines(whole)
    ours, theirs = tensors(folder, 12), tensors(whole, 12)
    assert set(ours) == set(theirs)
    different = [name for name, value in theirs.items() if not torch.equal(ours[name], value)]
    assert different == []


@pytest.mark.long
def test_a_run_leaves_what_its_folder_promises(whole):
    assert [line["step"] for line in lines(whole)] == list(range(12))
    assert sorted(path.name for path in (whole / "teacher").iterdir()) == [
        "0.safetensors",
        "12.safetensors",
        "6.safetensors",
    ]
    knn = json.loads((whole / "evals" / "12" / "knn.json").read_text())
    assert knn["top1_k10"] > 0.9  # red and blue
    assert Checkpoints(whole / "checkpoints", keep=1).newest() == 12
    assert load_backbone(whole / "teacher" / "12.safetensors").patch_size == 8


def test_every_term_and_rate_is_logged(whole):
    line = lines(whole)[-1]
    for name in ("dino_local", "dino_global", "ibot", "koleo", "gram", "total", "lr", "teacher_temp", "momentum"):
        assert isinstance(line[name], float), name
    assert {name for name in line if name.startswith("grad_norm")} == {
        "grad_norm_backbone",
        "grad_norm_dino_head",
        "grad_norm_ibot_head",
    }


def test_training_moves_student_and_teacher(whole):
    first, last = tensors(whole, 4), tensors(whole, 12)
    for part in ("student", "teacher", "gram_teacher"):
        name = next(key for key in last if part + "." in key and key.endswith("qkv.weight") and "optim" not in key)
        assert not torch.equal(first[name], last[name]), part


def test_a_finished_run_has_nothing_to_do(whole):
    before = lines(whole)
    assert train(whole) == 12
    assert lines(whole) == before


@pytest.mark.parametrize(
    "stops", [(5,), *(pytest.param(stops, marks=pytest.mark.long) for stops in [(1, 2, 7), (11,)])]
)
def test_a_run_stopped_and_resumed_is_the_same_run(pictures, whole, tmp_path, stops):
    """At any step, with stochastic depth, rotary jitter, drawn crop sizes and a refreshed Gram teacher."""
    folder = start(tmp_path / "run", tiny(pictures))
    for stop in stops:
        assert train(folder, stop_after=stop) == stop
    assert train(folder) == 12
    assert_same_run(folder, whole)


@pytest.mark.long
def test_workers_change_nothing(pictures, whole, tmp_path):
    config = tiny(pictures)
    folder = start(tmp_path / "run", replace(config, data=replace(config.data, workers=1)))
    train(folder)
    assert_same_run(folder, whole)


def test_another_seed_is_another_run(pictures, whole, tmp_path):
    folder = start(tmp_path / "run", tiny(pictures, seed=1))
    train(folder, stop_after=1)
    assert lines(folder)[0]["total"] != lines(whole)[0]["total"]


def test_randomness_of_a_step_depends_on_seed_step_and_rank():
    drawn = set()
    for arguments in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]:
        seed_step(*arguments)
        drawn.add(float(torch.rand(())))
    assert len(drawn) == 4
    seed_step(0, 1, 0)
    again = float(torch.rand(()))
    assert again in drawn


def test_what_modules_warn_of_stands_in_the_log(pictures, tmp_path):
    folder = start(tmp_path / "run", tiny(pictures))
    train(folder, stop_after=4)
    (folder / "checkpoints" / ".8.partial").mkdir()
    assert train(folder, stop_after=5) == 5
    assert "not whole, left aside: .8.partial" in (folder / "log.txt").read_text()


def test_a_second_stage_starts_from_the_first_and_is_anchored_to_an_early_teacher(pictures, whole, tmp_path):
    config = tiny(pictures)
    gram = replace(config.gram, load_ema_at=None, refresh_every=0, teacher=f"{whole}@6")
    second = replace(config, gram=gram, init=replace(config.init, student=str(whole)), steps=5)
    folder = start(tmp_path / "run", second)
    train(folder, stop_after=4)
    first = load_backbone(folder / "teacher" / "0.safetensors").state_dict()
    assert all(
        torch.equal(value, first[name])
        for name, value in load_backbone(whole / "teacher" / "12.safetensors").state_dict().items()
    )
    anchor = load_backbone(whole / "teacher" / "6.safetensors").state_dict()
    kept = {
        name.removeprefix("model.gram_teacher."): value
        for name, value in tensors(folder, 4).items()
        if "gram_teacher" in name
    }
    assert all(torch.equal(kept[name], anchor[name]) for name in kept)


@pytest.mark.long
def test_unreadable_images_are_named_and_counted(pictures, tmp_path):
    shutil.copytree(pictures, tmp_path / "pictures")
    broken = tmp_path / "pictures" / "train" / "red" / "3.png"
    broken.write_bytes(b"no picture")
    folder = start(tmp_path / "run", tiny(tmp_path / "pictures"))
    train(folder, stop_after=12)
    assert "3.png" in (folder / "broken.txt").read_text()
    assert "1 so far" in (folder / "log.txt").read_text()


def test_masks_are_asked_whenever_k_nn_is(pictures, tmp_path):
    """The number in the file is that of the exported teacher of the same step."""
    config = tiny(pictures)
    folder = start(tmp_path / "run", replace(config, run=replace(config.run, masks="pets", masks_size=64)))
    train(folder, stop_after=6)
    assert sorted(path.parent.name for path in folder.glob("evals/*/incontext.json")) == ["0", "6"]
    told = json.loads((folder / "evals" / "6" / "incontext.json").read_text())
    alone = incontext(load_backbone(folder / "teacher" / "6.safetensors"), labelled_folder("pets"), size=64)
    inside = json.loads((folder / "evals" / "6" / "objects.json").read_text())
    assert inside == objects(load_backbone(folder / "teacher" / "6.safetensors"), labelled_folder("pets"), size=64)
    assert told == alone and 0.2 < told["miou"] < 1


# Numbers that are none


def exploding(pictures: Path, policy: str) -> Config:
    """The first update throws the weights so far that the next loss is no number."""
    config = tiny(pictures)
    optim = replace(config.optim, lr=constant(1e30), clip=0.0, freeze_last_layer=0)
    return replace(config, optim=optim, gram=GramConfig(), run=replace(config.run, nonfinite=policy, evaluate_every=0))


def test_a_loss_that_is_no_number_stops_before_the_update(pictures, tmp_path):
    config = exploding(pictures, "stop")
    config = replace(config, run=replace(config.run, checkpoint_every=1))
    folder = start(tmp_path / "run", config)
    with pytest.raises(FloatingPointError, match=r"not finite: .*total.* gramscope replay"):
        train(folder)
    last = Checkpoints(folder / "checkpoints", keep=1).newest()
    assert all(value.isfinite().all() for name, value in tensors(folder, last).items() if "student" in name)
    (kept,) = (folder / "nonfinite").iterdir()
    assert int(kept.name) == last


def test_skipping_goes_on_until_the_third_in_a_row(pictures, tmp_path):
    folder = start(tmp_path / "run", exploding(pictures, "skip"))
    with pytest.raises(FloatingPointError):
        train(folder)
    assert len(list((folder / "nonfinite").iterdir())) == 3
    assert (folder / "log.txt").read_text().count("going on") == 2


# Signals and kills, from outside


def in_another_process(folder: Path) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.Popen(
        [sys.executable, "-m", "core.train", str(folder)], env=environment, stderr=subprocess.PIPE, text=True
    )


def wait_for_step(process: subprocess.Popen, folder: Path, step: int) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        file = folder / "metrics.jsonl"
        if file.exists() and len(file.read_text().splitlines()) > step:
            return
        time.sleep(0.02)
    process.kill()
    pytest.fail(f"step {step} was not reached: {process.communicate()[1]}")


@pytest.mark.parametrize("name", ["SIGTERM", pytest.param("SIGUSR1", marks=pytest.mark.long)])
def test_a_signal_saves_and_leaves(pictures, whole, tmp_path, name):
    config = tiny(pictures)
    slow = replace(config, data=replace(config.data, workers=1), steps=500)
    folder = start(tmp_path / "run", slow)
    process = in_another_process(folder)
    wait_for_step(process, folder, 1)
    process.send_signal(getattr(signal, name))
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert f"{name}: saved after step" in (folder / "log.txt").read_text()
    assert Checkpoints(folder / "checkpoints", keep=1).newest() == len(lines(folder))


def test_a_signal_that_comes_after_the_question_is_heard_in_the_next_step(pictures, tmp_path, monkeypatch):
    folder = start(tmp_path / "run", tiny(pictures))
    write_due = Run.write_due

    def interrupted(run: Run, **due: bool) -> None:
        write_due(run, **due)
        if run.finished == 1:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Run, "write_due", interrupted)
    assert train(folder) == 2
    assert Checkpoints(folder / "checkpoints", keep=1).newest() == 2


def test_processes_leave_together_when_a_signal_comes_while_they_agree(monkeypatch):
    """One hears it after it has told the others that it heard nothing: none leaves now, all do in the next step."""
    said: list[float] = []
    with Signals(torch.device("cpu")) as ours, monkeypatch.context() as changed:

        def all_sum(told: torch.Tensor, group: object) -> torch.Tensor:
            said.append(float(told))
            if len(said) == 1:
                signal.raise_signal(signal.SIGTERM)
            return told  # the other process heard nothing

        changed.setattr("core.train.distributed.size", lambda group=None: 2)
        changed.setattr("core.train.distributed.all_sum", all_sum)
        assert [ours.asked(), ours.asked()] == [False, True]
        assert said == [0, 1] and ours.now == "SIGTERM"


def test_a_process_that_heard_nothing_leaves_with_the_others(monkeypatch):
    with Signals(torch.device("cpu")) as ours, monkeypatch.context() as changed:
        changed.setattr("core.train.distributed.size", lambda group=None: 2)
        changed.setattr("core.train.distributed.all_sum", lambda told, group: told + 1)
        assert ours.asked() and ours.now == "another process was told to stop"


@pytest.mark.long
def test_a_run_killed_at_random_moments_is_the_same_run(pictures, whole, tmp_path):
    """kill -9, five times, wherever it is: in a step, in a checkpoint, in an evaluation."""
    config = tiny(pictures)
    folder = start(tmp_path / "run", replace(config, data=replace(config.data, workers=1)))
    draw = np.random.default_rng(3)
    for step in (0, 2, 4, 7, 9):
        process = in_another_process(folder)
        wait_for_step(process, folder, step)
        time.sleep(float(draw.uniform(0, 0.15)))
        process.kill()
        process.communicate()
    train(folder)
    assert_same_run(folder, whole)
