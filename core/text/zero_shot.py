"""Classes in words: which of them an image shows, and which of them each patch shows. Nothing is trained.

A class is the mean of its phrases in several templates; images are compared with whole vectors, patches with the second
half alone (paper section 5.3).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from core.text.model import DinoText
from core.text.tokenizer import Tokenize

PLAIN = ("{}",)
TEMPLATES = (  # this project's own few; the release averages 80
    "a photo of a {}.",
    "a photo of the {}.",
    "a photo of one {}.",
    "a photo of many {}.",
    "a close-up photo of a {}.",
    "a photo of a small {}.",
    "a photo of a large {}.",
    "a {} in the scene.",
)
WINDOW, STRIDE = 384, 192  # pixels of the sliding window, as released


@torch.no_grad()
def class_vectors(
    model: DinoText, tokenizer: Tokenize, names: Sequence[str], templates: Sequence[str] = TEMPLATES
) -> Float[Tensor, "C E"]:
    """A vector of length one a class: the mean over templates of unit vectors."""
    return F.normalize(_means(model, tokenizer, names, templates, slice(None)), dim=-1)


@torch.no_grad()
def patch_vectors(
    model: DinoText, tokenizer: Tokenize, names: Sequence[str], templates: Sequence[str] = TEMPLATES
) -> Float[Tensor, "C F"]:
    """The same of the half of the space that patches share."""
    return F.normalize(_means(model, tokenizer, names, templates, slice(model.out_dim // 2, None)), dim=-1)


def _means(
    model: DinoText, tokenizer: Tokenize, names: Sequence[str], templates: Sequence[str], part: slice
) -> Float[Tensor, "C F"]:
    if not names or not templates:
        raise ValueError("at least one name and one template are needed")
    if wrong := [template for template in templates if "{}" not in template]:
        raise ValueError(f"a template has {{}} where the name goes, as 'a photo of a {{}}.'; not {wrong[0]!r}")
    rows = [
        F.normalize(model.encode_text(tokenizer([template.format(name) for template in templates]))[:, part], dim=-1)
        for name in names
    ]
    return torch.stack([row.mean(0) for row in rows])


@torch.no_grad()
def classify(model: DinoText, images: Float[Tensor, "B 3 h w"], classes: Float[Tensor, "C E"]) -> Float[Tensor, "B C"]:
    """Cosines of images and classes."""
    return model.encode_image(images, normalize=True).vector @ classes.T


@torch.no_grad()
def patch_cosines(
    model: DinoText, images: Float[Tensor, "B 3 h w"], classes: Float[Tensor, "C F"]
) -> Float[Tensor, "B C H W"]:
    """Cosines of patches and classes on the patch grid."""
    patches = F.normalize(model.encode_image(images).patches, dim=-1)
    size = model.visual_model.patch_size
    rows, cols = images.shape[-2] // size, images.shape[-1] // size
    return (patches @ classes.T).transpose(1, 2).unflatten(2, (rows, cols))


@torch.no_grad()
def segment_whole(
    model: DinoText, image: Float[Tensor, "3 h w"], classes: Float[Tensor, "C F"], size: tuple[int, int]
) -> Float[Tensor, "C y x"]:
    """Cosines of every pixel of a picture of `size` pixels, from one look at the whole image."""
    found = patch_cosines(model, fitted(model, image)[None], classes)
    return F.interpolate(found, size, mode="bilinear", align_corners=False)[0]


@torch.no_grad()
def segment_sliding(
    model: DinoText,
    image: Float[Tensor, "3 h w"],
    classes: Float[Tensor, "C F"],
    size: tuple[int, int],
    *,
    window: int = WINDOW,
    stride: int = STRIDE,
    temperature: float = 1.0,
) -> Float[Tensor, "C y x"]:
    """Probabilities of every pixel, means over windows that overlap; the default of the release, softmax included.

    Its softmax of raw cosines is nearly linear; a temperature below 1 sharpens it and changes the result. A window that
    patches do not divide becomes the nearest one that they do.
    """
    image = fitted(model, image)
    patch = model.visual_model.patch_size
    window = max(round(window / patch), 1) * patch
    height, width = image.shape[-2:]
    votes, seen = torch.zeros(len(classes), height, width), torch.zeros(1, height, width)
    for top in starts(height, window, stride):
        for left in starts(width, window, stride):
            part = image[:, top : top + window, left : left + window]
            found = patch_cosines(model, part[None], classes)
            found = F.interpolate(found, part.shape[-2:], mode="bilinear", align_corners=False)[0]
            votes[:, top : top + window, left : left + window] += (found / temperature).softmax(0)
            seen[:, top : top + window, left : left + window] += 1
    return F.interpolate((votes / seen)[None], size, mode="bilinear", align_corners=False)[0]


def starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin, so that they cover the whole length and the last ends with it."""
    if length <= window:
        return [0]
    return [*range(0, length - window, stride), length - window]


def fitted(model: DinoText, image: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 y x"]:
    """The image, stretched to sides that patches divide where it has others."""
    patch = model.visual_model.patch_size
    sides = [max(round(side / patch), 1) * patch for side in image.shape[-2:]]
    if sides == list(image.shape[-2:]):
        return image
    return F.interpolate(image[None], sides, mode="bicubic", align_corners=False)[0]


def recalled(
    images: Float[Tensor, "N E"], texts: Float[Tensor, "M E"], owner: Int[Tensor, "M"], k: int
) -> tuple[Bool[Tensor, "N"], Bool[Tensor, "M"]]:
    """Retrieval both ways, of unit vectors: images that have one of their texts among their `k` nearest, and texts that
    have their image among their `k` nearest. owner: which image each text belongs to."""
    cosine = images @ texts.T
    found = owner[cosine.topk(min(k, len(texts)), dim=1).indices] == torch.arange(len(images))[:, None]
    back = cosine.T.topk(min(k, len(images)), dim=1).indices == owner[:, None]
    return found.any(1), back.any(1)
