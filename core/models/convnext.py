"""ConvNeXt as distilled by DINOv3 (paper section 5), with the forward contract of the vision transformer."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from core.models.vit import IMAGENET_MEAN, IMAGENET_STD, check_layers

EPS = 1e-6  # of every norm in the released models
OUTPUT_STRIDE = 32  # pixels per cell of the last stage's map


class ChannelsFirstNorm(nn.LayerNorm):
    """LayerNorm over the channel axis of a map."""

    def forward(self, input: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7, then a per-pixel MLP: one scaled residual branch, dropped per image in training."""

    def __init__(self, dim: int, *, drop_path: float, layer_scale: float) -> None:
        super().__init__()
        self.drop_path, self.layer_scale = drop_path, layer_scale
        self.dwconv = nn.Conv2d(dim, dim, kernel_size=7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(torch.empty(dim))

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        branch = self.dwconv(x).permute(0, 2, 3, 1)
        branch = self.gamma * self.pwconv2(F.gelu(self.pwconv1(self.norm(branch))))
        branch = branch.permute(0, 3, 1, 2)
        if self.training and self.drop_path:
            keep = 1 - self.drop_path
            kept = torch.empty(len(x), 1, 1, 1, dtype=branch.dtype, device=branch.device).bernoulli_(keep)
            branch = branch * kept / keep
        return x + branch


class ConvNeXt(nn.Module):
    """Four stages of a ConvNeXt that answer like a ViT: one global token, no registers, patch tokens.

    The global token ("CLS") is the norm of the mean of the last map, patches are its cells, of
    `output_stride` = 32 pixels. Sides that are no multiple of 32 lose their remainder, as each strided
    convolution drops what does not fill its window. Names of parameters are those of the released
    checkpoints; there the final norm is listed twice (`norm` and `norms.3`), being one module.

    `depth` is the number of stages, which is what `get_intermediate_layers` counts; `num_heads` is 0, as
    there is no attention. With `patch_size` the maps of all stages are resized to one cell a patch there.
    A freshly constructed model holds undefined numbers until `init_weights()` or a state dict fills it.
    """

    def __init__(
        self,
        *,
        depths: Sequence[int],
        dims: Sequence[int],
        patch_size: int | None = None,
        drop_path: float = 0.0,  # of the last block; rises linearly from 0
        layer_scale: float = 1e-6,
        in_channels: int = 3,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        if len(depths) != 4 or len(dims) != 4:
            raise ValueError(f"a ConvNeXt has 4 stages, got {len(depths)} depths and {len(dims)} dims")
        self.arguments: dict[str, Any] = arguments | {"depths": tuple(depths), "dims": tuple(dims)}
        self.embed_dims, self.embed_dim = tuple(dims), dims[-1]
        self.depth = self.n_blocks = len(depths)
        self.num_heads, self.num_registers, self.n_storage_tokens = 0, 0, 0
        self.patch_size, self.output_stride = patch_size, OUTPUT_STRIDE
        self.pixel_mean, self.pixel_std = IMAGENET_MEAN, IMAGENET_STD
        self.source: Any = None  # where the weights came from; set by core.models.weights

        stem = nn.Sequential(nn.Conv2d(in_channels, dims[0], kernel_size=4, stride=4), ChannelsFirstNorm(dims[0], EPS))
        self.downsample_layers = nn.ModuleList([stem])
        for before, after in pairwise(dims):
            halve = nn.Conv2d(before, after, kernel_size=2, stride=2)
            self.downsample_layers.append(nn.Sequential(ChannelsFirstNorm(before, EPS), halve))
        total = sum(depths)
        rates = iter([drop_path * index / max(1, total - 1) for index in range(total)])
        self.stages = nn.ModuleList(
            nn.Sequential(*(ConvNeXtBlock(dim, drop_path=next(rates), layer_scale=layer_scale) for _ in range(depth)))
            for depth, dim in zip(depths, dims, strict=True)
        )
        self.norm = nn.LayerNorm(dims[-1], eps=EPS)
        self.norms = nn.ModuleList([nn.Identity(), nn.Identity(), nn.Identity(), self.norm])
        self.head = nn.Identity()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Fill every parameter as at the start of training: truncated normal 0.02, biases 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            if isinstance(module, ConvNeXtBlock):
                nn.init.constant_(module.gamma, module.layer_scale)

    def forward(
        self,
        x: Tensor | list[Tensor],
        masks: Tensor | list[Tensor | None] | None = None,
        is_training: bool = False,
    ) -> Tensor | dict[str, Tensor | None] | list[dict[str, Tensor | None]]:
        """Normed global token (B, D); with `is_training` what `forward_features` returns."""
        features = self.forward_features(x, masks)
        if is_training:
            return features
        if isinstance(features, list):
            raise ValueError("a list of crops needs is_training=True: it has one dictionary a crop, not one CLS token")
        return self.head(features["x_norm_clstoken"])

    def forward_features(
        self, x: Tensor | list[Tensor], masks: Tensor | list[Tensor | None] | None = None
    ) -> dict[str, Tensor | None] | list[dict[str, Tensor | None]]:
        """Global and patch tokens after the final norm, under the keys of the vision transformer.

        x: images (B, 3, h, w) or a list of them. masks are handed through, never applied: there is no mask
        token. Returns a dictionary (a list of them for a list): `x_norm_clstoken` (B, D),
        `x_storage_tokens` (B, 0, D), `x_norm_patchtokens` (B, P, D), `x_prenorm` (B, P, D) patches before the
        norm, and `masks`. Raises ValueError for an image smaller than 32 pixels.
        """
        if isinstance(x, Tensor):
            assert masks is None or isinstance(masks, Tensor), "one tensor of images takes one tensor of masks"
            return self._forward_images(x, masks)
        if masks is None:
            masks = [None] * len(x)
        if not isinstance(masks, list) or len(masks) != len(x):
            raise ValueError(f"a list of {len(x)} crops takes a list of {len(x)} masks (or None), got {type(masks)}")
        return [self._forward_images(images, mask) for images, mask in zip(x, masks, strict=True)]

    def _forward_images(self, images: Float[Tensor, "B C h w"], masks: Tensor | None) -> dict[str, Tensor | None]:
        last = self.stage_maps(images)[-1]
        patches = last.flatten(2).transpose(1, 2)  # (B, P, D)
        return {
            "x_norm_clstoken": self.norm(last.mean(dim=(2, 3))),
            "x_storage_tokens": patches.new_empty(len(patches), 0, self.embed_dim),
            "x_norm_patchtokens": self.norm(patches),
            "x_prenorm": patches,
            "masks": masks,
        }

    def stage_maps(self, images: Float[Tensor, "B C h w"], last: int = 3) -> list[Tensor]:
        """The map (B, D_s, H_s, W_s) after each stage up to `last`, of strides 4, 8, 16 and 32."""
        height, width = images.shape[-2:]
        if min(height, width) < self.output_stride:
            raise ValueError(f"image of {height}x{width} pixels: a ConvNeXt needs at least {self.output_stride} a side")
        maps: list[Tensor] = []
        x = images
        for downsample, stage in zip(self.downsample_layers[: last + 1], self.stages, strict=False):
            x = stage(downsample(x))
            maps.append(x)
        return maps

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
        """Patch tokens (B, P, D_s) after chosen stages, shallow to deep; each stage has its own width.

        n: how many of the last stages, or their indices from 0. With `patch_size` each map is first resized
        (bilinear, antialiased) to one cell a patch. reshape: maps (B, D_s, H, W). With `return_class_token`
        each element is (patches, mean of the map (B, D_s)); `return_extra_tokens` adds an empty (B, 0, D_s).
        norm: the final norm, which exists for the last stage only; the others stay as they are.
        """
        wanted = check_layers(n, self.depth)
        outputs: list[Tensor | tuple[Tensor, ...]] = []
        for index, features in enumerate(self.stage_maps(x, last=max(wanted))):
            if index not in wanted:
                continue
            pooled = features.mean(dim=(2, 3))
            if self.patch_size is not None:
                grid = (x.shape[-2] // self.patch_size, x.shape[-1] // self.patch_size)
                features = F.interpolate(features, size=grid, mode="bilinear", antialias=True)
            rows, cols = features.shape[-2:]
            patches = features.flatten(2).transpose(1, 2)  # (B, P, D_s)
            if norm:
                patches, pooled = self.norms[index](patches), self.norms[index](pooled)
            if reshape:
                patches = patches.transpose(1, 2).unflatten(2, (rows, cols)).contiguous()
            extras = [pooled] if return_class_token else []
            extras += [patches.new_empty(len(patches), 0, pooled.shape[-1])] if return_extra_tokens else []
            outputs.append((patches, *extras) if extras else patches)
        return tuple(outputs)
