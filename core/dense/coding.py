"""Feature vectors in 8 bits a channel: turned so that no channel stands out, coded patch by patch, the error measured.

A patch keeps one scale, so a channel that is far larger than the others would leave them a few of the 127 steps. An
orthogonal rotation spreads it over all channels and changes no cosine.
"""

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int8
from torch import Tensor

from core.dense.similarity import normalize

ROTATION = "hadamard-0"  # the name of the rotation below: another one needs another name
STEPS = 127  # codes are -127 to 127
CHUNK = 8192  # vectors in fp32 at a time: 13 MB at 384 channels
EXACT_PATCHES = 4096  # up to here the error is that of all pairs
QUERIES = 512  # beyond, that of so many patches with all others
GEMM = 256  # channels up to which one dense product is faster than two small ones


class Coded(NamedTuple):
    """Vectors as `codes * scales`, rotated where the number of channels allows, and their lengths before."""

    codes: Int8[Tensor, "*shape D"]
    scales: Float[Tensor, "*shape"]
    norms: Float[Tensor, "*shape"]


class CosineError(NamedTuple):
    """Absolute differences between cosines of pairs, exact or of pairs drawn at random."""

    cosine_max: float
    cosine_mean: float
    pairs: int
    exact: bool  # every pair was compared


def rotation_for(dim: int) -> str | None:
    """The name of the rotation for vectors of so many channels; None where there is none to mix: an odd number."""
    return ROTATION if _block(dim) > 1 else None


