"""How healthy is a map of patch features? The label-free panel, per picture, and what each number would do in decay.

    readings = panel([DenseMap(patches, cls) for patches, cls in maps])

Each metric is a function of a `DenseMap` (some also of a reference map of the same picture, from another checkpoint)
and a line in PANEL. All are computed in fp32 or better from the features as they come out of the final norm; padded
cells take no part. Distances on the grid are Manhattan and in sixteenths of its side, the grid iREPA measured on, so
that 14 x 14 and 48 x 48 cells can be compared.

Sources: DINOv3 report; iREPA (Singh et al. 2025), whose LDS, CDS and RMSC are re-implemented from their formulas; DSE
(Dai et al. 2025); mutual k-NN (Huh et al. 2024); CKA (Kornblith et al. 2019); outliers after Darcet et al. (2024).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from core.dense.similarity import normalize

ENTRIES = 1 << 22  # of a part of the Gram matrix: 17 MB, and all of it up to 2048 patches
GRID = 16  # cells along the side in which distances are told
FAR, NEAR = 6, 8  # of LDS and CDS, in sixteenths of the side
NEIGHBOURS = 10  # of the k-NN overlap


class Relations(NamedTuple):
    """What one pass over the Gram matrix leaves: sums over ordered pairs by Manhattan distance in cells (0 is a patch
    with itself), how many pairs there are, and the patches most similar to each, nearest first, itself left out."""

    sums: Float[Tensor, "L"]
    pairs: Int[Tensor, "L"]
    similar: Int[Tensor, "P K"]


class DenseMap:
    """The features of one picture, ready to be measured: what several metrics need is computed once.

    patches: (H, W, D); cls: (D), or None where there is none; valid: False in the padding. Raises ValueError for fewer
    than two valid patches, and for features that are not finite.
    """

    def __init__(
        self,
        patches: Float[Tensor, "H W D"],
        cls: Float[Tensor, "D"] | None = None,
        valid: Bool[Tensor, "H W"] | None = None,
    ) -> None:
        self.grid = (patches.shape[0], patches.shape[1])
        self.valid = torch.ones(self.grid, dtype=torch.bool) if valid is None else valid
        self.patches = patches.float()
        self.features = self.patches[self.valid]  # (P, D)
        if len(self.features) < 2:
            raise ValueError(f"a map is measured between patches, and this one has {len(self.features)}")
        self.cls = None if cls is None else cls.float()

    @property
    def scale(self) -> float:
        """Sixteenths of the side a cell is long; the side is the geometric mean of both."""
        return GRID / math.sqrt(self.grid[0] * self.grid[1])

    @cached_property
    def unit(self) -> Float[Tensor, "P D"]:
        return normalize(self.features)

    @cached_property
    def moments(self) -> Float[Tensor, "D D"]:
        """The features' second moments, summed over patches."""
        return self.features.T @ self.features

    @cached_property
    def gram(self) -> Float[Tensor, "P P"] | None:
        """All cosines, kept where that is cheap; None for maps of more than 2048 patches."""
        return self.unit @ self.unit.T if len(self.unit) ** 2 <= ENTRIES else None

    def gram_parts(self) -> Iterator[tuple[slice, Float[Tensor, "p P"]]]:
        """The Gram matrix in parts of rows, never more of it than ENTRIES at once."""
        if self.gram is not None:
            yield slice(0, len(self.unit)), self.gram
            return
        rows = max(ENTRIES // len(self.unit), 1)
        for start in range(0, len(self.unit), rows):
            yield (part := slice(start, start + rows)), self.unit[part] @ self.unit.T

    @property
    def cells(self) -> Int[Tensor, "P 2"]:
        """Row and column of each valid patch."""
        return self.valid.nonzero()

    @property
    def asked(self) -> int:
        """How many similar patches `relations` keeps: enough for every metric, near ones left out or not."""
        return min(max(math.ceil(len(self.unit) / 100), NEIGHBOURS + 4), len(self.unit) - 1)

    @cached_property
    def relations(self) -> Relations:
        size = sum(self.grid) - 1
        sums, pairs = torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.int64)
        similar = []
        for part, cosines in self.gram_parts():
            apart = _apart(self.cells, part) if self.gram is None else _apart_of(self.grid, _bits(self.valid))
            sums += torch.bincount(apart.flatten(), cosines.flatten(), size)
            pairs += torch.bincount(apart.flatten(), minlength=size)
            own = torch.arange(part.start, part.start + len(cosines))
            others = cosines.clone()  # the Gram matrix may be kept
            others[torch.arange(len(own)), own] = -torch.inf
            similar.append(others.topk(self.asked, dim=1).indices)
        return Relations(sums, pairs, torch.cat(similar))


