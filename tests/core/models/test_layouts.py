"""The names of tensors in other people's files: tables against facts written out, and there and back."""

import pytest
import torch
from torch import Tensor

from core.models.convnext import ConvNeXt
from core.models.layouts import (
    LAYOUTS,
    Layout,
    Piece,
    WeightsError,
    detect,
    file_key_of,
    from_ours,
    listed,
    pieces_in,
    to_ours,
)
from core.models.vit import VisionTransformer

DINOV2 = {"position": "learned", "pos_grid": 3, "mask_k_bias": False, "patch_size": 2}
NETWORKS = {
    "dinov3": {"num_registers": 4},
    "dinov3 swiglu": {"ffn": "swiglu", "ffn_dim": 24},
    "dinov3 without registers": {"num_registers": 0},
    "dinov3 without biases": {"qkv_bias": False, "untie_global_and_local_cls_norm": True},
    "dinov2": DINOV2 | {"num_registers": 0},
    "dinov2 registers": DINOV2,
    "dinov2 swiglu": DINOV2 | {"ffn": "swiglu", "ffn_dim": 24},
    "convnext": {},
}


def network(name: str) -> tuple[dict[str, Tensor], Layout]:
    """Our state dict of a small network with random numbers, and its layout but for the name."""
    torch.manual_seed(0)
    if name == "convnext":
        model, family = ConvNeXt(depths=(1, 1, 2, 1), dims=(4, 6, 8, 10)), "convnext"
    else:
        model = VisionTransformer(embed_dim=16, depth=2, num_heads=1, **{"patch_size": 4, **NETWORKS[name]})
        family = name.split()[0]
    state = {key: torch.randn_like(tensor) for key, tensor in model.state_dict().items()}
    for key in state:
        if key.endswith("bias_mask"):
            state[key] = torch.tensor([1.0, 0.0, 1.0]).repeat_interleave(16)
            state[key.removesuffix("_mask")][16:32] = 0  # inert, and no other layout has a place for it
        if key.startswith("norms.3"):
            state[key] = state[key.replace("norms.3", "norm")]
    return state, Layout("", family, swiglu="swiglu" in name)


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def after_the_way(state: dict[str, Tensor], layout: Layout, kind: str) -> dict[str, Tensor]:
    """What comes back from a layout that has no place for everything."""
    state = dict(state)
    if layout.name == "official" or layout.family == "convnext":
        return state
    for key in [key for key in state if "periods" in key or "local_cls_norm" in key]:
        del state[key]
    if layout.name == "timm":
        state["mask_token"] = torch.zeros(1, 16)
    if layout.name == "timm" and "pos_embed" in state and "storage_tokens" in state:
        cls, grid = state["pos_embed"][:, :1], state["pos_embed"][:, 1:]
        state["cls_token"] = state["cls_token"] + cls  # the class position moves there
        state["pos_embed"] = torch.cat([torch.zeros_like(cls), grid], dim=1)
    if layout.name == "timm" and kind == "dinov3 without biases":  # only the width of the 7B means none
        for block in range(2):
            state[f"blocks.{block}.attn.qkv.bias"] = torch.zeros(48)
            state[f"blocks.{block}.attn.qkv.bias_mask"] = torch.tensor([1.0, 0.0, 1.0]).repeat_interleave(16)
    return state


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("kind", NETWORKS)
def test_a_state_dict_survives_the_way_through_every_layout(name, kind):
    state, layout = network(kind)
    layout = Layout(name, layout.family, layout.swiglu)
    file = from_ours(state, layout)
    assert detect({key: tuple(tensor.shape) for key, tensor in file.items()}) == layout
    assert same(to_ours(file, layout), after_the_way(state, layout, kind))
    assert same(from_ours(to_ours(file, layout), layout, like=file), file)


