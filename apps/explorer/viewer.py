"""What the tabs share: models loaded when first asked for, photographs, and the memory of looks.

One viewer belongs to one running app, never to a user: what a user has chosen travels in the page's own state. The
viewer only remembers what is the same for everybody.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, lru_cache
from html import escape
from pathlib import Path

import gradio as gr

from apps.views import PackFiles
from core.dense.geometry import plan
from core.models import Backbone
from core.models.weights import PUBLISHED, WeightsError, load_backbone
from workbench.draw import Canvas
from workbench.images import BadImage, Photo, Sample, list_samples, open_image
from workbench.looks import Look, Looks

DEFAULT = "dinov2_vits14_saliency"
SIZES = {"256 px": 256, "512 px": 512, "768 px": 768, "1024 px": 1024, "1536 px": 1536}
DEFAULT_SIZE = "768 px"
FIRST = ("cat_bengal.jpg", "cat_abyssinian_1.jpg")  # the pair of photographs that the page opens with


class Viewer:
    """Photographs and features for the tabs of one app; building it loads nothing."""

    def __init__(self, weights: str | None = None) -> None:
        self.default = weights or DEFAULT
        self.looks = Looks()
        self.packs = PackFiles()
        self._models: dict[str, Backbone] = {}
        self._loading = threading.Lock()

    @property
    def models(self) -> list[tuple[str, str]]:
        """(label, name) of all weights on offer: the chosen ones first, published ones after them."""
        names = [self.default, *(name for name in PUBLISHED if name != self.default)]
        return [(self._label(name), name) for name in names]

    def _label(self, name: str) -> str:
        if name not in PUBLISHED:
            return f"{Path(name).name} (your file)"
        published = PUBLISHED[name]
        if published.path is not None:
            return f"{name} (comes with the project)"
        return f"{name} ({published.licence.name}{', gated' if published.mirror else ''}, downloads)"

    def backbone(self, name: str) -> Backbone:
        """The backbone of these weights, loaded once; a sentence on the page when that fails.

        Only weights on offer are loaded: a page cannot make the server read another file.
        """
        if name not in {offered for _, offered in self.models}:
            raise refusal(f"There are no weights called {name} here.")
        with self._loading:
            if name not in self._models:
                try:
                    self._models[name] = load_backbone(name)
                except (WeightsError, OSError) as error:
                    raise refusal(str(error)) from None
            return self._models[name]

    @cached_property
    def samples(self) -> list[Sample]:
        """The demo photographs of ordinary size."""
        samples = [sample for sample in list_samples() if max(sample.width, sample.height) <= 2048]
        return sorted(samples, key=lambda sample: sample.path.name not in FIRST)

    @cached_property
    def large_samples(self) -> list[Sample]:
        """The demo photographs for the 4K tab."""
        return [sample for sample in list_samples() if max(sample.width, sample.height) > 2048]

    def photo(self, path: str) -> Photo:
        """The photograph at a path the server itself chose or stored; a sentence on the page when it is unusable."""
        with plain_errors():
            photo = _open(path)
        for note in photo.notes:
            gr.Info(escape(note))
        return photo

    def look(
        self,
        path: str,
        model: str,
        *,
        size: int | None,
        layer: int,
        tile: int | None = None,
    ) -> Look:
        """The look at a photograph, remembered or computed; `layer` counts from 1, as people do.

        While the model looks, the page shows how far it is.
        """
        if layer < 1:
            raise refusal(f"Layers count from 1; there is no layer {layer}.")
        backbone = self.backbone(model)
        with plain_errors():
            index = min(layer, backbone.depth) - 1
            return self.looks.get(
                lambda: backbone, model, _open(path), size=size, layer=index, tile=tile, progress=_tell
            )


def _tell(done: int, total: int, what: str) -> None:
    gr.Progress()((done, total), desc="The model looks", unit=what)


@lru_cache(maxsize=8)
def _open(path: str) -> Photo:
    return open_image(path)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turns errors that were written for people into a notice on the page."""
    try:
        yield
    except (BadImage, ValueError) as error:
        raise refusal(str(error)) from None


def refusal(words: str) -> gr.Error:
    """A notice on the page in place of an answer; nothing went wrong in the server, so its log stays quiet."""
    words = escape(words, quote=False)  # the page reads it as HTML, and it may hold the name of a file
    return gr.Error(words, duration=20, print_exception=False)


def plain_canvas(photo: Photo) -> Canvas:
    """A photograph that no model has seen yet, at the size in which the page shows pictures and counts clicks."""
    return Canvas(photo.pixels, plan(*photo.size, max(photo.size), keep_aspect=False))