def _apart(cells: Int[Tensor, "P 2"], part: slice) -> Int[Tensor, "p P"]:
    """Manhattan distances on the grid."""
    return (cells[part, None, :] - cells[None, :, :]).abs().sum(-1)


def _bits(valid: Bool[Tensor, "H W"]) -> bytes:
    return valid.numpy().tobytes()


@lru_cache(maxsize=2)  # all maps of a run have the same grid
def _apart_of(grid: tuple[int, int], valid: bytes) -> Int[Tensor, "P P"]:
    cells = torch.frombuffer(bytearray(valid), dtype=torch.bool).view(grid).nonzero()
    return _apart(cells, slice(None))


# --- each metric: a map, and for some a reference of the same picture


def cls_patch_cosine(map: DenseMap) -> float:
    """Mean cosine of the patches to the CLS token, -1 to 1: the report's own sign of decay, which rises (section 4.1,
    figure 5a). NaN without a CLS token."""
    return math.nan if map.cls is None else float((map.unit @ normalize(map.cls)).mean())


def local_distant(map: DenseMap) -> float:
    """LDS: mean cosine of patches that touch, minus that of patches at least 6/16 of the side apart; falls in decay.

    Touching is Manhattan distance 1, in cells. NaN where no two patches are that far apart, or all are.
    """
    sums, pairs, _ = map.relations
    far = math.ceil(FAR / map.scale - 1e-9)
    if far < 2 or far >= len(sums) or not pairs[1] or not pairs[far:].sum():
        return math.nan
    return float(sums[1] / pairs[1] - sums[far:].sum() / pairs[far:].sum())


def correlation_decay(map: DenseMap) -> float:
    """CDS: how much cosine is lost a sixteenth of the side, up to half of the side away; falls in decay.

    Minus the slope of the least-squares line through the mean cosines at the distances of the grid up to 8/16 of the
    side. NaN when there are fewer than two of them.
    """
    sums, pairs, _ = map.relations
    last = min(math.floor(NEAR / map.scale + 1e-9), len(sums) - 1)
    distance = torch.arange(1, last + 1)
    distance = distance[pairs[distance] > 0]
    if len(distance) < 2:
        return math.nan
    mean = sums[distance] / pairs[distance]
    at = distance.double() * map.scale
    at = at - at.mean()
    return -float((at * (mean - mean.mean())).sum() / at.square().sum())


def spatial_contrast(map: DenseMap) -> float:
    """RMSC: root mean squared distance of the unit patches to their mean, 0 to 1; falls when all become alike."""
    return float((1 - map.unit.double().mean(0).square().sum()).clamp(min=0).sqrt())


def mean_cosine(map: DenseMap) -> float:
    """Mean cosine of two different patches, -1 to 1; rises when all become alike."""
    count = len(map.unit)
    lengths = map.unit.double().square().sum()
    return float((map.unit.double().sum(0).square().sum() - lengths) / (count * (count - 1)))


def stable_rank(map: DenseMap) -> float:
    """Squared Frobenius over squared spectral norm of the features, 1 to D; falls when one direction takes over."""
    spectrum = torch.linalg.eigvalsh(map.moments)
    return float(spectrum.sum() / spectrum[-1]) if spectrum[-1] > 0 else math.nan


def participation(map: DenseMap) -> float:
    """How many directions of the features carry energy, 1 to D: the squared sum of the second moments' eigenvalues
    over the sum of their squares; falls when few take over."""
    return float(map.moments.trace().square() / map.moments.square().sum())


