"""Reference cosines agree with listing every pair, percentiles with NumPy and SciPy."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode

from core.dense.reference import histogram, null_curves, standing


def random_patches(rows: int, cols: int, dim: int = 8, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, cols, dim, generator=generator) + 0.7 * torch.randn(dim, generator=generator)


def random_mask(rows: int, cols: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(rows, cols, generator=torch.Generator().manual_seed(seed)) > 0.25


def unit_rows(patches: torch.Tensor, valid: torch.Tensor | None = None) -> np.ndarray:
    rows = patches.double().numpy()
    rows = rows.reshape(-1, rows.shape[-1]) if valid is None else rows[valid.numpy()]
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def slow_by_distance(patches: torch.Tensor, valid: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Every pair of valid cells, one after the other."""
    rows, cols = valid.shape
    unit, cells = unit_rows(patches, valid), np.argwhere(valid.numpy())
    totals, counts = np.zeros(rows + cols - 1), np.zeros(rows + cols - 1, int)
    for i in range(len(cells)):
        for j in range(i):
            distance = abs(cells[i] - cells[j]).sum()
            totals[distance] += unit[i] @ unit[j]
            counts[distance] += 1
    with np.errstate(invalid="ignore"):
        return totals[1:] / counts[1:], counts[1:]


# ---------------------------------------------------------------------------------------------- curves


@pytest.mark.parametrize("masked", [False, True])
def test_few_pairs_of_one_picture_are_all_listed(masked):
    patches = random_patches(6, 9)
    valid = random_mask(6, 9) if masked else torch.ones(6, 9, dtype=torch.bool)
    curves = null_curves(patches, valid=valid)
    unit = unit_rows(patches, valid)
    wanted = (unit @ unit.T)[np.triu_indices(len(unit), k=1)]
    assert curves.same_exact
    np.testing.assert_allclose(np.sort(curves.same_image.numpy()), np.sort(wanted), atol=1e-6)


def test_drawn_pairs_never_join_a_patch_with_itself():
    patches = torch.eye(300).reshape(15, 20, 300)  # any two different patches are orthogonal
    curves = null_curves(patches, pairs=30_000)
    assert not curves.same_exact and len(curves.same_image) == 30_000
    assert (curves.same_image == 0).all()


def test_drawn_pairs_have_the_distribution_of_all_pairs():
    patches = random_patches(14, 15)
    drawn, every = null_curves(patches, pairs=20_000), null_curves(patches, pairs=30_000)
    assert every.same_exact and not drawn.same_exact
    assert stats.kstest(drawn.same_image.numpy(), every.same_image.numpy()).pvalue > 0.01


