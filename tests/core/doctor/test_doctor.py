"""The run doctor: every rule catches what it is there for, and good runs pass."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from core import doctor
from core.config import Config, CropSizes, GramConfig, HeadConfig, InitConfig, SourceConfig, TeacherConfig, to_json
from core.doctor import RULES, check, report, worst
from core.doctor.case import Case, Gpu, Machine, Opened, read_shapes
from core.recipes import RECIPES, recipe, with_data
from core.run_folder import create
from core.schedules import Schedule, constant

LAPTOP = Machine(cpus=4, memory_gib=16.0, gpus=(), disk_free_gib=100.0, compiler=True)
H100 = Gpu("NVIDIA H100 80GB HBM3", 79.6, 9.0)
CLUSTER = Machine(cpus=64, memory_gib=2000.0, gpus=(H100,) * 8, disk_free_gib=50_000.0, compiler=True)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Forty photographs of 160 x 128 pixels, with classes and both splits."""
    folder = tmp_path_factory.mktemp("photos")
    for index in range(40):
        place = folder / ("train" if index < 36 else "val") / f"class{index % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (160, 128), (index, 0, 0)).save(place / f"{index}.png")
    return folder


def sparse_teacher(run: Path, config: Config, step: int) -> Path:
    """An exported teacher with the right names and shapes, whose numbers take no room on the disk."""
    header, end = {}, 0
    for name, shape in shapes_of(config).items():
        size = 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    path = run / "teacher" / f"{step}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


def shapes_of(config: Config) -> dict[str, tuple[int, ...]]:
    backbone = Case(config, 1, None, LAPTOP).backbone
    shapes = {name: tuple(tensor.shape) for name, tensor in backbone.state_dict().items()}
    for name, head in (("dino_head", config.dino.head), ("ibot_head", config.ibot.head)):
        widths = [backbone.embed_dim, *[head.hidden] * (head.layers - 1), head.bottleneck]
        for index in range(head.layers):
            shapes[f"{name}.mlp.{2 * index}.weight"] = (widths[index + 1], widths[index])
            shapes[f"{name}.mlp.{2 * index}.bias"] = (widths[index + 1],)
        shapes[f"{name}.last_layer.weight"] = (head.prototypes, head.bottleneck)
    return shapes


