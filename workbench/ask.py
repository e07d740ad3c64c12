"""Asking in words: photographs under a text model, phrases as vectors, and what a view of both is told."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from core.dense.cards import ModelCard, card_of
from core.dense.coding import rotate, rotation_for
from core.text.asking import Phrase, photo_vector, read_phrase, text_features
from core.text.assemble import PRETRAINED, load_text
from core.text.config import load_config
from core.text.model import DinoText
from core.text.tokenizer import Tokenize
from workbench.images import Photo, open_image
from workbench.looks import Look
from workbench.packs import Pack, make_pack

DEFAULT = "captions_minilm"
MOST_PHRASES, MOST_LETTERS = 12, 200


@dataclass(eq=False)
class Asker:
    """A text model ready to be asked, and the vectors of phrases that were asked before."""

    name: str
    model: DinoText
    tokenizer: Tokenize
    side: int  # pixels of the squares that it was trained on
    numbers: Mapping[str, Any]  # how good it is; empty where nobody has measured
    _known: dict[str, Phrase] = field(default_factory=dict)

    @property
    def temperature(self) -> float:
        """That of the training loss: the inverse of the learned scale of cosines."""
        return 1 / float(self.model.scale.detach())

    @property
    def card(self) -> ModelCard:
        """The card of the backbone, under the name of the text model: its patches are no longer the backbone's."""
        card = card_of(self.model.visual_model.backbone)
        return ModelCard(f"{self.name} on {card.name}", card.weights, card.licence, card.licence_url, card.notice)

    def look(self, photo: Photo | str | Path, size: int | None = None) -> Look:
        """A look at a photograph whose patches can be compared with phrases. size: long side of the input, pixels."""
        if not isinstance(photo, Photo):
            photo = open_image(photo)
        return Look(photo, text_features(self.model, photo, size), self.card.name, self.card)

    def whole(self, photo: Photo) -> Float[Tensor, "E"]:
        """The photograph's own vector, by which phrases rank photographs."""
        return photo_vector(self.model, photo, self.side)

    def phrase(self, text: str) -> Phrase:
        """The vectors of a phrase, computed once. Raises ValueError for an empty or an endless one."""
        text = checked_phrase(text)
        if text not in self._known:
            self._known[text] = read_phrase(self.model, self.tokenizer, text)
        return self._known[text]


@dataclass(frozen=True, eq=False)
class Asked:
    """A photograph under a text model: its pack, and the vector of the whole of it."""

    look: Look
    pack: Pack
    whole: Float[Tensor, "E"]


def load_asker(name: str | Path = DEFAULT) -> Asker:
    """A text model by name, of those that come with the project, or from the folder of a finished text run.

    Raises FileNotFoundError for a folder that holds none, and ModuleNotFoundError, saying what to install, where its
    sentence encoder is missing.
    """
    folder = PRETRAINED / name if (PRETRAINED / name).is_dir() else Path(name)
    model, tokenizer = load_text(folder)
    told = folder / "numbers.json"
    numbers = json.loads(told.read_text(encoding="utf-8")) if told.is_file() else {}
    return Asker(folder.name, model, tokenizer, load_config(folder).image_size, numbers)


def ask_about(asker: Asker, photos: Sequence[Photo | str | Path], *, size: int | None = 448) -> list[Asked]:
    """Photographs ready to be asked of; size: long side of the input in pixels."""
    looks = [asker.look(photo, size) for photo in photos]
    return [Asked(look, make_pack(look), asker.whole(look.photo)) for look in looks]


def checked_phrase(text: str) -> str:
    """A phrase without what surrounds and doubles its spaces. Raises ValueError with a sentence."""
    text = " ".join(text.split())
    if not text:
        raise ValueError("a phrase has at least one word, such as: a dog")
    if len(text) > MOST_LETTERS:
        raise ValueError(f"a phrase has at most {MOST_LETTERS} letters, this one has {len(text)}; say it shorter")
    return text


def checked_phrases(phrases: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Phrases as a view keeps them, {"text", "role"}, each once. Raises ValueError with a sentence."""
    found: dict[str, dict[str, str]] = {}
    for phrase in phrases:
        role = phrase.get("role", "ask")
        if role not in ("ask", "contrast"):
            raise ValueError(f"a phrase is asked for ('ask') or only compared with ('contrast'), not {role!r}")
        text = checked_phrase(str(phrase.get("text", "")))
        found.setdefault(text, {"text": text, "role": role})
    if len(found) > MOST_PHRASES:
        raise ValueError(f"at most {MOST_PHRASES} phrases at a time, there are {len(found)}; take one away first")
    return list(found.values())


# What a view is told, in notebooks, in the app and in saved files: plain JSON and bytes.


def model_state(asker: Asker) -> dict[str, Any]:
    """What a view says of the model: its name, its temperature, and how good it is."""
    return {
        "name": asker.card.name,
        "temperature": round(asker.temperature, 6),
        "licence": asker.card.licence or "",
        "numbers": dict(asker.numbers),
    }


def answers(
    asker: Asker, phrases: Sequence[Mapping[str, str]], asked: Sequence[Asked]
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """State and bytes of what phrases are here: the bytes hold vectors of fp32, turned as the codes of packs are.

    The state says which row is which: {text: {"plain", "templated", "without": [[word, row]], "scores"}}, scores being
    cosines with whole photographs in their order, plain and templated. Its version is another one whenever anything is.
    """
    rows: list[Tensor] = []
    told: dict[str, Any] = {}

    def row(vector: Tensor) -> int:
        rows.append(vector)
        return len(rows) - 1

    for text in (phrase["text"] for phrase in phrases):
        phrase = asker.phrase(text)
        told[text] = {
            "plain": row(phrase.patch),
            "templated": row(phrase.templated_patch),
            "without": [[word, row(vector)] for word, vector in phrase.without],
            "scores": {
                name: [round(float(photo.whole @ vector), 6) for photo in asked]
                for name, vector in (("plain", phrase.whole), ("templated", phrase.templated_whole))
            },
        }
    vectors = torch.stack(rows).float() if rows else torch.zeros(0, 1)
    if rows and rotation_for(vectors.shape[1]):
        vectors = rotate(vectors)
    content = vectors.numpy().astype("<f4").tobytes()
    version = hashlib.sha256(content + json.dumps(told).encode()).hexdigest()[:16]
    return {"version": version, "phrases": told}, {"vectors": content}
