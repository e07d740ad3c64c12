"""A look: one photograph through one backbone, kept ready for clicks, and a bounded memory of looks."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from core.dense.cards import ModelCard, card_of
from core.dense.color import ColorBasis, fit_basis, to_rgb
from core.dense.extract import DenseFeatures, Progress, extract
from core.dense.geometry import Point, pixel_to_patch
from core.dense.reference import NullCurves, null_curves
from core.dense.similarity import Cell, Match, cosine_map, cosine_map_to, top_k, unit_patches
from core.models import Backbone
from workbench.draw import MATCH, NEGATIVE, QUERY, Canvas
from workbench.images import Photo, open_image


@dataclass(frozen=True, eq=False)
class Look:
    """The features of one photograph, and what is computed from them once."""

    photo: Photo
    features: DenseFeatures
    model: str
    card: ModelCard | None = None

    @cached_property
    def unit(self) -> Float[Tensor, "H W D"]:
        """Patches at length one: a click is then a single product."""
        return unit_patches(self.features.patches)

    @cached_property
    def valid(self) -> Bool[Tensor, "H W"]:
        """False where a cell lies in the padding."""
        return self.features.valid

    @cached_property
    def canvas(self) -> Canvas:
        """The photograph at display size under this look's grid."""
        return Canvas(self.photo.pixels, self.features.geometry)

    @cached_property
    def basis(self) -> ColorBasis:
        """The photograph's own colour basis."""
        return fit_basis(self.features.patches, valid=self.valid)

    @cached_property
    def null(self) -> NullCurves:
        """Cosines of random pairs inside the photograph."""
        return null_curves(self.unit, valid=self.valid)

    def cell_at(self, point: Point) -> Cell | None:
        """The cell that a pixel (x, y) of the photograph belongs to."""
        return pixel_to_patch(self.features.geometry, *point)

    def similarity(self, queries: Sequence[Cell], negatives: Sequence[Cell] = ()) -> Float[Tensor, "H W"]:
        """The cosine map of these cells; NaN in the padding."""
        return cosine_map(self.unit, queries, negatives=negatives, valid=self.valid, unit=True)

    def similarity_in(
        self, other: "Look", queries: Sequence[Cell], negatives: Sequence[Cell] = ()
    ) -> Float[Tensor, "H W"]:
        """How much every patch of another photograph resembles these cells of this one."""
        rows, cols = _columns(queries)
        away = _columns(negatives)
        vectors = self.unit[rows, cols]
        against = self.unit[away] if negatives else None
        return cosine_map_to(other.unit, vectors, negatives=against, valid=other.valid, unit=True)

    def matches(self, cosines: Float[Tensor, "H W"], queries: Sequence[Cell] = (), k: int = 5) -> list[Match]:
        """The best cells of a map of this look, apart from the queries and from one another."""
        apart = max(1, round(0.06 * max(self.features.geometry.rows, self.features.geometry.cols)))
        return top_k(cosines, k, exclude=list(queries), radius=apart, spacing=apart)

    def picture(
        self,
        cosines: Float[Tensor, "H W"],
        *,
        queries: Sequence[Cell] = (),
        negatives: Sequence[Cell] = (),
        matches: Sequence[Match] = (),
        **style: Any,
    ) -> UInt8[np.ndarray, "h w 3"]:
        """The photograph under a map, with numbered matches and the cells that were asked about.

        `style` goes to `Canvas.heat`: limits, colormap, opacity, smooth.
        """
        shown = self.canvas.heat(cosines, **style)
        numbers = [str(index + 1) for index in range(len(matches))]
        shown = self.canvas.outline(shown, [(match.row, match.col) for match in matches], MATCH, numbers)
        shown = self.canvas.outline(shown, negatives, NEGATIVE, ["\N{MINUS SIGN}"] * len(negatives))
        return self.canvas.outline(shown, queries, QUERY, ["query", *["+"] * (len(queries) - 1)])

    def colors(
        self, basis: ColorBasis | None = None, *, hidden: Bool[Tensor, "H W"] | None = None, **style: Any
    ) -> UInt8[np.ndarray, "h w 3"]:
        """The patches as the colours of a basis, the look's own by default; padding and `hidden` cells are dark.

        `style` goes to `Canvas.colors`: opacity, smooth.
        """
        rgb = to_rgb(basis or self.basis, self.features.patches, valid=self.valid)
        dark = ~self.valid if hidden is None else hidden | ~self.valid
        return self.canvas.colors(rgb, hidden=dark, **style)

    @property
    def bytes(self) -> int:
        """Memory this look takes when everything in it has been asked for."""
        return 2 * self.features.patches.nbytes + self.photo.pixels.nbytes + 4 * 1024 * 1024


def _columns(cells: Sequence[Cell]) -> tuple[list[int], list[int]]:
    return [row for row, _ in cells], [col for _, col in cells]


def look_at(photo: Photo | str | Path, backbone: Backbone, **options: Any) -> Look:
    """A look at one photograph; `options` go to `extract`: size, layer, norm, tile, progress."""
    if not isinstance(photo, Photo):
        photo = open_image(photo)
    card = card_of(backbone)
    return Look(photo, extract(backbone, photo, **options), card.name, card)


Key = tuple[str, str, int | None, int, bool, int | None]


@dataclass
class Looks:
    """Remembers the looks used last, up to a bound, so that going back to a picture costs nothing.

    Safe to share between the users of an app: a look is never changed, and two who ask for the same new one wait
    for a single extraction.
    """

    max_bytes: int = 3 << 30
    _looks: OrderedDict[Key, Look] = field(default_factory=OrderedDict)
    _locks: dict[Key, threading.Lock] = field(default_factory=dict)
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def get(
        self,
        backbone: Callable[[], Backbone],
        model: str,
        photo: Photo,
        *,
        size: int | None = None,
        layer: int = -1,
        norm: bool = True,
        tile: int | None = None,
        progress: Progress | None = None,
    ) -> Look:
        """The look at this photograph with these settings (see `extract`), computed if it is not remembered.

        `backbone` is called only then. `model` names the weights and must do so uniquely.
        """
        key = (model, photo.digest, size, layer, norm, tile)
        with self._guard:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            if (look := self._recall(key)) is None:
                lent = backbone()
                features = extract(lent, photo, size=size, layer=layer, norm=norm, tile=tile, progress=progress)
                look = Look(photo, features, model, card_of(lent))
                self.put(key, look)
        return look

    def _recall(self, key: Key) -> Look | None:
        with self._guard:
            if key in self._looks:
                self._looks.move_to_end(key)
            return self._looks.get(key)

    def put(self, key: Key, look: Look) -> None:
        """Remember a look; the ones unused for longest go when the bound is passed."""
        with self._guard:
            self._looks[key] = look
            self._looks.move_to_end(key)
            while len(self._looks) > 1 and sum(kept.bytes for kept in self._looks.values()) > self.max_bytes:
                gone, _ = self._looks.popitem(last=False)
                self._locks.pop(gone, None)