def make_run(folder: Path, config: Config, *steps: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(to_json(config))
    for step in steps:
        sparse_teacher(folder, config, step)
    return folder


@pytest.fixture
def nano(photos) -> Config:
    """A sound run from scratch; its batch fits the forty photographs."""
    return with_data(recipe("nano_pretrain"), [str(photos)])


@pytest.fixture
def stage2(nano, tmp_path) -> Config:
    """A sound Gram stage, which continues a run at hand."""
    before = make_run(tmp_path / "stage1", nano, 2000, 10_000)
    config = replace(recipe("nano_gram"), data=nano.data)
    small = (CropSizes(global_size=32, local_size=16, gram_size=64),)
    return change(config, crops={"sizes": small}, init={"student": str(before)}, gram={"teacher": f"{before}@2000"})


@pytest.fixture
def taught(nano, tmp_path) -> Config:
    """A sound student of a run at hand."""
    teacher = make_run(tmp_path / "teacher", nano, 10_000)
    return change(nano, distill={"teacher": str(teacher)}, optim={"freeze_last_layer": 0})


@pytest.fixture
def of_features(nano) -> Config:
    """A sound student of the weights that come with the project; nothing but their features is learned."""
    teacher = TeacherConfig(name="dinov2_vits14_saliency")
    off = {"weight": 0.0}
    return change(nano, distill={"features": (teacher,)}, dino=off, ibot=off, koleo=off, crops={"num_local": 0})


def change(config: Config, **parts) -> Config:
    """change(config, optim={"clip": 1.0}, steps=3): the configuration with some settings replaced, even by bad ones."""
    for name, value in parts.items():
        value = replace(getattr(config, name), **value) if isinstance(value, dict) else value
        config = replace(config, **{name: value})
    return config


def rules(config: Config, level: str | None = None, **options) -> list[str]:
    found = check(config, **{"machine": LAPTOP} | options)
    return [finding.rule for finding in found if level in (None, finding.level)]


# Good runs


def test_sound_runs_are_green(nano, stage2, taught, of_features):
    assert rules(nano) == []
    assert rules(stage2) == []
    assert rules(taught) == []
    assert rules(of_features) == []
    assert worst([]) == "green"
    assert report([]) == f"GREEN  all {len(RULES)} rules are content."


class Millions:
    """Stands for a data set of ten million large photographs."""

    def __len__(self) -> int:
        return 10_000_000

    def read(self, index: int) -> Image.Image:
        return Image.new("RGB", (1600, 1200))

    def name(self, index: int) -> str:
        return f"{index}.jpg"

    def label(self, index: int) -> str | None:
        return None


WORLDS = {
    "vitl": 32,
    "vitl_imagenet1k": 32,
    "vit7b_pretrain": 256,
    "vit7b_paper": 256,
    "vit7b_gram": 256,
    "vit7b_highres": 256,
}


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_no_recipe_is_red_where_its_inputs_are(name, tmp_path, monkeypatch):
    config = with_data(recipe(name), ["photographs"]) if name in WORLDS else recipe(name)
    if name in WORLDS:  # on as many GPUs as the release used
        monkeypatch.setattr(doctor.case, "open_one", lambda source: Opened(source, Millions()))
    if config.init.student:
        before = recipe(Path(config.init.student).name)
        named = config.gram.teacher.rpartition("@")[2]  # the step that the recipe names, if any
        run = make_run(tmp_path / before.name, before, *{2000, 200_000, *([int(named)] if named.isdecimal() else [])})
        teacher = config.gram.teacher.replace(config.init.student, str(run))
        if teacher and not teacher.startswith(str(run)):  # of a run of its own, before that one
            early = recipe(Path(teacher).name)
            teacher = str(make_run(tmp_path / early.name, early, 200_000))
        config = change(config, init={"student": str(run)}, gram={"teacher": teacher})
    machine = CLUSTER if name in WORLDS else LAPTOP
    assert rules(config, "red", machine=machine, world=WORLDS.get(name, 1)) == []


def test_the_high_resolution_stage_may_share_its_teacher(tmp_path, photos):
    run = make_run(tmp_path / "gram", recipe("nano_gram"), 2000)
    config = with_data(recipe("nano_highres"), [str(photos)])
    config = change(config, init={"student": str(run)}, gram={"teacher": str(run)})
    assert "gram-teacher-is-init" not in rules(config)


# Broken runs: the rule that must speak, and what is wrong


def late(**gram):
    return {"teacher": "", "weight": constant(1.0), **gram}


BROKEN = [
    ("gram-teacher-missing", "stage2", {"gram": {"teacher": ""}}),
    ("gram-teacher-not-found", "stage2", {"gram": {"teacher": "runs/nowhere@5"}}),
    ("gram-teacher-random", "stage2", {"gram": late(load_ema_at=500)}),
    ("gram-teacher-random", "stage2", {"gram": late(load_ema_at=5000)}),  # beyond the run
    ("gram-two-teachers", "stage2", {"gram": {"load_ema_at": 5}}),
    ("gram-stage-order", "stage2", {"init": {"student": ""}}),
    ("gram-never-refreshed", "stage2", {"gram": {"refresh_every": 5000}}),
    ("gram-never-refreshed", "stage2", {"gram": {"refresh_first": 50_000}}),
    ("gram-weight-zero", "stage2", {"gram": {"weight": constant(0.0)}}),
    ("gram-not-used", "stage2", {"gram": {"use": False}}),
    ("gram-crop-smaller", "stage2", {"crops": {"sizes": (CropSizes(global_size=64, local_size=32, gram_size=32),)}}),
    ("gram-crop-ratio", "stage2", {"crops": {"sizes": (CropSizes(global_size=48, local_size=32, gram_size=64),)}}),
    ("gram-crop-ratio", "stage2", {"crops": {"sizes": (CropSizes(global_size=64, local_size=32, gram_size=64),)}}),
    ("gram-distorted", "stage2", {"crops": {"gram_distorted": True}}),
    ("gram-images-small", "stage2", {"crops": {"sizes": (CropSizes(global_size=96, local_size=32, gram_size=192),)}}),
    ("gram-batch-level", "stage2", {"gram": {"level": "batch"}}),
    ("init-not-found", "nano", {"init": {"student": "dinov3_of_nobody"}}),
    ("init-narrow", "nano", {"init": {"narrow": "dinov3_of_nobody"}}),
    ("init-narrow", "nano", {"init": {"narrow": "dinov2_vits14_saliency"}}),  # 12 blocks for 6
    ("init-missing-at-high-resolution", "nano", {"crops": {"sizes": (CropSizes(probability=0.5),) * 2}}),
    ("teacher-not-found", "nano", {"distill": {"teacher": "runs/nowhere"}}),
    ("teacher-not-found", "of_features", {"distill": {"features": (TeacherConfig(name="runs/nowhere"),)}}),
    ("teacher-no-prototypes", "nano", {"distill": {"teacher": "dinov2_vits14_saliency"}}),
    ("teacher-other-prototypes", "taught", {"ibot": {"head": HeadConfig(prototypes=64)}}),
    ("teacher-chunks", "taught", {"distill": {"chunk": 5}}),
    ("teacher-cells", "taught", {"distill": {"student_scale": 3.0}}),
    ("teacher-scale-alone", "nano", {"distill": {"student_scale": 2.0}}),
    ("teacher-warms-up", "taught", {"optim": {"freeze_last_layer": 2000}}),
    ("loss-weights", "of_features", {"distill": {"features": ()}}),
    ("loss-weights", "of_features", {"distill": {"features": (TeacherConfig(name="x", cls=-1.0),)}}),
    ("arch-unknown", "nano", {"model": {"arch": "vit_enormous"}}),
    ("arch-unknown", "nano", {"model": {"arch": "convnext_tiny", "num_registers": 4}}),
    ("crop-not-of-patches", "nano", {"crops": {"sizes": (CropSizes(global_size=64, local_size=36),)}}),
    ("crop-not-of-patches", "nano", {"model": {"patch_size": 16}, "crops": {"sizes": (CropSizes(local_size=168),)}}),
    ("crop-local-not-smaller", "nano", {"crops": {"sizes": (CropSizes(global_size=64, local_size=64),)}}),
    ("crop-local-not-smaller", "nano", {"crops": {"local_scale": (0.05, 0.5)}}),
    ("crop-no-local", "nano", {"crops": {"num_local": 0}}),
    ("crop-shares", "nano", {"crops": {"flip": 1.5}}),
    ("crop-shares", "nano", {"crops": {"global_scale": (0.9, 0.5)}}),
    ("crop-shares", "nano", {"model": {"drop_path": 1.0}}),
    ("mask-nothing", "nano", {"ibot": {"mask_ratio": (0.0, 0.01)}}),
    ("mask-nothing", "nano", {"ibot": {"masked_crops": 0.0}}),
    ("mask-everything", "nano", {"ibot": {"mask_ratio": (0.5, 1.0)}}),
    ("mask-convnext", "nano", {"model": {"arch": "convnext_tiny", "layer_scale": 1e-6}}),
    ("batch-accumulate", "nano", {"parallel": {"accumulate": 5}}),
    ("batch-accumulate", "nano", {"parallel": {"accumulate": 0}}),
    ("koleo-alone", "nano", {"data": {"batch_size": 1}}),
    ("koleo-alone", "nano", {"parallel": {"accumulate": 32}}),
    ("koleo-alone", "nano", {"koleo": {"topk": 32}}),
    ("koleo-group", "nano", {"koleo": {"group": 12}}),
    ("koleo-group", "nano", {"koleo": {"group": 64}}),
    ("loss-weights", "nano", {"koleo": {"weight": -0.1}}),
    ("loss-weights", "nano", {"dino": {"weight": 0.0}, "ibot": {"weight": 0.0}}),
    ("loss-off", "nano", {"koleo": {"weight": 0.0}}),
    ("student-temperature", "nano", {"ibot": {"student_temp": 0.0}}),
    ("lr-positive", "nano", {"optim": {"lr": constant(0.0)}}),
    ("lr-positive", "nano", {"optim": {"lr": Schedule(start=1e-3, peak=1e-3, end=-1e-3, cosine=None)}}),
    ("lr-unusual", "nano", {"optim": {"lr": constant(0.1)}}),
    ("lr-unusual", "nano", {"optim": {"scaling": "linear_256", "lr": constant(1e-6)}}),
    ("warmup-too-long", "nano", {"steps": 100}),
    ("schedule-too-long", "nano", {"optim": {"weight_decay": Schedule(start=0.04, peak=0.04, end=0.2, cosine=20_000)}}),
    ("teacher-temperature", "nano", {"optim": {"teacher_temp": constant(0.0)}}),
    ("teacher-temperature-unusual", "nano", {"optim": {"teacher_temp": constant(0.2)}}),
    ("momentum-range", "nano", {"optim": {"momentum": constant(1.004)}}),
    ("momentum-unusual", "nano", {"optim": {"momentum": constant(0.5)}}),
    ("teacher-never-moves", "nano", {"optim": {"momentum": constant(1.0)}}),
    ("last-layer-frozen", "nano", {"optim": {"freeze_last_layer": 10_000}}),
    ("optimizer-range", "nano", {"optim": {"betas": (0.9, 1.0)}}),
    ("optimizer-range", "nano", {"optim": {"layer_decay": 0.0}}),
    ("optimizer-range", "nano", {"optim": {"weight_decay": constant(-0.04)}}),
    ("source-none", "nano", {"data": {"sources": ()}}),
    ("source-unreadable", "nano", {"data": {"sources": (SourceConfig(path="no/such/folder"),)}}),
    ("source-unreadable", "nano", {"data": {"sources": (SourceConfig(path="tiny", kind="webdataset"),)}}),
    ("source-too-small", "nano", {"data": {"batch_size": 64}}),
    ("source-shares", "nano", {"data": {"sources": (SourceConfig(path="tiny", weight=0.0),)}}),
    ("source-shares", "nano", {"data": {"sources": (SourceConfig(path="tiny", weight=-1.0),)}}),
    ("images-small", "nano", {"crops": {"sizes": (CropSizes(global_size=512, local_size=96),)}}),
    ("interval-beyond-run", "nano", {"run": {"keep_every": 50_000}}),
    ("checkpoint-never", "nano", {"run": {"checkpoint_every": 0}}),
    ("checkpoint-keep", "nano", {"run": {"keep": 0}}),
    ("masks-missing", "nano", {"run": {"masks": "nowhere"}}),
    ("masks-never", "nano", {"run": {"masks": "pets", "evaluate_every": 0}}),
    ("probe-none", "nano", {"run": {"probe_every": 100, "probes": 0}}),
    ("export-never", "nano", {"run": {"export_every": 0}}),
    ("fp8-hardware", "nano", {"parallel": {"fp8": True, "precision": "bf16"}}),
    ("fp8-precision", "nano", {"parallel": {"fp8": True}}),
    ("fp8-widths", "nano", {"parallel": {"fp8": True}, "model": {"arch": "convnext_tiny", "layer_scale": 1e-6}}),
    ("bf16-on-cpu", "nano", {"parallel": {"precision": "bf16"}}),
    ("compile-on-cpu", "nano", {"parallel": {"compile": True}}),
    ("workers", "nano", {"data": {"workers": 10}}),
    ("memory", "nano", {"model": {"arch": "vit_7b"}}),
    ("memory-tight", "nano", {"model": {"arch": "vit_large"}, "crops": {"sizes": (CropSizes(),)}}),
    ("disk-space", "nano", {"dino": {"head": HeadConfig(prototypes=10**8)}}),
    ("disk-space-later", "nano", {"run": {"keep_every": 1, "export_every": 1}}),
]
ELSEWHERE = {  # rules that need more than another configuration: each has a test below
    "batch-world",
    "evaluate-no-labels",
    "gram-follow-ema",
    "gram-teacher-architecture",
    "gram-teacher-is-init",
    "images-broken",
    "init-architecture",
    "init-heads",
    "init-no-heads",
    "init-warms-up-again",
    "logger-missing",
    "run-broken-images",
    "run-export-broken",
    "run-finished",
    "run-half-checkpoint",
    "run-not-finite",
    "run-not-learning",
}


@pytest.mark.parametrize(("rule", "base", "parts"), BROKEN, ids=[f"{i}-{b[0]}" for i, b in enumerate(BROKEN)])
def test_a_broken_run_is_caught_by_its_rule(rule, base, parts, request):
    config = change(request.getfixturevalue(base), **parts)
    found = check(config, machine=LAPTOP)
    finding = next((finding for finding in found if finding.rule == rule), None)
    assert finding, f"{rule} is silent; heard: {[finding.rule for finding in found]}"
    assert finding.level == RULES[rule][0]
    assert finding.found and finding.do and finding.why.endswith((".", ".)"))


def test_there_is_a_broken_run_for_every_rule():
    assert len(BROKEN) >= 25
    assert {rule for rule, _, _ in BROKEN} | ELSEWHERE == set(RULES)


def test_batches_that_do_not_divide_among_processes_are_red(nano):
    assert "batch-world" in rules(nano, "red", world=3)
    assert "koleo-alone" in rules(nano, "red", world=32)
    assert rules(nano, "red", world=2) == []


def test_groups_across_processes_must_hold_whole_ones(nano):
    assert "koleo-group" not in rules(change(nano, koleo={"group": 16}), world=4)
    assert "koleo-group" in rules(change(nano, koleo={"group": 12}), world=4)
    assert "koleo-group" in rules(change(nano, koleo={"group": 24}), world=4)


@pytest.mark.parametrize("extra", [{"teacher": "x"}, {"load_ema_at": 3}, {"refresh_every": 9}])
def test_an_ema_gram_teacher_cannot_be_loaded_or_refreshed(nano, extra):
    config = replace(nano, gram=GramConfig(use=True, follow_ema=True))
    assert "gram-follow-ema" not in rules(config)
    assert "gram-follow-ema" in rules(change(config, gram=extra), "red")


def test_weights_of_another_network_are_named(nano, stage2, tmp_path):
    other = make_run(tmp_path / "other", change(nano, model={"arch": "vit_tiny"}), 7)
    config = change(stage2, init={"student": str(other)}, gram={"teacher": f"{other}@7"})
    found = {finding.rule: finding for finding in check(config, machine=LAPTOP)}
    assert {"init-architecture", "gram-teacher-architecture"} <= set(found)
    assert "cls_token (1, 1, 192) there and (1, 1, 128) here" in found["init-architecture"].found
    assert "and" in found["init-architecture"].found and "more" in found["init-architecture"].found


def test_a_missing_step_is_answered_with_the_steps_there_are(stage2):
    run = stage2.init.student
    found = check(change(stage2, gram={"teacher": f"{run}@3"}), machine=LAPTOP)
    assert "has no teacher of step 3; there are: 2000, 10000" in found[0].found


def test_the_newest_teacher_as_gram_teacher_is_amber(stage2):
    run = stage2.init.student
    for teacher in (run, f"{run}@10000", f"{run}/teacher/10000.safetensors"):
        assert "gram-teacher-is-init" in rules(change(stage2, gram={"teacher": teacher}), "amber")


def test_heads_of_another_size_are_red_unless_left_out(stage2):
    wider = change(stage2, dino={"head": replace(stage2.dino.head, prototypes=8192)})
    assert rules(wider, "red") == ["init-heads"]
    assert rules(change(stage2, ibot={"head": replace(stage2.ibot.head, hidden=256)}), "red") == ["init-heads"]
    assert "init-heads" not in rules(change(wider, init={"heads": False}))


def test_weights_without_heads_are_amber(nano, tmp_path):
    from core.models import build_backbone
    from core.models.weights import save_backbone

    path = save_backbone(build_backbone("vit_nano", **nano.model.overrides()), tmp_path / "backbone.safetensors")
    config = change(nano, init={"student": str(path)})
    assert rules(config) == ["init-no-heads"]
    assert rules(change(config, init={"heads": False})) == []


def test_weights_by_name_are_called_by_it_where_heads_are_missed_and_only_there():
    named = replace(recipe("embedded"), init=InitConfig(student="gramscope_vitt16"))
    assert not {"init-no-heads", "crop-local-not-smaller"} & set(rules(named))  # features alone, no local crops
    config = change(named, dino={"weight": 1.0})
    finding = next(each for each in check(config, machine=LAPTOP) if each.rule == "init-no-heads")
    assert finding.found.startswith("gramscope_vitt16 holds no heads")


def test_published_names_are_no_missing_files(nano):
    assert "init-not-found" not in rules(change(nano, init={"student": "dinov2_vits14"}))


def test_what_training_itself_writes_is_understood(nano, tmp_path):
    """Against the writer itself, not a stand-in: an export, and a checkpoint without one."""
    import torch

    from core.checkpoint import Checkpoints, export_teacher
    from core.distill import build

    run = make_run(tmp_path / "run", nano)
    model = build(nano)
    export_teacher(model, run / "teacher" / "5.safetensors")
    Checkpoints(run / "checkpoints", keep=2).save(9, model, torch.optim.SGD(model.student.parameters()))
    for spec in (f"{run}@5", f"{run}@9", str(run)):
        config = change(nano, init={"student": spec}, optim={"freeze_last_layer": 0, "teacher_temp": constant(0.07)})
        assert rules(config) == [], spec
        assert rules(change(config, model={"arch": "vit_tiny"}), "red") == ["init-architecture"], spec


def test_a_cut_off_export_is_red(stage2):
    path = Path(stage2.init.student) / "teacher" / "10000.safetensors"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    found = check(stage2, machine=LAPTOP)
    assert [finding.rule for finding in found] == ["init-not-found"]
    assert "is cut off" in found[0].found
    path.write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"is no \.safetensors file, or cut off: 2 bytes"):
        read_shapes(path)