HF_DINOV3 = """
embeddings.cls_token embeddings.mask_token embeddings.register_tokens
embeddings.patch_embeddings.weight embeddings.patch_embeddings.bias norm.weight norm.bias
layer.0.norm1.weight layer.0.norm1.bias layer.0.norm2.weight layer.0.norm2.bias
layer.0.attention.q_proj.weight layer.0.attention.q_proj.bias layer.0.attention.k_proj.weight
layer.0.attention.v_proj.weight layer.0.attention.v_proj.bias
layer.0.attention.o_proj.weight layer.0.attention.o_proj.bias
layer.0.layer_scale1.lambda1 layer.0.layer_scale2.lambda1
layer.0.mlp.up_proj.weight layer.0.mlp.up_proj.bias layer.0.mlp.down_proj.weight layer.0.mlp.down_proj.bias
"""
HF_DINOV2 = """
embeddings.cls_token embeddings.mask_token embeddings.position_embeddings layernorm.weight layernorm.bias
embeddings.patch_embeddings.projection.weight embeddings.patch_embeddings.projection.bias
encoder.layer.0.norm1.weight encoder.layer.0.norm1.bias encoder.layer.0.norm2.weight encoder.layer.0.norm2.bias
encoder.layer.0.attention.attention.query.weight encoder.layer.0.attention.attention.query.bias
encoder.layer.0.attention.attention.key.weight encoder.layer.0.attention.attention.key.bias
encoder.layer.0.attention.attention.value.weight encoder.layer.0.attention.attention.value.bias
encoder.layer.0.attention.output.dense.weight encoder.layer.0.attention.output.dense.bias
encoder.layer.0.layer_scale1.lambda1 encoder.layer.0.layer_scale2.lambda1
encoder.layer.0.mlp.fc1.weight encoder.layer.0.mlp.fc1.bias encoder.layer.0.mlp.fc2.weight encoder.layer.0.mlp.fc2.bias
"""


@pytest.mark.parametrize(("kind", "published"), [("dinov3", HF_DINOV3), ("dinov2", HF_DINOV2)])
def test_new_hugging_face_files_use_the_published_names(kind, published):
    state, layout = network(kind)
    file = from_ours(state, Layout("hf", layout.family))
    assert {key for key in file if ".1." not in key} == set(published.split())


def test_queries_keys_and_values_are_the_thirds_of_the_fused_rows():
    state, _ = network("dinov3")
    file = from_ours(state, Layout("hf", "dinov3"))
    qkv, bias = state["blocks.1.attn.qkv.weight"], state["blocks.1.attn.qkv.bias"]
    assert torch.equal(file["layer.1.attention.q_proj.weight"], qkv[:16])
    assert torch.equal(file["layer.1.attention.k_proj.weight"], qkv[16:32])
    assert torch.equal(file["layer.1.attention.v_proj.weight"], qkv[32:])
    assert torch.equal(file["layer.1.attention.v_proj.bias"], bias[32:])
    assert "layer.1.attention.k_proj.bias" not in file


def test_packed_swiglu_holds_the_gate_first():
    state, _ = network("dinov2 swiglu")
    gate_and_value = torch.cat([state["blocks.0.mlp.w1.weight"], state["blocks.0.mlp.w2.weight"]])
    for layout, name in (
        ("official", "blocks.0.mlp.w12.weight"),
        ("hf", "encoder.layer.0.mlp.weights_in.weight"),
        ("timm", "blocks.0.mlp.fc1.weight"),
    ):
        assert torch.equal(from_ours(state, Layout(layout, "dinov2", True))[name], gate_and_value)


def test_a_masked_bias_leaves_as_zeros():
    """Released files mask the whole bias: whatever it says, features are those of none."""
    state, _ = network("dinov3")
    for key in [key for key in state if key.endswith("bias_mask")]:
        state[key] = torch.zeros(48)
    hf, timm = from_ours(state, Layout("hf", "dinov3")), from_ours(state, Layout("timm", "dinov3"))
    assert not hf["layer.0.attention.q_proj.bias"].any()
    assert not any(key.endswith("q_bias") for key in timm)  # timm's plain models have no such parameter


def test_one_bias_that_is_not_zero_brings_all_biases_of_timm():
    state, _ = network("dinov3")
    state["blocks.0.attn.qkv.bias"].zero_()
    file = from_ours(state, Layout("timm", "dinov3"))
    assert {key for key in file if "_bias" in key} == {f"blocks.{i}.attn.{x}_bias" for i in (0, 1) for x in "qv"}
    without = [key for key in file if not key.endswith("_bias")]
    assert same(from_ours(state, Layout("timm", "dinov3"), like=without), file)


def test_what_has_no_place_and_matters_is_refused():
    state, _ = network("dinov3")
    state["cls_norm.weight"] = torch.ones(16)
    with pytest.raises(WeightsError, match=r"hf layout has no place for cls_norm.weight; save with layout='official'"):
        from_ours(state, Layout("hf", "dinov3"))
    state, _ = network("dinov3")
    del state["blocks.0.attn.qkv.bias_mask"]
    state["blocks.0.attn.qkv.bias"].fill_(1)  # a key bias: transformers has a place for it, timm has not
    with pytest.raises(WeightsError, match=r"timm layout has no place for blocks.0.attn.qkv.bias"):
        from_ours(state, Layout("timm", "dinov3"))
    assert from_ours(state, Layout("hf", "dinov3"))["layer.1.attention.k_proj.bias"].shape == (16,)


