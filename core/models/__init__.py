"""Every backbone of the paper by name, two small ones for laptops, and DINOv2."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from core.models.convnext import ConvNeXt
from core.models.layers import swiglu_dim
from core.models.vit import VisionTransformer

Backbone = VisionTransformer | ConvNeXt


def _vit(embed_dim: int, depth: int, num_heads: int, **arguments: Any) -> Callable[..., Backbone]:
    return partial(VisionTransformer, embed_dim=embed_dim, depth=depth, num_heads=num_heads, **arguments)


def _dinov2(embed_dim: int, depth: int, num_heads: int, **arguments: Any) -> Callable[..., Backbone]:
    old: dict[str, Any] = {"patch_size": 14, "mask_k_bias": False, "norm_eps": 1e-6, "position": "learned"}
    # Released DINOv2: models without registers ask for a scale with an offset, those with registers for a size.
    old |= {"pos_antialias": True} if arguments.get("num_registers") else {"num_registers": 0, "pos_offset": 0.1}
    return _vit(embed_dim, depth, num_heads, **old, **arguments)


def _swiglu(embed_dim: int, ratio: float, align: int = 8) -> dict[str, Any]:
    return {"ffn": "swiglu", "ffn_dim": swiglu_dim(embed_dim, ratio, align)}


_SEVEN_B = {"qkv_bias": False, "untie_global_and_local_cls_norm": True}

# Widths and depths: paper table 2 and appendix; the SwiGLU widths follow from their ratio and alignment.
BACKBONES: dict[str, Callable[..., Backbone]] = {
    "vit_nano": _vit(128, 6, 2),
    "vit_tiny": _vit(192, 12, 3),
    "vit_small": _vit(384, 12, 6),
    "vit_small_plus": _vit(384, 12, 6, **_swiglu(384, 6.0)),
    "vit_base": _vit(768, 12, 12),
    "vit_large": _vit(1024, 24, 16),
    "vit_large_plus": _vit(1024, 24, 16, **_swiglu(1024, 6.0)),
    "vit_huge_plus": _vit(1280, 32, 20, **_swiglu(1280, 6.0)),
    "vit_7b": _vit(4096, 40, 32, **_swiglu(4096, 3.0, align=64), **_SEVEN_B),
    "convnext_tiny": partial(ConvNeXt, depths=(3, 3, 9, 3), dims=(96, 192, 384, 768)),
    "convnext_small": partial(ConvNeXt, depths=(3, 3, 27, 3), dims=(96, 192, 384, 768)),
    "convnext_base": partial(ConvNeXt, depths=(3, 3, 27, 3), dims=(128, 256, 512, 1024)),
    "convnext_large": partial(ConvNeXt, depths=(3, 3, 27, 3), dims=(192, 384, 768, 1536)),
    "dinov2_small": _dinov2(384, 12, 6),
    "dinov2_base": _dinov2(768, 12, 12),
    "dinov2_large": _dinov2(1024, 24, 16),
    "dinov2_giant": _dinov2(1536, 40, 24, **_swiglu(1536, 4.0)),
    "dinov2_small_reg": _dinov2(384, 12, 6, num_registers=4),
    "dinov2_base_reg": _dinov2(768, 12, 12, num_registers=4),
    "dinov2_large_reg": _dinov2(1024, 24, 16, num_registers=4),
    "dinov2_giant_reg": _dinov2(1536, 40, 24, num_registers=4, **_swiglu(1536, 4.0)),
}


def build_backbone(name: str, *, device: str | torch.device = "cpu", **overrides: Any) -> Backbone:
    """A freshly initialised backbone from the table, any constructor argument overridden.

    Built on `meta` and filled with NaN before it is initialised, so a number that initialisation forgets shows.
    With `device="meta"` it stays there: shapes and counts of the largest models at no cost.
    Raises ValueError for an unknown name.
    """
    if name not in BACKBONES:
        raise ValueError(f"no backbone called {name!r}; known: {', '.join(BACKBONES)}")
    with torch.device("meta"):
        backbone = BACKBONES[name](**overrides)
    if torch.device(device).type == "meta":
        return backbone
    backbone = backbone.to_empty(device=device)
    with torch.no_grad():
        for tensor in (*backbone.parameters(), *backbone.buffers()):
            if tensor.is_floating_point():
                tensor.fill_(float("nan"))
    backbone.init_weights()
    return backbone


def count_parameters(backbone: nn.Module) -> int:
    """Trainable numbers, each shared tensor once."""
    return sum(parameter.numel() for parameter in backbone.parameters())