def test_the_seed_decides_the_drawn_pairs():
    patches = random_patches(10, 10)
    one, same, other = (null_curves(patches, pairs=100, seed=seed).same_image for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_few_pairs_with_other_pictures_are_all_listed():
    here, valid = random_patches(4, 5), random_mask(4, 5, 1)
    others = [random_patches(3, 4, seed=2), random_patches(2, 6, seed=3)]
    masks = [random_mask(3, 4, 4), random_mask(2, 6, 5)]
    curves = null_curves(here, others, valid, others_valid=masks)
    there = np.concatenate([unit_rows(o, m) for o, m in zip(others, masks, strict=True)])
    assert curves.other_exact and curves.other_images is not None
    np.testing.assert_allclose(
        np.sort(curves.other_images.numpy()), np.sort((unit_rows(here, valid) @ there.T).ravel()), atol=1e-6
    )


def test_drawn_pairs_with_other_pictures_have_the_distribution_of_all():
    here, others = random_patches(10, 11), [random_patches(9, 9, seed=1), random_patches(5, 30, seed=2)]
    drawn = null_curves(here, others, pairs=20_000)
    there = np.concatenate([unit_rows(other) for other in others])
    assert not drawn.other_exact and drawn.other_images is not None
    every = (unit_rows(here) @ there.T).ravel()
    assert stats.kstest(drawn.other_images.numpy(), every).pvalue > 0.01


def test_without_other_pictures_that_curve_is_missing():
    assert null_curves(random_patches(3, 3)).other_images is None
    assert null_curves(random_patches(3, 3), []).other_images is None


@pytest.mark.parametrize(("rows", "cols", "masked"), [(7, 11, False), (11, 6, True), (1, 9, False), (13, 1, True)])
def test_the_curve_by_distance_agrees_with_counting_every_pair(rows, cols, masked):
    patches = random_patches(rows, cols)
    valid = random_mask(rows, cols, 7) if masked else torch.ones(rows, cols, dtype=torch.bool)
    curves = null_curves(patches, valid=valid)
    mean, counts = slow_by_distance(patches, valid)
    assert curves.distances.tolist() == list(range(1, rows + cols - 1))
    np.testing.assert_array_equal(curves.counts.numpy(), counts)
    np.testing.assert_allclose(curves.by_distance.numpy(), mean, atol=1e-6)


def test_distances_without_a_pair_are_nan():
    y, x = torch.meshgrid(torch.arange(6), torch.arange(7), indexing="ij")
    curves = null_curves(random_patches(6, 7), valid=(x + y) % 2 == 0)  # a chessboard has even distances only
    odd = curves.distances % 2 == 1
    assert (curves.counts[odd] == 0).all() and curves.by_distance[odd].isnan().all()
    assert (curves.counts[~odd] > 0).all() and not curves.by_distance[~odd].isnan().any()


def test_the_farthest_pairs_of_a_large_grid_keep_their_digits():
    patches = random_patches(90, 75)
    curves = null_curves(patches)
    unit = unit_rows(patches).reshape(90, 75, -1)
    corners = (unit[0, 0] @ unit[-1, -1] + unit[0, -1] @ unit[-1, 0]) / 2
    assert curves.counts[-1] == 2 and curves.counts.sum() == 6750 * 6749 // 2
    assert curves.by_distance[-1].item() == pytest.approx(corners, abs=1e-6)
    neighbours = [(unit[1:] * unit[:-1]).sum(-1).ravel(), (unit[:, 1:] * unit[:, :-1]).sum(-1).ravel()]
    assert curves.by_distance[0].item() == pytest.approx(np.concatenate(neighbours).mean(), abs=1e-6)


def test_padded_cells_take_no_part():
    patches, valid = random_patches(9, 10), random_mask(9, 10)
    spoiled = torch.where(valid[..., None], patches, 100.0)
    one, other = null_curves(patches, valid=valid, pairs=50), null_curves(spoiled, valid=valid, pairs=50)
    assert torch.equal(one.same_image, other.same_image)
    torch.testing.assert_close(one.by_distance, other.by_distance, atol=1e-6, rtol=0, equal_nan=True)


class LargestResult(TorchDispatchMode):
    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.size = max(self.size, result.numel())
        return result


def test_no_matrix_of_all_pairs_is_built():
    patches = random_patches(70, 65, dim=4)
    with LargestResult() as largest:
        null_curves(patches, [patches])
    assert largest.size < 4550**2 / 50


def test_pictures_without_pairs_are_refused():
    with pytest.raises(ValueError, match="at least two valid patches, got 1"):
        null_curves(random_patches(1, 1))
    with pytest.raises(ValueError, match="pairs must be at least 1"):
        null_curves(random_patches(3, 3), pairs=0)
    with pytest.raises(ValueError, match="not finite"):
        null_curves(torch.full((3, 3, 4), math.nan))
    others = [random_patches(2, 2)]
    with pytest.raises(ValueError, match="one mask per picture"):
        null_curves(random_patches(3, 3), others, others_valid=[])
    with pytest.raises(ValueError, match="no valid patch"):
        null_curves(random_patches(3, 3), others, others_valid=[torch.zeros(2, 2, dtype=torch.bool)])


# ---------------------------------------------------------------------------------------------- standing


def test_percentile_and_z_agree_with_numpy_and_scipy():
    null = null_curves(random_patches(12, 12)).same_image
    reference = null.double().numpy()
    for cosine in [-1.0, -0.3, 0.0, 0.21, 0.9, 1.0, null[5].item(), null.max().item(), null.min().item()]:
        found = standing(cosine, null)
        counted = 50 * (np.mean(reference < cosine) + np.mean(reference <= cosine))
        assert found.percentile == pytest.approx(counted, abs=1e-6)
        assert found.percentile == pytest.approx(stats.percentileofscore(reference, cosine, kind="mean"), abs=1e-6)
        assert found.z == pytest.approx((cosine - reference.mean()) / reference.std(), abs=1e-5)


def test_equal_cosines_count_half():
    null = torch.tensor([0.1, 0.1, 0.1, 0.3])
    assert standing(0.1, null).percentile == pytest.approx(37.5)
    assert standing(0.3, null).percentile == pytest.approx(87.5)
    assert standing(0.2, null).percentile == pytest.approx(75)


def test_a_collapsed_reference_gives_no_z():
    flat = null_curves(torch.ones(4, 5, 6)).same_image
    assert math.isnan(standing(1.0, flat).z)


def test_what_cannot_be_ranked_is_refused():
    with pytest.raises(ValueError, match="padded cell"):
        standing(math.nan, torch.zeros(3))
    with pytest.raises(ValueError, match="among 0 references"):
        standing(0.5, torch.zeros(0))


# ---------------------------------------------------------------------------------------------- histogram


def test_histogram_agrees_with_numpy_and_leaves_padding_out():
    values = torch.rand(9, 11, generator=torch.Generator().manual_seed(0)) * 2 - 1
    values[0, :3] = math.nan
    values[1, :2] = torch.tensor([1.0, -1.0])
    counts, edges = histogram(values, bins=40)
    expected, lines = np.histogram(values.numpy().ravel(), bins=40, range=(-1, 1))
    np.testing.assert_array_equal(counts.numpy(), expected)
    np.testing.assert_allclose(edges.numpy(), lines, atol=1e-7)
    assert counts.sum() == 99 - 3


def test_histogram_edges_do_not_depend_on_the_values():
    narrow, wide = (histogram(torch.linspace(-a, a, 50))[1] for a in (0.1, 1.0))
    assert torch.equal(narrow, wide) and (narrow[0], narrow[-1]) == (-1, 1)


def test_histogram_takes_rounding_in_and_refuses_more():
    counts, _ = histogram(torch.tensor([1.0 + 1e-6, -1.0 - 1e-6]), bins=4)
    assert counts.tolist() == [1, 0, 0, 1]
    with pytest.raises(ValueError, match=r"1 values lie outside.*limits=\(-2, 2\)"):
        histogram(torch.tensor([1.5, 0.0]))
    assert histogram(torch.tensor([1.5, 0.0]), bins=4, limits=(-2.0, 2.0))[0].tolist() == [0, 0, 1, 1]
