"""A cloud of patches: every patch of one or several pictures as a point, near the patches that resemble it.

    cloud([look_a, look_b]).positions           # (N, 2), UMAP on cosines
    cloud([pack_a, pack_b], "pca").explained    # shares of the variance that the two axes hold

The same call gives the same cloud, to the last bit on one machine.
"""

import math
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from core.dense.color import fit_basis, project
from core.dense.extract import Progress
from core.dense.similarity import normalize
from workbench.looks import Look
from workbench.packs import Pack

MAX_POINTS = 50_000  # the view stays fluid up to here; UMAP then takes a minute or two
DEFAULTS = {"n_neighbors": 15, "min_dist": 0.1}  # umap-learn's own, written down because they shape the cloud
COMPARED = 1 << 24  # cosines at a time: 64 MB
ROWS = 64  # of a pack decoded at a time
OKABE_ITO = [  # told apart with every kind of colour vision; cloud.js has the same
    (0, 114, 178),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (230, 159, 0),
    (86, 180, 233),
    (240, 228, 66),
    (153, 153, 153),
]
MARKERS = [(0, 0), (4, 0), (3, 0), (4, 45), (3, 180), (5, 0), (5, 180), (6, 0)]  # sides, 0 for round; turned by degrees
OPTIONS = {  # of UMAP, those that change the layout and not what is laid out
    "n_neighbors",
    "min_dist",
    "spread",
    "n_epochs",
    "init",
    "learning_rate",
    "local_connectivity",
    "set_op_mix_ratio",
    "repulsion_strength",
    "negative_sample_rate",
}

Source = Look | Pack

_alone = threading.Lock()  # numba ends the process when two threads enter its simplest threading layer


@dataclass(frozen=True, eq=False, kw_only=True)
class Cloud:
    """The points of some pictures, one for each patch that shows picture: padding has none.

    Point i is the patch (row[i], col[i]) of picture pack[i]. Points are in the order of the pictures and in raster
    order within one. Distances in a UMAP layout tell who is near; how far the far ones are means little.
    """

    positions: Float[np.ndarray, "N 2"]
    pack: Int[np.ndarray, "N"]
    row: Int[np.ndarray, "N"]
    col: Int[np.ndarray, "N"]
    method: str
    seed: int
    total: int  # patches that show picture; more than N where `max_points` left some out
    names: tuple[str, ...]  # of the pictures
    pictures: tuple[str | None, ...]  # their digests
    grids: tuple[tuple[int, int], ...]  # rows and columns
    settings: dict[str, Any] = field(default_factory=dict)  # what the method was told
    explained: tuple[float, float] | None = None  # PCA: each axis' share of the variance

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def caption(self) -> str:
        """How the cloud came about, in a line; it says so when patches were left out."""
        told = {"n_neighbors": f"{self.settings.get('n_neighbors')} neighbours"}
        settings = [told.get(name, f"{name} {value}") for name, value in self.settings.items()]
        shares = " and ".join(f"{share:.0%}" for share in self.explained or ())
        how = f"PCA, axes with {shares} of the variance"
        if self.method == "umap":
            how = ", ".join(["UMAP on cosines", *settings, f"seed {self.seed}"])
        some = f"{len(self):,} of {self.total:,} patches, drawn at random with seed {self.seed}"
        return f"{how} · {f'{len(self):,} patches' if len(self) == self.total else some}"


def cloud(
    sources: Source | Sequence[Source],
    method: str = "umap",
    *,
    seed: int = 0,
    max_points: int = MAX_POINTS,
    progress: Progress | None = None,
    **options: Any,
) -> Cloud:
    """The cloud of one or several pictures, looked at by the same model.

    method: "umap" lays out neighbours by cosine, `options` are its own (n_neighbors, min_dist, n_epochs, ...); "pca"
    projects the features on their two principal axes. Beyond `max_points` patches as many are drawn at random, alike
    from all pictures, and `Cloud.caption` says so. progress: told after every picture, block of neighbours and epoch;
    raising in it cancels. ValueError for pictures that cannot be compared, or fewer patches than neighbours.
    """
    sources = [sources] if isinstance(sources, Look | Pack) else list(sources)
    if method not in METHODS:
        raise ValueError(f"no cloud by {method!r}; known: {', '.join(METHODS)}")
    if max_points < 1:
        raise ValueError(f"max_points must be at least 1, got {max_points}")
    _check_alike(sources)
    tell = progress or (lambda done, total, of: None)

    masks = [_valid(source) for source in sources]
    total = sum(int(mask.sum()) for mask in masks)
    masks = _thinned(masks, max_points, seed)
    parts = []
    for index, (source, mask) in enumerate(zip(sources, masks, strict=True)):
        parts.append(_vectors(source, mask))
        tell(index + 1, len(sources), "pictures")
    cells = [np.argwhere(mask).astype(np.int32) for mask in masks]
    layout = METHODS[method](torch.cat(parts), seed, tell, options)
    rows, cols = np.concatenate(cells).T
    return Cloud(
        **layout,
        pack=np.repeat(np.arange(len(sources), dtype=np.int32), [len(part) for part in cells]),
        row=rows,
        col=cols,
        method=method,
        seed=seed,
        total=total,
        names=tuple(_picture(source)[0] for source in sources),
        pictures=tuple(_picture(source)[1] for source in sources),
        grids=tuple(_valid(source).shape for source in sources),
    )


