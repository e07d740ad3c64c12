"""Faster forward passes of a frozen backbone on a CPU: linear layers packed once for the processor's own layout.

Why: in fp32 on two cores a ViT is nothing but matrix products, and oneDNN's packed product with the activation
fused into it runs 10 to 25 % above `F.linear` (measured by `make bench`). The numbers agree to 1e-6 of the
outputs' scale. Elsewhere (a GPU, half precision, a torch without oneDNN) the backbone is used as it is.
"""

import copy
import weakref

import torch
from jaxtyping import Float
from torch import Tensor, nn

from core.models.layers import Mlp, QkvLinear, SwiGlu

# Rows a feed-forward takes at a time: its hidden activations then stay in the cache, and a 4096 x 4096 photograph
# does not need half a gigabyte for them.
ROWS = 4096


class PackedLinear(nn.Module):
    """A linear layer frozen in the processor's own layout, with an activation ("none", "gelu", "swish") fused in."""

    def __init__(self, linear: nn.Linear, activation: str = "none") -> None:
        super().__init__()
        bias: Tensor | None = linear.bias
        if isinstance(linear, QkvLinear) and linear.masked:
            bias = linear.bias * linear.bias_mask.to(linear.bias.dtype)
        self.bias = None if bias is None else bias.detach()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().contiguous())
        self.activation, self.algorithm = activation, "none" if activation == "gelu" else ""

    def forward(self, x: Float[Tensor, "*n D"]) -> Float[Tensor, "*n E"]:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, self.activation, [], self.algorithm)


class PackedMlp(nn.Module):
    """`Mlp` with the GELU computed inside the first product, a bounded number of rows at a time."""

    def __init__(self, mlp: Mlp) -> None:
        super().__init__()
        self.fc1, self.fc2 = PackedLinear(mlp.fc1, "gelu"), PackedLinear(mlp.fc2)

    def forward(self, x: Float[Tensor, "n D"]) -> Float[Tensor, "n D"]:
        parts = [self.fc2(self.fc1(rows)) for rows in x.split(ROWS)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class PackedSwiGlu(nn.Module):
    """`SwiGlu` with the SiLU computed inside the gate's product, a bounded number of rows at a time."""

    def __init__(self, mlp: SwiGlu) -> None:
        super().__init__()
        self.w1, self.w2, self.w3 = PackedLinear(mlp.w1, "swish"), PackedLinear(mlp.w2), PackedLinear(mlp.w3)

    def forward(self, x: Float[Tensor, "n D"]) -> Float[Tensor, "n D"]:
        parts = [self.w3(self.w1(rows).mul_(self.w2(rows))) for rows in x.split(ROWS)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


PACKED = {Mlp: PackedMlp, SwiGlu: PackedSwiGlu, nn.Linear: PackedLinear, QkvLinear: PackedLinear}

_known: weakref.WeakKeyDictionary[nn.Module, tuple[object, nn.Module]] = weakref.WeakKeyDictionary()


def can_pack(backbone: nn.Module) -> bool:
    """Whether this backbone's linear layers can be packed here: fp32, on a CPU, with oneDNN."""
    tensors = [*backbone.parameters(), *backbone.buffers()]
    available = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    # A tensor made in inference mode has no version by which a change could be noticed.
    plain = all(tensor.device.type == "cpu" and not tensor.is_inference() for tensor in tensors)
    return available and plain and all(weights.dtype == torch.float32 for weights in backbone.parameters())


def for_inference(backbone: nn.Module) -> nn.Module:
    """A twin of the backbone in evaluation mode, as fast as this machine runs it without gradients.

    The twin shares every tensor but those of packed linear layers, and the backbone itself is left as it is, in
    training mode too. Packing is done once and again after a weight has changed, so a backbone in training may
    be looked at in between.
    """
    if not can_pack(backbone):
        return twin(backbone, packed=False).eval()
    state = fingerprint(backbone)
    known = _known.get(backbone)
    if known is None or known[0] != state:
        known = (state, twin(backbone, packed=True).eval())
        _known[backbone] = known
    return known[1]


@torch.no_grad()
def fingerprint(backbone: nn.Module) -> object:
    """Equal as long as no weight has changed, in a millisecond: addresses, versions and a number of each matrix.

    Versions alone would miss a step of a fused optimizer, which does not count them up.
    """
    tensors = [*backbone.parameters(), *backbone.buffers()]
    sample = torch.stack([x.view(-1)[0] for x in tensors if x.ndim == 2 and x.is_contiguous()]).tolist()
    return [(x.data_ptr(), x._version) for x in tensors], sample


@torch.no_grad()
def twin(module: nn.Module, *, packed: bool) -> nn.Module:
    """A second module tree over the same tensors, its linear layers exchanged for packed ones if `packed`."""
    if packed and type(module) in PACKED:
        return PACKED[type(module)](module)
    other = copy.copy(module)
    other.__dict__ = dict(module.__dict__)
    children = module._modules.items()
    other._modules = {name: None if child is None else twin(child, packed=packed) for name, child in children}
    return other
