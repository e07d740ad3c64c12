"""Students of frozen teachers: through a run's prototypes, through features, and both beside self-distillation."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from core.checkpoint import load_teacher
from core.config import (
    Config,
    CropsConfig,
    CropSizes,
    DinoConfig,
    DistillConfig,
    HeadConfig,
    IbotConfig,
    KoleoConfig,
    ModelConfig,
    TeacherConfig,
)
from core.data.batch import Batch
from core.distill import build, split
from core.models import build_backbone
from core.models.weights import save_backbone
from core.schedules import Rates
from core.taught import TaughtStudent, load_prototypes
from core.teachers import FrozenTeacher, Seen, averaged, coverage, load_frozen, see_grid

ROOT = Path(__file__).parents[2]
HEAD = HeadConfig(prototypes=32, hidden=16, bottleneck=8)
RATES = Rates(
    lr=1e-3, last_layer_lr=1e-3, weight_decay=0.0, momentum=0.9, teacher_temp=0.05, local_weight=1.0, gram_weight=0.0
)
BASE = Config(
    model=ModelConfig(arch="vit_nano", patch_size=8, drop_path=0.0, layer_scale=0.5),
    dino=DinoConfig(head=HEAD),
    ibot=IbotConfig(head=HEAD),
    koleo=KoleoConfig(weight=0.1),
    crops=CropsConfig(sizes=(CropSizes(global_size=32, local_size=16),), num_local=3),
)
IMAGES = 8


def a_batch(side: int = 32, cells: int = 16, local: int = 16) -> Batch:
    draw = torch.Generator().manual_seed(1)
    masks = torch.zeros(2 * IMAGES, cells, dtype=torch.bool)
    for crop in range(0, 2 * IMAGES, 2):
        masks[crop, torch.randperm(cells, generator=draw)[: 2 + crop % 5]] = True
    crops = [torch.randn(n * IMAGES, 3, s, s, generator=draw) for n, s in ((2, side), (3, local))]
    return Batch(crops[0], crops[1], None, masks)


def spread(module: torch.nn.Module, seed: int = 0) -> None:
    """Weights far enough from their initialisation that outputs differ."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> str:
    """Weights of a teacher with heads, as a run exports them."""
    teacher = build(BASE).student
    spread(teacher, seed=7)
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    heads = {name: module.state_dict() for name, module in teacher.items() if name != "backbone"}
    save_backbone(teacher["backbone"], path, heads=heads)
    return str(path)


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory) -> str:
    """Weights with patches of 14 px and no heads."""
    backbone = build_backbone("dinov2_small", depth=2, embed_dim=64, num_heads=2)
    spread(backbone, seed=3)
    return str(save_backbone(backbone, tmp_path_factory.mktemp("weights") / "dinov2.safetensors"))


def taught(seed: int = 0, base: Config = BASE, **distill) -> TaughtStudent:
    torch.manual_seed(seed)
    return build(replace(base, distill=DistillConfig(**distill)))


# Prototypes


def test_a_copied_student_has_no_gap(run):
    """On the same unmasked crops its logits are the teacher's to the last bit."""
    model = taught(teacher=run)
    backbone, heads = load_teacher(run)
    model.student["backbone"].load_state_dict(backbone.state_dict())
    for name, state in heads.items():
        model.student[name].load_state_dict(state)
    batch = a_batch()
    chunk = batch.global_crops.unflatten(0, (2, -1))[:, :4].flatten(0, 1)
    seen = model.see(batch, slice(0, 4))
    with torch.no_grad():
        tokens = model.student["backbone"](chunk, is_training=True)
        own = model.student["dino_head"](tokens["x_norm_clstoken"])
        places = model.student["ibot_head"](tokens["x_norm_patchtokens"])
    assert_close(own, model.prototypes.logits("dino_head", seen["dino_head"]), atol=1e-6, rtol=1e-6)
    assert_close(places, model.prototypes.logits("ibot_head", seen["ibot_head"]), atol=1e-6, rtol=1e-6)