def query_locality(map: DenseMap) -> float:
    """How far away the patches lie that are most similar to a patch: one in a hundred is looked at, their mean
    distance taken, and the median over all patches, in sixteenths of the side; rises when matches scatter.

    Puts figure 6 of the report into a number; this project's own.
    """
    count = max(math.ceil(len(map.unit) / 100), 1)
    cells = map.cells
    apart = (cells[map.relations.similar[:, :count]] - cells[:, None, :]).abs().sum(-1)
    return float(apart.double().mean(1).median()) * map.scale


def norm_outliers(map: DenseMap) -> float:
    """Share of patches that are longer than the median by 5 standard deviations, estimated from the median absolute
    deviation (x 1.4826); rises in models without registers and stays flat in DINOv3."""
    length = torch.linalg.vector_norm(map.features, dim=1)
    middle = length.median()
    return float((length > middle + 5 * 1.4826 * (length - middle).abs().median()).double().mean())


def gram_distance(map: DenseMap, reference: DenseMap) -> float:
    """Mean squared difference of the two matrices of cosines: the Gram loss between them, rises (section 4.2).

    Exactly 0 for the same map. The mean over entries, as `core.losses.gram`; the report writes the sum.
    """
    total = torch.zeros((), dtype=torch.float64)
    reference = on_grid_of(reference, map)
    for (_, ours), (_, theirs) in zip(map.gram_parts(), reference.gram_parts(), strict=True):
        total += (ours - theirs).square().sum(dtype=torch.float64)
    return float(total / len(map.unit) ** 2)


def neighbour_overlap(map: DenseMap, reference: DenseMap) -> float:
    """Share of a patch's 10 most similar patches that are so in the reference as well, 0 to 1, those that touch it left
    out; falls. NaN for maps that small that none are left."""
    reference = on_grid_of(reference, map)
    ours, theirs = _elsewhere(map), _elsewhere(reference)
    if not ours.shape[1]:
        return math.nan
    both = (ours[:, :, None] == theirs[:, None, :]).any(-1)
    return float(both.double().mean())


def _elsewhere(map: DenseMap) -> Int[Tensor, "P k"]:
    """The most similar patches that do not touch a patch, as many as all patches have, at most NEIGHBOURS."""
    similar, cells = map.relations.similar, map.cells
    near = (cells[similar] - cells[:, None, :]).abs().sum(-1) <= 1
    order = near.to(torch.uint8).argsort(dim=1, stable=True)  # nearest first still, touching ones at the end
    kept = int((~near).sum(1).min())
    return similar.gather(1, order)[:, : min(kept, NEIGHBOURS)]


def cka(map: DenseMap, reference: DenseMap) -> float:
    """Linear centred kernel alignment of the patches with the reference's, 0 to 1; falls. NaN for a constant map."""
    reference = on_grid_of(reference, map)
    ours, theirs = map.features.mean(0), reference.features.mean(0)
    count = len(map.features)
    across = map.features.T @ reference.features - count * torch.outer(ours, theirs)
    within = map.moments - count * torch.outer(ours, ours)
    beyond = reference.moments - count * torch.outer(theirs, theirs)
    lengths = torch.linalg.matrix_norm(within) * torch.linalg.matrix_norm(beyond)
    return min(float(across.square().sum() / lengths), 1.0) if lengths > 0 else math.nan


def on_grid_of(reference: DenseMap, map: DenseMap) -> DenseMap:
    """The reference on the map's grid: itself, or brought there bicubically as the Gram teacher's maps are (4.3).

    The mask is then the map's. Raises ValueError when both have the grid but differ in which cells are valid.
    """
    if reference.grid == map.grid:
        if not torch.equal(reference.valid, map.valid):
            raise ValueError("map and reference must leave out the same padded cells: show both the same picture")
        return reference
    wide = reference.patches.permute(2, 0, 1)[None]
    patches = F.interpolate(wide, size=map.grid, mode="bicubic", align_corners=False)[0].permute(1, 2, 0)
    return DenseMap(patches, reference.cls, map.valid)


# --- of several pictures together


class Structure(NamedTuple):
    """DSE and its parts; see `dense_structure`."""

    dse: float
    between: float
    within_image: float
    within_batch: float
    dimension: float


