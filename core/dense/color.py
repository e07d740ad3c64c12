"""Patch features as colours: three principal components, with a basis that can be kept and shared.

A basis fitted once and reused keeps its meaning: the same direction of feature space has the same colour in
every picture, frame and run. Its limits are frozen with it; colours are never stretched per picture, so a map
without contrast looks like one. The fit is exact (float64 eigenvectors, no random projection), so the order
of the patches does not matter.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

PERCENTILES = (1.0, 99.0)  # of the fitted scores: a few outlier patches must not set the limits
ROUNDING = 1e-6  # spread below this share of the features' size is fp32 rounding, not contrast
CHUNK = 8192  # rows turned to float64 at a time: 25 MB at 384 channels


@dataclass(frozen=True, kw_only=True, eq=False)
class ColorBasis:
    """Three axes of feature space and the scores at which each colour channel is dark and full.

    `explained` is each axis' share of the total variance of the fitted patches; `source` the SHA-256 of those
    patches, so that two pictures can prove to share a basis. ValueError when the parts do not fit together.
    """

    mean: Float[Tensor, "D"]
    axes: Float[Tensor, "3 D"]
    low: Float[Tensor, "3"]
    high: Float[Tensor, "3"]
    explained: Float[Tensor, "3"]
    source: str

    def __post_init__(self) -> None:
        dim = self.mean.shape[-1]
        shapes = {"mean": (dim,), "axes": (3, dim), "low": (3,), "high": (3,), "explained": (3,)}
        for name, shape in shapes.items():
            value = getattr(self, name)
            if tuple(value.shape) != shape:
                raise ValueError(f"{name} of a color basis has shape {shape}, got {tuple(value.shape)}")
            if not torch.isfinite(value).all():
                raise ValueError(f"{name} of a color basis holds NaN or infinity; fit it again on finite features")
        if (self.low > self.high).any():
            raise ValueError(f"low {self.low.tolist()} exceeds high {self.high.tolist()}; give the limits in order")

    def to_dict(self) -> dict[str, np.ndarray]:
        """The fields as arrays, ready for `numpy.savez`."""
        record = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: value.cpu().numpy() if isinstance(value, Tensor) else np.array(value)
            for name, value in record.items()
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "ColorBasis":
        """The basis that `to_dict` wrote; ValueError for unknown or missing keys."""
        names = {field.name for field in fields(cls)}
        if set(record) != names:
            raise ValueError(
                f"a color basis has the fields {', '.join(sorted(names))}; got {', '.join(sorted(record)) or 'none'}"
            )
        arrays = {name: torch.from_numpy(np.asarray(record[name], np.float32)) for name in names - {"source"}}
        return cls(**arrays, source=str(record["source"]))


class Alignment(NamedTuple):
    """A basis turned towards a reference, and how much of the reference it fails to reproduce (0 to 1)."""

    basis: ColorBasis
    residual: float


def save_basis(basis: ColorBasis, path: str | Path) -> None:
    """Write the basis as one .npz file."""
    with open(path, "wb") as file:  # by name numpy would append .npz to another suffix
        np.savez(file, **basis.to_dict())  # type: ignore[arg-type]


def load_basis(path: str | Path) -> ColorBasis:
    """The basis that `save_basis` wrote; ValueError when the file holds something else."""
    with np.load(path, allow_pickle=False) as file:
        return ColorBasis.from_dict(dict(file))


def fit_basis(
    patches: Float[Tensor, "*shape D"] | Sequence[Float[Tensor, "... D"]],
    *,
    valid: Bool[Tensor, "*shape"] | Sequence[Bool[Tensor, "..."]] | None = None,
    foreground: Bool[Tensor, "*shape"] | Sequence[Bool[Tensor, "..."]] | None = None,
) -> ColorBasis:
    """The three principal axes of the patches with their 1 % and 99 % limits, in order of variance.

    Takes one map or list of patches, or several; `valid` and `foreground` are masks of the same shapes and
    only patches inside both are used. Each axis points the way that makes its largest loading positive. An
    axis whose spread is within fp32 rounding gets empty limits and shows as middle grey. The time goes with
    the cube of the channels: well under a second up to 1024, some ten seconds at 4096. ValueError for fewer
    than two patches, fewer than three channels, or features that are not finite.
    """
    maps, keep = _as_list(patches), _masks(patches, valid, foreground)
    mean, digest, count = _mean_of(maps, keep)
    dim = len(mean)
    covariance = torch.zeros(dim, dim, dtype=torch.float64)
    for rows in _chunks(maps, keep):
        centred = rows.double() - mean
        covariance.addmm_(centred.T, centred)
    covariance /= count
    values, vectors = torch.linalg.eigh(covariance)  # ascending
    values, axes = values[-3:].flip(0).clamp(min=0), vectors[:, -3:].T.flip(0)
    axes = axes * axes.gather(1, axes.abs().argmax(dim=1, keepdim=True)).sign()

    total = float(covariance.trace())
    size = total + float(mean.square().sum())  # mean squared length of a patch
    flat = values <= ROUNDING**2 * size
    scores = torch.cat([(rows.double() - mean) @ axes.T for rows in _chunks(maps, keep)])
    low, high = _limits(scores)
    return ColorBasis(
        mean=mean.float(),
        axes=axes.float(),
        low=low.masked_fill(flat, 0.0),
        high=high.masked_fill(flat, 0.0),
        explained=(values / total if total > ROUNDING**2 * size else torch.zeros(3)).float(),
        source=f"sha256:{digest}",
    )


def project(basis: ColorBasis, patches: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape 3"]:
    """The coordinates of the patches on the three axes, in fp32 and in units of the features."""
    if patches.shape[-1] != len(basis.mean):
        raise ValueError(
            f"the basis was fitted on {len(basis.mean)} channels, the patches have {patches.shape[-1]}; "
            f"fit a basis on features of this model and align() it"
        )
    # Centred first: with a large mean the difference of two products would lose digits.
    return (patches.float() - basis.mean.to(patches.device)) @ basis.axes.T.to(patches.device)


def to_rgb(
    basis: ColorBasis, patches: Float[Tensor, "H W D"], *, valid: Bool[Tensor, "H W"] | None = None
) -> UInt8[Tensor, "H W 3"]:
    """The patches as colours between the frozen limits of the basis; padded cells are black.

    Scores beyond the limits saturate; an axis without spread shows as middle grey.
    """
    low, high = basis.low.to(patches.device), basis.high.to(patches.device)
    spread = high - low
    share = torch.where(spread > 0, (project(basis, patches) - low) / torch.where(spread > 0, spread, 1.0), 0.5)
    rgb = (share.clamp(0, 1) * 255).round().to(torch.uint8)
    return rgb if valid is None else rgb * valid.unsqueeze(-1)


def foreground(
    patches: Float[Tensor, "H W D"],
    *,
    basis: ColorBasis | None = None,
    valid: Bool[Tensor, "H W"] | None = None,
) -> Bool[Tensor, "H W"]:
    """True where the first principal component says object rather than background.

    The scores on the first axis (of `basis`, else of the picture itself) are split at Otsu's threshold. The
    sign of an axis means nothing, so the frame decides: of the two sides, the one that holds the larger share
    of the outermost valid cells is background (on a tie the larger side). A picture without contrast has no
    foreground. This is a guess for pictures with one subject; a subject that fills the frame is taken for the
    background.
    """
    valid = torch.ones(patches.shape[:2], dtype=torch.bool, device=patches.device) if valid is None else valid
    if not valid.any():
        raise ValueError("a foreground needs at least one valid patch; check valid")
    basis = fit_basis(patches, valid=valid) if basis is None else basis
    scores = project(basis, patches)[..., 0]
    size = patches[valid].float().square().sum(dim=-1).mean().sqrt()
    threshold = otsu_threshold(scores[valid])
    if threshold is None or scores[valid].std(correction=0) <= ROUNDING * size:
        return torch.zeros_like(valid)
    above = (scores > threshold) & valid
    on_frame, everywhere = float(above[_frame(valid)].float().mean()), float(above[valid].float().mean())
    background_above = everywhere > 0.5 if on_frame == 0.5 else on_frame > 0.5
    return valid & ~above if background_above else above


def otsu_threshold(values: Float[Tensor, "N"]) -> float | None:
    """The cut that maximises the variance between the two sides (Otsu 1979), or None for equal values.

    Exact: every gap between neighbouring values is tried and the middle of the best one returned.
    """
    ordered = values.double().sort().values
    below = torch.arange(1, len(ordered), dtype=torch.float64, device=values.device)
    sums = ordered.cumsum(0)
    mean_below = sums[:-1] / below
    mean_above = (sums[-1] - sums[:-1]) / (len(ordered) - below)
    between = below * (len(ordered) - below) * (mean_above - mean_below).square()
    between = between.masked_fill(ordered[1:] == ordered[:-1], -1.0)  # equal values stay together
    if len(between) == 0 or between.max() < 0:
        return None
    best = int(between.argmax())
    return float(ordered[best] + (ordered[best + 1] - ordered[best]) / 2)


def align(
    basis: ColorBasis,
    patches: Float[Tensor, "*shape D"],
    reference: ColorBasis,
    reference_patches: Float[Tensor, "*shape E"],
    *,
    valid: Bool[Tensor, "*shape"] | None = None,
) -> Alignment:
    """The basis turned so that its colours agree with the reference, for features of another network.

    Axes of two networks cannot be compared, their scores on the SAME patches can: orthogonal Procrustes
    (Schoenemann 1966) on the centred scores gives the rotation or reflection, which settles permutation and
    signs as well. The mean and the span of the axes stay; the limits are the 1 % and 99 % of the turned
    scores and `explained` is shared out anew, both measured on these patches.

    The residual is the part of the reference scores that the turned scores miss at their best common scale,
    as a ratio of root sums of squares: 0 is a perfect copy, 1 nothing in common. ValueError when the
    reference scores do not vary.
    """
    scores, target = project(basis, patches), project(reference, reference_patches)
    keep = torch.ones(scores.shape[:-1], dtype=torch.bool, device=scores.device) if valid is None else valid
    scores, target = (rows[keep].double().cpu() for rows in (scores, target))
    if len(scores) < 2:
        raise ValueError(f"alignment compares patches and needs at least two, got {len(scores)}; check valid")
    moved, wanted = scores - scores.mean(dim=0), target - target.mean(dim=0)
    if wanted.square().sum() <= ROUNDING**2 * target.square().sum():
        raise ValueError("the reference scores are the same for all patches; align on patches that differ")

    left, singular, right = torch.linalg.svd(moved.T @ wanted)
    rotation = left @ right  # minimises |moved @ rotation - wanted|
    power = moved.square().sum() * wanted.square().sum()
    agreement = float(singular.sum().square() / power) if power > 0 else 0.0
    spread = (moved @ rotation).square().sum(dim=0)
    flat = spread <= ROUNDING**2 * float(patches[keep].double().square().sum())
    low, high = _limits(scores @ rotation)
    turned = replace(
        basis,
        axes=(rotation.T @ basis.axes.double()).float(),
        low=low.masked_fill(flat, 0.0),
        high=high.masked_fill(flat, 0.0),
        explained=(basis.explained.double().sum() * spread / spread.sum()).float() if power > 0 else basis.explained,
    )
    return Alignment(turned, max(0.0, 1.0 - agreement) ** 0.5)


def shared_limits(bases: Sequence[ColorBasis]) -> list[ColorBasis]:
    """The same bases with common limits, the lowest low and highest high of each channel.

    For panes to be compared: a map with less contrast than its neighbours then looks it. Sensible where
    scores have the same unit, as for checkpoints of one network.
    """
    if not bases:
        raise ValueError("shared limits need at least one basis")
    low = torch.stack([basis.low for basis in bases]).amin(dim=0)
    high = torch.stack([basis.high for basis in bases]).amax(dim=0)
    return [replace(basis, low=low, high=high) for basis in bases]


def _frame(valid: Bool[Tensor, "H W"]) -> Bool[Tensor, "H W"]:
    """The valid cells in the first and last valid row and column."""
    rows, cols = valid.any(dim=1).nonzero().flatten(), valid.any(dim=0).nonzero().flatten()
    frame = torch.zeros_like(valid)
    frame[[rows[0], rows[-1]], :] = True
    frame[:, [cols[0], cols[-1]]] = True
    return frame & valid


def _limits(scores: Float[Tensor, "N 3"]) -> tuple[Float[Tensor, "3"], Float[Tensor, "3"]]:
    # torch.quantile stops at 16 million values.
    low, high = np.percentile(scores.cpu().numpy(), PERCENTILES, axis=0)
    return torch.from_numpy(low).float(), torch.from_numpy(high).float()


def _as_list(value: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value)


def _masks(patches: Tensor | Sequence[Tensor], *masks: Tensor | Sequence[Tensor] | None) -> list[Tensor | None]:
    """One combined mask for every map, or None for all of it."""
    maps = _as_list(patches)
    keep: list[Tensor | None] = [None] * len(maps)
    for mask in masks:
        if mask is None:
            continue
        parts = _as_list(mask)
        if [part.shape for part in parts] != [item.shape[:-1] for item in maps]:
            raise ValueError(
                f"masks of shape {[tuple(part.shape) for part in parts]} do not fit patches of shape "
                f"{[tuple(item.shape) for item in maps]}; give one mask per map, without the channels"
            )
        keep = [part if kept is None else kept & part for part, kept in zip(parts, keep, strict=True)]
    return keep


def _chunks(maps: list[Tensor], keep: list[Tensor | None]) -> Iterator[Float[Tensor, "N D"]]:
    """The selected patches in fp32 on the CPU, a few thousand at a time."""
    for item, mask in zip(maps, keep, strict=True):
        rows = item.reshape(-1, item.shape[-1]) if mask is None else item[mask]
        for part in rows.split(CHUNK):
            yield part.detach().float().cpu()


def _mean_of(maps: list[Tensor], keep: list[Tensor | None]) -> tuple[Float[Tensor, "D"], str, int]:
    """Mean (float64), SHA-256 and number of the selected patches."""
    dims = {item.shape[-1] for item in maps}
    if len(dims) != 1 or min(dims) < 3:
        raise ValueError(f"a color basis needs patches of one width of at least 3 channels, got {sorted(dims)}")
    total, count, digest = torch.zeros(dims.pop(), dtype=torch.float64), 0, hashlib.sha256()
    for rows in _chunks(maps, keep):
        total += rows.double().sum(dim=0)
        count += len(rows)
        digest.update(rows.contiguous().numpy().astype("<f4", copy=False).data)
    if count < 2:
        raise ValueError(f"a color basis needs at least two patches, got {count}; check the valid and foreground masks")
    if not torch.isfinite(total).all():
        raise ValueError("the features hold NaN or infinity; look at them before fitting colors")
    return total / count, digest.hexdigest(), count
