"""What a backbone is shown of a picture: upright, cropped, resized, padded to whole patches, normalised.

Pictures are resized bilinearly with antialiasing in uint8 and then normalised with the mean and deviation the weights
were trained with (the recipe of the released models' README).
"""

import dataclasses
import math
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from core.dense.geometry import Geometry, plan
from core.models import Backbone
from core.models.convnext import ConvNeXt

MAX_SIDE = 4096  # model pixels


@runtime_checkable
class UprightPhoto(Protocol):
    """A decoded photograph that remembers its file, such as `workbench.images.Photo`."""

    @property
    def pixels(self) -> UInt8[np.ndarray, "h w 3"]: ...
    @property
    def stored_width(self) -> int: ...
    @property
    def stored_height(self) -> int: ...
    @property
    def orientation(self) -> int: ...


Picture = UInt8[np.ndarray, "_ _ 3"] | Image.Image | UprightPhoto  # _: pictures in a list differ in size


def picture_geometry(
    backbone: Backbone, image: Picture, *, size: int | None = None, layer: int = -1, **options: Any
) -> Geometry:
    """The geometry with which `extract` shows this picture to this backbone; `options` go to `geometry.plan`."""
    if size is not None and not 1 <= size <= MAX_SIDE:
        raise ValueError(f"size is the long side of the model input, 1 to {MAX_SIDE} px, got {size}")
    width, height, orientation = _stored_size(image)
    geometry = plan(width, height, input_multiple(backbone), size=size, orientation=orientation, **options)
    if size is None and max(geometry.crop_width, geometry.crop_height) > MAX_SIDE:
        raise ValueError(
            f"the picture is {geometry.crop_width}x{geometry.crop_height} px, and at its own size more than the "
            f"{MAX_SIDE} px a side that are supported; pass size={MAX_SIDE} or less"
        )
    return dataclasses.replace(geometry, patch_size=cell_size(backbone, layer))


def cell_size(backbone: Backbone, layer: int = -1) -> int:
    """Model pixels along the side of one cell of a layer's map: the patch size, or the stride of the stage."""
    index = layer_index(backbone, layer)
    if isinstance(backbone, ConvNeXt) and not backbone.patch_size:
        return backbone.output_stride >> (backbone.depth - 1 - index)
    assert backbone.patch_size is not None
    return backbone.patch_size


def layer_index(backbone: Backbone, layer: int) -> int:
    """A layer counted from 0, from one that may count from the end; ValueError when it is not there."""
    index = layer + backbone.depth if layer < 0 else layer
    if not 0 <= index < backbone.depth:
        raise ValueError(
            f"no layer {layer} in a backbone of {backbone.depth}; give 0 to {backbone.depth - 1}, or "
            f"-{backbone.depth} to -1 from the end"
        )
    return index


def input_multiple(backbone: Backbone) -> int:
    """What both sides of this backbone's input are multiples of, in pixels."""
    if isinstance(backbone, ConvNeXt):
        return math.lcm(backbone.output_stride, backbone.patch_size or 1)
    return backbone.patch_size


def check_geometry(backbone: Backbone, geometry: Geometry, layer: int) -> None:
    """A map that a geometry of other cells is laid over would be shown in the wrong place."""
    cell, multiple = cell_size(backbone, layer), input_multiple(backbone)
    width, height = geometry.padded_width, geometry.padded_height
    if geometry.patch_size != cell or width % multiple or height % multiple:
        raise ValueError(
            f"the geometry has cells of {geometry.patch_size} px on an input of {width}x{height} px; layer {layer} of "
            f"this backbone has cells of {cell} px and takes multiples of {multiple} px: make it with picture_geometry "
            "for the same backbone and layer"
        )


def _stored_size(image: Picture) -> tuple[int, int, int]:
    """Width and height as stored, and the EXIF orientation: 1 for an array, which has none."""
    if isinstance(image, Image.Image):
        if image.format == "TIFF":
            image.load()  # turns it upright, and only then do its size and its orientation agree
        code = image.getexif().get(0x0112, 1)
        return image.width, image.height, int(code) if code in range(1, 9) else 1  # 0: the camera did not know
    if isinstance(image, UprightPhoto):
        return image.stored_width, image.stored_height, image.orientation
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"an array of {image.dtype} and shape {image.shape} is not a picture; give uint8 of shape (height, width, "
            "3), RGB from 0 to 255"
        )
    return image.shape[1], image.shape[0], 1


def _upright(image: Picture) -> UInt8[np.ndarray, "h w 3"]:
    if isinstance(image, Image.Image):
        if image.mode[0] in "IF":  # Pillow would cut all values above 255
            raise ValueError(f"the picture has mode {image.mode}, more than 8 bits a channel; convert it to RGB first")
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    return image.pixels if isinstance(image, UprightPhoto) else image


def resized(image: Picture, geometry: Geometry) -> UInt8[Tensor, "3 h w"]:
    """The picture upright, cropped, resized and padded to the model input of this geometry."""
    upright = _upright(image)
    if upright.shape[:2] != (geometry.height, geometry.width):
        raise ValueError(
            f"the geometry is of a picture of {geometry.width}x{geometry.height} px, this one has "
            f"{upright.shape[1]}x{upright.shape[0]}"
        )
    left, top, right, bottom = geometry.crop
    crop = np.array(upright[top:bottom, left:right])  # a copy: torch wants to be able to write
    pixels = torch.from_numpy(crop).permute(2, 0, 1)[None]
    size = (geometry.input_height, geometry.input_width)
    if pixels.shape[-2:] != size:
        pixels = F.interpolate(pixels, size=size, mode="bilinear", antialias=True)
    pad_left, pad_top, pad_right, pad_bottom = geometry.pad
    rows = torch.arange(-pad_top, size[0] + pad_bottom).clamp(0, size[0] - 1)
    cols = torch.arange(-pad_left, size[1] + pad_right).clamp(0, size[1] - 1)
    return pixels[0][:, rows][:, :, cols]  # the border repeated: black would be an edge that wins similarities


def normalised(backbone: Backbone, pixels: UInt8[Tensor, "3 h w"]) -> Float[Tensor, "3 h w"]:
    """Pixels as the weights expect them: 0..1, minus their mean, over their deviation, on their device."""
    weights = next(backbone.parameters())
    mean, std = (torch.tensor(values)[:, None, None] for values in (backbone.pixel_mean, backbone.pixel_std))
    return pixels.float().div_(255).sub_(mean).div_(std).to(weights.device, weights.dtype)  # 200 MB at 4096 x 4096


def model_input(backbone: Backbone, image: Picture, geometry: Geometry) -> Float[Tensor, "3 h w"]:
    """What the backbone is shown of a picture."""
    return normalised(backbone, resized(image, geometry))
