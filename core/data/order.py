"""Which image stands where: an endless order that is a function of the position and keeps nothing in memory.

A step of the run takes a whole batch from one source or a mixture of all (paper section 3.1); a mixture has every
source in proportion to its weight times its number of images. Positions count over all processes, so the images
of a step do not depend on how many there are.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import isqrt, lcm

import numpy as np
from jaxtyping import Int, Shaped, UInt64

ROUNDS = 6  # four make a Feistel network hard to tell from chance; small sources gain from two more
BLOCK = 512  # choices that are shuffled together
MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15

# What a key is for, so that no two uses share their numbers.
PASS, MIXTURE, KIND, SIZES, CROPS, MASKS = range(6)


def _mix(x: np.ndarray) -> np.ndarray:
    """Splitmix64's finaliser: every bit of the 64-bit input moves half of the output."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hashed(keys: int | UInt64[np.ndarray, "*n"], values: Shaped[np.ndarray, "*n"]) -> UInt64[np.ndarray, "*n"]:
    """64 random bits for every pair of key and value."""
    return _mix(_mix(values.astype(np.uint64) * np.uint64(GOLDEN) + np.uint64(1)) ^ np.asarray(keys, dtype=np.uint64))


def key_of(*parts: int) -> int:
    """One 64-bit key out of several numbers; their order matters."""
    key = 0
    for part in parts:
        key = int(hashed(key, np.array([part & MASK], dtype=np.uint64))[0])
    return key


def generator(*parts: int) -> np.random.Generator:
    """Random numbers that are a function of these numbers."""
    return np.random.Generator(np.random.PCG64([part & MASK for part in parts]))


def shuffled(numbers: Int[np.ndarray, "n"], size: int, keys: np.ndarray | int) -> Int[np.ndarray, "n"]:
    """Where each number below `size` goes in the permutation of range(size) that its key names.

    A Feistel network on the smallest square that holds them; what falls outside walks on along its cycle.
    """
    side = np.uint64(isqrt(max(size - 1, 0)) + 1)
    keys = np.broadcast_to(np.asarray(keys, dtype=np.uint64), numbers.shape)
    values, outside = numbers.astype(np.uint64), np.ones(numbers.shape, dtype=bool)
    while outside.any():
        left, right = np.divmod(values[outside], side)
        for index in range(ROUNDS):
            change = hashed(keys[outside] + np.uint64(index), right)
            left, right = right, (left + change % side) % side
        values[outside] = left * side + right
        outside = values >= np.uint64(size)
    return values.astype(np.int64)


def index_at(positions: Int[np.ndarray, "n"], size: int, key: int) -> Int[np.ndarray, "n"]:
    """The image at each position of a source of `size`: every pass takes each once, in an order of its own."""
    passes, places = np.divmod(positions, size)
    return shuffled(places, size, hashed(key, passes))