def test_continued_heads_need_no_second_warm_up(stage2):
    assert "init-warms-up-again" in rules(change(stage2, optim={"freeze_last_layer": 100}))
    assert "init-warms-up-again" in rules(change(stage2, optim={"teacher_temp": recipe("smoke").optim.teacher_temp}))


def test_broken_images_are_counted_and_one_is_named(nano, tmp_path):
    for index in range(40):
        Image.new("RGB", (128, 128)).save(tmp_path / f"{index}.png")
    (tmp_path / "0.png").write_bytes(b"not a picture")
    config = with_data(change(nano, run={"evaluate_every": 0}), [str(tmp_path)])
    found = check(config, machine=LAPTOP)
    assert [finding.rule for finding in found] == ["images-broken"]
    assert "0.png" in found[0].found


def test_evaluation_needs_labels_and_a_validation_split(nano, tmp_path):
    for index in range(40):
        Image.new("RGB", (128, 128)).save(tmp_path / f"{index}.png")
    config = with_data(nano, [str(tmp_path)])
    assert rules(config) == ["evaluate-no-labels"]
    assert rules(change(config, run={"evaluate_every": 0})) == []


def test_a_logger_that_is_not_installed_is_red(nano, monkeypatch):
    from core.doctor import run

    config = change(nano, run={"tensorboard": True})
    assert rules(config) == []
    monkeypatch.setattr(run, "find_spec", lambda name: None)
    assert rules(config, "red") == ["logger-missing"]


