"""AdamW over groups of parameters that share multipliers, and what the schedules write into them each step."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from core.schedules import Rates


@dataclass(frozen=True)
class Multipliers:
    """What a parameter's learning rate and weight decay are multiplied by."""

    lr: float
    weight_decay: float
    is_last_layer: bool  # of a head: its learning rate is 0 while it is frozen


def multipliers(
    module: nn.Module, *, layer_decay: float = 1.0, patch_embed_lr: float = 1.0
) -> Iterator[tuple[str, nn.Parameter, Multipliers]]:
    """Name, parameter and multipliers of everything that is trained in one sub-module of the student.

    Layer-wise decay counts the blocks of a ViT from the end; norms after them, heads and ConvNeXts stay at 1. Weight
    decay spares biases, norms and layer scale, but (as released, against its own comment) not CLS, registers and the
    mask token.
    """
    depth = len(blocks) if isinstance(blocks := getattr(module, "blocks", None), nn.ModuleList) else None
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        lr = 1.0
        if depth is not None:
            lr = layer_decay ** (depth + 1 - _layer(name, depth))
            lr *= patch_embed_lr if "patch_embed" in name else 1.0
        spared = name.endswith("bias") or any(word in name for word in ("norm", "gamma"))
        yield name, parameter, Multipliers(lr, 0.0 if spared else 1.0, "last_layer" in name)


def _layer(name: str, depth: int) -> int:
    if name.startswith(("patch_embed", "cls_token", "storage_tokens", "mask_token", "pos_embed")):
        return 0
    found = re.match(r"blocks\.(\d+)\.", name)
    return int(found[1]) + 1 if found else depth + 1


def build_optimizer(
    student: nn.ModuleDict,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    layer_decay: float = 1.0,
    patch_embed_lr: float = 1.0,
) -> torch.optim.AdamW:
    """AdamW over the student, one group for each set of multipliers; `set_rates` must come before the first step."""
    groups: dict[Multipliers, list[Tensor]] = {}
    for part in student.values():
        for _, parameter, factors in multipliers(part, layer_decay=layer_decay, patch_embed_lr=patch_embed_lr):
            groups.setdefault(factors, []).append(parameter)
    listed: list[dict[str, Any]] = [
        {"params": parameters, "multipliers": (factors.lr, factors.weight_decay, factors.is_last_layer)}
        for factors, parameters in groups.items()
    ]
    return torch.optim.AdamW(listed, lr=0.0, betas=betas, eps=1e-8, weight_decay=0.0, fused=True)


def set_rates(optimizer: torch.optim.Optimizer, rates: Rates) -> None:
    """Writes this step's learning rate and weight decay into every group."""
    for group in optimizer.param_groups:
        lr, weight_decay, is_last_layer = group["multipliers"]
        group["lr"] = lr * (rates.last_layer_lr if is_last_layer else rates.lr)
        group["weight_decay"] = weight_decay * rates.weight_decay
