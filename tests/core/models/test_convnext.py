"""The ConvNeXt against the reference implementation's outputs, closed forms, and the contract of the ViT."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from core.models import build_backbone
from core.models.convnext import ConvNeXt, ConvNeXtBlock

GOLDEN = Path(__file__).parents[2] / "golden" / "convnext.safetensors"
TINY = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}


def golden() -> tuple[ConvNeXt, dict[str, Tensor]]:
    with safe_open(GOLDEN, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        model = ConvNeXt(**json.loads(file.metadata()["config"]), patch_size=int(file.metadata()["patch_size"]))
    state = {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}
    model.load_state_dict(state)
    return model.eval(), tensors


def tiny(**arguments: object) -> ConvNeXt:
    torch.manual_seed(0)
    model = ConvNeXt(**TINY, **arguments)
    model.init_weights()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)  # the initial layer scale hides every branch
    return model.eval()


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_tokens_agree_with_the_reference():
    model, tensors = golden()
    features = model.forward_features(tensors["x"])
    close(features["x_norm_clstoken"], tensors["cls"])
    close(features["x_norm_patchtokens"], tensors["patches"])
    close(model(tensors["x"]), tensors["cls"])


@torch.no_grad()
def test_every_stage_agrees_with_the_reference():
    model, tensors = golden()
    stages = model.get_intermediate_layers(tensors["x"], n=4, reshape=True, return_class_token=True)
    assert len(stages) == 4
    for index, (patches, cls) in enumerate(stages):
        close(patches, tensors[f"stage{index}_map"])
        close(cls, tensors[f"stage{index}_cls"])


@torch.no_grad()
def test_features_have_the_keys_and_shapes_of_a_vit():
    model, x = tiny(), torch.randn(2, 3, 64, 96)
    features = model.forward_features(x, masks=torch.zeros(2, 6, dtype=torch.bool))
    assert {key: tuple(value.shape) for key, value in features.items()} == {
        "x_norm_clstoken": (2, 32),
        "x_storage_tokens": (2, 0, 32),
        "x_norm_patchtokens": (2, 6, 32),
        "x_prenorm": (2, 6, 32),
        "masks": (2, 6),
    }
    assert (model.embed_dim, model.embed_dims, model.depth, model.n_blocks) == (32, (8, 16, 24, 32), 4, 4)
    assert (model.num_heads, model.num_registers, model.patch_size, model.output_stride) == (0, 0, None, 32)


@torch.no_grad()
def test_the_global_token_is_the_norm_of_the_mean_not_the_mean_of_the_norms():
    model, x = tiny(), torch.randn(1, 3, 64, 96)
    features = model.forward_features(x)
    close(features["x_norm_clstoken"], model.norm(features["x_prenorm"].mean(1)))
    assert (features["x_norm_clstoken"] - features["x_norm_patchtokens"].mean(1)).abs().max() > 1e-2


@torch.no_grad()
def test_a_list_of_crops_gives_what_each_crop_gives_alone():
    model, crops = tiny(), [torch.randn(2, 3, 64, 64), torch.randn(3, 3, 32, 96)]
    together = model(crops, is_training=True)
    for crop, features in zip(crops, together, strict=True):
        alone = model(crop, is_training=True)
        assert all(torch.equal(features[key], alone[key]) for key in alone if key != "masks")
    with pytest.raises(ValueError, match="is_training"):
        model(crops)
    with pytest.raises(ValueError, match="list of 2 masks"):
        model.forward_features(crops, masks=[None])


@torch.no_grad()
def test_stages_keep_their_strides_without_a_patch_size_and_share_one_with_it():
    x = torch.randn(1, 3, 64, 96)
    free = tiny().get_intermediate_layers(x, n=4, reshape=True)
    assert [tuple(stage.shape) for stage in free] == [(1, 8, 16, 24), (1, 16, 8, 12), (1, 24, 4, 6), (1, 32, 2, 3)]
    even = tiny(patch_size=16).get_intermediate_layers(x, n=4, reshape=True)
    assert [tuple(stage.shape[2:]) for stage in even] == [(4, 6)] * 4


@torch.no_grad()
def test_only_the_last_stage_has_a_norm():
    model, x = tiny(), torch.randn(1, 3, 64, 96)
    plain, normed = (model.get_intermediate_layers(x, n=[3, 0], norm=norm) for norm in (False, True))
    assert torch.equal(plain[0], normed[0])
    close(normed[1], model.norm(plain[1]))
    assert torch.equal(normed[1], model.forward_features(x)["x_norm_patchtokens"])


@torch.no_grad()
def test_stages_come_shallow_to_deep_with_the_tokens_asked_for():
    model, x = tiny(), torch.randn(1, 3, 64, 96)
    (patches, cls, extra), _ = model.get_intermediate_layers(
        x, n=(2, 1), return_class_token=True, return_extra_tokens=True
    )
    assert patches.shape == (1, 96, 16)
    assert cls.shape == (1, 16)
    assert extra.shape == (1, 0, 16)
    with pytest.raises(ValueError, match="layers 5"):
        model.get_intermediate_layers(x, n=5)


@torch.no_grad()
def test_drop_path_keeps_or_drops_the_branch_of_each_image():
    torch.manual_seed(0)
    block = ConvNeXtBlock(4, drop_path=0.25, layer_scale=1.0)
    torch.nn.init.normal_(block.gamma)
    x = torch.randn(400, 4, 3, 3)
    branch = block.eval()(x) - x
    dropped = block.train()(x) - x
    kept = dropped.flatten(1).abs().sum(1) > 0
    torch.testing.assert_close(dropped[kept], branch[kept] / 0.75, atol=1e-5, rtol=1e-5)
    assert not dropped[~kept].any()
    assert 0.68 < kept.float().mean() < 0.82  # three standard deviations around 0.75


def test_the_drop_path_rate_rises_linearly_to_the_last_block():
    rates = [block.drop_path for block in tiny(drop_path=0.4).modules() if isinstance(block, ConvNeXtBlock)]
    torch.testing.assert_close(torch.tensor(rates), torch.linspace(0, 0.4, 5))


def test_initialisation_reaches_every_number():
    model = build_backbone("convnext_tiny")
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    assert all((block.gamma == 1e-6).all() for block in model.modules() if isinstance(block, ConvNeXtBlock))
    weight = model.stages[3][0].pwconv1.weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.01)


@pytest.mark.parametrize(("name", "entries"), [("tiny", 182), ("small", 344), ("base", 344), ("large", 344)])
def test_the_state_dict_lists_the_final_norm_twice_as_the_released_files_do(name, entries):
    model = build_backbone(f"convnext_{name}", device="meta")
    assert len(model.state_dict()) == entries
    assert model.norms[3].weight is model.norm.weight


@torch.no_grad()
def test_sides_lose_what_does_not_fill_a_cell_and_too_small_images_are_refused():
    model = tiny()
    assert model.forward_features(torch.randn(1, 3, 70, 127))["x_prenorm"].shape == (1, 2 * 3, 32)
    with pytest.raises(ValueError, match="31x64 pixels: a ConvNeXt needs at least 32"):
        model(torch.randn(1, 3, 31, 64))
    with pytest.raises(ValueError, match="4 stages"):
        ConvNeXt(depths=(1, 2), dims=(8, 16))