class Quota:
    """An endless shuffled sequence of choices in which every stretch has each choice by its share, to within one.

    The sequence is cut into blocks; a block's counts follow from whole numbers and its order from a key, so what lies
    before a position is known without walking there.
    """

    def __init__(self, shares: list[Fraction], key: int) -> None:
        if not shares or min(shares) < 0 or sum(shares) <= 0:
            raise ValueError(f"shares are at least 0 and not all 0, got {[float(share) for share in shares]}")
        scale = lcm(*(share.denominator for share in shares))
        self.shares, self.key = tuple(int(share * scale) for share in shares), key

    def at(self, first: int, count: int) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"]]:
        """For `count` positions: the choice, and how often it was taken before."""
        blocks = range(first // BLOCK, (first + count - 1) // BLOCK + 1)
        choices, ordinals = zip(*(_block(self.shares, self.key, block) for block in blocks), strict=True)
        part = slice(first - blocks.start * BLOCK, first - blocks.start * BLOCK + count)
        return np.concatenate(choices)[part], np.concatenate(ordinals)[part]

    def taken(self, position: int) -> Int[np.ndarray, "n"]:
        """How often each choice is taken before a position."""
        block, rest = divmod(position, BLOCK)
        inside = _block(self.shares, self.key, block)[0][:rest]
        return np.array(_taken(self.shares, block)) + np.bincount(inside, minlength=len(self.shares))


def _taken(shares: tuple[int, ...], block: int) -> list[int]:
    """How often each choice is taken in all blocks before this one. Exact: these are Python's whole numbers."""
    counts, left, total = [], block * BLOCK, sum(shares)
    for share in shares:
        counts.append(left * share // total if total else 0)
        left, total = left - counts[-1], total - share
    return counts


@lru_cache(maxsize=16)  # the steps of one batch after the other ask for the same blocks
def _block(shares: tuple[int, ...], key: int, block: int) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """The choices of a block, and for each how often it was taken before."""
    before, after = _taken(shares, block), _taken(shares, block + 1)
    choices = np.repeat(np.arange(len(shares)), np.subtract(after, before))
    choices = choices[np.argsort(hashed(key_of(key, block), np.arange(BLOCK)), kind="stable")]
    ordinals = np.empty(BLOCK, dtype=np.int64)
    for choice, start in enumerate(before):
        where = choices == choice
        ordinals[where] = start + np.arange(np.count_nonzero(where))
    return choices, ordinals


@dataclass(frozen=True)
class Place:
    """Where the images of a step come from: for each the source, and its position in that source's endless order."""

    sources: Int[np.ndarray, "n"]
    positions: Int[np.ndarray, "n"]


class Order:
    """The images of every step of a run, over sources of these sizes."""

    def __init__(
        self, sizes: list[int], weights: list[float], homogeneous: list[float], *, batch_size: int, seed: int
    ) -> None:
        alone = [Fraction(share) for share in homogeneous]
        rest = 1 - sum(alone, Fraction(0))
        mixture = [Fraction(weight) * size for weight, size in zip(weights, sizes, strict=True)]
        if min(sizes) < 1:
            raise ValueError(f"sources have at least one image, got {sizes}")
        if rest > Fraction(1, 10**9) and not any(mixture):
            raise ValueError(f"every source has weight 0, but a share of {float(rest):g} of the steps mixes sources")
        rest = max(rest, Fraction(0)) if any(mixture) else Fraction(0)  # ten tenths are not quite one
        self.sizes, self.batch_size, self.seed = sizes, batch_size, seed
        self.kinds = Quota([*alone, rest], key_of(seed, KIND))
        self.mixture = Quota(mixture, key_of(seed, MIXTURE)) if any(mixture) else None

    def at(self, step: int) -> Place:
        """The whole batch of a step, over all processes."""
        size = self.batch_size
        *alone, mixed = self.kinds.taken(step).tolist()  # earlier steps of each kind
        kind = int(self.kinds.at(step, 1)[0][0])
        if kind < len(alone):
            first = alone[kind] * size + (self.mixture.taken(mixed * size)[kind] if self.mixture else 0)
            return Place(np.full(size, kind), first + np.arange(size))
        assert self.mixture is not None
        sources, positions = self.mixture.at(mixed * size, size)
        return Place(sources, positions + np.array(alone)[sources] * size)

    def images(self, place: Place, part: slice, attempt: int = 0) -> Int[np.ndarray, "n"]:
        """The number of each image within its source; a later attempt looks at the same place of a later pass."""
        sources, positions = place.sources[part], place.positions[part]
        indices = np.empty(len(sources), dtype=np.int64)
        for source in np.unique(sources).tolist():
            where, size = sources == source, self.sizes[source]
            indices[where] = index_at(positions[where] + attempt * size, size, key_of(self.seed, PASS, source))
        return indices


def choose(probabilities: list[float], step: int, seed: int) -> int:
    """The entry that a whole step uses, drawn by these probabilities."""
    draw = generator(seed, SIZES, step).random() * sum(probabilities)
    return min(int(np.searchsorted(np.cumsum(probabilities), draw, side="right")), len(probabilities) - 1)
