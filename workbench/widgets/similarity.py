"""The similarity view as a notebook widget: hover, click, compare; state to read and to set from Python."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import traitlets
from jaxtyping import Float
from PIL import Image

from core.dense.geometry import Cell, patch_centre, pixel_to_patch
from workbench.draw import COLORMAPS
from workbench.looks import Look
from workbench.packs import Pack, make_pack, open_pack
from workbench.views import (
    CHECKS,
    ViewError,
    decode_view,
    draw_pane,
    encode_view,
    packs_of,
    pane_values,
    record_of,
)
from workbench.widgets.host import PackWidget

Source = Look | Pack | str | Path
STILLS = 3  # panes in the picture that stays without a kernel


class Similarity(PackWidget):
    """Linked panes over one or several packs, in JupyterLab and wherever anywidget runs.

        view = Similarity(look)
        view.point = (12, 30)                  # row and column in the grid of the first pane
        view.observe(print, "point")
        view.save("view.html")                 # opens from disk, with no server

    Sources are looks, packs, or paths of .dfp files. `panes` lists what to show: {"pack": 0, "show": "similarity"},
    where show is similarity, pca, photo, difference, rank or swipe, and the last three take "other": the number of a
    second pack of the same picture. Without it each source has a pane of its own.
    """

    _entry = "similarity.js"
    panes = traitlets.List(traitlets.Dict()).tag(sync=True)
    queries = traitlets.List(traitlets.Dict()).tag(sync=True)  # {image, x, y, sign}, pixels of the photograph
    threshold = traitlets.Float(None, allow_none=True).tag(sync=True)
    opacity = traitlets.Float(0.7, min=0, max=1).tag(sync=True)
    colormap = traitlets.Enum(list(COLORMAPS), "viridis").tag(sync=True)
    limits = traitlets.List(traitlets.Float(), [0.0, 1.0], minlen=2, maxlen=2).tag(sync=True)
    smooth = traitlets.Bool(False).tag(sync=True)
    camera = traitlets.Dict(default_value={"x": 0.5, "y": 0.5, "zoom": 1}).tag(sync=True)
    selection = traitlets.List(traitlets.List(traitlets.Int())).tag(sync=True)  # [pack, row, column]
    point: Any = traitlets.Tuple(None, allow_none=True)  # (row, column) of the first query on the first pane's grid

    def __init__(self, *sources: Source, point: tuple[int, int] | None = None, **state: Any) -> None:
        if not sources:
            raise ValueError("a view needs something to show: Similarity(look), or packs, or paths of .dfp files")
        looks = [source for source in sources if isinstance(source, Look)]
        super().__init__(packs=[_pack(source, looks) for source in sources], **state)
        if point is not None:
            self.point = point

    def values(self, pane: int = 0) -> Float[np.ndarray, "H W"]:
        """The values that a pane colours at this moment, NaN where there are none."""
        return pane_values(self.packs, self._panes[pane], self.queries)

    def to_url(self, base: str = "") -> str:
        """An address that brings this view back where the same packs are; it holds no picture."""
        defaults = {name: self.trait_defaults(name) for name in self.state_names()}
        return f"{base}#view={encode_view(record_of(self.packs, self.state, defaults))}"

    @classmethod
    def from_url(cls, url: str, *found: Pack | str | Path) -> "Similarity":
        """The view of an address, over packs given as packs, files or folders; ViewError names the missing ones."""
        record = decode_view(url)
        packs = packs_of(record, found)
        try:
            return cls(*packs, **{name: value for name, value in record["state"].items() if name in cls.state_names()})
        except traitlets.TraitError as error:
            raise ViewError(f"this address describes a view that cannot be: {error}") from error

    def still(self) -> Image.Image:
        style = {name: getattr(self, name) for name in ("colormap", "opacity", "smooth", "threshold")}
        style["limits"] = tuple(self.limits)
        panes = [draw_pane(self.packs, pane, self.queries, **style) for pane in self._panes[:STILLS]]
        height = min(pane.shape[0] for pane in panes)
        fitted = [Image.fromarray(pane).resize((pane.shape[1] * height // pane.shape[0], height)) for pane in panes]
        whole = Image.new("RGB", (sum(part.width for part in fitted) + 8 * (len(fitted) - 1), height), "white")
        left = 0
        for part in fitted:
            whole.paste(part, (left, 0))
            left += part.width + 8
        return whole

    @property
    def _panes(self) -> list[dict[str, Any]]:
        return self.panes or [{"pack": index, "show": "similarity"} for index in range(len(self.packs))]

    @property
    def _first(self) -> Pack:
        return self.packs[self._panes[0]["pack"]]

    @traitlets.validate(*CHECKS)
    def _checked(self, proposal: Any) -> Any:
        try:
            CHECKS[proposal.trait.name](self.packs, proposal.value)
        except ValueError as error:
            raise traitlets.TraitError(str(error)) from error  # which puts back what was there before
        return proposal.value

    @traitlets.validate("point")
    def _inside(self, proposal: Any) -> tuple[int, int] | None:
        if proposal.value is None:
            return None
        try:
            row, col = (int(index) for index in proposal.value)
            patch_centre(self._first.geometry, row, col)
        except ValueError as error:
            raise traitlets.TraitError(f"a point is (row, column) of the first pane: {error}") from error
        return row, col

    @traitlets.observe("point")
    def _ask(self, change: Any) -> None:
        """Someone set the point from Python: it becomes the only query."""
        if self._row_and_column() == change.new:
            return
        x, y = patch_centre(self._first.geometry, *change.new) if change.new else (0, 0)
        query = {"image": self._first.picture["digest"], "x": x, "y": y, "sign": 1}
        self.queries = [query] if change.new else []

    @traitlets.observe("queries", "panes")
    def _asked(self, _: Any) -> None:
        self.point = self._row_and_column()

    def _row_and_column(self) -> Cell | None:
        if not hasattr(self, "packs"):  # while traits are being set up
            return None
        mine = [query for query in self.queries if query["image"] == self._first.picture["digest"]]
        return pixel_to_patch(self._first.geometry, mine[0]["x"], mine[0]["y"]) if mine else None


def _pack(source: Source, looks: Sequence[Look]) -> Pack:
    if isinstance(source, Pack):
        return source
    if isinstance(source, Look):
        return make_pack(source, others=[look for look in looks if _comparable(look, source)], basis=source.basis)
    return open_pack(source)


def _comparable(a: Look, b: Look) -> bool:
    """Whether cosines between these two pictures mean something, and the pictures are two."""
    same = (a.model, a.features.layer, a.features.norm) == (b.model, b.features.layer, b.features.norm)
    return same and a.photo.digest != b.photo.digest
