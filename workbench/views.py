"""What a view over packs shows, apart from any window: its values, its picture, and its address.

The state of a view is plain JSON with the names of `workbench/widgets/similarity.js`; notebook, app and saved file
share it. Points are pixels of a photograph, named by the digest of its pixels.
"""

import base64
import io
import json
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from core.dense.color import to_rgb
from core.dense.geometry import carried, patch_centre, pixel_to_patch
from core.dense.similarity import cosine_map_to
from workbench.draw import NEGATIVE, QUERY, Canvas
from workbench.packs import Pack, open_pack

COMPARISONS = ("difference", "rank", "swipe")  # of two packs of one picture
SHOWS = ("similarity", "pca", "photo", *COMPARISONS)
DIFFERENCE = 0.5  # differences are coloured from minus to plus this
MASKED = 150 / 255  # how dark the photograph is below the threshold
MAX_ZOOM = 40
MAX_ADDRESS = 1 << 20  # letters; what is inflated from one stays below, too


class ViewError(ValueError):
    """A view that cannot be brought back; the message says what is missing and how to make it."""


def encode_view(record: Mapping[str, Any]) -> str:
    """A record as the end of an address: deflated JSON in base64 without + and /."""
    packer = zlib.compressobj(9, wbits=-15)
    packed = packer.compress(json.dumps(record, separators=(",", ":")).encode()) + packer.flush()
    return base64.urlsafe_b64encode(packed).decode().rstrip("=")


def decode_view(address: str) -> dict[str, Any]:
    """The record in an address, or in the part of it behind "#view="; ViewError for anything else."""
    text = address.partition("#view=")[2] if "#view=" in address else address
    inflate = zlib.decompressobj(wbits=-15)
    try:
        record = json.loads(inflate.decompress(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), MAX_ADDRESS))
    except (ValueError, RecursionError, zlib.error):
        record = None
    match record:
        case {"packs": [*packs], "state": {}} if packs and all(map(_names_a_pack, packs)):
            return record
    raise ViewError("this address holds no view, or only a part of one: copy it again, to its end")


def _names_a_pack(wanted: Any) -> bool:
    keys = ("id", "picture", "model", "weights", "layer", "norm", "size")
    known = isinstance(wanted, dict) and all(key in wanted for key in keys)
    return known and all(isinstance(wanted[key], str | int | None) for key in keys)


