"""The vision transformer against the reference implementation's outputs, closed forms and slow plain loops."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from core.models import BACKBONES, build_backbone, count_parameters
from core.models.layers import RopePositionEmbedding, draw_subset, swiglu_dim
from core.models.vit import VisionTransformer

GOLDEN = Path(__file__).parents[2] / "golden"


def read_golden(name: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    path = GOLDEN / f"{name}.safetensors"
    with safe_open(path, framework="pt") as file:
        return load_file(path), file.metadata()


def golden_vit(name: str) -> tuple[VisionTransformer, dict[str, torch.Tensor]]:
    tensors, metadata = read_golden(name)
    config = json.loads(metadata["config"])
    dim, ratio = config["embed_dim"], float(config["ffn_ratio"])
    ffn = {"mlp": ("mlp", int(dim * ratio)), "swiglu": ("swiglu", swiglu_dim(dim, ratio, 8))}
    kind, hidden = ffn.get(config["ffn_layer"], ("swiglu", swiglu_dim(dim, ratio, 64)))
    model = VisionTransformer(
        embed_dim=dim,
        depth=config["depth"],
        num_heads=config["num_heads"],
        patch_size=config["patch_size"],
        ffn=kind,
        ffn_dim=hidden,
        qkv_bias=config["qkv_bias"],
        rope_rescale=float(config["pos_embed_rope_rescale_coords"]),
        untie_global_and_local_cls_norm=config.get("untie_global_and_local_cls_norm", False),
    )
    state = {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}
    model.load_state_dict(state, strict=True)
    return model.eval(), tensors


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["vit_mlp", "vit_swiglu", "vit_7b_like"])
@torch.no_grad()
def test_every_output_agrees_with_the_reference(name):
    model, golden = golden_vit(name)
    features = model.forward_features(golden["x"])
    close(features["x_norm_clstoken"], golden["cls"])
    close(features["x_storage_tokens"], golden["storage"])
    close(features["x_norm_patchtokens"], golden["patches"])
    close(features["x_prenorm"], golden["prenorm"])
    close(model(golden["x"]), golden["cls"])

    masked = model.forward_features(golden["x"], masks=golden["mask"])
    close(masked["x_norm_clstoken"], golden["masked_cls"])
    close(masked["x_norm_patchtokens"], golden["masked_patches"])

    layers = model.get_intermediate_layers(
        golden["x"], n=2, reshape=True, return_class_token=True, return_extra_tokens=True
    )
    for index, (patches, cls, storage) in enumerate(layers):
        close(patches, golden[f"inter{index}_patches"])
        close(cls, golden[f"inter{index}_cls"])
        close(storage, golden[f"inter{index}_storage"])


# Exact counts of the published models; vit_nano and vit_tiny follow from the same formula.
COUNTS = {
    "vit_small": 21_601_152,
    "vit_small_plus": 28_697_472,
    "vit_base": 85_669_632,
    "vit_large": 303_154_176,
    "vit_large_plus": 403_915_776,
    "vit_huge_plus": 840_633_600,
    "vit_7b": 6_716_043_264,
    "convnext_tiny": 27_820_128,
    "convnext_small": 49_454_688,
    "convnext_base": 87_566_464,
    "convnext_large": 196_230_336,
    "dinov2_small": 22_056_576,
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_are_the_published_ones(name):
    assert count_parameters(build_backbone(name, device="meta")) == COUNTS[name]


def test_satellite_large_has_one_more_norm():
    model = build_backbone("vit_large", device="meta", untie_global_and_local_cls_norm=True)
    assert count_parameters(model) == 303_156_224


def test_seven_billion_parameters_run_on_the_meta_device():
    model = build_backbone("vit_7b", device="meta")
    features = model.forward_features(torch.empty(1, 3, 32, 48, device="meta"))
    assert features["x_norm_patchtokens"].shape == (1, 6, 4096)
    assert len(model.state_dict()) == 610


@pytest.mark.parametrize("name", [name for name in BACKBONES if name.endswith(("nano", "tiny", "small", "small_reg"))])
@torch.no_grad()
def test_every_small_backbone_forgets_no_number_at_initialisation(name):
    model = build_backbone(name).eval()
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())
    side = 4 * (model.patch_size or 32)
    features = model.forward_features(torch.randn(1, 3, side, side))
    assert all(torch.isfinite(features[key]).all() for key in ("x_norm_clstoken", "x_norm_patchtokens"))
    assert features["x_norm_clstoken"].shape == (1, model.embed_dim)


def test_unknown_backbone_names_the_known_ones():
    with pytest.raises(ValueError, match="known: vit_nano"):
        build_backbone("vit_enormous")


def test_rope_table_has_the_measured_values():
    rope = RopePositionEmbedding(64)
    rope.init_weights()
    sin, cos = rope(2, 3)
    expected = {
        (0, 0): 8.74e-8, (0, 1): -0.7073417, (0, 2): -0.9808824, (0, 3): -0.9698949,
        (0, 16): 0.8660252, (0, 17): -0.0004436, (0, 18): -0.7075768, (0, 19): -0.9809309,
    }  # fmt: skip
    for place, value in expected.items():
        assert sin[place].item() == pytest.approx(value, abs=2e-6)
    torch.testing.assert_close(sin[:, 32:], sin[:, :32])
    for place, value in {(5, 0): -1.0, (5, 1): -0.7068717, (5, 16): -0.5000003, (5, 17): -1.0}.items():
        assert cos[place].item() == pytest.approx(value, abs=2e-6)


def test_rope_periods_round_to_the_released_table():
    released = [1.0, 1.3359375, 1.78125, 2.375, 3.15625, 4.21875, 5.625, 7.5]
    released += [10.0, 13.3125, 17.75, 23.75, 31.625, 42.25, 56.25, 75.0]
    assert RopePositionEmbedding(64).exact_periods().bfloat16().float().tolist() == released


def test_rope_between_two_periods_spans_them():
    rope = RopePositionEmbedding(64, base=None, min_period=2.0, max_period=50.0)
    periods = rope.exact_periods()
    ratio = periods[1:] / periods[:-1]
    assert (periods[0].item(), periods[-1].item()) == pytest.approx((2.0, 50.0))
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))
    with pytest.raises(ValueError, match="either rope_base or both"):
        RopePositionEmbedding(64, base=100.0, min_period=2.0, max_period=50.0)


@pytest.mark.parametrize(("coords", "per_row", "per_col"), [("separate", 8, 4), ("max", 8, 8), ("min", 4, 4)])
def test_rope_coordinates_are_patch_centres_over_the_chosen_side(coords, per_row, per_col):
    grid = RopePositionEmbedding(16, coords=coords).coordinates(8, 4)
    expected = [[2 * (y + 0.5) / per_row - 1, 2 * (x + 0.5) / per_col - 1] for y in range(8) for x in range(4)]
    torch.testing.assert_close(grid, torch.tensor(expected))


def test_rope_augmentation_stays_in_its_limits_and_only_in_training():
    rope = RopePositionEmbedding(16, shift=0.25, jitter=1.5, rescale=2.0)
    rope.init_weights()
    plain = rope.eval().coordinates(3, 5)
    torch.testing.assert_close(rope.coordinates(3, 5), plain)
    rope.train()
    scales = []
    for seed in range(400):
        torch.manual_seed(seed)
        moved = rope.coordinates(3, 5)
        scale = (moved[-1] - moved[0]) / (plain[-1] - plain[0])  # shift cancels
        scales.append(scale)
        assert (((moved / scale) - plain).abs() <= 0.25 + 1e-5).all()
    ratios = torch.stack(scales)
    assert ratios.max() <= 3.0 + 1e-4 and ratios.min() >= 1 / 3 - 1e-4
    assert ratios.max() > 2.0 and ratios.min() < 0.5  # jitter and rescale compound
    assert (ratios[:, 0] / ratios[:, 1]).max() > 1.5  # jitter is drawn for y and x apart


def slow_block(block: nn.Module, x: torch.Tensor, sin: torch.Tensor, cos: torch.Tensor, prefix: int) -> torch.Tensor:
    """One block, one image, head by head and token by token: attention written from its definition."""
    tokens, dim = x.shape
    heads = block.attn.num_heads
    width = dim // heads
    normed = nn.functional.layer_norm(x, (dim,), block.norm1.weight, block.norm1.bias, block.norm1.eps)
    bias = block.attn.qkv.bias * block.attn.qkv.bias_mask
    qkv = normed @ block.attn.qkv.weight.T + bias
    outputs = []
    for head in range(heads):
        query, key, value = (qkv[:, part * dim + head * width : part * dim + (head + 1) * width] for part in range(3))
        query, key = query.clone(), key.clone()
        for turned in (query, key):
            for token in range(prefix, tokens):
                row = turned[token].clone()
                for j in range(width):
                    partner = -row[j + width // 2] if j < width // 2 else row[j - width // 2]
                    turned[token, j] = row[j] * cos[token - prefix, j] + partner * sin[token - prefix, j]
        weights = (query @ key.T / math.sqrt(width)).softmax(dim=-1)
        outputs.append(weights @ value)
    x = x + block.ls1.gamma * (torch.cat(outputs, dim=-1) @ block.attn.proj.weight.T + block.attn.proj.bias)
    normed = nn.functional.layer_norm(x, (dim,), block.norm2.weight, block.norm2.bias, block.norm2.eps)
    hidden = normed @ block.mlp.fc1.weight.T + block.mlp.fc1.bias
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return x + block.ls2.gamma * (hidden @ block.mlp.fc2.weight.T + block.mlp.fc2.bias)


@torch.no_grad()
def test_a_block_is_attention_and_feed_forward_by_their_definitions(random_vit):
    model = random_vit(embed_dim=16, depth=1, num_heads=2, num_registers=2)
    images = torch.randn(2, 3, 32, 48)
    block = model.blocks[0]
    tokens = model.embed(images)[0]
    sin, cos = model.rope_embed(2, 3)
    expected = torch.stack([slow_block(block, image, sin, cos, prefix=3) for image in tokens])
    close(next(model.run_blocks([images]))[0], expected)


def test_layers_come_shallow_to_deep_whatever_the_order_asked_for(random_vit):
    model = random_vit(embed_dim=16, depth=3, num_heads=2)
    images = torch.randn(1, 3, 32, 32)
    both = model.get_intermediate_layers(images, n=[2, 0], norm=False)
    torch.testing.assert_close(both[0], model.get_intermediate_layers(images, n=[0], norm=False)[0])
    torch.testing.assert_close(both[1], model.forward_features(images)["x_prenorm"][:, 5:])
    normed = model.get_intermediate_layers(images, n=1)[0]
    torch.testing.assert_close(normed, model.forward_features(images)["x_norm_patchtokens"])
    for wrong in ([0, 0], [3], [-1], 4, 0, []):
        with pytest.raises(ValueError, match="layers"):
            model.get_intermediate_layers(images, n=wrong)


def test_a_list_of_crops_gives_each_what_it_gets_alone(random_vit):
    model = random_vit(embed_dim=32, depth=2, num_heads=2)
    large, small = torch.randn(2, 3, 64, 64), torch.randn(3, 3, 32, 48)
    mask = torch.rand(2, 16) > 0.5
    together = model.forward_features([large, small], masks=[mask, None])
    close(together[0]["x_norm_patchtokens"], model.forward_features(large, mask)["x_norm_patchtokens"])
    close(together[1]["x_prenorm"], model.forward_features(small)["x_prenorm"])
    assert together[0]["masks"] is mask
    with pytest.raises(ValueError, match="is_training"):
        model([large, small])
    with pytest.raises(ValueError, match="list of 2"):
        model.forward_features([large, small], masks=[mask])


def test_local_crops_take_their_own_norm_in_training_only(random_vit):
    model = random_vit(embed_dim=32, depth=1, num_heads=2, untie_global_and_local_cls_norm=True)
    crops = [torch.randn(2, 3, 32, 32), torch.randn(2, 3, 32, 32)]
    for training in (True, False):
        outputs = model.train(training).forward_features(crops)
        for index, output in enumerate(outputs):
            own = model.local_cls_norm if training and index == 1 else model.norm
            torch.testing.assert_close(output["x_norm_clstoken"], own(output["x_prenorm"])[:, 0])
            torch.testing.assert_close(output["x_norm_patchtokens"], model.norm(output["x_prenorm"])[:, 5:])


def test_untied_patch_norm_leaves_the_prefix_to_cls_norm(random_vit):
    model = random_vit(embed_dim=32, depth=1, num_heads=2, untie_cls_and_patch_norms=True)
    images = torch.randn(2, 3, 32, 32)
    output = model.forward_features(images)
    torch.testing.assert_close(output["x_norm_clstoken"], model.cls_norm(output["x_prenorm"])[:, 0])
    torch.testing.assert_close(output["x_storage_tokens"], model.cls_norm(output["x_prenorm"])[:, 1:5])
    torch.testing.assert_close(output["x_norm_patchtokens"], model.norm(output["x_prenorm"])[:, 5:])


def test_the_key_bias_never_acts(random_vit):
    model = random_vit(embed_dim=16, depth=1, num_heads=2)
    images = torch.randn(1, 3, 32, 32)
    before = model(images)
    with torch.no_grad():
        model.blocks[0].attn.qkv.bias[16:32] += 5
    torch.testing.assert_close(model(images), before)
    with torch.no_grad():
        model.blocks[0].attn.qkv.bias[32:] += 5
    assert not torch.allclose(model(images), before)


def test_drop_path_keeps_a_scaled_subset_and_leaves_the_others(random_vit):
    model = random_vit(embed_dim=16, depth=1, num_heads=2, drop_path=0.4)
    block = model.blocks[0].train()
    block.feed_forward_branch = lambda crops: [torch.zeros_like(x) for x in crops]
    tokens = torch.randn(16, 5, 16)
    kept = max(int(16 * 0.6), 1)
    torch.manual_seed(3)
    moved = block([tokens], [None])[0] - tokens
    touched = moved.flatten(1).abs().sum(1) > 0
    assert touched.sum() == kept == 9
    full = block.attention_branch([tokens], [None])[0]
    torch.testing.assert_close(moved[touched], full[touched] * 16 / 9, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("batch", "rate", "kept"), [(16, 0.4, 9), (1, 0.9, 1), (4, 0.99, 1), (10, 0.3, 7)])
def test_drop_path_truncates_the_number_it_keeps(batch, rate, kept):
    index = draw_subset(torch.zeros(batch, 1, 1), rate)
    assert len(index) == kept == len(index.unique())


def test_the_mask_token_stays_in_the_graph_without_masks(random_vit):
    model = random_vit(embed_dim=16, depth=1, num_heads=2).train()
    model(torch.randn(1, 3, 32, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.mask_token.grad.abs().sum() == 0


def test_an_image_that_is_not_made_of_patches_is_refused(random_vit):
    model = random_vit(embed_dim=16, depth=1, num_heads=2)
    with pytest.raises(ValueError, match="16 px patches; pad or resize it to 32x48"):
        model(torch.randn(1, 3, 33, 47))


@torch.no_grad()
def test_learned_positions_give_every_size_its_own_grid():
    """dinov2 rounds a scale, and at some sizes lost a row: sweep 224 to 2048 px in steps of a patch."""
    model = build_backbone("dinov2_small", depth=1, embed_dim=6, num_heads=1)
    for size in range(224, 2049, 14):
        assert model.interpolated_pos_embed(size // 14, 16).shape == (1, 1 + size // 14 * 16, 6)


@pytest.fixture
def random_vit():
    def build(**arguments):
        torch.manual_seed(0)
        model = VisionTransformer(**arguments)
        model.init_weights()
        with torch.no_grad():
            for name, tensor in model.named_parameters():
                tensor.copy_(torch.randn_like(tensor) * (0.2 if tensor.ndim > 1 else 0.5) + ("norm" in name))
        return model.eval()

    return build
