"""Parameter groups against the reference's, AdamW against its formula."""

import json

import pytest
import torch
from torch import nn

from core.models import build_backbone
from core.models.head import ProjectionHead
from core.optimizer import build_optimizer, multipliers, set_rates
from core.schedules import Rates

RATES = Rates(
    lr=0.1,
    last_layer_lr=0.0,
    weight_decay=0.04,
    momentum=0.99,
    teacher_temp=0.07,
    local_weight=1.0,
    gram_weight=0.0,
)


def backbone(depth: int) -> nn.Module:
    overrides = {"embed_dim": 64, "depth": depth, "num_heads": 4, "patch_size": 8}
    return build_backbone("vit_nano", device="meta", untie_global_and_local_cls_norm=True, **overrides)


def head() -> ProjectionHead:
    with torch.device("meta"):
        return ProjectionHead(8, 16, hidden=8, bottleneck=4)


@pytest.mark.parametrize("name", ["backbone", "dino_head"])
def test_parameter_groups_are_the_golden_ones(shared, name):
    told = json.loads((shared / "golden" / f"param_groups_{name}.json").read_text())
    depth = 1 + max((int(x["name"].split(".")[1]) for x in told if x["name"].startswith("blocks.")), default=0)
    module = backbone(depth) if name == "backbone" else head()
    found = {key: factors for key, _, factors in multipliers(module, layer_decay=0.9, patch_embed_lr=0.2)}
    assert set(found) == {entry["name"] for entry in told}
    for entry in told:
        factors = found[entry["name"]]
        assert factors.lr == entry["lr_multiplier"], entry["name"]
        assert factors.weight_decay == entry["wd_multiplier"], entry["name"]
        assert factors.is_last_layer == entry["is_last_layer"], entry["name"]


def test_small_at_rate_nine_tenths():
    vits = build_backbone("vit_small", device="meta")
    lr = {name: factors.lr for name, _, factors in multipliers(vits, layer_decay=0.9, patch_embed_lr=0.2)}
    assert lr["cls_token"] == pytest.approx(0.254187, abs=1e-6)
    assert lr["patch_embed.proj.weight"] == pytest.approx(0.050837, abs=1e-6)
    assert lr["blocks.0.attn.qkv.weight"] == pytest.approx(0.282430, abs=1e-6)
    assert lr["blocks.11.mlp.fc1.weight"] == pytest.approx(0.9)
    assert lr["norm.weight"] == 1.0


def test_a_convnext_has_no_layer_decay():
    convnext = build_backbone("convnext_tiny", device="meta")
    assert {factors.lr for _, _, factors in multipliers(convnext, layer_decay=0.5, patch_embed_lr=0.2)} == {1.0}


def small_student() -> nn.ModuleDict:
    torch.manual_seed(0)
    part = ProjectionHead(4, 6, hidden=5, bottleneck=3)
    part.init_weights()
    return nn.ModuleDict({"dino_head": part})


def test_every_parameter_is_in_one_group():
    student = small_student()
    optimizer = build_optimizer(student)
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in student.parameters())


def test_frozen_last_layers_stay_and_the_rest_moves_as_adamw_says():
    student = small_student()
    before = {name: parameter.detach().clone() for name, parameter in student.named_parameters()}
    optimizer = build_optimizer(student, betas=(0.9, 0.999))
    for parameter in student.parameters():
        parameter.grad = torch.ones_like(parameter)
    set_rates(optimizer, RATES)
    optimizer.step()
    after = dict(student.named_parameters())
    assert torch.equal(after["dino_head.last_layer.weight"], before["dino_head.last_layer.weight"])
    for name in ("mlp.0.weight", "mlp.0.bias"):
        old = before[f"dino_head.{name}"]
        decayed = old * (1 - 0.1 * 0.04) if name.endswith("weight") else old
        # The first step of Adam moves every weight by lr, whatever its gradient.
        torch.testing.assert_close(after[f"dino_head.{name}"], decayed - 0.1 / (1 + 1e-8))
