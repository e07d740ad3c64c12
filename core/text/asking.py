"""A text model asked of photographs: maps that phrases are compared with, and what each word of a phrase is worth."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from core.dense.extract import DenseFeatures, own
from core.dense.inputs import Picture, model_input, picture_geometry
from core.text.model import DinoText
from core.text.tokenizer import Tokenize
from core.text.zero_shot import TEMPLATES

MOST_WORDS = 12  # of a phrase, that are left out one at a time


@torch.inference_mode()
def text_features(model: DinoText, photo: Picture, size: int | None = None) -> DenseFeatures:
    """The patches of a photograph in the space that the second half of a text's vector lies in.

    patches (H, W, E / 2) and cls (E / 2) come after the vision head; there are no registers. size: long side of the
    input in pixels, as in `core.dense.extract.extract`, whose errors it raises.
    """
    backbone = model.visual_model.backbone
    geometry = picture_geometry(backbone, photo, size=size)
    found = model.encode_image(model_input(backbone, photo, geometry)[None])
    half = found.patches.shape[-1]
    return DenseFeatures(
        patches=own(found.patches[0].reshape(geometry.rows, geometry.cols, half).cpu()),
        cls=own(found.vector[0, :half].cpu()),
        registers=torch.zeros(0, half),
        geometry=geometry,
        layer=backbone.depth - 1,
        norm=True,
    )


@torch.inference_mode()
def photo_vector(model: DinoText, photo: Picture, side: int) -> Float[Tensor, "E"]:
    """The vector of a whole photograph, of length one: of its middle square at `side` pixels, as retrieval is measured.

    side: a multiple of the patches, such as the image_size that the model was trained with.
    """
    backbone = model.visual_model.backbone
    whole = picture_geometry(backbone, photo, size=side)
    edge = min(whole.width, whole.height)
    left, top = (whole.width - edge) // 2, (whole.height - edge) // 2
    geometry = picture_geometry(backbone, photo, size=side, crop=(left, top, left + edge, top + edge))
    return model.encode_image(model_input(backbone, photo, geometry)[None], normalize=True).vector[0].cpu()


class Phrase(NamedTuple):
    """A phrase as vectors of length one: as it stands and as the mean over templates, for wholes and for patches."""

    whole: Float[Tensor, "E"]
    patch: Float[Tensor, "F"]
    templated_whole: Float[Tensor, "E"]
    templated_patch: Float[Tensor, "F"]
    without: list[tuple[str, Tensor]]  # each word, and the patch vector of the phrase without it


@torch.inference_mode()
def read_phrase(model: DinoText, tokenizer: Tokenize, text: str) -> Phrase:
    """The vectors of a phrase, F being half of E; all its sentences are read at once.

    `without` holds the first MOST_WORDS words, none for a phrase of one word: what changes in a map without a word is
    what the word was worth. The templates are those of `core.text.zero_shot`.
    """
    words = text.split()
    left_out = [" ".join(words[:at] + words[at + 1 :]) for at in range(min(len(words), MOST_WORDS))]
    sentences = [text, *(template.format(text) for template in TEMPLATES), *(left_out if len(words) > 1 else [])]
    found = model.encode_text(tokenizer(sentences)).cpu()
    whole, patch = (F.normalize(part, dim=-1) for part in (found, found[:, model.out_dim // 2 :]))
    mean_whole, mean_patch = (F.normalize(part[1 : 1 + len(TEMPLATES)].mean(0), dim=0) for part in (whole, patch))
    without = list(zip(words, patch[1 + len(TEMPLATES) :], strict=False))
    return Phrase(whole[0], patch[0], mean_whole, mean_patch, without)


def shares(cosines: Float[Tensor, "... P"], temperature: float) -> Float[Tensor, "... P"]:
    """Softmax of cosines over phrases: what part of a patch each phrase gets. ValueError for no temperature."""
    if temperature <= 0:
        raise ValueError(f"a temperature is above 0, got {temperature}")
    return F.softmax(cosines / temperature, dim=-1)