def test_machines_are_judged_by_what_they_have(nano):
    seven = change(recipe("vit7b_pretrain"), data=nano.data, koleo={"group": None})
    assert "fp8-hardware" not in rules(seven, machine=CLUSTER)
    old = replace(CLUSTER, gpus=(Gpu("Tesla V100", 32.0, 7.0),))
    assert "fp8-hardware" in rules(seven, "red", machine=old)
    assert "memory" in rules(seven, "red", machine=CLUSTER)
    assert "memory" not in rules(seven, machine=CLUSTER, world=16)
    assert "disk-space" in rules(seven, "red", machine=LAPTOP)


def test_checkpoint_size_is_that_of_what_is_written(nano, tmp_path):
    import torch

    from core.checkpoint import Checkpoints
    from core.distill import build
    from core.doctor.machine import checkpoint_gib
    from core.optimizer import build_optimizer

    model = build(nano)
    optimizer = build_optimizer(model.student, betas=(0.9, 0.99), layer_decay=1.0, patch_embed_lr=1.0)
    for parameter in model.student.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    path = Checkpoints(tmp_path / "checkpoints", keep=1).save(1, model, optimizer)
    written = sum(file.stat().st_size for file in path.iterdir()) / 2**30
    assert checkpoint_gib(Case(nano, 1, None, LAPTOP)) == pytest.approx(written, rel=0.03)


