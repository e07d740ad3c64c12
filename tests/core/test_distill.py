"""One whole step against the reference's, and what a step must and must not do."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.testing import assert_close

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
)
from core.data.batch import Batch
from core.distill import SelfDistillation, build, gram_teacher_due, split
from core.models import build_backbone
from core.models.head import ProjectionHead
from core.schedules import Rates, constant

RATES = Rates(
    lr=1e-3,
    last_layer_lr=1e-3,
    weight_decay=0.04,
    momentum=0.99,
    teacher_temp=0.05,
    local_weight=1.0,
    gram_weight=2.0,
)
TERMS = {
    "dino_local": "dino_local_crops_loss",
    "dino_global": "dino_global_crops_loss",
    "ibot": "ibot_loss",
    "koleo": "koleo_loss",
    "gram": "gram_loss",
}


def golden_step(shared) -> tuple[SelfDistillation, Batch, dict[str, torch.Tensor]]:
    """The reference's networks and batch."""
    with safe_open(shared / "golden" / "ssl_step.safetensors", framework="pt") as file:
        told = json.loads(file.metadata()["config"])
        g = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dictionary
    backbone = build_backbone(
        "vit_nano",
        embed_dim=told["embed_dim"],
        depth=told["depth"],
        num_heads=told["num_heads"],
        patch_size=told["patch_size"],
        num_registers=told["n_storage_tokens"],
        norm_eps=told["norm_eps"],
        mask_k_bias=told["mask_k_bias"],
        untie_global_and_local_cls_norm=told["untie_global_and_local_cls_norm"],
    )
    student = nn.ModuleDict(
        {
            "backbone": backbone,
            "dino_head": ProjectionHead(64, 96, hidden=64, bottleneck=24),
            "ibot_head": ProjectionHead(64, 64, hidden=64, bottleneck=24),
        }
    )
    size = CropSizes(global_size=64, local_size=32, gram_size=128)
    config = Config(
        crops=CropsConfig(sizes=(size,), num_local=6), gram=GramConfig(use=True), data=DataConfig(batch_size=4)
    )
    model = SelfDistillation(config, student, build_backbone("vit_nano", **backbone.arguments))
    for module, prefix in ((model.student, "student."), (model.teacher, "teacher.")):
        module.load_state_dict({k.removeprefix(prefix): v for k, v in g.items() if k.startswith(prefix)})
    # The file holds the teacher as it was after the EMA (its `teacher.*` equal its `ema.*`); the losses were computed
    # with the one before, which follows from it and the student in double precision.
    with torch.no_grad():
        for after, student_parameter in zip(model.teacher.parameters(), student.parameters(), strict=True):
            after.copy_((after.double() - 0.01 * student_parameter.double()) / 0.99)
    gram_state = {k.removeprefix("gram_teacher."): v for k, v in g.items() if k.startswith("gram_teacher.")}
    model.gram_teacher.load_state_dict({k.removeprefix("backbone."): v for k, v in gram_state.items()})
    return model.train(), Batch(g["global_crops"], g["local_crops"], g["gram_crops"], g["masks"]), g


def test_the_whole_step_is_the_golden_one(shared):
    model, batch, g = golden_step(shared)
    total, terms = model(*model.look(batch, RATES), RATES)
    for ours, theirs in TERMS.items():
        assert_close(terms[ours], g[f"loss.{theirs}"], atol=1e-5, rtol=0, msg=ours)
    assert_close(total, g["total"], atol=1e-5, rtol=0)

    total.backward()
    gradients = {name: p.grad for name, p in model.student.named_parameters()}
    expected = {name.removeprefix("grad."): value for name, value in g.items() if name.startswith("grad.")}
    assert set(expected) == set(gradients)
    for name, value in expected.items():
        scale = value.abs().max()
        assert_close(gradients[name], value, atol=float(1e-4 * scale), rtol=0, msg=name)

    model.follow(0.99)
    teacher = dict(model.teacher.named_parameters())
    after = {name.removeprefix("ema."): value for name, value in g.items() if name.startswith("ema.")}
    assert after
    for name, value in after.items():
        assert_close(teacher[name], value, atol=1e-6, rtol=0, msg=name)