def dense_structure(
    maps: Sequence[DenseMap], *, clusters: int = 24, clusters_image: int = 3, seed: int = 0
) -> Structure:
    """DSE, the dense structure of a few pictures together (Dai et al. 2025, 2510.17299); falls in decay.

    `between` (mean distance of a token to the nearest centroid that is not its own) plus `dimension` (effective rank
    of sets of one token a picture, over the largest it could be), minus half of `within_image` and `within_batch`
    (spread of clusters in every direction, of each picture's own and of all pictures'). Distances are in units of the
    tokens' mean distance from their mean. k-means is random: report the spread over seeds. All maps give as many
    tokens as the smallest has, drawn at random.
    """
    draw = torch.Generator().manual_seed(seed)
    count = min(len(map.features) for map in maps)
    chosen = [map.features[torch.randperm(len(map.features), generator=draw)[:count]] for map in maps]
    tokens = torch.cat(chosen)
    scale = float(torch.linalg.vector_norm(tokens - tokens.mean(0), dim=1).mean())
    if not scale > 0:
        return Structure(0.0, 0.0, 0.0, 0.0, 0.0)
    own, centroids = kmeans(tokens, clusters, draw)
    apart = torch.cdist(tokens, centroids)
    apart[torch.arange(len(tokens)), own] = torch.inf
    between = float(apart.min(1).values.mean()) / scale if len(centroids) > 1 else 0.0
    batch = _spread(tokens, own) / scale
    image = sum(_spread(x, kmeans(x, clusters_image, draw)[0]) for x in chosen) / len(chosen) / scale
    # (count, B, D): one token of every picture, at a place of its own in each, since `chosen` is shuffled
    sets = torch.stack(chosen, dim=1)
    largest = min(sets.shape[1:])
    dimension = float(effective_rank(torch.linalg.svdvals(sets - sets.mean(1, keepdim=True))).mean()) / largest
    return Structure(between + dimension - (image + batch) / 2, between, image, batch, dimension)


def _spread(tokens: Float[Tensor, "N D"], own: Int[Tensor, "N"]) -> float:
    """Mean over clusters of the sum of singular values of the centred cluster over sqrt(max(N - 1, D))."""
    found = []
    for cluster in own.unique():
        part = tokens[own == cluster]
        part = part - part.mean(0)
        small = part @ part.T if len(part) < part.shape[1] else part.T @ part
        values = torch.linalg.eigvalsh(small.double()).clamp(min=0).sqrt()
        found.append(float(values.sum()) / math.sqrt(max(len(part) - 1, part.shape[1])))
    return sum(found) / len(found)


def kmeans(
    tokens: Float[Tensor, "N D"], clusters: int, draw: torch.Generator, *, rounds: int = 50
) -> tuple[Int[Tensor, "N"], Float[Tensor, "K D"]]:
    """Lloyd's algorithm from a k-means++ start: each token's cluster, and the centroids; K <= clusters of them, since
    none is empty. Same result for the same generator."""
    centroids = tokens[torch.randint(len(tokens), (1,), generator=draw)]
    nearest = torch.cdist(tokens, centroids)[:, 0].square()
    while len(centroids) < min(clusters, len(tokens)) and float(nearest.sum()) > 0:
        more = tokens[torch.multinomial(nearest, 1, generator=draw)]
        centroids = torch.cat([centroids, more])
        nearest = torch.minimum(nearest, torch.cdist(tokens, more)[:, 0].square())
    own = torch.cdist(tokens, centroids).argmin(1)
    for _ in range(rounds):
        kept, own = own.unique(return_inverse=True)
        sums = tokens.new_zeros(len(kept), tokens.shape[1]).index_add_(0, own, tokens)
        centroids = sums / torch.bincount(own)[:, None]
        moved = torch.cdist(tokens, centroids).argmin(1)
        if torch.equal(moved, own):
            break
        own = moved
    return own, centroids


