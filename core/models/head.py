"""The projection head between a backbone's tokens and the prototypes (paper section 3.2)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class ProjectionHead(nn.Module):
    """An MLP to a unit vector, then one logit a prototype; DINO and iBOT have one each.

    The last layer is a plain linear map without bias: DINOv2's weight normalisation is gone. Names of parameters are
    those of training checkpoints. Numbers are undefined until `init_weights()` or a state dict fills them.
    """

    def __init__(
        self, dim: int, prototypes: int, *, hidden: int = 2048, bottleneck: int = 256, layers: int = 3
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"a head has at least one layer, got {layers}")
        widths = [dim, *[hidden] * (layers - 1), bottleneck]
        parts: list[nn.Module] = []
        for index in range(layers):
            parts += [nn.Linear(widths[index], widths[index + 1]), nn.GELU()]
        self.mlp = nn.Sequential(*parts[:-1])
        self.last_layer = nn.Linear(bottleneck, prototypes, bias=False)

    @torch.no_grad()
    def init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self, x: Float[Tensor, "*n D"], *, no_last_layer: bool = False, only_last_layer: bool = False
    ) -> Float[Tensor, "*n K"]:
        """Logits, or with `no_last_layer` the unit bottleneck vectors, to which `only_last_layer` then applies it."""
        if not only_last_layer:
            x = self.mlp(x)
            x = F.normalize(x, dim=-1, eps=1e-6 if x.dtype == torch.float16 else 1e-12)
        return x if no_last_layer else self.last_layer(x)