def rotate(vectors: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape D"]:
    """The vectors turned by the rotation: two rounds of random signs, Hadamard blocks and a permutation."""
    signs, orders = _rounds(vectors.shape[-1])
    for sign, order in zip(signs, orders, strict=True):
        vectors = _mix(vectors * sign.to(vectors.dtype))[..., order]
    return vectors


def rotate_back(vectors: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape D"]:
    """The vectors that `rotate` turned, as they were but for rounding."""
    signs, orders = _rounds(vectors.shape[-1])
    for sign, order in zip(signs[::-1], orders[::-1], strict=True):
        vectors = _mix(vectors[..., order.argsort()]) * sign.to(vectors.dtype)
    return vectors


def encode(patches: Float[Tensor, "H W D"], axes: Float[Tensor, "E D"] | None = None) -> Coded:
    """The patches in 8 bits, first projected on `axes` where they are given; a few thousand at a time.

    ValueError for vectors that are not finite or too long for fp32.
    """
    rows = patches.reshape(-1, patches.shape[-1])
    dim = patches.shape[-1] if axes is None else len(axes)
    codes = torch.empty(len(rows), dim, dtype=torch.int8)
    scales, norms = torch.empty(len(rows)), torch.empty(len(rows))
    for part in _parts(len(rows)):
        vectors = rows[part].float().cpu()
        norms[part] = torch.linalg.vector_norm(vectors, dim=-1)
        vectors = vectors if axes is None else vectors @ axes.T
        turned = rotate(vectors) if rotation_for(dim) else vectors
        scale = turned.abs().amax(dim=-1) / STEPS
        codes[part] = (turned / torch.where(scale > 0, scale, 1.0)[:, None]).round_().clamp_(-STEPS, STEPS)
        scales[part] = scale
    if bad := int((~(norms.isfinite() & scales.isfinite())).sum()):
        raise ValueError(
            f"{bad} of {len(rows)} patches are not finite in fp32; look at the features before coding them"
        )
    shape = patches.shape[:-1]
    return Coded(codes.reshape(*shape, dim), scales.reshape(shape), norms.reshape(shape))


def decode(
    codes: Int8[Tensor, "*shape D"], scales: Float[Tensor, "*shape"], rotation: str | None
) -> Float[Tensor, "*shape D"]:
    """The vectors that `encode` coded, turned back, in fp32."""
    vectors = codes.float() * scales[..., None]
    return vectors if rotation is None else rotate_back(vectors)


def principal_axes(patches: Float[Tensor, "H W D"], count: int) -> Float[Tensor, "E D"]:
    """The `count` orthonormal axes that keep most of the patches' directions.

    Of unit vectors and not centred, since a cosine measures from zero, not from the mean.
    """
    rows = patches.reshape(-1, patches.shape[-1])
    moment = torch.zeros(rows.shape[-1], rows.shape[-1], dtype=torch.float64)
    for part in _parts(len(rows)):
        unit = _unit(rows[part]).double()
        moment.addmm_(unit.T, unit)
    _, vectors = torch.linalg.eigh(moment)  # ascending
    return vectors[:, -count:].T.flip(0).float().contiguous()


def cosine_error(
    exact: Float[Tensor, "H W D"], coded: Float[Tensor, "H W E"] | Int8[Tensor, "H W E"], *, seed: int = 0
) -> CosineError:
    """How far cosines between patches move when the coded vectors (codes or fp32, any width) replace the exact ones.

    All pairs are compared up to 4096 patches, else 512 patches drawn at random with all others.
    """
    left, right = (rows.reshape(-1, rows.shape[-1]) for rows in (exact, coded))
    count = len(left)
    all_pairs = count <= EXACT_PATCHES
    generator = torch.Generator().manual_seed(seed)
    queries = torch.arange(count) if all_pairs else torch.randperm(count, generator=generator)[:QUERIES]
    to_left, to_right = _unit(left[queries]), _unit(right[queries])
    worst, total = 0.0, 0.0
    for part in _parts(count, CHUNK if not all_pairs else CHUNK // 8):  # 1024 x 4096 differences: 17 MB
        gap = (_unit(left[part]) @ to_left.T).sub_(_unit(right[part]) @ to_right.T).abs_()
        itself = (queries >= part.start) & (queries < part.stop)
        gap[queries[itself] - part.start, itself.nonzero().flatten()] = 0  # a patch with itself is no pair
        worst, total = max(worst, float(gap.max())), total + float(gap.sum())
    pairs = len(queries) * (count - 1)
    mean = total / pairs if pairs else 0.0
    return CosineError(worst, mean, pairs // 2 if all_pairs else pairs, all_pairs)


def _unit(rows: Tensor) -> Float[Tensor, "N D"]:
    return normalize(rows.float().cpu())


def _parts(count: int, size: int = CHUNK) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _block(dim: int) -> int:
    """The largest power of two that divides `dim`."""
    return dim & -dim


@cache
def _rounds(dim: int) -> tuple[list[Tensor], list[Tensor]]:
    """Signs and permutations of the two rounds.

    From the raw numbers of PCG64, which numpy promises never to change; what its generator makes of them may.
    """
    numbers = np.random.PCG64(0)
    signs, orders = [], []
    for _ in range(2):
        signs.append(torch.from_numpy(1.0 - 2.0 * (numbers.random_raw(dim) >> np.uint64(63))))
        orders.append(torch.from_numpy(numbers.random_raw(dim).argsort(kind="stable")))
    return signs, orders


def _mix(vectors: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape D"]:
    """Every block of channels times the orthonormal Hadamard matrix, which is its own inverse."""
    block, dtype = _block(vectors.shape[-1]), vectors.dtype
    first = 1 if block <= GEMM else 1 << (block.bit_length() - 1) // 2
    second = block // first
    mixed = vectors.reshape(-1, second) @ _hadamard(second).to(dtype)
    if first > 1:  # the matrix of a product is the product of the matrices
        mixed = _hadamard(first).to(dtype) @ mixed.reshape(-1, first, second)
    return mixed.reshape(vectors.shape)


@cache
def _hadamard(size: int) -> Float[Tensor, "N N"]:
    """Sylvester's matrix, scaled to length one."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], dim=1), torch.cat([matrix, -matrix], dim=1)])
    return matrix / size**0.5
