"""A cloud holds every patch once, lays neighbours near one another, and is the same every time."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness
from sklearn.neighbors import NearestNeighbors

from core.dense.extract import DenseFeatures
from core.dense.geometry import Geometry, plan
from core.models.weights import load_backbone
from workbench import clouds
from workbench.clouds import OKABE_ITO, Cloud, cloud, draw_cloud
from workbench.images import Photo, list_samples, open_image
from workbench.looks import Look, look_at
from workbench.packs import make_pack

EPOCHS = 30  # enough for every path; the real photographs below take umap's own number
CATS = ("cat_bengal.jpg", "cat_chelsea.jpg")


def made(seed: int, geometry: Geometry, *, dim: int = 12, model: str = "made up", layer: int = 3) -> Look:
    """A look at nothing: features in three clumps, lengths that differ."""
    random = torch.Generator().manual_seed(seed)
    clumps = torch.randn(3, dim, generator=random)
    patches = clumps[torch.randint(3, (geometry.rows, geometry.cols), generator=random)]
    patches = patches + 0.4 * torch.randn(geometry.rows, geometry.cols, dim, generator=random)
    patches = patches * torch.rand(geometry.rows, geometry.cols, 1, generator=random) * 20
    features = DenseFeatures(
        patches=patches,
        cls=torch.zeros(dim),
        registers=torch.zeros(0, dim),
        geometry=geometry,
        layer=layer,
        norm=True,
    )
    pixels = np.full((geometry.height, geometry.width, 3), seed, np.uint8)
    return Look(Photo(pixels, geometry.width, geometry.height, name=f"made {seed}"), features, model)


@pytest.fixture(scope="module")
def pair() -> list[Look]:
    """Two looks, the second with a column of padding."""
    return [made(1, plan(80, 60, 10, size=80)), made(2, plan(74, 90, 10, size=90))]


@pytest.fixture(scope="module")
def cats() -> list[Look]:
    backbone = load_backbone("dinov2_vits14_saliency")
    paths = {sample.path.name: sample.path for sample in list_samples()}
    return [look_at(open_image(paths[name]), backbone, size=224) for name in CATS]


def vectors(looks: list[Look], points: Cloud) -> np.ndarray:
    """The features of the points, one at a time."""
    cells = zip(points.pack.tolist(), points.row.tolist(), points.col.tolist(), strict=True)
    return np.stack([looks[pack].features.patches[row, col].numpy() for pack, row, col in cells])


# ---------------------------------------------------------------- what the points are


@pytest.mark.parametrize("method", [pytest.param("umap", marks=pytest.mark.long), "pca"])  # UMAP compiles at first
def test_every_patch_that_shows_picture_is_a_point_and_padding_is_none(pair, method):
    options = {"n_epochs": EPOCHS} if method == "umap" else {}
    found = cloud(pair, method, **options)
    wanted = [
        (pack, row, col)
        for pack, look in enumerate(pair)
        for row in range(look.features.geometry.rows)
        for col in range(look.features.geometry.cols)
        if look.valid[row, col]
    ]
    assert not pair[1].valid.all()
    assert list(zip(found.pack.tolist(), found.row.tolist(), found.col.tolist(), strict=True)) == wanted
    assert found.positions.shape == (len(wanted), 2)
    assert found.positions.dtype == np.float32
    assert np.isfinite(found.positions).all()
    assert (len(found), found.total) == (len(wanted), len(wanted))
    assert found.names == ("made 1", "made 2")
    assert found.grids == ((6, 8), (9, 8))


def test_a_single_look_needs_no_list(pair):
    np.testing.assert_array_equal(cloud(pair[0], "pca").positions, cloud([pair[0]], "pca").positions)


# ---------------------------------------------------------------- PCA, against scikit-learn and a plain SVD


def test_pca_is_sklearns_up_to_the_sign_of_an_axis(pair):
    found = cloud(pair, "pca")
    reference = PCA(2, svd_solver="full").fit(vectors(pair, found).astype(np.float64))
    expected = reference.transform(vectors(pair, found).astype(np.float64))
    signs = np.sign((expected * found.positions).sum(axis=0))
    np.testing.assert_allclose(found.positions, expected * signs, atol=1e-4)
    np.testing.assert_allclose(found.explained, reference.explained_variance_ratio_, atol=1e-5)


def test_pca_keeps_as_much_spread_as_an_svd_says_two_axes_can(pair):
    found = cloud(pair, "pca")
    centred = vectors(pair, found) - vectors(pair, found).mean(axis=0)
    singular = np.linalg.svd(centred.astype(np.float64), compute_uv=False)
    spread = found.positions.astype(np.float64).var(axis=0) * len(found)
    np.testing.assert_allclose(spread, singular[:2] ** 2, rtol=1e-5)
    assert found.caption == (
        f"PCA, axes with {found.explained[0]:.0%} and {found.explained[1]:.0%} of the variance · {len(found)} patches"
    )


# ---------------------------------------------------------------- UMAP


@pytest.mark.long
def test_the_same_seed_gives_the_same_cloud_and_another_seed_another(pair):
    first, again, other = (cloud(pair, seed=seed, n_epochs=EPOCHS).positions for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1


def test_neighbours_are_those_of_an_exhaustive_search_by_cosine(pair, monkeypatch):
    monkeypatch.setattr(clouds, "COMPARED", 500)  # several blocks, the last one smaller
    rows = torch.cat([look.unit[look.valid] for look in pair])
    near, distances = clouds._nearest(rows, 7, lambda *_: None)
    expected, order = NearestNeighbors(n_neighbors=7, metric="cosine", algorithm="brute").fit(rows).kneighbors(rows)
    np.testing.assert_allclose(distances, expected, atol=2e-6)
    np.testing.assert_array_equal(near[:, 0], np.arange(len(rows)))
    np.testing.assert_array_equal(near, order)


def test_of_equal_patches_each_is_its_own_nearest():
    rows = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    unit = torch.nn.functional.normalize(rows, dim=1).repeat(5, 1)
    near, distances = clouds._nearest(unit, 5, lambda *_: None)
    np.testing.assert_array_equal(near[:, 0], np.arange(30))
    assert (distances < 1e-6).all()  # the other four are its copies
    assert (near % 6 == np.arange(30)[:, None] % 6).all()


@pytest.mark.long
def test_the_length_of_a_feature_does_not_matter(pair):
    def stretched(look: Look, seed: int) -> Look:
        random = torch.Generator().manual_seed(seed)
        powers = 2.0 ** torch.randint(
            -3, 4, look.valid.shape, generator=random
        )  # of two: not a bit of a cosine differs
        patches = look.features.patches * powers.unsqueeze(-1)
        return Look(look.photo, DenseFeatures(**{**vars(look.features), "patches": patches}), look.model)

    expected = cloud(pair, n_epochs=EPOCHS).positions
    found = cloud([stretched(look, index) for index, look in enumerate(pair)], n_epochs=EPOCHS).positions
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("method", ["umap", "pca"])
def test_on_two_cats_neighbours_stay_neighbours_far_more_than_by_chance(cats, method):
    found = cloud(cats, method)
    features = vectors(cats, found)
    kept = trustworthiness(features, found.positions, n_neighbors=10, metric="cosine")
    random = np.random.default_rng(0)
    chance = [
        trustworthiness(features, random.permutation(found.positions), n_neighbors=10, metric="cosine")
        for _ in range(5)
    ]
    print(f"\n{method} of {len(found)} patches of two cats: trustworthiness {kept:.3f}, chance {np.mean(chance):.3f}")
    assert max(chance) < 0.55
    assert kept > (0.95 if method == "umap" else 0.8)


def test_patches_that_are_all_alike_still_have_places():
    look = made(3, plan(60, 50, 10, size=60))
    alike = torch.ones_like(look.features.patches)
    flat = Look(look.photo, DenseFeatures(**{**vars(look.features), "patches": alike}), look.model)
    assert np.isfinite(cloud(flat, n_epochs=EPOCHS).positions).all()
    assert np.isfinite(cloud(flat, "pca").positions).all()


# ---------------------------------------------------------------- packs


def test_packs_give_the_cloud_of_their_looks_but_for_the_coding(pair, monkeypatch):
    monkeypatch.setattr(clouds, "ROWS", 4)  # fewer than a picture has
    packs = [make_pack(look) for look in pair]
    found, expected = cloud(packs, "pca"), cloud(pair, "pca")
    np.testing.assert_array_equal([found.pack, found.row, found.col], [expected.pack, expected.row, expected.col])
    size = np.abs(expected.positions).max()
    np.testing.assert_allclose(found.positions, expected.positions, atol=0.01 * size)
    assert (found.names, found.pictures) == (expected.names, expected.pictures)
    mixed = cloud([packs[0], pair[1]], "pca")
    np.testing.assert_allclose(mixed.positions, expected.positions, atol=0.01 * size)


# ---------------------------------------------------------------- fewer points


def test_beyond_the_bound_patches_are_drawn_by_seed_and_the_caption_says_so(pair):
    whole = cloud(pair, "pca")
    few, again, other = (cloud(pair, "pca", max_points=40, seed=seed) for seed in (0, 0, 5))
    cells = [set(zip(c.pack.tolist(), c.row.tolist(), c.col.tolist(), strict=True)) for c in (few, again, other, whole)]
    assert (len(few), few.total) == (40, len(whole))
    assert cells[0] == cells[1] != cells[2]
    assert cells[0] < cells[3]
    assert set(few.pack.tolist()) == {0, 1}
    assert f"40 of {len(whole)} patches, drawn at random with seed 0" in few.caption
    assert "random" not in whole.caption


def test_points_are_drawn_alike_from_all_pictures():
    looks = [made(1, plan(400, 300, 10, size=400)), made(2, plan(200, 150, 10, size=200))]
    share = np.mean([(cloud(looks, "pca", max_points=300, seed=seed).pack == 1).mean() for seed in range(10)])
    assert share == pytest.approx(300 / 1500, abs=0.03)


# ---------------------------------------------------------------- progress, cancelling, threads


def test_progress_tells_of_pictures_neighbours_and_every_epoch(pair):
    told: list[tuple[int, int, str]] = []
    cloud(pair, n_epochs=EPOCHS, progress=lambda *news: told.append(news))
    assert told[:2] == [(1, 2, "pictures"), (2, 2, "pictures")]
    assert [news for news in told if news[2] == "blocks of neighbours"] == [(1, 1, "blocks of neighbours")]
    epochs = [news[:2] for news in told if news[2] == "epochs"]
    assert epochs == [(0, 1), *((done, EPOCHS) for done in range(1, EPOCHS + 1))]


def stopping_at(when: Callable[[int, int, str], bool]) -> Callable[[int, int, str], None]:
    def progress(*news: Any) -> None:
        if when(*news):
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("at", ["pictures", "blocks of neighbours", "epochs"])
def test_raising_in_progress_cancels_and_leaves_nothing_behind(pair, at):
    import numba
    import umap.layouts

    bar, threads = umap.layouts.tqdm, numba.get_num_threads()
    before = cloud(pair, n_epochs=EPOCHS).positions
    with pytest.raises(KeyboardInterrupt):
        cloud(pair, n_epochs=EPOCHS, progress=stopping_at(lambda done, total, of: of == at and done in (1, total)))
    assert umap.layouts.tqdm is bar
    assert numba.get_num_threads() == threads
    assert not clouds._alone.locked()
    np.testing.assert_array_equal(cloud(pair, n_epochs=EPOCHS).positions, before)


def test_the_bar_of_another_thread_stays_its_own():
    import umap.layouts

    told: list[Any] = []
    seen: list[int] = []

    def elsewhere() -> None:
        seen.extend(umap.layouts.tqdm(range(3), disable=True))

    with clouds._bar_told(lambda *news: told.append(news)):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert list(umap.layouts.tqdm(range(2))) == [0, 1]
    assert seen == [0, 1, 2]
    assert told == [(1, 2, "epochs"), (2, 2, "epochs")]


def test_two_threads_at_once_get_the_clouds_that_each_would_get_alone(pair):
    expected = [cloud(look, n_epochs=EPOCHS).positions for look in pair]
    found: dict[int, np.ndarray] = {}
    threads = [
        threading.Thread(target=lambda i=i: found.update({i: cloud(pair[i], n_epochs=EPOCHS).positions}))
        for i in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, positions in enumerate(expected):
        np.testing.assert_array_equal(found[index], positions)


# ---------------------------------------------------------------- refusals


def test_refusals_say_what_was_expected_and_what_came(pair):
    small = made(4, plan(40, 30, 10, size=40))
    refused: list[tuple[Callable[[], Any], str]] = [
        (lambda: cloud([]), "at least one picture"),
        (lambda: cloud(pair, "tsne"), "'tsne'; known: umap, pca"),
        (lambda: cloud(pair, max_points=0), "max_points must be at least 1, got 0"),
        (
            lambda: cloud(small),
            "15 neighbours were asked for and 12 patches are there: choose n_neighbors from 2 to 11",
        ),
        (lambda: cloud(pair, n_neighbors=1), "1 neighbours"),
        (lambda: cloud(pair, metric="euclidean"), "does not take metric"),
        (lambda: cloud(pair, "pca", min_dist=0.3), "PCA has no settings, got min_dist"),
        (
            lambda: cloud([pair[0], made(5, plan(80, 60, 10, size=80), dim=16)]),
            "made 1 is from .* 12 channels while made 5",
        ),
        (lambda: cloud([pair[0], made(5, plan(80, 60, 10, size=80), model="other")]), "layer 4 of other"),
        (lambda: cloud([pair[0], made(5, plan(80, 60, 10, size=80), layer=1)]), "layer 2 of made up"),
        (lambda: cloud([make_pack(look, dims=6) for look in pair]), "made again without dims|without dims"),
    ]
    for attempt, words in refused:
        with pytest.raises(ValueError, match=words):
            attempt()


def test_a_reduced_pack_alone_has_a_cloud(pair):
    assert len(cloud(make_pack(pair[0], dims=6), "pca")) == 48


# ---------------------------------------------------------------- the picture


def test_the_picture_shows_every_photo_in_its_colour_and_fades_what_is_not_selected(pair):
    found = cloud(pair, "pca")
    picture = draw_cloud(found)
    assert picture.shape == (480, 720, 3)
    plain = (picture.reshape(-1, 3) == OKABE_ITO[0]).all(axis=1).sum()
    assert plain > 100
    assert (picture.reshape(-1, 3) == OKABE_ITO[1]).all(axis=1).sum() > 100
    first = [0, int(found.row[0]), int(found.col[0])]
    chosen = (draw_cloud(found, [first]).reshape(-1, 3) == OKABE_ITO[0]).all(axis=1).sum()
    legend_and_one = 2 * np.pi * 9**2 / 4
    assert 10 < chosen < min(plain, 4 * legend_and_one)
