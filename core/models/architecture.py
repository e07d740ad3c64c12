"""The architecture of a backbone, read off the shapes of its tensors and what stands beside them."""

import inspect
from collections.abc import Mapping
from functools import partial
from math import isqrt
from typing import Any

from torch import Tensor

from core.models import BACKBONES, Backbone
from core.models.layouts import WIDTH_OF_7B, Layout, Piece, WeightsError, file_key_of

# Learned positions at another size, (pos_offset, pos_antialias) without and with registers: released DINOv2
# code, transformers, and timm each have a way of their own.
INTERPOLATIONS = {
    "official": ((0.1, False), (0.0, True)),
    "hf": ((0.0, False), (0.0, True)),
    "timm": ((0.0, True), (0.0, True)),
}
# Constructor arguments that change features and leave no trace in tensors; our .safetensors files say those
# that are not as one would expect in their metadata.
UNSEEN = ("num_heads", "norm_eps", "rope_base", "rope_min_period", "rope_max_period", "rope_coords")
UNSEEN_POSITIONS = ("pos_offset", "pos_antialias")


def arguments_of(
    state: Mapping[str, Tensor],
    layout: Layout,
    told: Mapping[str, Any],
    num_heads: int | None = None,
    pos_interpolation: str | None = None,
) -> dict[str, Any]:
    """The constructor arguments of the backbone that these tensors, under our names, belong to."""
    if layout.family == "convnext":
        if pos_interpolation is not None:
            raise ValueError("pos_interpolation is for DINOv2, which learns its positions; a ConvNeXt has none")
        counts = [_count(state, f"stages.{stage}.") for stage in range(4)]
        widths = [_get(state, f"stages.{stage}.0.gamma", layout).numel() for stage in range(4)]
        in_channels = _get(state, "downsample_layers.0.0.weight", layout).shape[1]
        return {"depths": tuple(counts), "dims": tuple(widths), "in_channels": in_channels}
    width, in_channels, patch_size, _ = _get(state, "patch_embed.proj.weight", layout).shape
    swiglu = "blocks.0.mlp.w1.weight" in state
    registers = state["storage_tokens"].shape[1] if "storage_tokens" in state else 0
    arguments: dict[str, Any] = {
        "embed_dim": width,
        "depth": _count(state, "blocks."),
        "num_heads": 0,
        "patch_size": patch_size,
        "in_channels": in_channels,
        "ffn": "swiglu" if swiglu else "mlp",
        "ffn_dim": len(_get(state, f"blocks.0.mlp.{'w1' if swiglu else 'fc1'}.weight", layout)),
        "num_registers": registers,
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        "mask_k_bias": "blocks.0.attn.qkv.bias_mask" in state,
        "layer_scale": 1e-5 if "blocks.0.ls1.gamma" in state else None,
        "untie_cls_and_patch_norms": "cls_norm.weight" in state,
        "untie_global_and_local_cls_norm": "local_cls_norm.weight" in state,
    }
    if layout.family == "dinov2":
        positions = state["pos_embed"].shape[1] - 1
        if isqrt(positions) ** 2 != positions:
            raise WeightsError(f"pos_embed has {positions + 1} positions, expected 1 and a square number")
        offset, antialias = INTERPOLATIONS[pos_interpolation or layout.name][registers > 0]
        arguments |= {"position": "learned", "pos_grid": isqrt(positions), "norm_eps": 1e-6}
        arguments |= {"pos_offset": offset, "pos_antialias": antialias}
    elif pos_interpolation is not None:
        raise ValueError("pos_interpolation is for DINOv2, which learns its positions; DINOv3 rotates (rope_periods)")
    chosen = told if pos_interpolation is None else {k: v for k, v in told.items() if k not in UNSEEN_POSITIONS}
    arguments |= chosen
    arguments["num_heads"] = _heads(state, width, num_heads, told.get("num_heads"))
    return arguments


def _heads(state: Mapping[str, Tensor], width: int, wanted: int | None, told: int | None) -> int:
    """Number of heads: as the rotary periods say, else as asked, as written beside, or by convention."""
    if "rope_embed.periods" in state:
        heads = width // (4 * len(state["rope_embed.periods"]))
        if wanted not in (None, heads):
            raise WeightsError(f"num_heads {wanted} does not fit: the file's rotary periods are for {heads} heads")
        return heads
    guess = wanted or told or conventional_heads(width)
    if guess is None or width % guess:
        raise WeightsError(f"the file does not say how many heads share its width of {width}; pass num_heads")
    return guess


def conventional_heads(width: int) -> int | None:
    """Number of heads of every published ViT of this width: 64 channels each, 128 in the 7B."""
    channels = 128 if width == WIDTH_OF_7B else 64
    return None if width % channels else width // channels


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many modules are numbered after this prefix; a gap shows as missing tensors later."""
    numbers = {int(key[len(prefix) :].partition(".")[0]) for key in state if key.startswith(prefix)}
    return max(numbers, default=-1) + 1


def _get(state: Mapping[str, Tensor], key: str, layout: Layout) -> Tensor:
    if key not in state:
        raise WeightsError(f"missing tensors: {in_file(key, layout)}; the file is no whole backbone")
    return state[key]


def in_file(key: str, layout: Layout) -> str:
    """A tensor of ours by the name it has in a file of this layout, for messages."""
    for piece in (Piece(key), Piece(key, 0, 3)):
        if place := file_key_of(piece, layout):
            return place[0]
    return key


def table_name(backbone: Backbone) -> str | None:
    """The entry of `BACKBONES` that builds this architecture."""
    told = (
        "embed_dim",
        "depth",
        "num_heads",
        "patch_size",
        "ffn",
        "num_registers",
        "position",
        "depths",
        "dims",
    )
    for name, factory in BACKBONES.items():
        if not isinstance(factory, partial) or type(backbone) is not factory.func:
            continue
        defaults = {key: value.default for key, value in inspect.signature(factory.func).parameters.items()}
        built = defaults | factory.keywords
        if all(built.get(key) == backbone.arguments.get(key) for key in told):
            widths = (arguments.get("ffn_dim") or 4 * backbone.embed_dim for arguments in (built, backbone.arguments))
            if len(set(widths)) == 1:
                return name
    return None
