"""Asking photographs in words, as a notebook widget: phrases to maps, shares and rankings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import traitlets
from jaxtyping import Float
from PIL import Image

from core.text.asking import shares
from workbench.ask import Asked, Asker, answers, ask_about, checked_phrases, model_state
from workbench.draw import COLORMAPS
from workbench.images import Photo
from workbench.widgets.host import PackWidget


class AskView(PackWidget):
    """Photographs under a text model, to be asked in words.

        view = AskView(load_asker(), ["cat.jpg", "roses.jpg"])
        view.ask("a cat", "the sky", contrast=["grass"])   # or typed in the view
        view.cosines("a cat")              # (rows, columns) of the photograph that is shown
        view.share("a cat", photo=1)       # softmax over all phrases
        view.ranking("a cat")              # [(name, cosine)], best first
        view.save("ask.html")              # these phrases, without a kernel

    `phrases` are [{"text", "role"}], role being "ask" or "contrast"; a contrast takes part in the softmax only.
    """

    _entry = "ask.js"
    model: Any = traitlets.Dict().tag(sync=True)
    phrases: Any = traitlets.List(traitlets.Dict()).tag(sync=True)
    answers: Any = traitlets.Dict().tag(sync=True)
    chosen = traitlets.Int(0, min=0).tag(sync=True)
    photo = traitlets.Int(0, min=0).tag(sync=True)
    show = traitlets.Enum(["cosine", "share", "labels"], "cosine").tag(sync=True)
    temperature = traitlets.Float(None, allow_none=True).tag(sync=True)
    templates = traitlets.Bool(True).tag(sync=True)
    opacity = traitlets.Float(0.7, min=0, max=1).tag(sync=True)
    colormap = traitlets.Enum(list(COLORMAPS), "viridis").tag(sync=True)
    smooth = traitlets.Bool(True).tag(sync=True)
    told = traitlets.Unicode("").tag(sync=True)
    asked: Any = traitlets.Dict().tag(sync=True)

    def __init__(
        self, asker: Asker, photos: Sequence[Photo | str | Path | Asked], *, size: int | None = 448, **state: Any
    ) -> None:
        if not photos:
            raise ValueError("a view needs photographs to ask: AskView(load_asker(), ['cat.jpg'])")
        self.asker = asker
        self.photos = [
            photo if isinstance(photo, Asked) else ask_about(asker, [photo], size=size)[0] for photo in photos
        ]
        super().__init__(packs=[photo.pack for photo in self.photos], model=model_state(asker), **state)
        if not self.answers:
            self._answer_phrases(None)

    def __repr__(self) -> str:
        return f"<AskView of {len(self.photos)} photographs: run the cell to bring it to life>"

    def ask(self, *phrases: str, contrast: Sequence[str] = ()) -> None:
        """Asks for these phrases and for no others, and shows the first of them."""
        roles = [(text, "ask") for text in phrases] + [(text, "contrast") for text in contrast]
        self.chosen = 0
        self.phrases = [{"text": text, "role": role} for text, role in roles]

    def cosines(self, phrase: str, photo: int | None = None) -> Float[np.ndarray, "H W"]:
        """The cosine of every patch with a phrase, which need not be among `phrases`; NaN in the padding."""
        found = self.asker.phrase(phrase)
        look = self.photos[self.photo if photo is None else photo].look
        values = look.unit @ (found.templated_patch if self.templates else found.patch)
        return values.masked_fill(~look.valid, torch.nan).numpy()

    def share(self, phrase: str, photo: int | None = None) -> Float[np.ndarray, "H W"]:
        """The part of every patch that a phrase gets among all of `phrases`; ValueError for one that is not there."""
        texts = [kept["text"] for kept in self.phrases]
        if phrase not in texts:
            raise ValueError(f"{phrase!r} is none of the phrases: {', '.join(texts) or 'there are none'}")
        maps = torch.from_numpy(np.stack([self.cosines(text, photo) for text in texts], axis=-1))
        warmth = self.asker.temperature if self.temperature is None else self.temperature
        return shares(maps, warmth)[..., texts.index(phrase)].numpy()

    def ranking(self, phrase: str) -> list[tuple[str, float]]:
        """Names of the photographs and their cosines with a phrase, best first."""
        found = self.asker.phrase(phrase)
        vector = found.templated_whole if self.templates else found.whole
        scores = [(photo.look.photo.name, float(photo.whole @ vector)) for photo in self.photos]
        return sorted(scores, key=lambda score: -score[1])

    def still(self) -> Image.Image:
        """The photograph under the map of the chosen phrase."""
        look = self.photos[self.photo].look
        if not self.phrases:
            return Image.fromarray(look.canvas.photo)
        text = self.phrases[min(self.chosen, len(self.phrases) - 1)]["text"]
        every = [self.cosines(text, at) for at in range(len(self.photos))]
        low, high = (float(f([f(values) for values in every])) for f in (np.nanmin, np.nanmax))
        shown = look.canvas.heat(
            torch.from_numpy(every[self.photo]), limits=(low, max(high, low + 1e-6)), colormap=self.colormap,
            opacity=self.opacity, smooth=self.smooth,
        )  # fmt: skip
        return Image.fromarray(shown)

    @traitlets.validate("phrases")
    def _said(self, proposal: Any) -> list[dict[str, str]]:
        try:
            return checked_phrases(proposal.value)
        except ValueError as error:
            raise traitlets.TraitError(str(error)) from error

    @traitlets.validate("photo")
    def _there(self, proposal: Any) -> int:
        if hasattr(self, "photos") and proposal.value >= len(self.photos):
            raise traitlets.TraitError(f"the photographs are 0 to {len(self.photos) - 1}, not {proposal.value}")
        return proposal.value

    @traitlets.validate("temperature")
    def _warm(self, proposal: Any) -> float | None:
        if proposal.value is not None and not proposal.value > 0:
            raise traitlets.TraitError(f"a temperature is above 0, got {proposal.value}")
        return proposal.value

    @traitlets.observe("phrases")
    def _answer_phrases(self, _: Any) -> None:
        if not hasattr(self, "asker"):  # while traits are being set up
            return
        state, blobs = answers(self.asker, self.phrases, self.photos)
        self.blobs |= blobs
        self.answers = state
