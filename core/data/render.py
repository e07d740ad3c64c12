"""Crops out of pictures, as decided by `augment`: the same numbers in a worker and on a device, up to rounding.

Cropping and resizing follow Pillow: bicubic, antialiased, 8 bits a channel. What comes after works on whole batches of
values of 0..1 and clamps after each operation, with the factors of torchvision's colour jitter.
"""

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from core.config import CropsConfig, CropSizes
from core.data.augment import CONTRAST, HUE, SATURATION, Boxes, Colors, Views

KERNEL = 9  # of the blur, in pixels
SOLARIZE_FROM = 128 / 255
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow and kornia have it
TOGETHER = 1 << 20  # values worked on at a time on a CPU, 4 MB: about what its caches hold

Picture = UInt8[Tensor, "3 _ _"]  # _: pictures in a list differ in size


def render(
    pictures: list[Picture],
    views: Views,
    crops: CropsConfig,
    sizes: CropSizes,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    *,
    matrices: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Global (2 B, 3, g, g), local (L B, 3, l, l) and Gram crops (2 B, 3, h, h) of B pictures, normalised.

    matrices: resize by products of matrices, which every device has, instead of torch's 8-bit kernel for CPUs.
    """
    if views.shared_colors is not None:
        pictures = [_distorted_picture(p, views.shared_colors, i) for i, p in enumerate(pictures)]
    cut = cut_by_matrices if matrices else cut_by_kernel
    side = sizes.global_size
    base = cut(pictures, views.global_boxes, max(side, sizes.gram_size or 0))
    gram = None
    if sizes.gram_size is None:
        global_crops = finish(base, views.global_colors, mean, std)
    elif crops.gram_distorted:  # colours first: both sizes share them
        large = finish(base, views.global_colors, mean, std)
        global_crops, gram = (resize(large, size, matrices=matrices) for size in (side, sizes.gram_size))
    else:  # sizes first: the blur then has the same reach as without Gram crops
        global_crops = finish(resize(base, side, matrices=matrices), views.global_colors, mean, std)
        gram = finish(resize(base, sizes.gram_size, matrices=matrices), None, mean, std)
    if views.windows is None:
        local_crops = finish(cut(pictures, views.local_boxes, sizes.local_size), views.local_colors, mean, std)
    else:
        local_crops = _windows(resize(base, side, matrices=matrices), views, sizes.local_size, mean, std)
    return global_crops, local_crops, gram


def _windows(base: Tensor, views: Views, size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Local crops inside global ones: the first half of them in the first; colours see the whole global crop."""
    assert views.windows is not None
    images = len(base) // 2
    out = torch.empty(len(views.windows), 3, size, size, device=base.device)
    for start in range(0, len(out), images):  # a crop of each image at a time: whole global crops are large
        second = 2 * start >= len(out)
        colors = views.local_colors.part(slice(start, start + images))
        whole = finish(base[images:] if second else base[:images], colors, mean, std)
        for index, (top, left) in enumerate(views.windows[start : start + images].tolist()):
            out[start + index] = whole[index, :, top : top + size, left : left + size]
    return out


def _distorted_picture(picture: Tensor, colors: Colors, index: int) -> Tensor:
    values = distort(picture[None].float().contiguous().div_(255), colors.part(slice(index, index + 1)))
    return values.mul_(255).round_().to(torch.uint8)[0]


# Cropping and resizing


def cut_by_kernel(pictures: list[Picture], boxes: Boxes, size: int) -> UInt8[Tensor, "n 3 s s"]:
    """Square crops of pictures by torch's 8-bit kernel; crop i is of picture i modulo their number."""
    crops = torch.empty((len(boxes.top), 3, size, size), dtype=torch.uint8)
    sides = zip(*(side.tolist() for side in boxes), strict=True)
    for index, (top, left, height, width, flip) in enumerate(sides):
        box = pictures[index % len(pictures)][None, :, top : top + height, left : left + width]
        # Interleaved channels take the vectorised way; the copy is small beside the resizing.
        box = box.contiguous(memory_format=torch.channels_last)
        crop = F.interpolate(box, size=(size, size), mode="bicubic", antialias=True)
        crops[index] = crop[0].flip(-1) if flip else crop[0]
    return crops


def cut_by_matrices(pictures: list[Picture], boxes: Boxes, size: int) -> UInt8[Tensor, "n 3 s s"]:
    """The same crops by one matrix for the rows and one for the columns of each, on the pictures' device."""
    crops = torch.empty((len(boxes.top), 3, size, size), dtype=torch.uint8, device=pictures[0].device)
    for index, picture in enumerate(pictures):
        mine = slice(index, None, len(pictures))
        height, width = picture.shape[-2:]
        rows = bicubic(boxes.top[mine], boxes.height[mine], height, size).to(picture.device)
        columns = bicubic(boxes.left[mine], boxes.width[mine], width, size).to(picture.device)
        flip = torch.from_numpy(boxes.flip[mine]).to(picture.device)[:, None, None]
        columns = torch.where(flip, columns.flip(1), columns)
        wide = picture.float().reshape(3 * height, width) @ columns.flatten(0, 1).mT  # (3 h, crops s)
        wide = _rounded(wide).view(3, height, -1, size).permute(2, 0, 1, 3)  # Pillow rounds here as well
        crops[mine] = _rounded(rows[:, None] @ wide).to(torch.uint8)
    return crops


def resize(crops: Tensor, size: int, *, matrices: bool) -> Tensor:
    """Square crops at another size: 8 bits stay 8 bits, floating point is not clamped."""
    if crops.shape[-1] == size:
        return crops
    if not matrices:
        return F.interpolate(crops, size=(size, size), mode="bicubic", antialias=True)
    side = crops.shape[-1]
    matrix = bicubic(np.zeros(1, dtype=np.int64), np.array([side]), side, size)[0].to(crops.device)
    if crops.dtype == torch.uint8:
        return _rounded(matrix @ _rounded(crops.float() @ matrix.mT)).to(torch.uint8)
    return matrix @ (crops @ matrix.mT)


def _rounded(values: Tensor) -> Tensor:
    return values.round_().clamp_(0, 255)


def bicubic(start: np.ndarray, length: np.ndarray, total: int, size: int) -> Float[Tensor, "n size total"]:
    """Matrices that resize the stretches of a line of `total` pixels to `size`: Pillow's antialiased bicubic filter."""
    scale = (length / size)[:, None, None]
    stretch = np.maximum(scale, 1)  # the filter grows with the pixels it is to average
    centre = (np.arange(size)[:, None] + 0.5) * scale
    pixel = np.arange(total) - start[:, None, None]
    first, last = np.floor(centre - 2 * stretch + 0.5), np.floor(centre + 2 * stretch + 0.5)
    reached = (pixel >= np.maximum(first, 0)) & (pixel < np.minimum(last, length[:, None, None]))
    x = np.abs((pixel + 0.5 - centre) / stretch)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2  # Keys' cubic, a = -0.5
    weights = np.where(x < 1, near, np.where(x < 2, far, 0)) * reached
    return torch.from_numpy((weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32))


# Colours


def finish(
    crops: UInt8[Tensor, "n 3 s s"], colors: Colors | None, mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Tensor, "n 3 s s"]:
    """Colours, blur, solarisation and normalisation of crops, each with its own decisions."""
    out = torch.empty(crops.shape, device=crops.device)
    scale, shift = (torch.tensor(v, device=crops.device)[:, None, None] for v in ([1 / s for s in std], mean))
    together = max(TOGETHER // crops[0].numel(), 1) if crops.device.type == "cpu" and len(crops) else len(crops)
    for start in range(0, len(crops), max(together, 1)):
        part = slice(start, start + together)
        values = out[part].copy_(crops[part]).mul_(1 / 255)
        if colors is not None:
            distort(values, colors.part(part))
        values.sub_(shift).mul_(scale)
    return out


def distort(values: Float[Tensor, "n 3 h w"], colors: Colors) -> Float[Tensor, "n 3 h w"]:
    """Pictures of 0..1 after colour jitter, grayscale, blur and solarisation, in place."""
    jitter_(values, colors)
    if (gray := _where(colors.grayscale, values)) is not None:
        values.index_copy_(0, gray, luma(values.index_select(0, gray)).expand(-1, 3, -1, -1))
    if (blurred := _where(colors.sigma > 0, values)) is not None:
        sigma = torch.from_numpy(colors.sigma[colors.sigma > 0]).to(values.device)
        values.index_copy_(0, blurred, blur(values.index_select(0, blurred), sigma))
    if (inverted := _where(colors.solarize, values)) is not None:
        values.index_copy_(0, inverted, solarize(values.index_select(0, inverted)))
    return values


def _where(chosen: np.ndarray, values: Tensor) -> Tensor | None:
    """Indices of the chosen pictures, None when there are none; found without asking the device."""
    indices = np.flatnonzero(chosen)
    return torch.from_numpy(indices).to(values.device) if len(indices) else None


def jitter_(values: Float[Tensor, "n 3 h w"], colors: Colors) -> None:
    """Brightness, contrast, saturation and hue of each picture, in its own order, in place.

    The first three go together: each is the picture times a factor plus what is missing to 1 of black, of its mean
    brightness, or of its own gray. A factor of 1 leaves pictures alone whose turn it is not.
    """
    for turn in range(4):
        operation = np.where(colors.jitter, colors.order[:, turn], -1)
        factor = np.where(operation == HUE, 1, np.take_along_axis(colors.factors, colors.order[:, turn, None], 1)[:, 0])
        factor = np.where(operation < 0, 1, factor).astype(np.float32)
        if (factor != 1).any():
            rest = 1 - factor
            of_mean, of_gray = rest * (operation == CONTRAST), rest * (operation == SATURATION)
            amounts = torch.from_numpy(np.stack([factor, of_gray, of_mean])[..., None, None, None]).to(values.device)
            gray = luma(values)
            mean = gray.mean(dim=(1, 2, 3), keepdim=True)
            values.mul_(amounts[0]).add_(gray.mul_(amounts[1]).add_(mean.mul_(amounts[2]))).clamp_(0, 1)
        turned = (operation == HUE) & (colors.factors[:, HUE] != 0)
        if (where := _where(turned, values)) is not None:
            shift = torch.from_numpy(colors.factors[turned, HUE]).to(values.device)
            values.index_copy_(0, where, hue(values.index_select(0, where), shift))


def luma(values: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 1 h w"]:
    """The brightness of colours as the eye weighs them."""
    red, green, blue = values.unbind(1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2]).unsqueeze(1)


def hue(values: Float[Tensor, "n 3 h w"], shift: Float[Tensor, "n"]) -> Float[Tensor, "n 3 h w"]:
    """Colours turned by a share of the colour circle, at equal value and saturation (hexcone model)."""
    red, green, blue = values.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    least = torch.minimum(torch.minimum(red, green), blue)
    chroma = value - least
    # Which channel is the largest, as 0 or 1 in floating point: torch.where takes four times as long.
    is_red = torch.eq(value, red, out=torch.empty_like(value))
    is_green = torch.eq(value, green, out=torch.empty_like(value)).mul_(1 - is_red)
    is_blue = (1 - is_red).sub_(is_green)
    slope = (green - blue).mul_(is_red).addcmul_(blue - red, is_green).addcmul_(red - green, is_blue)
    sector = slope.div_(chroma.clamp(min=1e-12)).add_(is_green, alpha=2).add_(is_blue, alpha=4)
    # A channel has all of the chroma over a third of the circle, none over another, and slopes between.
    starts = torch.tensor([5.0, 3.0, 1.0], device=values.device) / 6 + 1  # above 0, where frac counts from
    turned = (sector / 6).add_(shift[:, None, None]).unsqueeze(1) + starts[:, None, None]
    share = turned.frac_().mul_(6).sub_(2).abs_().sub_(1).clamp_(0, 1)
    return torch.addcmul(least.unsqueeze(1), share, chroma.unsqueeze(1))


def solarize(values: Tensor) -> Tensor:
    """Bright values inverted."""
    bright = torch.ge(values, SOLARIZE_FROM, out=torch.empty_like(values))
    return torch.addcmul(values, bright, 1 - 2 * values)


def blur(values: Float[Tensor, "n 3 h w"], sigma: Float[Tensor, "n"]) -> Float[Tensor, "n 3 h w"]:
    """Gaussian blur of each picture by its own sigma, borders reflected; a matrix for each direction."""
    offsets = torch.arange(KERNEL, device=sigma.device) - KERNEL // 2
    weights = torch.exp(-0.5 * (offsets / sigma[:, None]) ** 2)
    weights = weights / weights.sum(dim=1, keepdim=True)
    rows, columns = (_band(weights, side) for side in values.shape[-2:])
    wide = torch.bmm(values.flatten(1, 2), columns.mT).view(values.shape)
    return torch.matmul(rows[:, None], wide)


def _band(weights: Float[Tensor, "n k"], side: int) -> Float[Tensor, "n s s"]:
    return (weights @ _reflection(side).to(weights.device)).view(-1, side, side)


@cache
def _reflection(side: int) -> Float[Tensor, "k ss"]:
    """For every tap of the kernel the matrix that fetches its pixel."""
    if side <= KERNEL // 2:
        raise ValueError(f"crops of {side} px are too small for a blur of {KERNEL} px; at least {KERNEL // 2 + 1} px")
    taken = torch.arange(side)[None] + torch.arange(KERNEL)[:, None] - KERNEL // 2
    taken = (side - 1) - ((side - 1) - taken.abs()).abs()
    return F.one_hot(taken, side).flatten(1).float()
