"""Packs of looks; `core.dense.packs` has the pack itself."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from core.dense import packs
from core.dense.cards import ModelCard
from core.dense.color import ColorBasis
from core.dense.packs import SUFFIX, Pack, PackError, open_pack, pack_features
from workbench.looks import Look

__all__ = ["SUFFIX", "Pack", "PackError", "make_pack", "open_pack", "pack_features", "save_pack"]


def make_pack(
    look: Look,
    *,
    others: Sequence[Look] = (),
    basis: ColorBasis | None = None,
    texts: Sequence[str] | None = None,
    text_vectors: Float[Tensor, "T D"] | None = None,
    dims: int | None = None,
    labels: Mapping[str, str] | None = None,
) -> Pack:
    """The pack of a look, in memory.

    others: looks at other photographs through the same weights, for cosines between pictures. basis: colours to keep,
    such as `look.basis`. texts: phrases, with their vectors in the space of the patches. dims: cut the channels down
    to so many principal ones; the worst cosine error of that stands in `reduced`, and it can be large. ValueError for
    parts that do not fit together.
    """
    return pack_features(
        look.features,
        look.card or ModelCard(look.model),
        look.photo,
        others=[other.features for other in others],
        curves=None if others else lambda: look.null,  # seconds at 4K, and the look keeps them
        basis=basis,
        texts=texts,
        text_vectors=text_vectors,
        dims=dims,
        labels=labels,
    )


def save_pack(pack: Pack | Look, path: str | os.PathLike[str], **options: Any) -> Path:
    """The path of the file, which appears complete or not at all; `options` go to `make_pack` with a look.

    Raises ValueError for a path that does not end in .dfp; OSError when the disk is full.
    """
    if isinstance(pack, Look):
        pack = make_pack(pack, **options)
    elif options:
        raise ValueError(f"a pack is saved as it is; give {', '.join(options)} to make_pack, with the look")
    return packs.save_pack(pack, path)
