"""The Gram lens as a notebook widget: all cosines between the patches of a photograph, or how they changed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import traitlets
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from core.dense.geometry import carried
from core.dense.similarity import block_cosines, normalize
from workbench.draw import COLORMAPS, lookup
from workbench.looks import Look
from workbench.packs import Pack, make_pack, open_pack
from workbench.widgets.host import PackWidget

Source = Look | Pack | str | Path
STILL = 384  # pixels of the still's side, and blocks of the matrix in it


class GramLens(PackWidget):
    """A photograph beside the matrix of cosines between its patches, and beside its difference to another one.

        view = GramLens(look)
        view = GramLens(early, late, pack=1, against=0)     # two checkpoints of one photograph
        view.selection                                      # [[row, column], ...] of brushed patches
        view.matrix()                                       # what is shown, as means over blocks

    Sources are looks, packs, or paths of .dfp files, all of one photograph.
    """

    _entry = "gram.js"
    titles = traitlets.List(traitlets.Unicode()).tag(sync=True)
    pack = traitlets.Int(0).tag(sync=True)
    against = traitlets.Int(None, allow_none=True).tag(sync=True)
    order = traitlets.Enum(["raster", "hilbert", "cluster"], "raster").tag(sync=True)
    clusters = traitlets.Int(6, min=2, max=16).tag(sync=True)
    window = traitlets.List(traitlets.Float(), [0.0, 1.0], minlen=2, maxlen=2).tag(sync=True)
    selection = traitlets.List(traitlets.List(traitlets.Int())).tag(sync=True)
    colormap = traitlets.Enum(list(COLORMAPS), "viridis").tag(sync=True)
    limits = traitlets.List(traitlets.Float(), [0.0, 1.0], minlen=2, maxlen=2).tag(sync=True)
    simulate = traitlets.Dict(default_value={"cls": 0, "noise": 0, "place": 0}).tag(sync=True)  # see dial.js

    def __init__(self, *sources: Source, titles: Sequence[str] = (), **state: Any) -> None:
        if not sources:
            raise ValueError("a lens needs something to show: GramLens(look), or packs, or paths of .dfp files")
        packs = [
            source if isinstance(source, Pack) else make_pack(source) if isinstance(source, Look) else open_pack(source)
            for source in sources
        ]
        pictures = {pack.picture["digest"] for pack in packs}
        if len(pictures) > 1:
            names = ", ".join(sorted({str(pack.picture["name"]) for pack in packs}))
            raise ValueError(f"a lens compares maps of one photograph, and these are of {names}")
        told = list(titles) or [pack.model.name for pack in packs]
        super().__init__(packs=packs, titles=told, **state)

    def matrix(self, side: int = STILL) -> Float[np.ndarray, "S S"]:
        """What is shown, row by row of the photograph, as means over blocks: at most `side` of them."""
        shown = _block_gram(self.packs[self.pack], self.packs[self.pack], side)
        if self.against is None:
            return shown.numpy()
        return (shown - _block_gram(self.packs[self.against], self.packs[self.pack], side)).numpy()

    def still(self) -> Image.Image:
        """The matrix as a picture."""
        low, high = (-0.5, 0.5) if self.against is not None else self.limits
        name = "blue-white-red" if self.against is not None else self.colormap
        places = np.clip((self.matrix() - low) / (high - low) * 255, 0, 255).round().astype(int)
        return Image.fromarray(lookup(name)[places]).resize((STILL, STILL), Image.Resampling.NEAREST)

    @traitlets.validate("pack", "against")
    def _there(self, proposal: Any) -> int | None:
        value, count = proposal.value, len(self.packs)
        if value is not None and not 0 <= value < count:
            raise traitlets.TraitError(f"{proposal.trait.name} is the number of a map, 0 to {count - 1}, not {value}")
        return value

    @traitlets.validate("selection")
    def _cells(self, proposal: Any) -> list[list[int]]:
        pack = self.packs[self.pack]
        for cell in proposal.value:
            if len(cell) != 2 or not (0 <= cell[0] < pack.rows and 0 <= cell[1] < pack.cols):
                raise traitlets.TraitError(f"no patch {cell}: the map has {pack.rows} rows and {pack.cols} columns")
        return proposal.value

    @traitlets.validate("simulate")
    def _dialled(self, proposal: Any) -> dict[str, float]:
        value, most = proposal.value, {"cls": 1, "noise": 2, "place": 2}
        if value.keys() != most.keys() or not all(0 <= value[name] <= most[name] for name in most):
            raise traitlets.TraitError(f"simulate is {{'cls': 0 to 1, 'noise': 0 to 2, 'place': 0 to 2}}, not {value}")
        return value

    @traitlets.validate("window", "limits")
    def _span(self, proposal: Any) -> list[float]:
        low, high = proposal.value
        if not low < high or (proposal.trait.name == "window" and not 0 <= low < high <= 1):
            raise traitlets.TraitError(f"{proposal.trait.name} is a low and a higher number, not {proposal.value}")
        return proposal.value


def _block_gram(pack: Pack, shown: Pack, side: int) -> Float[Tensor, "S S"]:
    """Mean cosines over blocks of the valid patches of `shown`, in rows; patches of another grid are carried over."""
    unit = normalize(pack.features().patches)
    if pack.geometry != shown.geometry:
        unit = torch.from_numpy(carried(unit.numpy(), pack.geometry, shown.geometry))
    return block_cosines(unit[torch.from_numpy(np.array(shown.valid, dtype=bool))], side)
