"""The parts of a vision transformer: patches in, position, attention, feed-forward, one residual block."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from core.models import fused

# (cos, signed sin), each (N, Dh): what attention multiplies queries and keys with.
Rotation = tuple[Tensor, Tensor]


class PatchEmbed(nn.Module):
    """Cuts an image into patches and projects each to the model's width."""

    def __init__(self, in_channels: int, embed_dim: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B H W D"]:
        height, width = x.shape[-2:]
        patch = self.patch_size
        if height % patch or width % patch or not height or not width:
            raise ValueError(
                f"image of {height}x{width} pixels (height x width) is not made of {patch} px patches; "
                f"pad or resize it to {max(1, round(height / patch)) * patch}x{max(1, round(width / patch)) * patch}"
            )
        return self.proj(x).permute(0, 2, 3, 1)

    def init_weights(self) -> None:
        bound = 1 / math.sqrt(self.proj.in_channels * self.patch_size**2)
        nn.init.uniform_(self.proj.weight, -bound, bound)
        assert self.proj.bias is not None
        nn.init.uniform_(self.proj.bias, -bound, bound)


class RopePositionEmbedding(nn.Module):
    """Axial rotary position embedding: angles from patch coordinates, not learned (paper section 3.2).

    `periods` is part of the checkpoint: the released files carry it rounded to bf16, so features only match
    theirs when the stored table is used.
    """

    periods: Tensor

    def __init__(
        self,
        head_dim: int,
        *,
        base: float | None = 100.0,
        min_period: float | None = None,
        max_period: float | None = None,
        coords: str = "separate",
        shift: float | None = None,
        jitter: float | None = None,
        rescale: float | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if head_dim % 4:
            raise ValueError(f"rotary embedding needs a head width divisible by 4, got {head_dim}")
        if (base is None) == (min_period is None or max_period is None):
            raise ValueError("give either rope_base or both rope_min_period and rope_max_period")
        if coords not in ("separate", "min", "max"):
            raise ValueError(f"rope_coords is 'separate', 'min' or 'max', got {coords!r}")
        if any(factor is not None and factor < 1 for factor in (jitter, rescale)):
            raise ValueError("rope_jitter and rope_rescale are factors of at least 1")
        self.head_dim, self.base, self.coords = head_dim, base, coords
        self.min_period, self.max_period = min_period, max_period
        self.shift, self.jitter, self.rescale = shift, jitter, rescale
        self.dtype = dtype
        self.register_buffer("periods", torch.empty(head_dim // 4, dtype=dtype))

    def exact_periods(self) -> Float[Tensor, "F"]:
        """The periods as the formula gives them, unrounded, fp32: a quarter of the head width."""
        count = self.head_dim // 4
        if self.base is not None:
            # The fp32 order of operations of the released code: the table must match to the last bit.
            return self.base ** (2 * torch.arange(count, dtype=torch.float32) / (self.head_dim // 2))
        assert self.min_period is not None and self.max_period is not None
        exponents = torch.linspace(0, 1, count)
        return self.max_period * (self.max_period / self.min_period) ** (exponents - 1)

    def init_weights(self) -> None:
        self.periods.copy_(self.exact_periods())

    @property
    def augments(self) -> bool:
        """Whether two calls in training mode differ."""
        return any(value is not None for value in (self.shift, self.jitter, self.rescale))

    def coordinates(self, rows: int, cols: int) -> Float[Tensor, "P 2"]:
        """Patch centres (y, x), row-major; "separate" spans -1..1 on both axes, augmented in training mode."""
        options: dict[str, Any] = {"device": self.periods.device, "dtype": self.dtype}
        per_row = {"separate": rows, "max": max(rows, cols), "min": min(rows, cols)}[self.coords]
        per_col = {"separate": cols, "max": max(rows, cols), "min": min(rows, cols)}[self.coords]
        y = torch.arange(0.5, rows, **options) / per_row
        x = torch.arange(0.5, cols, **options) / per_col
        grid = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).flatten(0, 1)
        grid = 2 * grid - 1
        if self.training and self.shift is not None:
            grid = grid + torch.empty(2, **options).uniform_(-self.shift, self.shift)
        if self.training and self.jitter is not None:
            limit = math.log(self.jitter)
            grid = grid * torch.empty(2, **options).uniform_(-limit, limit).exp()
        if self.training and self.rescale is not None:
            limit = math.log(self.rescale)
            grid = grid * torch.empty(1, **options).uniform_(-limit, limit).exp()
        return grid

    def forward(self, rows: int, cols: int) -> tuple[Float[Tensor, "P Dh"], Float[Tensor, "P Dh"]]:
        """(sin, cos) of every patch's angles; all y angles, then all x angles, then both again."""
        coordinates = self.coordinates(rows, cols)
        angles = 2 * math.pi * coordinates[:, :, None] / self.periods[None, None, :]  # (P, 2, Dh/4)
        angles = angles.flatten(1).tile(2)  # (P, Dh)
        return angles.sin(), angles.cos()


def rotation(sin: Float[Tensor, "P Dh"], cos: Float[Tensor, "P Dh"], prefix: int) -> Rotation:
    """Factors for `rotate` that leave the `prefix` tokens in front of the patches exactly as they are.

    A prefix row multiplies by one and adds zero: cheaper than cutting the tokens apart in every block.
    """
    half = sin.shape[-1] // 2
    sin = torch.cat([-sin[:, :half], sin[:, half:]], dim=-1)
    sin = F.pad(sin, (0, 0, prefix, 0), value=0.0)
    cos = F.pad(cos, (0, 0, prefix, 0), value=1.0)
    return cos, sin


def rotate(x: Float[Tensor, "two B h N Dh"], factors: Rotation) -> Float[Tensor, "two B h N Dh"]:
    """Queries and keys turned by their positions; channel j pairs with j + Dh/2."""
    cos, sin = factors
    turned = x.to(cos.dtype)
    # No fused multiply-add: with both products rounded, features equal the reference's to the last bit.
    return (turned * cos + turned.roll(x.shape[-1] // 2, dims=-1) * sin).to(x.dtype)


class QkvLinear(nn.Linear):
    """The fused query, key and value projection; with `mask_k_bias` the key bias is held at zero.

    A key bias shifts all logits of a query alike, so softmax ignores it. The mask is a buffer because
    released files store it (as zeros on the biased variants: there the whole qkv bias is inert).
    """

    bias_mask: Tensor

    def __init__(self, dim: int, *, bias: bool, mask_k_bias: bool) -> None:
        super().__init__(dim, 3 * dim, bias=bias)
        self.masked = bias and mask_k_bias
        if self.masked:
            self.register_buffer("bias_mask", torch.empty(3 * dim))

    def init_weights(self) -> None:
        if self.masked:
            self.bias_mask.fill_(1)
            self.bias_mask[self.in_features : 2 * self.in_features] = 0

    def masked_bias(self) -> Tensor | None:
        return self.bias * self.bias_mask.to(self.bias.dtype) if self.masked else self.bias

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight, self.masked_bias())


class Attention(nn.Module):
    """Multi-head self-attention over each crop's own tokens; the projections see all crops at once."""

    def __init__(self, dim: int, num_heads: int, *, qkv_bias: bool, mask_k_bias: bool) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"width {dim} is not divisible by {num_heads} heads")
        self.num_heads = num_heads
        self.qkv = QkvLinear(dim, bias=qkv_bias, mask_k_bias=mask_k_bias)
        self.proj = nn.Linear(dim, dim)

    def attend(self, qkv: Float[Tensor, "B N D3"], factors: Rotation | None) -> Float[Tensor, "B N D"]:
        batch, tokens, width = qkv.shape
        qkv = qkv.view(batch, tokens, 3, self.num_heads, width // 3 // self.num_heads)
        # Each head's tokens side by side: a copy, but attention over 4,000 tokens gains a tenth from it on a CPU.
        qkv = qkv.permute(2, 0, 3, 1, 4).contiguous()  # (3, B, h, N, Dh)
        query_key, value = qkv[:2], qkv[2]
        if factors is not None:
            query_key = rotate(query_key, factors)
        query, key = query_key
        mixed = F.scaled_dot_product_attention(query, key, value)  # (B, h, N, Dh)
        return mixed.transpose(1, 2).reshape(batch, tokens, width // 3)

    def forward(self, crops: list[Tensor], factors: list[Rotation | None]) -> list[Tensor]:
        flat, shapes = pack(crops)
        qkv = unpack(self.qkv(flat), shapes)
        mixed, _ = pack([self.attend(x, factor) for x, factor in zip(qkv, factors, strict=True)])
        return unpack(self.proj(mixed), shapes)


class Mlp(nn.Module):
    """Two linear layers with an exact (erf) GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "*n D"]) -> Float[Tensor, "*n D"]:
        return self.fc2(F.gelu(self.fc1(x)))


class SwiGlu(nn.Module):
    """Gated feed-forward: SiLU of the gate times the value, projected back."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(dim, hidden)  # gate
        self.w2 = nn.Linear(dim, hidden)  # value
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "*n D"]) -> Float[Tensor, "*n D"]:
        return self.w3(F.silu(self.w1(x)) * self.w2(x))


FEED_FORWARDS = {"mlp": Mlp, "swiglu": SwiGlu}


def swiglu_dim(embed_dim: int, ratio: float, align: int) -> int:
    """Hidden width of a SwiGLU as wide as an MLP of this ratio: two thirds of it, rounded up to `align`."""
    wanted = int(int(embed_dim * ratio) * 2 / 3)
    return -(-wanted // align) * align


class LayerScale(nn.Module):
    """A learned factor per channel on a residual branch."""

    def __init__(self, dim: int, value: float) -> None:
        super().__init__()
        self.value = value
        self.gamma = nn.Parameter(torch.empty(dim))

    def init_weights(self) -> None:
        nn.init.constant_(self.gamma, self.value)

    def forward(self, x: Float[Tensor, "*n D"]) -> Float[Tensor, "*n D"]:
        return x * self.gamma


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each a scaled residual branch with batch-subset drop path.

    Drop path runs a branch on k = max(int(b (1 - p)), 1) randomly chosen images of the b in a crop group and
    adds b/k times its result to those: the others cost nothing. The rate is the same in every block.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        ffn: str,
        ffn_dim: int,
        qkv_bias: bool,
        mask_k_bias: bool,
        norm_eps: float,
        layer_scale: float | None,
        drop_path: float,
    ) -> None:
        super().__init__()
        if ffn not in FEED_FORWARDS:
            raise ValueError(f"no feed-forward called {ffn!r}; known: {', '.join(sorted(FEED_FORWARDS))}")
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path is a share of images in [0, 1), got {drop_path}")
        self.drop_path = drop_path
        self.fuse_always = False  # in evaluation too; see `fuse_always`
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, num_heads, qkv_bias=qkv_bias, mask_k_bias=mask_k_bias)
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = FEED_FORWARDS[ffn](dim, ffn_dim)
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)

    def forward(self, crops: list[Tensor], factors: list[Rotation | None]) -> list[Tensor]:
        if self.can_fuse(crops, factors):
            return self.run_fused(crops, factors)
        if not (self.training and self.drop_path > 0):
            crops = [x + y for x, y in zip(crops, self.attention_branch(crops, factors), strict=True)]
            return [x + y for x, y in zip(crops, self.feed_forward_branch(crops), strict=True)]
        chosen = [draw_subset(x, self.drop_path) for x in crops]
        subsets = [x[index] for x, index in zip(crops, chosen, strict=True)]
        crops = add_subset(crops, chosen, self.attention_branch(subsets, factors))
        chosen = [draw_subset(x, self.drop_path) for x in crops]
        subsets = [x[index] for x, index in zip(crops, chosen, strict=True)]
        return add_subset(crops, chosen, self.feed_forward_branch(subsets))

    def can_fuse(self, crops: list[Tensor], factors: list[Rotation | None]) -> bool:
        """Whether `run_fused` computes the same, and faster: in training, on a CPU, in fp32, with short sequences."""
        if not (self.training or self.fuse_always) or (self.training and self.drop_path) or type(self.mlp) is not Mlp:
            return False
        if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
            return False
        tensors = [*crops, *self.parameters(), *(factor[0] for factor in factors if factor is not None)]
        plain = all(x.device.type == "cpu" and x.dtype == torch.float32 for x in tensors)
        return plain and all(x.shape[1] <= fused.MAX_TOKENS for x in crops)

    def run_fused(self, crops: list[Tensor], factors: list[Rotation | None]) -> list[Tensor]:
        """What the block gives, up to rounding, as one function (core.models.fused)."""
        attention, ffn = self.attn, self.mlp
        assert isinstance(ffn, Mlp)
        weights = fused.Weights(
            norm1=self.norm1.weight,
            norm1_bias=self.norm1.bias,
            qkv=attention.qkv.weight,
            qkv_bias=attention.qkv.masked_bias(),
            proj=attention.proj.weight,
            proj_bias=attention.proj.bias,
            gamma1=self.ls1.gamma if isinstance(self.ls1, LayerScale) else None,
            norm2=self.norm2.weight,
            norm2_bias=self.norm2.bias,
            fc1=ffn.fc1.weight,
            fc1_bias=ffn.fc1.bias,
            fc2=ffn.fc2.weight,
            fc2_bias=ffn.fc2.bias,
            gamma2=self.ls2.gamma if isinstance(self.ls2, LayerScale) else None,
        )
        heads = attention.num_heads
        pairs = [None if factor is None else fused.rotation_factors(*factor, heads) for factor in factors]
        return fused.run_block(weights, fused.Settings(heads, self.norm1.eps, pairs), crops)

    def attention_branch(self, crops: list[Tensor], factors: list[Rotation | None]) -> list[Tensor]:
        flat, shapes = pack(crops)
        mixed, _ = pack(self.attn(unpack(self.norm1(flat), shapes), factors))
        return unpack(self.ls1(mixed), shapes)

    def feed_forward_branch(self, crops: list[Tensor]) -> list[Tensor]:
        flat, shapes = pack(crops)
        return unpack(self.ls2(self.mlp(self.norm2(flat))), shapes)


def fuse_always(module: nn.Module) -> None:
    """Lets every block run fused in evaluation too, as a teacher may.

    Otherwise evaluation keeps to the operators of the reference, with which it agrees to the last bit.
    """
    for block in module.modules():
        if isinstance(block, Block):
            block.fuse_always = True


def draw_subset(x: Float[Tensor, "B N D"], rate: float) -> Int[Tensor, "k"]:
    """Which images of a crop group keep their branch, drawn without replacement."""
    keep = max(int(len(x) * (1 - rate)), 1)
    return torch.randperm(len(x), device=x.device)[:keep]


def add_subset(crops: list[Tensor], chosen: list[Tensor], updates: list[Tensor]) -> list[Tensor]:
    """Crops with each chosen image moved by its update, scaled so that the mean over the batch is kept."""
    return [
        x.index_add(0, index, update.to(x.dtype), alpha=len(x) / len(index))
        for x, index, update in zip(crops, chosen, updates, strict=True)
    ]


def pack(crops: list[Tensor]) -> tuple[Tensor, list[torch.Size]]:
    """All tokens of all crops as one (tokens, D) matrix, so that a linear layer runs once; and their shapes."""
    shapes = [x.shape[:-1] for x in crops]
    flats = [x.reshape(-1, x.shape[-1]) for x in crops]
    return (flats[0] if len(flats) == 1 else torch.cat(flats)), shapes


def unpack(flat: Float[Tensor, "tokens D"], shapes: list[torch.Size]) -> list[Tensor]:
    """The inverse of `pack`: one (B, N, D) a crop."""
    parts = flat.split([shape.numel() for shape in shapes])
    return [part.view(*shape, flat.shape[-1]) for part, shape in zip(parts, shapes, strict=True)]


def replace_masked(
    patches: Float[Tensor, "B P D"], masks: Bool[Tensor, "B P"], mask_token: Float[Tensor, "1 D"]
) -> Float[Tensor, "B P D"]:
    """Patches with the masked ones exchanged for the mask token (iBOT)."""
    return torch.where(masks[..., None], mask_token.to(patches.dtype), patches)
