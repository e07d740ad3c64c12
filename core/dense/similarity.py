"""Which patches point the same way? Cosines to one or several query patches, and the best answers.

Everything is computed in fp32 whatever arrives: rankings among thousands of near-equal cosines do not survive
half precision. Maps are (H, W), cells are (row, col), padded cells are NaN and never an answer.

For a picture that is queried again and again, keep `unit_patches(...)` and pass `unit=True`: a map then costs
one matrix-vector product.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

Cell = tuple[int, int]  # row, column


class Match(NamedTuple):
    """One answer: a cell and its value in the map."""

    row: int
    col: int
    cosine: float


def normalize(vectors: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape D"]:
    """The vectors at length one, in fp32; a zero vector stays zero, so that its cosine to anything is 0.

    ValueError when a vector holds NaN or infinity, or is too long for fp32.
    """
    vectors = vectors.float()
    length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    if bad := int((~torch.isfinite(length)).sum()):
        raise ValueError(
            f"{bad} of {length.numel()} vectors are not finite in fp32; look at the features before they are "
            f"compared (an overflow in half precision is the usual cause)"
        )
    return vectors / torch.where(length > 0, length, 1.0)


def unit_patches(patches: Float[Tensor, "H W D"]) -> Float[Tensor, "H W D"]:
    """The patches at length one, fp32 and contiguous: keep them, and a click is one matrix-vector product."""
    return normalize(patches).contiguous()


def cosine_map(
    patches: Float[Tensor, "H W D"],
    queries: Sequence[Cell],
    *,
    negatives: Sequence[Cell] = (),
    valid: Bool[Tensor, "H W"] | None = None,
    unit: bool = False,
) -> Float[Tensor, "H W"]:
    """Mean cosine of every patch to the query cells, minus its mean cosine to the negative cells.

    One query and no negative gives the plain cosine, -1 to 1; with negatives the range is -2 to 2. Cells
    where `valid` is False become NaN; a query may be such a cell, since a click at the rim lands there.
    `unit` says that the patches come from `unit_patches`. ValueError without a query or for a cell outside
    the grid.
    """
    return cosine_map_to(
        patches, _gather(patches, queries), negatives=_gather(patches, negatives), valid=valid, unit=unit
    )


def cosine_map_to(
    patches: Float[Tensor, "H W D"],
    vectors: Float[Tensor, "Q D"],
    *,
    negatives: Float[Tensor, "N D"] | None = None,
    valid: Bool[Tensor, "H W"] | None = None,
    unit: bool = False,
) -> Float[Tensor, "H W"]:
    """Mean cosine of every patch to the vectors, minus its mean cosine to the negatives.

    As `cosine_map`, with vectors from elsewhere: patches of a second picture, a CLS token, a text. `unit`
    speaks of `patches` only.
    """
    if len(vectors) == 0:
        raise ValueError("a map needs at least one query; negatives alone have nothing to be compared with")
    query = normalize(vectors).mean(dim=0)  # a mean of cosines is one product with the mean unit vector
    limit = 1.0
    if negatives is not None and len(negatives):
        query = query - normalize(negatives).mean(dim=0)
        limit = 2.0
    rows, cols, dim = patches.shape
    patches = patches.float() if unit else normalize(patches)
    values = (patches.reshape(-1, dim) @ query.to(patches.device)).reshape(rows, cols)
    values = values.clamp(-limit, limit)  # rounding gives 1.0000001
    return values if valid is None else values.masked_fill(~valid, torch.nan)


def top_k(
    cosines: Float[Tensor, "H W"],
    k: int,
    *,
    exclude: Cell | Sequence[Cell] | None = None,
    radius: int = 0,
    valid: Bool[Tensor, "H W"] | None = None,
    spacing: int = 0,
) -> list[Match]:
    """The k best cells of a map, best first, equal values in raster order; fewer when fewer are left.

    `exclude` (one cell or several, usually the queries) takes out every cell within `radius` of it. Distances
    are Chebyshev: radius 1 is the 3x3 block around a cell, radius 0 the cell alone. `spacing` keeps answers
    apart: no two lie within that distance of each other (non-maximum suppression). NaN and cells where
    `valid` is False never answer. ValueError for negative numbers or an excluded cell outside the grid.
    """
    if min(k, radius, spacing) < 0:
        raise ValueError(f"k, radius and spacing count cells and cannot be negative; got {k}, {radius}, {spacing}")
    rows, cols = cosines.shape
    free = ~torch.isnan(cosines)
    if valid is not None:
        free = free & valid
    for row, col in _cells(exclude, rows, cols):
        free[_block(row, col, radius)] = False

    values = torch.where(free, cosines, -torch.inf).flatten()
    ranking = torch.argsort(values, descending=True, stable=True)[: int(free.sum())].tolist()
    matches: list[Match] = []
    for index in ranking:
        if len(matches) == k:
            break
        row, col = divmod(index, cols)
        if not free[row, col]:  # too near a better answer
            continue
        matches.append(Match(row, col, float(cosines[row, col])))
        free[_block(row, col, spacing)] = False
    return matches


def _block(row: int, col: int, radius: int) -> tuple[slice, slice]:
    """The cells within a Chebyshev distance; slices stop at the far edges by themselves."""
    return slice(max(row - radius, 0), row + radius + 1), slice(max(col - radius, 0), col + radius + 1)


def _gather(patches: Float[Tensor, "H W D"], cells: Sequence[Cell]) -> Float[Tensor, "Q D"]:
    rows, cols, dim = patches.shape
    picked = [patches[row, col] for row, col in _cells(cells, rows, cols)]
    return torch.stack(picked) if picked else patches.new_zeros(0, dim)


def _cells(cells: Cell | Sequence[Cell] | None, rows: int, cols: int) -> list[Cell]:
    """One cell or several as a list, each checked against the grid."""
    if not cells:
        return []
    several = [cast(Cell, cells)] if np.ndim(cells) == 1 else list(cast(Sequence[Cell], cells))
    for row, col in several:
        if not (0 <= row < rows and 0 <= col < cols):
            raise ValueError(
                f"cell (row {row}, col {col}) is outside the {rows}x{cols} grid; pixel_to_patch gives cells from pixels"
            )
    return several


def block_cosines(unit: Float[Tensor, "N D"], side: int) -> Float[Tensor, "S S"]:
    """The matrix of all cosines among N unit vectors as means over at most `side` x `side` blocks, in their order.

    Exact without the matrix: the mean over a block is the product of the means of its rows and of its columns.
    """
    blocks = min(side, len(unit))
    edges = (torch.arange(blocks + 1) * len(unit) // blocks).tolist()
    means = torch.stack([unit[start:stop].mean(0) for start, stop in pairwise(edges)])
    return means @ means.T
