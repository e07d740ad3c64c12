"""config.json of a Hugging Face folder: written so that `transformers.AutoModel` reads it, and read."""

from collections.abc import Iterable, Mapping
from typing import Any

from core.models.layouts import Layout, WeightsError


def config_of(arguments: Mapping[str, Any], layout: Layout, names: Iterable[str]) -> dict[str, Any]:
    """What `transformers` (5 or newer; 4.56 for DINOv3) needs to rebuild a backbone saved in "hf" layout.

    arguments: those of the backbone's constructor. names: the tensors in the file, which tell which biases
    exist. Raises WeightsError for a network that the class there cannot be.
    """
    if layout.family == "convnext":
        return {
            "architectures": ["DINOv3ConvNextModel"],
            "model_type": "dinov3_convnext",
            "hidden_sizes": list(arguments["dims"]),
            "depths": list(arguments["depths"]),
            "layer_norm_eps": 1e-6,
            "layer_scale_init_value": arguments["layer_scale"],
            "drop_path_rate": arguments["drop_path"],
            "num_channels": arguments["in_channels"],
        }
    common = {
        "hidden_size": arguments["embed_dim"],
        "num_hidden_layers": arguments["depth"],
        "num_attention_heads": arguments["num_heads"],
        "patch_size": arguments["patch_size"],
        "num_channels": arguments["in_channels"],
        "layer_norm_eps": arguments["norm_eps"],
        "layerscale_value": arguments["layer_scale"],
        "drop_path_rate": arguments["drop_path"],
    }
    return common | (_dinov3 if layout.family == "dinov3" else _dinov2)(arguments, layout, frozenset(names))


def _dinov3(arguments: Mapping[str, Any], layout: Layout, names: frozenset[str]) -> dict[str, Any]:
    return {
        "architectures": ["DINOv3ViTModel"],
        "model_type": "dinov3_vit",
        "intermediate_size": arguments["ffn_dim"] or 4 * arguments["embed_dim"],
        "hidden_act": "silu" if layout.swiglu else "gelu",
        "use_gated_mlp": layout.swiglu,
        "num_register_tokens": arguments["num_registers"],
        "image_size": 224,  # nominal: any size goes in
        "rope_theta": arguments["rope_base"],
        "pos_embed_shift": arguments["rope_shift"],
        "pos_embed_jitter": arguments["rope_jitter"],
        "pos_embed_rescale": arguments["rope_rescale"],
        **{
            f"{word}_bias": any(name.endswith(f"layer.0.attention.{word[0]}_proj.bias") for name in names)
            for word in ("query", "key", "value")
        },
    }


def _dinov2(arguments: Mapping[str, Any], layout: Layout, names: frozenset[str]) -> dict[str, Any]:
    width, hidden = arguments["embed_dim"], arguments["ffn_dim"] or 4 * arguments["embed_dim"]
    ratio = -(-3 * hidden // (2 * width)) if layout.swiglu else hidden // width
    built = (int(width * ratio * 2 / 3) + 7) // 8 * 8 if layout.swiglu else width * ratio
    if built != hidden:
        raise WeightsError(
            "transformers' DINOv2 derives the feed-forward width from a whole ratio and cannot have "
            f"{hidden} with embed_dim {width}; save with layout='official'"
        )
    registers = arguments["num_registers"]
    return {
        "architectures": ["Dinov2WithRegistersModel" if registers else "Dinov2Model"],
        "model_type": "dinov2_with_registers" if registers else "dinov2",
        "mlp_ratio": ratio,
        "use_swiglu_ffn": layout.swiglu,
        "qkv_bias": arguments["qkv_bias"],
        "image_size": arguments["pos_grid"] * arguments["patch_size"],
        **({"num_register_tokens": registers} if registers else {}),
    }


# name in config.json: name of the constructor argument
_TOLD = {"num_attention_heads": "num_heads", "layer_norm_eps": "norm_eps", "rope_theta": "rope_base"}
_SEEN = {
    "hidden_size": "embed_dim",
    "num_hidden_layers": "depth",
    "patch_size": "patch_size",
    "num_register_tokens": "num_registers",
    "num_channels": "in_channels",
}


def told_by(config: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments that tensors cannot tell, where a Hugging Face config.json says them."""
    return {ours: config[theirs] for theirs, ours in _TOLD.items() if theirs in config}


def check_config(config: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """Raises WeightsError when config.json describes another network than the tensors beside it."""
    for theirs, ours in _SEEN.items():
        if ours in arguments and config.get(theirs, arguments[ours]) != arguments[ours]:
            raise WeightsError(
                f"config.json says {theirs} {config[theirs]}, but the tensors have {arguments[ours]}: the "
                "folder mixes two models or lacks tensors; download it again"
            )