# Runs that exist


def test_a_fresh_run_folder_is_as_good_as_its_configuration(nano, tmp_path):
    assert rules(nano, folder=create(nano, tmp_path / "run")) == []
    assert rules(nano, folder=tmp_path / "not yet") == []


def test_what_a_run_left_behind_is_reported(nano, tmp_path):
    run = create(nano, tmp_path / "run")
    (run / "checkpoints" / "10000").mkdir(parents=True)
    (run / "checkpoints" / "10000" / ".metadata").touch()
    (run / "checkpoints" / ".10250.partial").mkdir()
    (run / "nonfinite" / "123").mkdir(parents=True)
    (run / "broken.txt").write_text("a.jpg: truncated\nb.jpg: empty\na.jpg: truncated\n")
    (run / "teacher").mkdir()
    (run / "teacher" / "9000.safetensors").write_bytes(b"half")
    found = {finding.rule: finding.found for finding in check(nano, folder=run, machine=LAPTOP)}
    assert found["run-finished"] == "all 10000 steps are done"
    assert ".10250.partial" in found["run-half-checkpoint"]
    assert found["run-not-finite"] == "the loss was not finite at step 123"
    assert found["run-broken-images"] == "2 images could not be read"
    assert "9000.safetensors" in found["run-export-broken"]