def test_the_loss_is_that_of_self_distillation_with_the_runs_teacher_and_no_mask_on_the_student(run):
    """Written out with the parts of self-distillation: the EMA teacher holds the run's weights."""
    batch = a_batch()
    model, plain = taught(teacher=run), build(BASE)
    plain.student.load_state_dict(model.student.state_dict())
    backbone, heads = load_teacher(run)
    plain.teacher["backbone"].load_state_dict(backbone.state_dict())
    for name, state in heads.items():
        plain.teacher[name].load_state_dict(state)
    total, terms = model(*model.look(batch, RATES), RATES)
    _, targets = plain.look(batch, RATES)
    wide, near = plain.student["backbone"]([batch.global_crops, batch.local_crops], [None, None], is_training=True)
    expected, expected_terms = plain.compare(wide, near, batch, targets, RATES)
    assert_close(total, expected, atol=1e-5, rtol=1e-5)
    for name, value in expected_terms.items():
        assert_close(terms[name], value, atol=1e-5, rtol=1e-5, msg=name)


def test_targets_do_not_depend_on_the_size_of_chunks_beyond_rounding(run):
    batch = a_batch()
    targets = [taught(teacher=run, chunk=chunk).look(batch, RATES)[1] for chunk in (1, 2, 8)]
    for other in targets[1:]:
        assert_close(other.cls, targets[0].cls, atol=1e-5, rtol=1e-5)
        assert_close(other.patches, targets[0].patches, atol=1e-5, rtol=1e-5)


def test_the_moving_average_teaches_nobody_and_follows(run):
    model = taught(teacher=run)
    batch = a_batch()
    before = model.look(batch, RATES)[1].cls
    spread(model.student)
    model.follow(0.0)
    assert torch.equal(model.look(batch, RATES)[1].cls, before)
    for name, parameter in model.teacher.named_parameters():
        assert torch.equal(parameter, dict(model.student.named_parameters())[name])


def test_frozen_teachers_are_in_no_checkpoint_and_learn_nothing(run):
    model = taught(teacher=run)
    assert set(model.state_dict()) == {
        f"{part}.{name}" for part in ("student", "teacher") for name in model.student.state_dict()
    }
    total, _ = model(*model.look(a_batch(), RATES), RATES)
    total.backward()
    assert all(p.grad is None and not p.requires_grad for p in model.prototypes.parameters())


def test_a_teacher_without_heads_or_with_other_prototypes_is_refused(run, dinov2):
    with pytest.raises(ValueError, match=r"has no dino_head.*distill\.features"):
        load_prototypes(dinov2, BASE)
    other = replace(BASE, ibot=IbotConfig(head=replace(HEAD, prototypes=64)))
    with pytest.raises(ValueError, match="32 prototypes, the student's is to have 64"):
        load_prototypes(run, other)


def test_a_convnext_sees_the_crops_twice_as_large_and_its_cells_are_the_teachers_patches(run):
    """The released code picks the wrong patches here; ours are those under the mask, wherever they are."""
    base = replace(BASE, model=ModelConfig(arch="convnext_tiny", drop_path=0.0), crops=replace(BASE.crops, num_local=2))
    base = replace(base, crops=replace(base.crops, sizes=(CropSizes(global_size=32, local_size=16),)))
    model = taught(base=base, teacher=run, student_scale=4.0)
    assert model.cell == 8
    batch = a_batch()
    batch = replace(batch, local_crops=batch.local_crops[: 2 * IMAGES])
    shared, targets = model.look(batch, RATES)
    teacher = load_frozen(run)
    with torch.no_grad():
        whole = teacher.see(batch.global_crops).patches.flatten(1, 2)
    places = torch.tensor([[crop, cell] for crop in range(2 * IMAGES) for cell in range(16) if batch.masks[crop, cell]])
    picked = model.prototypes.heads["ibot_head"](whole[places[:, 0], places[:, 1]])
    from core.losses.sinkhorn import sinkhorn_knopp

    assert_close(targets.patches, sinkhorn_knopp(picked, RATES.teacher_temp), atol=1e-5, rtol=1e-4)
    total, terms = model(shared, targets, RATES)
    assert total.isfinite() and set(terms) == {"dino_local", "dino_global", "ibot", "koleo"}