def effective_rank(singular: Float[Tensor, "*n K"]) -> Float[Tensor, "*n"]:
    """exp of the entropy of singular values that are made to sum to one; 1 to K, and 0 where all are 0."""
    total = singular.double().sum(-1, keepdim=True)
    share = singular.double() / total.clamp(min=torch.finfo(torch.float64).tiny)
    entropy = -torch.where(share > 0, share * share.clamp(min=1e-300).log(), 0.0).sum(-1)
    return torch.where(total[..., 0] > 0, entropy.exp(), 0.0)


# --- global, not dense: these may rise while maps decay


def rank_me(vectors: Float[Tensor, "N D"], *, epsilon: float = 1e-7) -> float:
    """RankMe of one vector a picture (Garrido et al. 2023): exp of the entropy of the singular values' shares, to which
    epsilon is added, 1 to min(N, D)."""
    singular = torch.linalg.svdvals(vectors.double())
    share = singular / singular.sum() + epsilon
    return float((-(share * share.log()).sum()).exp())


def lidar(vectors: Float[Tensor, "N Q D"], *, delta: float = 1e-4) -> float:
    """LiDAR of Q views of each of N pictures (Thilak et al. 2023): effective rank of the variance between pictures in
    units of that within them. Raises ValueError for fewer than two pictures or views."""
    if min(vectors.shape[:2]) < 2:
        raise ValueError(f"LiDAR takes at least two views of two pictures, got {tuple(vectors.shape[:2])}")
    x = vectors.double()
    of_image = x.mean(1)
    around = of_image - of_image.mean(0)
    between = around.T @ around / (len(x) - 1)
    rest = (x - of_image[:, None]).flatten(0, 1)
    within = rest.T @ rest / (len(x) * (x.shape[1] - 1)) + delta * torch.eye(x.shape[-1], dtype=torch.float64)
    values, basis = torch.linalg.eigh(within)
    whiten = basis * values.rsqrt() @ basis.T
    spectrum = torch.linalg.eigvalsh(whiten @ between @ whiten).clamp(min=0)
    share = spectrum / spectrum.sum().clamp(min=torch.finfo(torch.float64).tiny)
    return float(effective_rank(share))


# --- the panel


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A line of the panel: what is measured and which way it goes when dense quality falls."""

    title: str
    measure: Callable[..., float]
    decay: Literal["rises", "falls"]
    reference: bool = False


PANEL: dict[str, Metric] = {
    "cls_patch_cosine": Metric(title="CLS-patch cosine", measure=cls_patch_cosine, decay="rises"),
    "local_distant": Metric(title="Local minus distant (LDS)", measure=local_distant, decay="falls"),
    "correlation_decay": Metric(title="Correlation decay (CDS)", measure=correlation_decay, decay="falls"),
    "spatial_contrast": Metric(title="Spatial contrast (RMSC)", measure=spatial_contrast, decay="falls"),
    "mean_cosine": Metric(title="Mean cosine", measure=mean_cosine, decay="rises"),
    "stable_rank": Metric(title="Stable rank", measure=stable_rank, decay="falls"),
    "participation": Metric(title="Participation ratio", measure=participation, decay="falls"),
    "query_locality": Metric(title="Distance of best matches", measure=query_locality, decay="rises"),
    "norm_outliers": Metric(title="Norm outliers", measure=norm_outliers, decay="rises"),
    "gram_distance": Metric(title="Gram distance", measure=gram_distance, decay="rises", reference=True),
    "neighbour_overlap": Metric(title="k-NN overlap", measure=neighbour_overlap, decay="falls", reference=True),
    "cka": Metric(title="CKA", measure=cka, decay="falls", reference=True),
}


def panel(maps: Sequence[DenseMap], references: Sequence[DenseMap] | None = None) -> dict[str, list[float]]:
    """Every metric of PANEL of every map; those that need a reference only where there are references.

    Raises ValueError when there are not as many references as maps.
    """
    if references is not None and len(references) != len(maps):
        raise ValueError(f"{len(maps)} maps and {len(references)} references: give one for each, of the same picture")
    readings: dict[str, list[float]] = {}
    for name, metric in PANEL.items():
        if not metric.reference:
            readings[name] = [metric.measure(map) for map in maps]
        elif references is not None:
            readings[name] = [metric.measure(*pair) for pair in zip(maps, references, strict=True)]
    return readings