def record_of(packs: Sequence[Pack], state: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """What an address has to say: which packs, and what differs from a fresh view. No picture, no name of a file."""
    return {
        "view": "similarity",
        "packs": [{"id": pack.id, **_told(pack)} for pack in packs],
        "state": {name: value for name, value in state.items() if name in defaults and value != defaults[name]},
    }


def _told(pack: Pack) -> dict[str, Any]:
    """What features a pack holds: enough to make them again from the photograph."""
    return {
        "picture": pack.picture["digest"],
        "model": pack.model.name,
        "weights": pack.model.weights,
        "layer": pack.layer,
        "norm": pack.norm,
        "size": max(pack.geometry.input_width, pack.geometry.input_height),
    }


def packs_of(record: Mapping[str, Any], found: Sequence[Pack | str | Path]) -> list[Pack]:
    """The packs that a record names, in its order, from those given: packs, files, or folders of files.

    Another pack of the same features will do: two that were made apart seldom agree in every byte. ViewError names
    every pack that is missing and how to build it.
    """
    paths = [Path(source) for source in found if not isinstance(source, Pack)]
    files = [file for path in paths for file in (sorted(path.glob("*.dfp")) if path.is_dir() else [path])]
    packs = [source for source in found if isinstance(source, Pack)] + [open_pack(file) for file in files]
    chosen = [_fitting(wanted, packs) for wanted in record["packs"]]
    if None in chosen:
        lost = [wanted for wanted, pack in zip(record["packs"], chosen, strict=True) if pack is None]
        raise ViewError("; ".join(map(_how_to_build, lost)))
    return [pack for pack in chosen if pack]


def _fitting(wanted: Mapping[str, Any], packs: Sequence[Pack]) -> Pack | None:
    same = [pack for pack in packs if pack.id == wanted["id"]]
    features = [pack for pack in packs if pack.picture["digest"] and pack.model.weights]  # others are not known well
    like = [pack for pack in features if _told(pack).items() <= wanted.items() and not pack.header["reduced"]]
    return next(iter(same + like), None)


def _how_to_build(wanted: Mapping[str, Any]) -> str:
    return (
        f"the pack {wanted['id']} is missing: make it from the photograph with the digest {wanted['picture']} by "
        f"make_pack(look_at(photo, load({wanted['model']!r}), size={wanted['size']}, layer={wanted['layer']}, "
        f"norm={wanted['norm']}))"
    )


def check_panes(packs: Sequence[Pack], panes: Sequence[Mapping[str, Any]]) -> None:
    """ValueError for panes that these packs cannot fill."""
    for pane in panes:
        for name in ("pack", "other", "under"):
            index = pane.get(name)
            if (index is not None or name == "pack") and not (type(index) is int and 0 <= index < len(packs)):
                raise ValueError(f"{name!r} of a pane is the number of a pack, 0 to {len(packs) - 1}, not {index!r}")
        show, other = pane.get("show", "similarity"), pane.get("other")
        if pane.get("camera") is not None:
            check_camera(packs, pane["camera"])
        if show not in SHOWS:
            raise ValueError(f"a pane cannot show {show!r}; known: {', '.join(SHOWS)}")
        if show in COMPARISONS:
            if other is None:
                raise ValueError(f"a pane that shows {show!r} compares with a second pack: give its number as 'other'")
            if packs[pane["pack"]].picture["digest"] != packs[other].picture["digest"]:
                raise ValueError(f"{show!r} compares packs of one picture, and {pane['pack']} and {other} show two")


def check_queries(packs: Sequence[Pack], queries: Sequence[Mapping[str, Any]]) -> None:
    """ValueError for points that no page could draw; their picture may be one that is not shown."""
    for query in queries:
        named = isinstance(query.get("image", 0), str | None)  # None for a picture that nobody knows
        if not (named and _finite(query.get("x")) and _finite(query.get("y")) and query.get("sign") in (1, -1)):
            raise ValueError(
                f"a query is {{'image': digest of the picture, 'x': pixel, 'y': pixel, 'sign': 1 or -1}}, "
                f"not {dict(query)}; view.point = (row, column) writes one"
            )


def check_camera(packs: Sequence[Pack], camera: Mapping[str, Any]) -> None:
    """ValueError for a camera that shows no picture."""
    bounds = {"x": (0, 1), "y": (0, 1), "zoom": (1, MAX_ZOOM)}
    if not all(_finite(camera.get(name)) and low <= camera[name] <= high for name, (low, high) in bounds.items()):
        raise ValueError(
            f"a camera is {{'x': 0 to 1, 'y': 0 to 1, 'zoom': 1 to {MAX_ZOOM}}}, the centre as a share of the "
            f"picture; not {dict(camera)}"
        )


def check_limits(packs: Sequence[Pack], limits: Sequence[float]) -> None:
    """ValueError for limits between which there is nothing."""
    low, high = limits
    if not (_finite(low) and _finite(high) and low < high):
        raise ValueError(f"limits are a low and a higher value, such as [0, 1], not {list(limits)}")


def check_selection(packs: Sequence[Pack], selection: Sequence[Sequence[int]]) -> None:
    """ValueError for cells that show no part of a picture."""
    for cell in selection:
        if len(cell) != 3 or not 0 <= cell[0] < len(packs):
            raise ValueError(f"a selected cell is [pack 0 to {len(packs) - 1}, row, column], not {list(cell)}")
        patch_centre(packs[cell[0]].geometry, *cell[1:])


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# What a state may hold, by the name of its part; whatever is not here has a type that says it all.
CHECKS: dict[str, Callable[[Sequence[Pack], Any], None]] = {
    "panes": check_panes,
    "queries": check_queries,
    "camera": check_camera,
    "limits": check_limits,
    "selection": check_selection,
}


def pane_values(packs: Sequence[Pack], pane: Mapping[str, Any], queries: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """The (rows, cols) values that a pane colours, NaN where there are none: cosines, or how two packs differ.

    Computed from the codes, as the page does, so that Python reads what a person sees.
    """
    own = _cosines(packs, packs[pane["pack"]], queries)
    if pane.get("show") not in ("difference", "rank"):
        return own
    other = packs[pane["other"]]
    theirs = carried(_cosines(packs, other, queries), other.geometry, packs[pane["pack"]].geometry)
    if pane["show"] == "difference":
        return own - theirs
    whole = _shares(_cosines(packs, other, queries))
    return _shares(own) - carried(whole, other.geometry, packs[pane["pack"]].geometry)


def _shares(values: Float[np.ndarray, "H W"]) -> Float[np.ndarray, "H W"]:
    """The share of values below each one, ties counted half."""
    kept = ~np.isnan(values)
    shares = np.full(values.shape, np.nan, np.float32)
    _, place, counts = np.unique(values[kept], return_inverse=True, return_counts=True)
    shares[kept] = ((counts.cumsum() - counts / 2) / max(kept.sum(), 1))[place]
    return shares


def _cosines(packs: Sequence[Pack], pack: Pack, queries: Sequence[Mapping[str, Any]]) -> Float[np.ndarray, "H W"]:
    units: dict[int, list[Tensor]] = {1: [], -1: []}
    for query in queries:
        if (unit := _vector(packs, pack, query)) is not None:
            units[query.get("sign", 1)].append(unit)
    if not units[1]:
        return np.full((pack.rows, pack.cols), np.nan, np.float32)
    codes = torch.from_numpy(pack.codes.astype(np.float32))
    negatives = torch.stack(units[-1]) if units[-1] else None
    valid = torch.from_numpy(np.array(pack.valid, dtype=bool))
    return cosine_map_to(codes, torch.stack(units[1]), negatives=negatives, valid=valid).numpy()


def _vector(packs: Sequence[Pack], pack: Pack, query: Mapping[str, Any]) -> Tensor | None:
    """The codes under a point: of the pack's own picture, or of a pack with the same kind of features."""
    source = pack if pack.picture["digest"] == query["image"] else None
    for other in packs:
        if source is None and other.picture["digest"] == query["image"] and _alike(other, pack):
            source = other
    cell = source and pixel_to_patch(source.geometry, query["x"], query["y"])
    return torch.from_numpy(source.codes[cell].astype(np.float32)) if source and cell else None


def _alike(a: Pack, b: Pack) -> bool:
    same = all(a.header[key] == b.header[key] for key in ("layer", "norm", "dim", "rotation"))
    return same and a.model.weights == b.model.weights and not a.header["reduced"] and not b.header["reduced"]


def draw_pane(
    packs: Sequence[Pack],
    pane: Mapping[str, Any],
    queries: Sequence[Mapping[str, Any]] = (),
    *,
    limits: tuple[float, float] = (0.0, 1.0),
    colormap: str = "viridis",
    opacity: float = 0.7,
    smooth: bool = False,
    threshold: float | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """A pane as a picture, as near to the page as a still can be."""
    pack = packs[pane["pack"]]
    canvas = _canvas(pack)
    show = pane.get("show", "similarity")
    if show == "photo":
        return canvas.photo
    if show == "pca" and pack.basis is not None:
        features = pack.features()
        return canvas.colors(to_rgb(pack.basis, features.patches, valid=features.valid), hidden=~features.valid)
    values = torch.from_numpy(pane_values(packs, pane, queries))
    if values.isnan().all():
        return canvas.photo
    if show in ("difference", "rank"):
        limits, colormap, threshold = (-DIFFERENCE, DIFFERENCE), "blue-white-red", None
    shown = canvas.heat(values, limits=limits, colormap=colormap, opacity=opacity, smooth=smooth)
    if threshold is not None:
        masked = canvas.spread((values < threshold).numpy())
        shown = np.where(masked[..., None], canvas.photo * (1 - MASKED), shown).astype(np.uint8)
    for query in queries:
        if query["image"] == pack.picture["digest"] and (cell := pixel_to_patch(pack.geometry, query["x"], query["y"])):
            shown = canvas.outline(shown, [cell], QUERY if query.get("sign", 1) > 0 else NEGATIVE)
    return shown


def _canvas(pack: Pack) -> Canvas:
    """A canvas over the pack's preview, which is smaller than the photograph that the geometry speaks of."""
    canvas = Canvas(np.zeros((1, 1, 3), np.uint8), pack.geometry)
    preview = Image.open(io.BytesIO(pack.preview)).convert("RGB").resize(canvas.size, Image.Resampling.BILINEAR)
    canvas.__dict__["photo"] = np.asarray(preview)
    return canvas