# A tiny model of our own, for everything that needs no reference

HEAD = HeadConfig(prototypes=32, hidden=16, bottleneck=8)


def tiny(**changes) -> Config:
    config = Config(
        steps=100,
        model=ModelConfig(arch="vit_nano", patch_size=8, drop_path=0.0),
        dino=DinoConfig(head=HEAD),
        ibot=IbotConfig(head=HEAD),
        crops=CropsConfig(sizes=(CropSizes(global_size=32, local_size=16),), num_local=3),
        data=DataConfig(batch_size=4),
    )
    return replace(config, **changes)


GRAM = {
    "gram": GramConfig(use=True),
    "crops": CropsConfig(sizes=(CropSizes(global_size=32, local_size=16, gram_size=64),), num_local=3),
}


def a_batch(images: int = 4, *, gram: bool = False) -> Batch:
    draw = torch.Generator().manual_seed(7)
    masks = torch.zeros(2 * images, 16, dtype=torch.bool)
    for crop, count in enumerate([3, 0, 5, 0, 2, 8, 0, 1][: 2 * images]):
        masks[crop, torch.randperm(16, generator=draw)[:count]] = True
    return Batch(
        torch.randn(2 * images, 3, 32, 32, generator=draw),
        torch.randn(3 * images, 3, 16, 16, generator=draw),
        torch.randn(2 * images, 3, 64, 64, generator=draw) if gram else None,
        masks,
    )


def tiny_model(**changes) -> SelfDistillation:
    torch.manual_seed(0)
    model = build(tiny(**changes))
    with torch.no_grad():  # a student that is not its teacher, and layer scales at which blocks count
        for name, parameter in model.student.named_parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05 if "gamma" not in name else 0.5)
    return model


def gradients(model: SelfDistillation) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.student.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def test_every_student_parameter_learns_and_no_teacher_does():
    model = tiny_model(**GRAM)
    batch = a_batch(gram=True)
    model(*model.look(batch, RATES), RATES)[0].backward()
    idle = [name for name, p in model.student.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []
    assert all(p.grad is None for p in model.teacher.parameters())
    assert all(p.grad is None for p in model.gram_teacher.parameters())


def test_teachers_stay_in_evaluation_mode():
    model = tiny_model(**GRAM).train()
    assert model.student.training
    assert not model.teacher.training and not model.teacher["backbone"].training
    assert not model.gram_teacher.training


def test_the_teacher_never_sees_masks_or_local_crops():
    model = tiny_model()
    batch = a_batch()
    other = replace(batch, local_crops=torch.zeros_like(batch.local_crops))
    assert torch.equal(model.look(batch, RATES)[1].cls, model.look(other, RATES)[1].cls)


def test_the_student_does_not_see_what_is_masked():
    """Changing pixels under masks changes the targets, not the student."""
    model = tiny_model()
    batch = a_batch()
    _, targets = model.look(batch, RATES)
    hidden = batch.masks.unflatten(1, (4, 4)).repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None]
    other = replace(batch, global_crops=torch.where(hidden, torch.tensor(3.0), batch.global_crops))
    assert_close(model(batch, targets, RATES)[0], model(other, targets, RATES)[0])


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_gradients_are_those_of_the_whole_batch(parts):
    """KoLeo apart, which looks for neighbours within a part: here its groups are as large as one."""
    koleo = replace(Config().koleo, group=2, weight=0.1 if parts == 2 else 0.0)
    model = tiny_model(**GRAM, koleo=koleo)
    batch = a_batch(gram=True)
    _, targets = model.look(batch, RATES)
    if parts == 4:
        model.config = replace(model.config, koleo=replace(koleo, group=2, weight=0.0))
        with pytest.raises(ValueError, match="KoLeo"):
            model(*split(batch, targets, parts)[0], RATES)
        return
    total, _ = model(batch, targets, RATES)
    total.backward()
    whole = gradients(model)
    pieces = split(batch, targets, parts)
    losses = []
    for piece, seen in pieces:
        part, _ = model(piece, seen, RATES)
        (part / parts).backward()
        losses.append(part.detach())
    assert_close(torch.stack(losses).mean(), total.detach())
    for name, value in gradients(model).items():
        assert_close(value, whole[name], atol=float(2e-5 * whole[name].abs().max()), rtol=0, msg=name)