def test_a_loss_that_stays_at_chance_is_reported(nano, tmp_path):
    run = create(nano, tmp_path / "run")
    chance = math.log(nano.dino.head.prototypes)

    def write(loss):
        lines = [json.dumps({"step": step, "dino_global": loss}) for step in range(0, 5000, 10)]
        (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")

    write(chance - 0.01)
    assert rules(nano, folder=run) == ["run-not-learning"]
    write(chance - 1)
    assert rules(nano, folder=run) == []


# The answer


def test_the_report_says_levels_in_words_and_red_first(nano):
    config = change(nano, data={"sources": ()}, run={"evaluate_every": 0}, parallel={"compile": True})
    found = check(config, machine=LAPTOP)
    text = report(found)
    assert text.startswith("RED    source-none: no images")
    assert "\n\nAMBER  compile-on-cpu: " in text
    assert f"1 red, 1 amber, {len(RULES) - 2} of {len(RULES)} rules are content." in text
    assert "Do: name a folder" in text and "Why: Recipes do not know" in text
    assert "\x1b" not in text and max(map(len, text.splitlines())) <= 100
    assert worst(found) == "red"
    assert worst(found[1:]) == "amber"


def test_every_rule_explains_itself():
    for name, (_, rule) in RULES.items():
        assert len(" ".join(rule.__doc__.split())) > 40, name
    assert len(RULES) == len({rule for _, rule in RULES.values()}) >= 25


def test_doctor_looks_things_up_once(nano, monkeypatch):
    opened = []
    original = doctor.case.open_one
    monkeypatch.setattr(doctor.case, "open_one", lambda config: opened.append(config) or original(config))
    check(nano, machine=LAPTOP)
    assert len(opened) == 1


def test_this_machine_is_described():
    here = Machine.here()
    assert here.cpus >= 1 and here.memory_gib > 0.5 and here.disk_free_gib > 0


@pytest.mark.long
def test_rules_do_not_draw_on_the_random_numbers_of_the_run():
    code = (
        "import torch; torch.manual_seed(0); before = torch.get_rng_state()\n"
        "from core.doctor import check; from core.recipes import recipe; check(recipe('smoke'))\n"
        "assert torch.equal(before, torch.get_rng_state())"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