def test_both_names_of_transformers_mean_the_same():
    state, _ = network("dinov2")
    file = from_ours(state, Layout("hf", "dinov2"))
    new = {
        key.replace("attention.attention.query", "attention.q_proj")
        .replace("attention.attention.key", "attention.k_proj")
        .replace("attention.attention.value", "attention.v_proj")
        .replace("attention.output.dense", "attention.o_proj"): tensor
        for key, tensor in file.items()
    }
    assert same(to_ours(new, Layout("hf", "dinov2")), to_ours(file, Layout("hf", "dinov2")))
    assert same(from_ours(state, Layout("hf", "dinov2"), like=new), new)
    state, _ = network("dinov3")
    file = from_ours(state, Layout("hf", "dinov3"))
    inside = {key.replace("layer.", "model.layer."): tensor for key, tensor in file.items()}
    assert detect({key: tuple(tensor.shape) for key, tensor in inside.items()}) == Layout("hf", "dinov3")
    assert same(to_ours(inside, Layout("hf", "dinov3")), to_ours(file, Layout("hf", "dinov3")))
    assert same(from_ours(state, Layout("hf", "dinov3"), like=inside), inside)


def test_chunked_blocks_are_counted_through():
    state, _ = network("dinov3")
    chunked = {
        key.replace("blocks.0.", "blocks.0.0.").replace("blocks.1.", "blocks.1.1."): t for key, t in state.items()
    }
    layout = Layout("official", "dinov3")
    assert detect({key: tuple(tensor.shape) for key, tensor in chunked.items()}) == layout
    assert same(to_ours(chunked, layout), state)
    assert same(from_ours(state, layout, like=chunked), chunked)


def test_unknown_tensors_are_named():
    state, _ = network("dinov2")
    file = from_ours(state, Layout("hf", "dinov2")) | {
        "classifier.weight": torch.zeros(2),
        "classifier.bias": torch.zeros(2),
    }
    with pytest.raises(WeightsError, match=r"classifier.weight, classifier.bias; save the backbone alone"):
        to_ours(file, Layout("hf", "dinov2"))


def test_missing_and_ill_fitting_parts_are_named_as_the_file_names_them():
    state, _ = network("dinov2")
    layout = Layout("hf", "dinov2")
    file = from_ours(state, layout)
    key = "encoder.layer.1.attention.attention.key"
    with pytest.raises(WeightsError, match=f"missing tensors: {key}.bias"):
        to_ours({name: tensor for name, tensor in file.items() if name != f"{key}.bias"}, layout)
    with pytest.raises(WeightsError, match=r"parts of blocks.1.attn.qkv.weight differ"):
        to_ours(file | {f"{key}.weight": torch.zeros(8, 16)}, layout)
    with pytest.raises(WeightsError, match="twice, once as"):
        to_ours(file | {"encoder.layer.1.attention.k_proj.weight": file[f"{key}.weight"]}, layout)
    state, _ = network("dinov2 swiglu")
    packed = from_ours(state, Layout("official", "dinov2", True)) | {"blocks.0.mlp.w12.bias": torch.zeros(47)}
    with pytest.raises(WeightsError, match=r"w12.bias stacks 2 matrices, but has 47 rows"):
        to_ours(packed, Layout("official", "dinov2", True))


def test_the_two_names_of_the_last_norm_must_agree():
    state, _ = network("convnext")
    state["norms.3.bias"] = state["norms.3.bias"] + 1
    with pytest.raises(WeightsError, match="one tensor under two names"):
        to_ours(state, Layout("official", "convnext"))


def test_other_peoples_networks_are_not_detected():
    assert detect({"conv1.weight": (64, 3, 7, 7), "layer1.0.conv1.weight": (64, 64, 1, 1)}) is None
    assert detect({}) is None


def test_pieces_and_places_are_inverse():
    layout = Layout("timm", "dinov3")
    assert pieces_in("blocks.11.attn.v_bias", layout) == [Piece("blocks.11.attn.qkv.bias", 2, 3)]
    assert file_key_of(Piece("blocks.11.attn.qkv.bias", 2, 3), layout) == ("blocks.11.attn.v_bias", "optional")
    assert pieces_in("blocks.11.attn.k_bias", layout) == []
    assert file_key_of(Piece("mask_token"), layout) is None


def test_long_lists_are_cut():
    assert listed("abc") == "a, b, c"
    assert listed("abcdefgh") == "a, b, c, d, e, f and 2 more"
