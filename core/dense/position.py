"""What of a map depends on the place alone, and the map without it.

A picture that shows nothing still gives every patch features of its own: those of its place. Their main directions are
found from grey and noise (the idea of a basis from a blank picture is INSID3's), and can be taken out of any map of the
same backbone, layer and norm.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from core.dense.extract import extract
from core.dense.geometry import Geometry
from core.models import Backbone

RANK = 8  # directions
NOISES = 4  # pictures of noise beside the grey one


def position_basis(
    backbone: Backbone, geometry: Geometry, *, rank: int = RANK, noises: int = NOISES, seed: int = 0, **options: Any
) -> Float[Tensor, "K D"]:
    """Orthonormal directions in which the patches of empty pictures differ by their place, strongest first.

    The pictures have the size and the padding of `geometry`: one in the pixel mean's grey, and `noises` of noise;
    averaging over them leaves what does not depend on the picture. options: layer and norm, as `extract`. Raises
    ValueError for fewer directions than one.
    """
    if rank < 1:
        raise ValueError(f"rank is a number of directions of at least 1, got {rank}")
    maps = [
        extract(backbone, picture, geometry=geometry, **options)
        for picture in empty_pictures(backbone, geometry.width, geometry.height, noises, seed)
    ]
    mean = torch.stack([features.patches for features in maps]).mean(0)[maps[0].valid]
    directions = torch.linalg.svd(mean - mean.mean(0), full_matrices=False).Vh
    return directions[:rank]


def empty_pictures(backbone: Backbone, width: int, height: int, noises: int, seed: int) -> Iterator[np.ndarray]:
    """Pictures (height, width, 3) uint8 that show nothing."""
    grey = (np.array(backbone.pixel_mean) * 255).round().astype(np.uint8)
    yield np.broadcast_to(grey, (height, width, 3)).copy()
    draw = np.random.default_rng(seed)
    for _ in range(noises):
        yield draw.integers(0, 256, (height, width, 3), dtype=np.uint8)


def without(
    patches: Float[Tensor, "H W D"], basis: Float[Tensor, "K D"], valid: Bool[Tensor, "H W"] | None = None
) -> tuple[Float[Tensor, "H W D"], float]:
    """The patches without these directions, around their own mean; and which share of their variance that took."""
    rows = patches.flatten(0, 1) if valid is None else patches[valid]
    mean = rows.mean(0)
    taken = (patches - mean) @ basis.T @ basis
    around = (rows - mean).double().square().sum()
    of = taken.flatten(0, 1) if valid is None else taken[valid]
    share = float(of.double().square().sum() / around) if around > 0 else 0.0
    return patches - taken, share
