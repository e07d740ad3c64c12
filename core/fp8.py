"""Linear layers in eight bits: forward and the input's gradient as e4m3 products, the weight's gradient as usual.

Follows the released training code: one scale a row of activations and a row of weights, so that a large value costs
precision only in its own row. Needs tensor cores that multiply e4m3 (compute capability 8.9, H100 and later).
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from core.models.layers import QkvLinear

LARGEST = 448.0  # of e4m3
ALIGN = 64  # widths must be multiples of it: the released code's rule, why the 7B has "swiglu64"


def quantise(x: Float[Tensor, "r c"], *, by_row: bool = True) -> tuple[Tensor, Float[Tensor, "*s"]]:
    """e4m3 numbers (r, c) and the fp32 scale that gives `x` back: (r, 1) by row, else one for all."""
    largest = x.abs().amax(dim=-1, keepdim=True) if by_row else x.abs().amax()
    scale = largest.float().clamp(min=1e-12) / LARGEST
    return (x.float() / scale).to(torch.float8_e4m3fn), scale


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """(r, c) times (c, k) of e4m3 numbers in bf16; hardware wants `a` row-major and `b` column-major."""
    one = torch.ones((), device=a.device)
    return torch._scaled_mm(a, b, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)


class Fp8Product(torch.autograd.Function):
    """x (r, c) times the transpose of a weight (k, c)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        x8, x_scale = quantise(x)
        weight8, weight_scale = quantise(weight)
        return (multiply(x8, weight8.t()) * x_scale * weight_scale.t()).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        gradient8, gradient_scale = quantise(gradient)
        weight8, weight_scale = quantise(weight, by_row=False)  # rows are summed over here: one scale for all
        columns = weight8.t().contiguous().t()
        to_x = (multiply(gradient8, columns) * gradient_scale * weight_scale).to(x.dtype)
        return to_x, gradient.t() @ x


def fp8_linear(x: Float[Tensor, "*n c"], weight: Float[Tensor, "k c"], bias: Tensor | None) -> Float[Tensor, "*n k"]:
    """What F.linear gives, from eight-bit products."""
    out = Fp8Product.apply(x.flatten(0, -2), weight).unflatten(0, x.shape[:-1])
    return out if bias is None else out + bias.to(out.dtype)


def use_fp8(block: nn.Module, name: str) -> None:
    """Makes every linear layer of a block compute in eight bits; parameters and their names stay.

    Raises ValueError for a layer whose widths do not fit.
    """
    for path, layer in block.named_modules():
        if not isinstance(layer, nn.Linear):
            continue
        if layer.in_features % ALIGN or layer.out_features % ALIGN:
            raise ValueError(
                f"{name}.{path} maps {layer.in_features} to {layer.out_features} features; fp8 needs multiples of "
                f"{ALIGN}: choose such widths or switch parallel.fp8 off"
            )
        layer.forward = _forward_of(layer)  # type: ignore[method-assign]


def _forward_of(layer: nn.Linear) -> Any:
    def forward(x: Tensor) -> Tensor:
        bias: Tensor | None = layer.bias
        if isinstance(layer, QkvLinear) and layer.masked:
            bias = layer.bias * layer.bias_mask.to(layer.bias.dtype)
        return fp8_linear(x, layer.weight, bias)

    return forward


def check_fp8(device: torch.device) -> None:
    """Raises ValueError on hardware without eight-bit products."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9):
        return
    found = torch.cuda.get_device_name(device) if device.type == "cuda" else f"device {device.type!r}"
    raise ValueError(
        f"fp8 needs a GPU of compute capability 8.9 (H100 or later), got {found}; set parallel.fp8 to False"
    )
