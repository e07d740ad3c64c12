"""What is trained on top of the frozen backbone: two blocks over its tokens."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from core.models.layers import Block, LayerScale, swiglu_dim


class VisionHead(nn.Module):
    """Pre-norm blocks without positions and with SwiGLU over [CLS, registers, patches], and a final norm.

    Where `out_dim` is not twice the width, a linear layer brings every token to half of it. Numbers are undefined until
    `init_weights()`.
    """

    def __init__(
        self, dim: int, num_heads: int, *, out_dim: int | None = None, depth: int = 2, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        out_dim = 2 * dim if out_dim is None else out_dim
        if out_dim % 2:
            raise ValueError(
                f"half of the {out_dim} output channels is for CLS and half for patches; it has to be even"
            )
        self.blocks = nn.ModuleList(
            Block(
                dim,
                num_heads,
                ffn="swiglu",
                ffn_dim=swiglu_dim(dim, 4.0, 64),
                qkv_bias=False,
                mask_k_bias=False,
                norm_eps=1e-5,
                layer_scale=1e-5,
                drop_path=drop_path,
            )
            for _ in range(depth)
        )
        self.ln_final = nn.LayerNorm(dim)
        self.linear_projection = nn.Identity() if out_dim == 2 * dim else nn.Linear(dim, out_dim // 2, bias=False)

    @torch.no_grad()
    def init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            if isinstance(module, LayerScale):
                module.init_weights()

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N E"]:
        """Every token after norm and projection, in the order in which they came."""
        crops = [tokens]
        for block in self.blocks:
            crops = block(crops, [None])
        return self.linear_projection(self.ln_final(crops[0]))