def _umap(
    vectors: Float[Tensor, "N D"], seed: int, tell: Progress, options: dict[str, Any]
) -> dict[str, Float[np.ndarray, "N 2"] | dict[str, Any]]:
    if unknown := sorted(set(options) - OPTIONS):
        raise ValueError(f"a cloud does not take {', '.join(unknown)}; UMAP's own settings are {', '.join(OPTIONS)}")
    told = DEFAULTS | options
    count = told["n_neighbors"]
    if not 2 <= count < len(vectors):
        raise ValueError(
            f"{count} neighbours were asked for and {len(vectors)} patches are there: choose n_neighbors from 2 to "
            f"{len(vectors) - 1}, or look at the picture at a larger size"
        )
    unit = normalize(vectors)
    known = _nearest(unit, count, tell)
    tell(0, 1, "epochs")
    import umap  # half a minute, once a process: it is compiled

    with _alone, _bar_told(tell), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "precomputed_knn")  # new patches are never added to a cloud
        model = umap.UMAP(metric="cosine", random_state=seed, n_jobs=1, precomputed_knn=known, **told)
        positions = model.fit_transform(unit.numpy())
    return {"positions": positions.astype(np.float32), "settings": told}


def _pca(vectors: Float[Tensor, "N D"], seed: int, tell: Progress, options: dict[str, Any]) -> dict[str, Any]:
    if options:
        raise ValueError(f"PCA has no settings, got {', '.join(options)}; they belong to the method 'umap'")
    basis = fit_basis(vectors)
    tell(1, 1, "axes")
    first, second, _ = basis.explained.tolist()
    return {"positions": project(basis, vectors)[:, :2].numpy().copy(), "explained": (first, second)}


METHODS: dict[str, Callable[..., dict[str, Any]]] = {"umap": _umap, "pca": _pca}


