"""The text tower: a causal transformer over tokens, read at the end of the text."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from core.models.layers import Mlp


class TextAttention(nn.Module):
    """Multi-head self-attention, causal or not; the fused projection has no bias."""

    def __init__(self, dim: int, num_heads: int, *, causal: bool) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"width {dim} is not divisible by {num_heads} heads")
        self.num_heads, self.causal = num_heads, causal
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        query, key, value = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, h, N, Dh)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class TextBlock(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, dim: int, num_heads: int, *, ratio: float, causal: bool) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = TextAttention(dim, num_heads, causal=causal)
        self.ffn_norm = nn.LayerNorm(dim)
        self.feed_forward = Mlp(dim, int(dim * ratio))

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.ffn_norm(x))


class Projection(nn.Module):
    """The last of a text tower, into the common space, under the name it has in the released file."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.linear_projection = nn.Linear(dim, out_dim, bias=False)

    @torch.no_grad()
    def init_weights(self) -> None:
        nn.init.normal_(self.linear_projection.weight, std=self.linear_projection.in_features**-0.5)

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B E"]:
        return self.linear_projection(x)


class TextTransformer(nn.Module):
    """Tokens and learned positions through pre-norm blocks. Numbers are undefined until `init_weights()`."""

    def __init__(
        self,
        *,
        vocabulary: int = 49_408,
        context: int = 77,
        dim: int = 1280,
        num_heads: int = 20,
        depth: int = 24,
        ratio: float = 4.0,
        causal: bool = True,
    ) -> None:
        super().__init__()
        self.context, self.dim = context, dim
        self.token_embedding = nn.Embedding(vocabulary, dim)
        self.positional_embedding = nn.Parameter(torch.empty(context, dim))
        self.blocks = nn.ModuleList(TextBlock(dim, num_heads, ratio=ratio, causal=causal) for _ in range(depth))
        self.ln_final = nn.LayerNorm(dim)

    @torch.no_grad()
    def init_weights(self) -> None:
        """As the release starts: narrower where many residual branches add up."""
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        branch = self.dim**-0.5 * (2 * len(self.blocks)) ** -0.5
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            if isinstance(module, TextAttention):
                nn.init.normal_(module.qkv.weight, std=self.dim**-0.5)
                nn.init.normal_(module.proj.weight, std=branch)
                nn.init.zeros_(module.proj.bias)
            if isinstance(module, Mlp):
                nn.init.normal_(module.fc1.weight, std=(2 * self.dim) ** -0.5)
                nn.init.normal_(module.fc2.weight, std=branch)
                nn.init.zeros_(module.fc1.bias)
                nn.init.zeros_(module.fc2.bias)

    def forward(self, tokens: Int[Tensor, "B N"]) -> Float[Tensor, "B N D"]:
        """Every token after the final norm. Raises ValueError for texts longer than the context."""
        if tokens.shape[1] > self.context:
            raise ValueError(f"{tokens.shape[1]} tokens are more than the context of {self.context}; cut the text")
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.ln_final(x)
