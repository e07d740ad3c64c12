"""The vision transformer of DINOv3 (rotary positions) and of DINOv2 (learned positions), one class."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from core.models.layers import (
    Block,
    LayerScale,
    PatchEmbed,
    QkvLinear,
    RopePositionEmbedding,
    Rotation,
    replace_masked,
    rotation,
)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class VisionTransformer(nn.Module):
    """A ViT that returns one CLS token, R register tokens and P patch tokens of width D.

    Names of parameters are those of the released DINOv3 checkpoints, where registers are called
    `storage_tokens`. Token order is CLS, registers, patches row by row. `position="learned"` gives DINOv2:
    a position embedding for CLS and a `pos_grid` x `pos_grid` grid, resized bicubically to the input's grid
    (`pos_offset` 0.1 and `pos_antialias` follow the released DINOv2 code, which differs from transformers').

    A freshly constructed model holds undefined numbers until `init_weights()` or a state dict fills it;
    `core.models.build_backbone` does that.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        depth: int,
        num_heads: int,
        patch_size: int = 16,
        in_channels: int = 3,
        ffn: str = "mlp",
        ffn_dim: int | None = None,
        num_registers: int = 4,
        qkv_bias: bool = True,
        mask_k_bias: bool = True,
        norm_eps: float = 1e-5,
        layer_scale: float | None = 1e-5,
        drop_path: float = 0.0,
        untie_cls_and_patch_norms: bool = False,
        untie_global_and_local_cls_norm: bool = False,
        position: str = "rope",
        rope_base: float | None = 100.0,
        rope_min_period: float | None = None,
        rope_max_period: float | None = None,
        rope_coords: str = "separate",
        rope_shift: float | None = None,
        rope_jitter: float | None = None,
        rope_rescale: float | None = None,
        rope_dtype: torch.dtype = torch.float32,
        pos_grid: int = 37,
        pos_offset: float = 0.0,
        pos_antialias: bool = False,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        self.arguments: dict[str, Any] = arguments
        self.embed_dim, self.depth, self.num_heads = embed_dim, depth, num_heads
        self.patch_size, self.num_registers = patch_size, num_registers
        self.pixel_mean, self.pixel_std = IMAGENET_MEAN, IMAGENET_STD
        self.source: Any = None  # where the weights came from; set by core.models.weights

        self.patch_embed = PatchEmbed(in_channels, embed_dim, patch_size)
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        if num_registers:
            self.storage_tokens = nn.Parameter(torch.empty(1, num_registers, embed_dim))
        self.mask_token = nn.Parameter(torch.empty(1, embed_dim))

        self.pos_grid, self.pos_offset, self.pos_antialias = pos_grid, pos_offset, pos_antialias
        if position == "rope":
            self.rope_embed = RopePositionEmbedding(
                embed_dim // num_heads,
                base=rope_base,
                min_period=rope_min_period,
                max_period=rope_max_period,
                coords=rope_coords,
                shift=rope_shift,
                jitter=rope_jitter,
                rescale=rope_rescale,
                dtype=rope_dtype,
            )
        elif position == "learned":
            self.pos_embed = nn.Parameter(torch.empty(1, 1 + pos_grid**2, embed_dim))
        else:
            raise ValueError(f"position is 'rope' or 'learned', got {position!r}")
        self.position = position

        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                num_heads,
                ffn=ffn,
                ffn_dim=4 * embed_dim if ffn_dim is None else ffn_dim,
                qkv_bias=qkv_bias,
                mask_k_bias=mask_k_bias,
                norm_eps=norm_eps,
                layer_scale=layer_scale,
                drop_path=drop_path,
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.cls_norm = nn.LayerNorm(embed_dim, eps=norm_eps) if untie_cls_and_patch_norms else None
        self.local_cls_norm = nn.LayerNorm(embed_dim, eps=norm_eps) if untie_global_and_local_cls_norm else None
        self.head = nn.Identity()

    @property
    def n_storage_tokens(self) -> int:
        """Number of registers, by the name that users of the released models know."""
        return self.num_registers

    @torch.no_grad()
    def init_weights(self) -> None:
        """Fill every parameter and buffer as at the start of training (facts: truncated normal 0.02)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            if isinstance(module, PatchEmbed | RopePositionEmbedding | QkvLinear | LayerScale):
                module.init_weights()
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.zeros_(self.mask_token)
        if self.num_registers:
            nn.init.normal_(self.storage_tokens, std=0.02)
        if self.position == "learned":
            nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(
        self,
        x: Tensor | list[Tensor],
        masks: Tensor | list[Tensor | None] | None = None,
        is_training: bool = False,
    ) -> Tensor | dict[str, Tensor | None] | list[dict[str, Tensor | None]]:
        """Normed CLS (B, D); with `is_training` the dictionary of `forward_features` (a list of them for a list)."""
        features = self.forward_features(x, masks)
        if is_training:
            return features
        if isinstance(features, list):
            raise ValueError("a list of crops needs is_training=True: it has one dictionary a crop, not one CLS token")
        return self.head(features["x_norm_clstoken"])

    def forward_features(
        self, x: Tensor | list[Tensor], masks: Tensor | list[Tensor | None] | None = None
    ) -> dict[str, Tensor | None] | list[dict[str, Tensor | None]]:
        """What every token became, after the final norm.

        x: images (B, 3, h, w), or a list of them, one entry a crop size: all entries go through the linear
        layers together. masks: boolean (B, P), True where the mask token stands in for the patch; a list for a
        list. Returns a dictionary (a list of them for a list): `x_norm_clstoken` (B, D), `x_storage_tokens`
        (B, R, D), `x_norm_patchtokens` (B, P, D), `x_prenorm` (B, 1+R+P, D) before the norm, and `masks`.
        """
        if isinstance(x, Tensor):
            assert masks is None or isinstance(masks, Tensor), "one tensor of images takes one tensor of masks"
            return self._forward_crops([x], [masks])[0]
        if masks is None:
            masks = [None] * len(x)
        if not isinstance(masks, list) or len(masks) != len(x):
            raise ValueError(f"a list of {len(x)} crops takes a list of {len(x)} masks (or None), got {type(masks)}")
        return self._forward_crops(x, masks)

    def _forward_crops(self, images: list[Tensor], masks: Sequence[Tensor | None]) -> list[dict[str, Tensor | None]]:
        crops: list[Tensor] = []
        for crops in self.run_blocks(images, masks):  # noqa: B007 - the last yield is what we want
            pass
        outputs: list[dict[str, Tensor | None]] = []
        prefix = 1 + self.num_registers
        for index, (tokens, mask) in enumerate(zip(crops, masks, strict=True)):
            normed = self.final_norm(tokens, local=self.training and index == 1)
            outputs.append(
                {
                    "x_norm_clstoken": normed[:, 0],
                    "x_storage_tokens": normed[:, 1:prefix],
                    "x_norm_patchtokens": normed[:, prefix:],
                    "x_prenorm": tokens,
                    "masks": mask,
                }
            )
        return outputs

    def run_blocks(self, images: list[Tensor], masks: Sequence[Tensor | None] | None = None) -> Iterator[list[Tensor]]:
        """Yield the residual stream, a list of (B, 1+R+P, D), once a block: the caller may stop early."""
        masks = [None] * len(images) if masks is None else masks
        embedded = [self.embed(image, mask) for image, mask in zip(images, masks, strict=True)]
        crops = [tokens for tokens, _ in embedded]
        grids = [grid for _, grid in embedded]
        factors = self.rotations(grids)
        for index, block in enumerate(self.blocks):
            if index and self.training and self.position == "rope" and self.rope_embed.augments:
                factors = self.rotations(grids)  # drawn anew in every block and for every crop group
            crops = block(crops, factors)
            yield crops

    def embed(
        self, images: Float[Tensor, "B C h w"], masks: Bool[Tensor, "B P"] | None = None
    ) -> tuple[Float[Tensor, "B N D"], tuple[int, int]]:
        """The tokens that enter the first block, and the grid of the patches among them."""
        grid = self.patch_embed(images)  # (B, H, W, D)
        rows, cols = grid.shape[1:3]
        patches = grid.flatten(1, 2)
        cls = self.cls_token.to(patches.dtype)
        if masks is not None:
            patches = replace_masked(patches, masks, self.mask_token)
        elif self.training:
            cls = cls + 0 * self.mask_token.to(patches.dtype)  # keeps the parameter in the graph of every rank
        cls = cls.expand(len(images), -1, -1)
        if self.position == "learned":
            position = self.interpolated_pos_embed(rows, cols).to(patches.dtype)
            cls, patches = cls + position[:, :1], patches + position[:, 1:]
        registers = [self.storage_tokens.to(patches.dtype).expand(len(images), -1, -1)] if self.num_registers else []
        return torch.cat([cls, *registers, patches], dim=1), (rows, cols)

    def rotations(self, grids: list[tuple[int, int]]) -> list[Rotation | None]:
        """What turns queries and keys, for each grid; None where positions are learned."""
        if self.position == "learned":
            return [None] * len(grids)
        tables = [self.rope_embed(*grid) for grid in grids]
        return [rotation(sin, cos, 1 + self.num_registers) for sin, cos in tables]

    def interpolated_pos_embed(self, rows: int, cols: int) -> Float[Tensor, "1 N D"]:
        """The learned position embedding of CLS and a rows x cols grid, bicubic in fp32."""
        side = self.pos_grid
        if (rows, cols) == (side, side):
            return self.pos_embed
        cls, grid = self.pos_embed[:, :1], self.pos_embed[:, 1:].float()
        grid = grid.unflatten(1, (side, side)).permute(0, 3, 1, 2)
        if self.pos_offset:
            # The released DINOv2 code asks for a scale, not a size; the offset keeps its rounding from losing a row.
            scale = ((rows + self.pos_offset) / side, (cols + self.pos_offset) / side)
            grid = F.interpolate(grid, scale_factor=scale, mode="bicubic", antialias=self.pos_antialias)
        else:
            grid = F.interpolate(grid, size=(rows, cols), mode="bicubic", antialias=self.pos_antialias)
        assert grid.shape[-2:] == (rows, cols)
        return torch.cat([cls, grid.permute(0, 2, 3, 1).flatten(1, 2).to(cls.dtype)], dim=1)

    def final_norm(self, tokens: Float[Tensor, "B N D"], *, local: bool = False) -> Float[Tensor, "B N D"]:
        """Tokens after the final norm; CLS and registers take their own one where the model has it."""
        prefix_norm = self.cls_norm
        if local and self.local_cls_norm is not None:
            prefix_norm = self.local_cls_norm
        if prefix_norm is None:
            return self.norm(tokens)
        prefix = 1 + self.num_registers
        return torch.cat([prefix_norm(tokens[:, :prefix]), self.norm(tokens[:, prefix:])], dim=1)

    def get_intermediate_layers(
        self,
        x: Float[Tensor, "B C h w"],
        *,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_class_token: bool = False,
        return_extra_tokens: bool = False,
        norm: bool = True,
    ) -> tuple[Tensor | tuple[Tensor, ...], ...]:
        """Patch tokens (B, P, D) after chosen blocks, shallow to deep whatever the order asked for.

        n: how many of the last blocks, or their indices from 0. reshape: maps (B, D, H, W) instead. With
        `return_class_token` and `return_extra_tokens` each element is a tuple (patches, CLS (B, D), registers
        (B, R, D)). norm: apply the model's final norm, to every layer alike.
        """
        wanted = check_layers(n, self.depth)
        outputs: list[Tensor | tuple[Tensor, ...]] = []
        prefix = 1 + self.num_registers
        for index, (tokens,) in enumerate(self.run_blocks([x])):
            if index in wanted:
                tokens = self.final_norm(tokens) if norm else tokens
                patches = tokens[:, prefix:]
                if reshape:
                    grid = (x.shape[-2] // self.patch_size, x.shape[-1] // self.patch_size)
                    patches = patches.unflatten(1, grid).permute(0, 3, 1, 2).contiguous()
                extras = [tokens[:, 0]] if return_class_token else []
                extras += [tokens[:, 1:prefix]] if return_extra_tokens else []
                outputs.append((patches, *extras) if extras else patches)
            if index == max(wanted):
                break
        return tuple(outputs)


def check_layers(n: int | Sequence[int], depth: int) -> set[int]:
    """Block indices from a count of last blocks or a sequence of indices from 0.

    Raises ValueError when one is out of range or named twice.
    """
    layers = list(range(depth - n, depth)) if isinstance(n, int) else list(n)
    if not layers or len(set(layers)) != len(layers) or not all(0 <= layer < depth for layer in layers):
        raise ValueError(f"layers {n!r} of a backbone with {depth}: give 1..{depth} or distinct indices 0..{depth - 1}")
    return set(layers)