# Features


def test_a_teacher_of_14_px_patches_and_a_student_of_8_have_the_same_grid(dinov2):
    model = taught(features=(TeacherConfig(name=dinov2),), base=quiet(BASE))
    _, targets = model.look(a_batch(), RATES)
    (seen,) = targets.features
    assert seen.cls.shape == (2 * IMAGES, 64) and seen.patches.shape == (2 * IMAGES, 4, 4, 64)


def quiet(base: Config) -> Config:
    """Without the objective of self-distillation."""
    return replace(
        base,
        dino=replace(base.dino, weight=0.0),
        ibot=replace(base.ibot, weight=0.0),
        koleo=replace(base.koleo, weight=0.0),
    )


def test_features_are_learned(dinov2):
    """A few steps on one batch bring the student's tokens to the teacher's."""
    model = taught(features=(TeacherConfig(name=dinov2),), base=quiet(BASE))
    batch = a_batch()
    optimizer = torch.optim.AdamW(model.student.parameters(), lr=2e-3)
    history = []
    for _ in range(30):
        total, terms = model(*model.look(batch, RATES), RATES)
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        history.append({name: float(value.detach()) for name, value in terms.items()})
    assert set(history[0]) == {"dinov2_cls", "dinov2_patches"}
    assert history[-1]["dinov2_patches"] < 0.7 * history[0]["dinov2_patches"]
    assert history[-1]["dinov2_cls"] < 0.5 * history[0]["dinov2_cls"]


def test_features_are_standardised_by_what_was_seen_first(dinov2):
    model = taught(features=(TeacherConfig(name=dinov2),), base=quiet(BASE), settle=1)
    batch = a_batch()
    _, targets = model.look(batch, RATES)
    head, (seen,) = model.student["features"]["dinov2"], targets.features
    flat = head.standardised("patches", seen.patches).flatten(0, 2)
    assert_close(flat.mean(0), torch.zeros(64), atol=1e-4, rtol=0)
    assert_close(flat.std(0, correction=0), torch.ones(64), atol=1e-3, rtol=0)
    kept = head.patches_mean.clone()
    model.look(replace(batch, global_crops=batch.global_crops + 1), RATES)
    assert torch.equal(head.patches_mean, kept)


class Rows(FrozenTeacher):
    """A plain function: a map of the mean colours of 16 px squares."""

    cls_dim, patch_dim, cell = 0, 3, 16
    pixel_mean, pixel_std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    def see(self, pictures: Tensor) -> Seen:
        return Seen(None, torch.nn.functional.avg_pool2d(pictures, 16).permute(0, 2, 3, 1))


def test_any_function_teaches_beside_others_and_coarser_maps_too(dinov2, monkeypatch):
    import core.teachers

    monkeypatch.setitem(core.teachers.TEACHERS, "rows", Rows)
    teachers = (TeacherConfig(name=dinov2, cls=2.0, patches=0.5), TeacherConfig(name="rows", cls=0.0, sees="crop"))
    model = taught(features=teachers, base=quiet(BASE))
    batch = a_batch()
    shared, targets = model.look(batch, RATES)
    assert targets.features[1].patches.shape == (2 * IMAGES, 2, 2, 3)
    mean, std = (torch.tensor(v)[:, None, None] for v in (BASE.data.image_mean, BASE.data.image_std))
    own = torch.nn.functional.avg_pool2d(batch.global_crops * std + mean, 16).permute(0, 2, 3, 1)
    assert_close(targets.features[1].patches, own, atol=1e-5, rtol=1e-5)
    total, terms = model(shared, targets, RATES)
    assert_close(total, 2 * terms["dinov2_cls"] + 0.5 * terms["dinov2_patches"] + terms["rows_patches"])