def _nearest(unit: Float[Tensor, "N D"], count: int, tell: Progress) -> tuple[np.ndarray, np.ndarray]:
    """The `count` patches with the highest cosine to each, itself first, and their distances 1 - cosine.

    Exact, where umap-learn would search at random: tens of thousands of patches are few enough.
    """
    near = np.empty((len(unit), count), np.int32)
    distances = np.zeros((len(unit), count), np.float32)
    step = max(1, COMPARED // len(unit))
    blocks = math.ceil(len(unit) / step)
    for block in range(blocks):
        rows = torch.arange(block * step, min((block + 1) * step, len(unit)))
        cosines = unit[rows] @ unit.T
        cosines[torch.arange(len(rows)), rows] = torch.inf  # equal patches must not come before itself
        best = cosines.topk(count)
        near[rows] = best.indices
        distances[rows, 1:] = (1 - best.values[:, 1:]).clamp(min=0)
        tell(block + 1, blocks, "blocks of neighbours")
    return near, distances


def draw_cloud(
    cloud: Cloud, selection: Sequence[Sequence[int]] = (), size: tuple[int, int] = (720, 480)
) -> UInt8[np.ndarray, "h w 3"]:
    """The cloud as a picture with a legend; beside selected patches ([picture, row, column]) the others are faint."""
    width, height = (2 * side for side in size)  # drawn at twice the size: the edges are smooth afterwards
    low, high = cloud.positions.min(axis=0), cloud.positions.max(axis=0)
    scale = min(*((np.array([width, height]) * 0.9) / np.maximum(high - low, 1e-9)))
    places = np.array([width, height]) / 2 + (cloud.positions - (low + high) / 2) * [scale, -scale]
    radius = float(np.clip(0.3 * math.sqrt(width * height / len(cloud)), 3, 8))
    image = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(image)
    chosen = {tuple(cell) for cell in selection}
    lit = [not chosen or cell in chosen for cell in zip(cloud.pack, cloud.row, cloud.col, strict=True)]
    order = np.random.default_rng(0).permutation(len(cloud))  # no picture lies on top of all others
    for point in order[np.argsort(np.array(lit)[order], kind="stable")]:
        x, y = places[point].tolist()
        _marker(pen, x, y, radius, int(cloud.pack[point]), lit[point])
    for index, name in enumerate(cloud.names):
        _marker(pen, 24, 24 + 30 * index, 9, index, True)
        pen.text((42, 11 + 30 * index), name, fill="black", font=ImageFont.load_default(size=22))
    return np.asarray(image.resize(size, Image.Resampling.BOX))


def _marker(pen: ImageDraw.ImageDraw, x: float, y: float, radius: float, index: int, lit: bool) -> None:
    ink = tuple(int(value if lit else 255 - (255 - value) * 0.18) for value in OKABE_ITO[index % len(OKABE_ITO)])
    sides, turn = MARKERS[index % len(MARKERS)]
    if sides:
        pen.regular_polygon((x, y, radius * 1.2), sides, turn, fill=ink)
    else:
        pen.circle((x, y), radius, fill=ink)


@contextmanager
def _bar_told(tell: Progress) -> Iterator[None]:
    """Hears of every epoch, and keeps numba's number of threads from changing when it is cancelled.

    umap-learn has no callback, but its loop over the epochs runs through the bar `tqdm`: that name is ours meanwhile,
    for this thread alone.
    """
    import numba
    import umap.layouts

    bar, threads, own = umap.layouts.tqdm, numba.get_num_threads(), threading.get_ident()

    def told(epochs: range) -> Iterator[int]:
        for epoch in epochs:
            yield epoch
            tell(epoch + 1, len(epochs), "epochs")

    def instead(epochs: range, **settings: Any) -> Any:
        return told(epochs) if threading.get_ident() == own else bar(epochs, **settings)

    umap.layouts.tqdm = instead
    try:
        yield
    finally:
        umap.layouts.tqdm = bar
        numba.set_num_threads(threads)


def _check_alike(sources: Sequence[Source]) -> None:
    """ValueError unless cosines between all these pictures mean something."""
    if not sources:
        raise ValueError("a cloud needs at least one picture; give looks or packs")
    first = sources[0]
    for other in sources[1:]:
        if _origin(other) != _origin(first):
            raise ValueError(
                f"a cloud compares features of one kind, and {_picture(first)[0]} is {_told(first)} while "
                f"{_picture(other)[0]} is {_told(other)}"
            )
    for source in sources:
        if len(sources) > 1 and isinstance(source, Pack) and source.header["reduced"]:
            raise ValueError(
                f"the pack of {_picture(source)[0]} was cut to {source.dim} channels of its own, which no other "
                f"picture shares; make it again without dims"
            )


def _origin(source: Source) -> tuple[str, int | None, bool | None, int]:
    if isinstance(source, Pack):
        return source.model.name, source.layer, source.norm, source.dim
    return source.model, source.features.layer, source.features.norm, source.features.patches.shape[-1]


def _told(source: Source) -> str:
    model, layer, norm, channels = _origin(source)
    depth = "an unknown layer" if layer is None else f"layer {layer + 1}"
    return f"from {depth} of {model}, {'after' if norm else 'before'} its norm, {channels} channels"


def _picture(source: Source) -> tuple[str, str | None]:
    """Name and digest."""
    if isinstance(source, Pack):
        return source.picture["name"] or "picture", source.picture["digest"]
    return source.photo.name, source.photo.digest


def _valid(source: Source) -> Bool[np.ndarray, "H W"]:
    return np.asarray(source.valid, dtype=bool)


def _thinned(masks: list[Bool[np.ndarray, "_ _"]], count: int, seed: int) -> list[Bool[np.ndarray, "_ _"]]:
    """The same masks with at most `count` cells left in all of them together."""
    places = [np.flatnonzero(mask) for mask in masks]
    ends = np.cumsum([len(part) for part in places])
    if ends[-1] <= count:
        return masks
    chosen = np.zeros(ends[-1], dtype=bool)
    chosen[np.random.default_rng(seed).permutation(ends[-1])[:count]] = True
    thinned = []
    for mask, part, kept in zip(masks, places, np.split(chosen, ends[:-1]), strict=True):
        few = np.zeros(mask.size, dtype=bool)
        few[part[kept]] = True
        thinned.append(few.reshape(mask.shape))
    return thinned


def _vectors(source: Source, mask: Bool[np.ndarray, "H W"]) -> Float[Tensor, "N D"]:
    """The features of the cells in the mask; of a pack, without ever decoding all of it."""
    if isinstance(source, Look):
        return source.features.patches[torch.from_numpy(mask)].float()
    starts = range(0, source.rows, ROWS)
    parts = [source.rows_of(at, min(at + ROWS, source.rows))[mask[at : at + ROWS]] for at in starts]
    return torch.from_numpy(np.concatenate(parts))
