"""The panel against plain loops, and on maps whose decay is known because it was made."""

import math

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from core.dense.degradation import (
    PANEL,
    DenseMap,
    cka,
    cls_patch_cosine,
    correlation_decay,
    dense_structure,
    effective_rank,
    gram_distance,
    kmeans,
    lidar,
    local_distant,
    mean_cosine,
    neighbour_overlap,
    norm_outliers,
    panel,
    participation,
    query_locality,
    rank_me,
    spatial_contrast,
    stable_rank,
)
from core.losses.gram import gram, resize_tokens

DIM = 24


def smooth(rows: int, cols: int, seed: int = 0, dim: int = DIM) -> Tensor:
    """A healthy map: neighbours are alike, distant patches are not, and no direction is everything."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, dim, 4, 4, generator=draw)
    wide = torch.nn.functional.interpolate(coarse, (rows, cols), mode="bicubic", align_corners=True)
    return wide[0].permute(1, 2, 0) + 0.3 * torch.randn(rows, cols, dim, generator=draw)


def noise(rows: int, cols: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, cols, DIM, generator=torch.Generator().manual_seed(seed))


def collapsed(rows: int, cols: int) -> tuple[Tensor, Tensor]:
    """Every patch says what the CLS token says, with a little noise."""
    cls = torch.randn(DIM, generator=torch.Generator().manual_seed(9))
    return cls + 0.01 * noise(rows, cols), cls


@pytest.fixture(params=["whole", "padded"])
def case(request) -> DenseMap:
    """A map of 9 x 7 patches, the last row and column of it padding in one case."""
    valid = torch.ones(9, 7, dtype=torch.bool)
    if request.param == "padded":
        valid[-1], valid[:, -1] = False, False
    patches = smooth(9, 7)
    patches[~valid] = 1e4
    return DenseMap(patches, torch.randn(DIM, generator=torch.Generator().manual_seed(3)), valid)


def loop(map: DenseMap) -> list[tuple[tuple[int, int], np.ndarray]]:
    """Cells and features of valid patches."""
    rows, cols = map.grid
    return [
        ((r, c), map.patches[r, c].double().numpy()) for r in range(rows) for c in range(cols) if bool(map.valid[r, c])
    ]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def distance(a: tuple[int, int], b: tuple[int, int]) -> int:
    return abs(a[0] - b[0]) + abs(a[1] - b[1])


def pairs(map: DenseMap) -> list[tuple[int, float]]:
    """Distance and cosine of every two different patches, in both orders."""
    all_of_them = loop(map)
    return [
        (distance(a, b), cosine(x, y))
        for i, (a, x) in enumerate(all_of_them)
        for j, (b, y) in enumerate(all_of_them)
        if i != j
    ]


# --- against plain loops


def test_cosine_to_cls(case):
    cls = case.cls.double().numpy()
    assert cls_patch_cosine(case) == pytest.approx(np.mean([cosine(x, cls) for _, x in loop(case)]), abs=1e-6)
    assert math.isnan(cls_patch_cosine(DenseMap(case.patches)))


def test_local_minus_distant(case):
    side = math.sqrt(9 * 7)
    near = [c for d, c in pairs(case) if d == 1]
    far = [c for d, c in pairs(case) if d * 16 / side >= 6 - 1e-9]
    assert local_distant(case) == pytest.approx(np.mean(near) - np.mean(far), abs=1e-6)


def test_correlation_decay(case):
    side = math.sqrt(9 * 7)
    found: dict[int, list[float]] = {}
    for d, c in pairs(case):
        if d * 16 / side <= 8 + 1e-9:
            found.setdefault(d, []).append(c)
    x = np.array([d * 16 / side for d in sorted(found)])
    y = np.array([np.mean(found[d]) for d in sorted(found)])
    assert correlation_decay(case) == pytest.approx(-np.polyfit(x, y, 1)[0], abs=1e-7)


def test_on_sixteen_cells_distances_are_cells():
    map = DenseMap(smooth(16, 16))
    near = [c for d, c in pairs(map) if d == 1]
    far = [c for d, c in pairs(map) if d >= 6]
    assert local_distant(map) == pytest.approx(np.mean(near) - np.mean(far), abs=1e-6)
    by = [np.mean([c for d, c in pairs(map) if d == apart]) for apart in range(1, 9)]
    assert correlation_decay(map) == pytest.approx(-np.polyfit(np.arange(1, 9), by, 1)[0], abs=1e-7)


def test_spatial_contrast_and_mean_cosine(case):
    unit = np.stack([x / np.linalg.norm(x) for _, x in loop(case)])
    wanted = np.sqrt(np.mean(np.linalg.norm(unit - unit.mean(0), axis=1) ** 2))
    assert spatial_contrast(case) == pytest.approx(wanted, abs=1e-6)
    assert mean_cosine(case) == pytest.approx(np.mean([c for _, c in pairs(case)]), abs=1e-6)


def test_ranks(case):
    x = np.stack([x for _, x in loop(case)])
    values = np.linalg.svd(x, compute_uv=False)
    assert stable_rank(case) == pytest.approx((values**2).sum() / values[0] ** 2, rel=1e-5)
    assert participation(case) == pytest.approx((values**2).sum() ** 2 / (values**4).sum(), rel=1e-5)


def test_distance_of_best_matches(case):
    all_of_them = loop(case)
    count = math.ceil(len(all_of_them) / 100)
    found = []
    for i, (a, x) in enumerate(all_of_them):
        others = [(cosine(x, y), b) for j, (b, y) in enumerate(all_of_them) if j != i]
        best = sorted(others, reverse=True)[:count]
        found.append(np.mean([distance(a, b) for _, b in best]))
    lower = sorted(found)[(len(found) - 1) // 2]  # as torch, the lower of two middle ones
    assert query_locality(case) == pytest.approx(lower * 16 / math.sqrt(63), abs=1e-6)


def test_outliers(case):
    length = np.array([np.linalg.norm(x) for _, x in loop(case)])
    assert norm_outliers(case) == 0
    loud = case.patches.clone()
    loud[2, 3] *= 20
    loud[4, 4] *= 30
    assert norm_outliers(DenseMap(loud, valid=case.valid)) == pytest.approx(2 / len(length))


def test_gram_distance_is_the_gram_loss():
    ours, theirs = smooth(8, 8), smooth(8, 8, seed=1)
    wanted = float(gram(ours.flatten(0, 1)[None], theirs.flatten(0, 1)[None]))
    assert gram_distance(DenseMap(ours), DenseMap(theirs)) == pytest.approx(wanted, rel=1e-5)
    large = smooth(16, 16, seed=1)
    wanted = float(gram(ours.flatten(0, 1)[None], resize_tokens(large.flatten(0, 1)[None], 64)))
    assert gram_distance(DenseMap(ours), DenseMap(large)) == pytest.approx(wanted, rel=1e-5)


def test_neighbour_overlap(case):
    other = DenseMap(smooth(9, 7, seed=1), valid=case.valid)
    ours, theirs = loop(case), loop(other)
    shares = []
    for i, (a, _) in enumerate(ours):
        apart = [j for j, (b, _) in enumerate(ours) if distance(a, b) > 1]
        best = [
            set(sorted(apart, key=lambda j, i=i, m=m: -cosine(m[i][1], m[j][1]))[:10])  # type: ignore[misc]
            for m in (ours, theirs)
        ]
        shares.append(len(best[0] & best[1]) / 10)
    assert neighbour_overlap(case, other) == pytest.approx(np.mean(shares), abs=1e-9)
    assert neighbour_overlap(case, case) == 1


def test_kernel_alignment(case):
    other = DenseMap(smooth(9, 7, seed=1), valid=case.valid)
    x, y = (np.stack([v for _, v in loop(map)]) for map in (case, other))
    x, y = x - x.mean(0), y - y.mean(0)
    wanted = np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    assert cka(case, other) == pytest.approx(wanted, abs=1e-5)
    turned = torch.linalg.qr(noise(DIM, 1).view(DIM, DIM))[0]
    assert cka(case, DenseMap(3 * case.patches @ turned + 5, valid=case.valid)) == pytest.approx(1, abs=1e-4)


def test_parts_of_the_matrix_add_up(case, monkeypatch):
    other = smooth(9, 7, seed=1)
    whole = panel([case], [DenseMap(other, valid=case.valid)])
    monkeypatch.setattr("core.dense.degradation.ENTRIES", 100)
    parts = panel([DenseMap(case.patches, case.cls, case.valid)], [DenseMap(other, valid=case.valid)])
    for name in PANEL:
        assert parts[name] == pytest.approx(whole[name], abs=1e-6), name


def test_dense_structure_is_its_formula():
    maps = [DenseMap(smooth(6, 6, seed=seed)) for seed in range(4)]
    found = dense_structure(maps, clusters=5, clusters_image=2, seed=7)
    draw = torch.Generator().manual_seed(7)
    chosen = [map.features[torch.randperm(36, generator=draw)] for map in maps]
    tokens = torch.cat(chosen)
    scale = np.mean([float((t - tokens.mean(0)).norm()) for t in tokens])

    def spread(x: Tensor, own: Tensor) -> float:
        of_each = []
        for cluster in range(int(own.max()) + 1):
            part = x[own == cluster].double()
            values = torch.linalg.svdvals(part - part.mean(0))
            of_each.append(float(values.sum()) / math.sqrt(max(len(part) - 1, DIM)))
        return float(np.mean(of_each)) / scale

    own, centroids = kmeans(tokens, 5, draw)
    nearest = [
        min(float((t - c).norm()) for k, c in enumerate(centroids) if k != int(own[i])) for i, t in enumerate(tokens)
    ]
    within = np.mean([spread(x, kmeans(x, 2, draw)[0]) for x in chosen])
    ranks = []
    for place in range(36):
        part = torch.stack([x[place] for x in chosen]).double()
        ranks.append(float(effective_rank(torch.linalg.svdvals(part - part.mean(0)))) / 4)
    assert found.between == pytest.approx(np.mean(nearest) / scale, rel=1e-4)
    assert found.within_batch == pytest.approx(spread(tokens, own), rel=1e-4)
    assert found.within_image == pytest.approx(within, rel=1e-4)
    assert found.dimension == pytest.approx(np.mean(ranks), rel=1e-4)
    wanted = found.between + found.dimension - (found.within_image + found.within_batch) / 2
    assert found.dse == pytest.approx(wanted, rel=1e-6)
    assert found == dense_structure(maps, clusters=5, clusters_image=2, seed=7)


def test_clusters_are_as_tight_as_those_of_scikit_learn():
    tokens = torch.cat([smooth(8, 8, seed=seed).flatten(0, 1) for seed in range(3)])
    theirs = KMeans(6, n_init=5, random_state=0).fit(tokens.numpy()).inertia_
    best = math.inf
    for seed in range(5):
        own, centroids = kmeans(tokens, 6, torch.Generator().manual_seed(seed))
        assert len(centroids) == 6
        assert torch.equal(torch.cdist(tokens, centroids).argmin(1), own)
        best = min(best, float((tokens - centroids[own]).square().sum()))
    assert best < 1.05 * theirs


def test_fewer_different_tokens_than_clusters():
    own, centroids = kmeans(torch.tensor([[0.0, 1.0]] * 5 + [[2.0, 0.0]] * 3), 4, torch.Generator())
    assert len(centroids) == 2
    assert own.bincount().sort().values.tolist() == [3, 5]


def test_effective_rank_of_equal_values_is_their_number():
    found = effective_rank(torch.tensor([[2.0, 2.0, 2.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]))
    assert found.tolist() == pytest.approx([3, 1, 0])


def test_rank_me():
    vectors = noise(40, 1)[:, 0]
    values = np.linalg.svd(vectors.double().numpy(), compute_uv=False)
    share = values / values.sum() + 1e-7
    assert rank_me(vectors) == pytest.approx(math.exp(-(share * np.log(share)).sum()), rel=1e-9)


def test_lidar():
    views = noise(30, 4)
    x = views.double().numpy()
    means = x.mean(1)
    between = np.cov(means.T)
    rest = (x - means[:, None]).reshape(-1, DIM)
    within = rest.T @ rest / (30 * 3) + 1e-4 * np.eye(DIM)
    values = np.linalg.eigvals(np.linalg.inv(within) @ between).real.clip(0)
    share = values / values.sum()
    share = share[share > 0]
    assert lidar(views) == pytest.approx(math.exp(-(share * np.log(share)).sum()), rel=1e-6)
    with pytest.raises(ValueError, match="two views"):
        lidar(views[:, :1])


# --- constructed cases


def test_collapse_moves_every_metric_as_its_line_says():
    """Patches of a healthy map drawn to the CLS token, step by step: the collapse dial."""
    patches = smooth(16, 16)
    _, cls = collapsed(1, 1)
    unit = torch.nn.functional.normalize
    healthy, ill = (
        DenseMap(unit((1 - a) * unit(patches, dim=-1) + a * unit(cls, dim=0), dim=-1), cls) for a in (0.0, 0.7)
    )
    readings = panel([healthy, ill], [healthy, healthy])
    told = {"query_locality", "norm_outliers", "neighbour_overlap", "cka"}  # order of matches and lengths stay
    for name in set(PANEL) - told:
        before, after = readings[name]
        assert (after > before) == (PANEL[name].decay == "rises"), (name, before, after)


def test_noise_moves_what_speaks_of_places():
    patches = smooth(16, 16)
    healthy, ill = (DenseMap(patches + a * noise(16, 16, seed=4)) for a in (0.0, 2.0))
    readings = panel([healthy, ill], [healthy, healthy])
    for name in ("local_distant", "correlation_decay", "query_locality", "gram_distance", "neighbour_overlap", "cka"):
        before, after = readings[name]
        assert (after > before) == (PANEL[name].decay == "rises"), (name, before, after)


def test_features_of_positions_alone_look_healthy_to_local_metrics():
    """What these metrics cannot see: a smooth map that says nothing of the picture."""
    rows, cols = torch.meshgrid(torch.linspace(0, 3, 16), torch.linspace(0, 3, 16), indexing="ij")
    waves = torch.stack([torch.sin(f * x + p) for f in (1, 2, 3) for x in (rows, cols) for p in (0, 1.5)], dim=-1)
    map = DenseMap(waves)
    assert local_distant(map) > 0.5
    assert query_locality(map) < 2


def test_the_same_map_has_distance_exactly_zero():
    map = DenseMap(smooth(48, 48, dim=8))
    again = DenseMap(map.patches.clone())
    assert gram_distance(map, again) == 0.0
    assert neighbour_overlap(map, again) == 1.0


def test_a_constant_map_has_numbers_where_it_can():
    map = DenseMap(torch.ones(8, 8, DIM), torch.ones(DIM))
    found = panel([map], [map])
    assert found["cls_patch_cosine"] == pytest.approx([1])
    assert found["spatial_contrast"] == pytest.approx([0], abs=1e-3)
    assert found["local_distant"] == pytest.approx([0], abs=1e-6)
    assert found["stable_rank"] == pytest.approx([1], abs=1e-4)
    assert math.isnan(found["cka"][0])
    assert dense_structure([map, map]).dse == 0


def test_maps_too_small_for_a_distance_say_so():
    map = DenseMap(noise(1, 2))
    assert math.isnan(local_distant(map))
    assert math.isnan(correlation_decay(map))
    assert math.isnan(neighbour_overlap(map, map))


def test_bad_input_gets_a_sentence():
    with pytest.raises(ValueError, match="between patches"):
        DenseMap(noise(1, 1))
    with pytest.raises(ValueError, match="not finite"):
        mean_cosine(DenseMap(torch.full((2, 2, 3), torch.nan)))
    with pytest.raises(ValueError, match="2 maps and 1 references"):
        panel([DenseMap(noise(3, 3))] * 2, [DenseMap(noise(3, 3))])
    padded = torch.ones(3, 3, dtype=torch.bool)
    padded[0] = False
    with pytest.raises(ValueError, match="same padded cells"):
        gram_distance(DenseMap(noise(3, 3)), DenseMap(noise(3, 3), valid=padded))


def test_the_panel_reads_what_its_functions_say(case):
    found = panel([case, case])
    assert set(found) == {name for name, metric in PANEL.items() if not metric.reference}
    assert found["mean_cosine"] == [mean_cosine(case)] * 2