def test_a_feature_that_a_teacher_has_not_is_refused(monkeypatch):
    import core.teachers

    monkeypatch.setitem(core.teachers.TEACHERS, "rows", Rows)
    with pytest.raises(ValueError, match="rows has no global features; give them weight 0"):
        taught(features=(TeacherConfig(name="rows"),), base=quiet(BASE))


def test_beside_features_the_moving_average_teaches_as_in_self_distillation(dinov2):
    batch = a_batch()
    model, plain = taught(features=(TeacherConfig(name=dinov2),)), build(BASE)
    names = set(plain.student.state_dict())
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if k.partition(".")[2] in names})
    total, terms = model(*model.look(batch, RATES), RATES)
    expected, own = plain(*plain.look(batch, RATES), RATES)
    for name, value in own.items():
        assert torch.equal(terms[name], value), name
    assert_close(total, expected + terms["dinov2_cls"] + terms["dinov2_patches"])


def test_accumulated_gradients_are_those_of_the_whole_batch(dinov2):
    base = replace(BASE, koleo=replace(BASE.koleo, weight=0.0, group=2))
    model = taught(features=(TeacherConfig(name=dinov2),), base=base)
    batch, targets = model.look(a_batch(), RATES)
    model(batch, targets, RATES)[0].backward()
    whole = {name: p.grad.clone() for name, p in model.student.named_parameters() if p.grad is not None}
    model.student.zero_grad()
    for piece, seen in split(batch, targets, 4):
        (model(piece, seen, RATES)[0] / 4).backward()
    for name, parameter in model.student.named_parameters():
        if name in whole:
            assert_close(parameter.grad, whole[name], atol=1e-6 + 1e-5 * float(whole[name].abs().max()), rtol=0)


# Maps of different grids


@pytest.mark.parametrize(("fine", "coarse"), [(4, 2), (7, 3), (16, 5), (5, 5)])
def test_averaging_a_map_is_area_weighted(fine, coarse):
    """Against a loop over a fine subdivision that both grids divide."""
    values = torch.randn(1, fine, fine, 2)
    ours = averaged(values, (coarse, coarse))
    both = values.repeat_interleave(coarse, 1).repeat_interleave(coarse, 2)  # every cell as coarse x coarse points
    slow = both.unflatten(2, (coarse, fine)).unflatten(1, (coarse, fine)).mean((2, 4))
    assert_close(ours, slow, atol=1e-6, rtol=1e-6)
    assert_close(coverage(fine, coarse).sum(1), torch.ones(coarse, dtype=torch.float64))


def test_a_teacher_is_shown_its_own_normalisation_at_the_size_of_the_grid(dinov2):
    teacher = load_frozen(dinov2)
    shown = []

    def see(crops: Tensor) -> Seen:
        shown.append(crops)
        return Seen(None, None)

    teacher.see = see
    see_grid(teacher, torch.randn(2, 3, 32, 32), (4, 4), BASE.data)
    assert shown[0].shape == (2, 3, 56, 56)


# EfficientNet-Lite2


def test_efficientnet_names_what_is_in_a_photograph():
    """Its own classifier on photographs of the project: the weights are read right and pictures reach it right."""
    from PIL import Image

    from core.teachers import EfficientNetLite2

    teacher = load_frozen("efficientnet_lite2")
    assert isinstance(teacher, EfficientNetLite2)
    folder = ROOT / "workbench" / "samples"
    mean, std = (torch.tensor(v)[:, None, None] for v in (teacher.pixel_mean, teacher.pixel_std))
    expected = {"cat_bengal.jpg": range(281, 286), "coffee_cup.jpg": (504, 967, 968)}  # cats; mug, espresso, cup
    for name, classes in expected.items():
        with Image.open(folder / name) as image:
            small = image.convert("RGB").resize((260, 260), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1) / 255
        with torch.no_grad():
            seen = teacher.see(((pixels - mean) / std)[None])
            answer = teacher.net._fc(seen.cls).softmax(-1)[0]
        assert seen.cls.shape == (1, 1280) and seen.patches.shape == (1, 9, 9, 1280)
        assert int(answer.argmax()) in classes, (name, answer.topk(5))
