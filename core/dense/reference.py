"""Is this cosine high? What cosines between patches are like when nothing in particular was asked.

Models differ in their baseline: 0.6 is ordinary for one and outstanding for another. Three curves give the
measure: random pairs of the same picture, pairs with other pictures, and the mean by distance on the grid.
No P x P matrix is ever built.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from core.dense.similarity import normalize

CHANNELS = 16  # transformed at a time: 34 MB at 256x256
PAIRS = 4096  # compared at a time: 2 x 6 MB at 384 channels


@dataclass(frozen=True, kw_only=True, eq=False)
class NullCurves:
    """The reference cosines of one picture.

    `same_image` are cosines of pairs of different patches of the picture, `other_images` of pairs with one
    patch in another picture (None when there was none). The `exact` flags say that every pair is there, else
    pairs were drawn at random. `by_distance[i]` is the mean cosine of all `counts[i]` pairs that lie
    `distances[i]` cells apart in Manhattan distance (rows plus columns); NaN where there is no pair.
    """

    same_image: Float[Tensor, "N"]
    same_exact: bool
    other_images: Float[Tensor, "M"] | None
    other_exact: bool
    distances: Int[Tensor, "L"]
    by_distance: Float[Tensor, "L"]
    counts: Int[Tensor, "L"]


class Standing(NamedTuple):
    """A cosine against a reference: percentile 0 to 100, and standard deviations above the mean."""

    percentile: float
    z: float


def null_curves(
    patches: Float[Tensor, "H W D"],
    others: Sequence[Float[Tensor, "... D"]] | None = None,
    valid: Bool[Tensor, "H W"] | None = None,
    *,
    others_valid: Sequence[Bool[Tensor, "..."]] | None = None,
    pairs: int = 20_000,
    seed: int = 0,
) -> NullCurves:
    """The three reference curves of one picture; padded cells take no part.

    Where there are at most `pairs` pairs all of them are taken, else `pairs` are drawn with replacement, the
    same for the same seed. The curve by distance is always exact. `others` are maps of other pictures, with
    their masks in `others_valid`. ValueError for fewer than two valid patches, or features that are not
    finite.
    """
    if pairs < 1:
        raise ValueError(f"pairs must be at least 1, got {pairs}")
    valid = torch.ones(patches.shape[:2], dtype=torch.bool, device=patches.device) if valid is None else valid
    unit = normalize(patches)
    rows = unit[valid]
    if len(rows) < 2:
        raise ValueError(f"reference cosines need at least two valid patches, got {len(rows)}; check valid")
    generator = torch.Generator().manual_seed(seed)
    first, second, same_exact = _pairs_within(len(rows), pairs, generator)
    same_image = _cosines(rows, first, rows, second)

    other_images, other_exact = None, True
    if others:
        masks = _masks(others, others_valid)
        first, second, other_exact = _pairs_between(len(rows), sum(int(m.sum()) for m in masks), pairs, generator)
        other_images = _cosines(rows, first, _pick(others, masks, second), torch.arange(len(second)))
    distances, by_distance, counts = _by_distance(unit, valid)
    return NullCurves(
        same_image=same_image,
        same_exact=same_exact,
        other_images=other_images,
        other_exact=other_exact,
        distances=distances,
        by_distance=by_distance,
        counts=counts,
    )


def standing(cosine: float, null: Float[Tensor, "N"]) -> Standing:
    """Where a cosine stands among reference cosines.

    The percentile is the share of smaller ones plus half the share of equal ones, in percent; z is the
    distance from their mean in (population) standard deviations, NaN when they do not spread beyond fp32
    rounding. ValueError when the reference is empty or the cosine is NaN.
    """
    if len(null) == 0 or math.isnan(cosine):
        raise ValueError(f"cannot rank the cosine {cosine} among {len(null)} references; is it a padded cell?")
    exact = null.double()
    value = float(torch.tensor(cosine, dtype=null.dtype))  # ties are found in the precision of the references
    smaller, equal = float((exact < value).double().mean()), float((exact == value).double().mean())
    spread = float(exact.std(correction=0))
    z = (value - float(exact.mean())) / spread if spread > 1e-6 else math.nan
    return Standing(100 * (smaller + equal / 2), z)


def histogram(
    cosines: Float[Tensor, "*shape"], *, bins: int = 80, limits: tuple[float, float] = (-1.0, 1.0)
) -> tuple[Int[Tensor, "bins"], Float[Tensor, "bins+1"]]:
    """Counts and edges over fixed limits, the same for every picture, so that plots can be compared.

    NaN (padded cells) is left out; a bin owns its lower edge, the last one both. ValueError for values beyond
    the limits by more than rounding.
    """
    values = cosines.detach().double().cpu().flatten()
    values = values[~values.isnan()]
    low, high = limits
    if beyond := int(((values < low - 1e-5) | (values > high + 1e-5)).sum()):
        raise ValueError(
            f"{beyond} values lie outside {low}..{high}; a map with negatives spans -2 to 2: pass limits=(-2, 2)"
        )
    counts, edges = np.histogram(values.clamp(low, high).numpy(), bins=bins, range=limits)
    return torch.from_numpy(counts.astype(np.int64)), torch.from_numpy(edges.astype(np.float32))


def _pairs_within(count: int, pairs: int, generator: torch.Generator) -> tuple[Tensor, Tensor, bool]:
    """Indices of pairs of different patches, and whether they are all there."""
    if count * (count - 1) // 2 <= pairs:
        first, second = torch.triu_indices(count, count, offset=1)
        return first, second, True
    first = torch.randint(count, (pairs,), generator=generator)
    second = torch.randint(count - 1, (pairs,), generator=generator)
    return (
        first,
        second + (second >= first),
        False,
    )  # skips the patch itself and leaves the others equally likely


def _pairs_between(here: int, there: int, pairs: int, generator: torch.Generator) -> tuple[Tensor, Tensor, bool]:
    if here * there <= pairs:
        first, second = torch.cartesian_prod(torch.arange(here), torch.arange(there)).T
        return first, second, True
    return (
        torch.randint(here, (pairs,), generator=generator),
        torch.randint(there, (pairs,), generator=generator),
        False,
    )


def _cosines(
    left: Float[Tensor, "P D"], first: Int[Tensor, "N"], right: Float[Tensor, "O D"], second: Int[Tensor, "N"]
) -> Float[Tensor, "N"]:
    parts = zip(first.to(left.device).split(PAIRS), second.to(right.device).split(PAIRS), strict=True)
    return torch.cat([(left[i].cpu() * right[j].cpu()).sum(dim=-1) for i, j in parts]).clamp(-1, 1)


def _masks(others: Sequence[Tensor], others_valid: Sequence[Tensor] | None) -> list[Tensor]:
    if others_valid is None:
        return [torch.ones(item.shape[:-1], dtype=torch.bool, device=item.device) for item in others]
    if [mask.shape for mask in others_valid] != [item.shape[:-1] for item in others]:
        raise ValueError(
            f"masks of shape {[tuple(mask.shape) for mask in others_valid]} do not fit other pictures of "
            f"shape {[tuple(item.shape) for item in others]}; give one mask per picture, without the channels"
        )
    if not any(mask.any() for mask in others_valid):
        raise ValueError("the other pictures have no valid patch; pass others=None to leave that curve out")
    return list(others_valid)


def _pick(others: Sequence[Tensor], masks: list[Tensor], indices: Int[Tensor, "N"]) -> Float[Tensor, "N D"]:
    """Unit vectors of valid patches, numbered through all pictures; only those asked for are copied."""
    picked = torch.empty(len(indices), others[0].shape[-1])
    start = 0
    for item, mask in zip(others, masks, strict=True):
        cells = mask.flatten().nonzero().flatten()
        here = (indices >= start) & (indices < start + len(cells))
        wanted = cells[(indices[here] - start).to(cells.device)]
        picked[here] = normalize(item.reshape(-1, item.shape[-1])[wanted]).cpu()
        start += len(cells)
    return picked


def _by_distance(
    unit: Float[Tensor, "H W D"], valid: Bool[Tensor, "H W"]
) -> tuple[Int[Tensor, "L"], Float[Tensor, "L"], Int[Tensor, "L"]]:
    """Mean cosine and number of pairs for every Manhattan distance from 1 to H + W - 2, over all pairs.

    The sum over all pairs with a given shift is an autocorrelation, so D Fourier transforms of the
    zero-padded grid replace P * P products (Wiener-Khinchin). In float64: the farthest shift has one pair,
    and its sum is read beside one of P.
    """
    rows, cols = valid.shape
    shape = (_fast_length(2 * rows - 1), _fast_length(2 * cols - 1))  # room for every shift without wrapping
    masked = (unit * valid.unsqueeze(-1)).permute(2, 0, 1)
    power = torch.zeros(shape[0], shape[1] // 2 + 1, dtype=torch.float64, device=unit.device)
    for part in masked.split(CHANNELS):
        spectrum = torch.view_as_real(torch.fft.rfft2(part.double(), s=shape))
        power += spectrum.square().sum(dim=(0, -1))
    sums = torch.fft.irfft2(power, s=shape)
    cells = torch.fft.rfft2(valid.double(), s=shape).abs().square()
    pairs = torch.fft.irfft2(cells, s=shape).round()

    down = torch.arange(1 - rows, rows, device=unit.device)  # negative shifts sit at the end of the transform
    right = torch.arange(1 - cols, cols, device=unit.device)
    distance = (down.abs()[:, None] + right.abs()[None, :]).flatten()
    sums, pairs = (table[down][:, right].flatten() for table in (sums, pairs))
    length = rows + cols - 1
    empty = torch.zeros(length, dtype=torch.float64, device=unit.device)
    total = empty.index_add(0, distance, sums)[1:].cpu()  # distance 0 is every patch with itself
    count = empty.index_add(0, distance, pairs)[1:].cpu()
    mean = torch.where(count > 0, total / count, torch.nan).clamp(-1, 1)
    # Every pair was met in both directions.
    return torch.arange(1, length), mean.float(), (count / 2).round().long()


def _fast_length(minimum: int) -> int:
    """The next length that has no prime factor above 5: others transform several times slower."""
    length = minimum
    while True:
        rest = length
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return length
        length += 1
