"""Packed linear layers give the same features, follow the weights, and leave the backbone alone."""

import pytest
import torch

from core.models import build_backbone
from core.models.inference import ROWS, PackedLinear, can_pack, for_inference


def randomised(name: str, **arguments) -> torch.nn.Module:
    torch.manual_seed(0)
    backbone = build_backbone(name, **arguments)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return backbone.eval()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_nano", {}),
        ("vit_nano", {"ffn": "swiglu", "ffn_dim": 344}),
        ("dinov2_small", {"depth": 2}),
        ("convnext_tiny", {}),
    ],
)
@torch.no_grad()
def test_packed_features_are_the_plain_ones(name, arguments):
    backbone = randomised(name, **arguments)
    assert can_pack(backbone)
    fast = for_inference(backbone)
    assert any(isinstance(module, PackedLinear) for module in fast.modules())
    side = 4 * (backbone.patch_size or 32)
    images = torch.randn(2, 3, side, 2 * side)
    plain = backbone.forward_features(images)
    packed = fast.forward_features(images)
    for key in ("x_norm_clstoken", "x_storage_tokens", "x_norm_patchtokens"):
        torch.testing.assert_close(packed[key], plain[key], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_more_rows_than_a_pass_takes_are_all_there():
    backbone = randomised("vit_nano", depth=1)
    images = torch.randn(1, 3, 16 * 70, 16 * 70)
    assert ROWS < 70 * 70
    plain = backbone.forward_features(images)["x_norm_patchtokens"]
    torch.testing.assert_close(
        for_inference(backbone).forward_features(images)["x_norm_patchtokens"], plain, atol=1e-5, rtol=1e-5
    )


@torch.no_grad()
def test_the_twin_is_kept_until_a_weight_changes():
    backbone = randomised("vit_nano")
    images = torch.randn(1, 3, 32, 32)
    first = for_inference(backbone)
    assert for_inference(backbone) is first
    backbone.blocks[2].mlp.fc1.weight.mul_(1.5)
    second = for_inference(backbone)
    assert second is not first
    torch.testing.assert_close(second(images), backbone(images), atol=1e-5, rtol=1e-5)


def test_an_optimizer_step_reaches_the_twin():
    backbone = randomised("vit_nano", depth=1).train()
    images = torch.randn(1, 3, 32, 32)
    for make in (torch.optim.SGD, lambda parameters: torch.optim.AdamW(parameters, lr=0.1, fused=True)):
        for_inference(backbone)
        backbone(images).square().sum().backward()
        make(backbone.parameters()).step()
        with torch.no_grad():
            expected = backbone.eval()(images)
            torch.testing.assert_close(for_inference(backbone)(images), expected, atol=1e-5, rtol=1e-5)
        backbone.train()


@torch.no_grad()
def test_a_backbone_in_training_is_left_in_training():
    backbone = randomised("vit_nano", drop_path=0.9, rope_rescale=2.0).train()
    images = torch.randn(2, 3, 32, 32)
    fast = for_inference(backbone)
    torch.testing.assert_close(fast(images), fast(images))
    assert backbone.training and all(block.training for block in backbone.blocks)


@torch.no_grad()
def test_half_precision_is_not_packed():
    backbone = randomised("vit_nano", depth=1).bfloat16()
    assert not can_pack(backbone)
    images = torch.randn(1, 3, 32, 32, dtype=torch.bfloat16)
    torch.testing.assert_close(for_inference(backbone)(images), backbone(images))
