"""The patch cloud as a notebook widget: a lasso around points shows their patches on the photographs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import traitlets
from jaxtyping import Bool
from PIL import Image

from core.dense.color import fit_basis
from core.dense.extract import Progress
from workbench import clouds
from workbench.clouds import Cloud, draw_cloud
from workbench.looks import Look
from workbench.packs import Pack, make_pack, open_pack
from workbench.widgets.host import PackWidget

Source = Look | Pack | str | Path


class PatchCloud(PackWidget):
    """The patches of one or several photographs as points, beside the photographs.

        view = PatchCloud(look_a, look_b)                            # UMAP
        view = PatchCloud(look_a, look_b, cloud=cloud([look_a, look_b], "pca"))
        view.selection                                               # [[picture, row, column], ...] of the lasso
        view.mask(0)                                                 # the same for the first picture, as its map
        view.query = (0, 12, 30); view.color_by = "cosine"

    Sources are looks, packs, or paths of .dfp files, all of one model; the cloud is computed when none is given. Looks
    get one colour basis, fitted on all of them; with packs the first basis found colours every photograph.
    """

    _entry = "cloud.js"
    selection: Any = traitlets.List().tag(sync=True)  # [picture, row, column] of each selected patch
    query: Any = traitlets.List(None, allow_none=True).tag(sync=True)  # [picture, row, column]
    color_by = traitlets.Enum(["image", "pca", "cosine"], "image").tag(sync=True)
    camera = traitlets.Dict().tag(sync=True)  # x, y, zoom in the units of the cloud; empty shows all of it
    about = traitlets.Dict().tag(sync=True)  # what the view says of the cloud

    def __init__(
        self,
        *sources: Source,
        cloud: Cloud | None = None,
        method: str = "umap",
        progress: Progress | None = None,
        **state: Any,
    ) -> None:
        if not sources:
            raise ValueError("a cloud needs at least one picture: PatchCloud(look), or packs, or paths of .dfp files")
        known = [source if isinstance(source, Look | Pack) else open_pack(source) for source in sources]
        self.cloud = cloud or clouds.cloud(known, method, progress=progress)
        packs = _packs(known)
        _check_fits(self.cloud, packs)
        cells = np.stack([self.cloud.pack, self.cloud.row, self.cloud.col], axis=1)
        blobs = {"positions": self.cloud.positions.astype("<f4").tobytes(), "cells": cells.astype("<u2").tobytes()}
        about = {"names": list(self.cloud.names), "caption": self.cloud.caption}
        super().__init__(packs=packs, blobs=blobs, about=about, **state)

    def mask(self, picture: int) -> Bool[np.ndarray, "H W"]:
        """True where a patch of this picture is selected."""
        mask = np.zeros((self.packs[picture].rows, self.packs[picture].cols), dtype=bool)
        mask[*np.array([cell[1:] for cell in self.selection if cell[0] == picture], int).reshape(-1, 2).T] = True
        return mask

    def still(self) -> Image.Image:
        return Image.fromarray(draw_cloud(self.cloud, self.selection))

    @traitlets.validate("selection")
    def _cells(self, proposal: Any) -> list[list[int]]:
        return [self._cell(cell) for cell in proposal.value]

    @traitlets.validate("query")
    def _asked(self, proposal: Any) -> list[int] | None:
        return None if proposal.value is None else self._cell(proposal.value)

    def _cell(self, cell: Sequence[int]) -> list[int]:
        grids = dict(enumerate(self.cloud.grids))
        picture, row, col = map(int, cell)
        rows, cols = grids.get(picture, (0, 0))
        if not (0 <= row < rows and 0 <= col < cols):
            raise traitlets.TraitError(
                f"no patch [{picture}, {row}, {col}]: a cell is [picture, row, column], and the pictures are "
                f"{', '.join(f'{index} with {size}' for index, size in enumerate(_sizes(self.cloud.grids)))}"
            )
        return [picture, row, col]


def _packs(sources: Sequence[Look | Pack]) -> list[Pack]:
    looks = [source for source in sources if isinstance(source, Look)]
    basis = (
        fit_basis([look.features.patches for look in looks], valid=[look.valid for look in looks]) if looks else None
    )
    return [make_pack(source, basis=basis) if isinstance(source, Look) else source for source in sources]


def _check_fits(cloud: Cloud, packs: Sequence[Pack]) -> None:
    """ValueError for a cloud of other pictures, or of the same in another order or at another size."""
    wanted = [(pack.picture["digest"], (pack.rows, pack.cols)) for pack in packs]
    if wanted != list(zip(cloud.pictures, cloud.grids, strict=True)):
        raise ValueError(
            f"the cloud was made of {', '.join(cloud.names)} with grids of {', '.join(_sizes(cloud.grids))}, and the "
            f"view is given {', '.join(str(pack.picture['name']) for pack in packs)} with "
            f"{', '.join(_sizes([grid for _, grid in wanted]))}; give the same pictures in the same order"
        )


def _sizes(grids: Sequence[tuple[int, int]]) -> list[str]:
    return [f"{rows}x{cols}" for rows, cols in grids]