def test_a_batch_that_does_not_split_says_so():
    model = tiny_model()
    batch = a_batch()
    with pytest.raises(ValueError, match="do not make 3 equal parts"):
        split(*model.look(batch, RATES), 3)


def test_following_with_momentum_zero_copies_and_with_one_stays():
    model = tiny_model()
    before = {name: p.clone() for name, p in model.teacher.named_parameters()}
    model.follow(1.0)
    assert all(torch.equal(p, before[name]) for name, p in model.teacher.named_parameters())
    model.follow(0.0)
    student = dict(model.student.named_parameters())
    assert all(torch.equal(p, student[name]) for name, p in model.teacher.named_parameters())


def test_masked_and_unmasked_gram_losses_see_their_tokens_only():
    for tokens in ("masked", "unmasked"):
        gram = GramConfig(use=True, level="batch", tokens=tokens)
        model = tiny_model(**GRAM | {"gram": gram})
        batch = a_batch(gram=True)
        student, teacher = torch.randn(8, 16, 6), torch.randn(8, 16, 6)
        chosen = batch.masks if tokens == "masked" else ~batch.masks
        x, y = (nn.functional.normalize(t[chosen], dim=-1) for t in (student, teacher))
        expected = (x @ x.T - y @ y.T).pow(2).mean()
        assert_close(model.gram_loss(student, teacher, batch), expected)


def test_the_ema_teacher_can_be_the_gram_teacher():
    model = tiny_model(gram=GramConfig(use=True, follow_ema=True))
    assert model.gram_teacher is None
    batch = a_batch()
    _, terms = model(*model.look(batch, RATES), RATES)
    assert terms["gram"] > 0


# When the Gram teacher is refreshed


def released(steps: int, first: int, every: int, most: int | None) -> list[int]:
    """The released loop, told with its counter: the copy is made after step it, so before step it + 1."""
    made, before = 0, []
    for it in range(steps):
        if it + 1 >= first and (it + 1) % every == 0 and (most is None or made < most):
            made += 1
            before.append(it + 1)
    return before


@pytest.mark.parametrize("first", [0, 1, 20, 25])
@pytest.mark.parametrize("most", [None, 0, 1, 3])
def test_refreshes_need_no_counter(first, most):
    gram = GramConfig(use=True, refresh_every=10, refresh_first=first, refresh_max=most)
    config = tiny(**GRAM | {"gram": gram})
    assert [step for step in range(101) if gram_teacher_due(step, config)] == released(100, first, 10, most)


def test_refreshing_copies_the_ema_teacher():
    model = tiny_model(**GRAM | {"gram": GramConfig(use=True, load_ema_at=3)})
    model.follow(0.5)
    assert not model.prepare_gram_teacher(2)
    assert model.prepare_gram_teacher(3)
    teacher = dict(model.teacher["backbone"].named_parameters())
    assert all(torch.equal(p, teacher[name]) for name, p in model.gram_teacher.named_parameters())


def test_the_gram_teacher_is_another_network_than_the_student():
    model = tiny_model(**GRAM | {"gram": GramConfig(use=True, weight=constant(1.0))})
    shared = {p.data_ptr() for p in model.student.parameters()} & {
        p.data_ptr() for p in model.gram_teacher.parameters()
    }
    assert not shared
