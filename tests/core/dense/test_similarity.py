"""Cosine maps agree with plain loops in float64; the best answers agree with a brute search."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from core.dense.similarity import Match, cosine_map, cosine_map_to, normalize, top_k, unit_patches


def random_patches(rows: int = 5, cols: int = 7, dim: int = 12, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, cols, dim, generator=generator) + torch.randn(dim, generator=generator)


def slow_cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.double().tolist(), b.double().tolist()
    dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(math.fsum(x * x for x in a)) / math.sqrt(math.fsum(y * y for y in b))


def slow_map(patches: torch.Tensor, queries, negatives=()) -> np.ndarray:
    values = np.empty(patches.shape[:2])
    for row, col in np.ndindex(*values.shape):
        here = patches[row, col]
        values[row, col] = np.mean([slow_cosine(here, patches[cell]) for cell in queries])
        if negatives:
            values[row, col] -= np.mean([slow_cosine(here, patches[cell]) for cell in negatives])
    return values


@pytest.mark.parametrize(
    ("queries", "negatives"),
    [
        ([(2, 3)], []),
        ([(0, 0), (4, 6), (1, 5)], []),
        ([(2, 3)], [(0, 1)]),
        ([(2, 3), (3, 3)], [(0, 1), (4, 4)]),
    ],
)
def test_map_is_the_mean_cosine_to_queries_less_that_to_negatives(queries, negatives):
    patches = random_patches()
    found = cosine_map(patches, queries, negatives=negatives)
    np.testing.assert_allclose(found.numpy(), slow_map(patches, queries, negatives), atol=3e-7)


def test_map_of_unit_patches_is_the_same_map():
    patches, cells = random_patches(), {"queries": [(1, 2), (3, 3)], "negatives": [(0, 6)]}
    cached = cosine_map(unit_patches(patches), **cells, unit=True)
    torch.testing.assert_close(cached, cosine_map(patches, **cells), atol=1e-6, rtol=0)


def test_map_ignores_the_length_of_features():
    patches = random_patches()
    lengths = 10.0 ** torch.randint(-12, 6, (5, 7, 1), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        cosine_map(patches * lengths, [(2, 3)]), cosine_map(patches, [(2, 3)]), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_map_is_computed_in_fp32_whatever_arrives(dtype):
    patches = random_patches().to(dtype)
    found = cosine_map(patches, [(2, 3)], negatives=[(0, 0)])
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), slow_map(patches, [(2, 3)], [(0, 0)]), atol=3e-7)


def test_a_query_is_at_most_one_from_itself():
    patches = random_patches(40, 40, 384)
    for cell in [(0, 0), (17, 5), (39, 39)]:
        values = cosine_map(patches, [cell])
        assert values[cell] == pytest.approx(1, abs=1e-6) and values.max() <= 1


def test_zero_vectors_are_unlike_everything_rather_than_nan():
    patches = random_patches()
    patches[1, 1] = 0
    assert cosine_map(patches, [(2, 3)])[1, 1] == 0
    assert (cosine_map(patches, [(1, 1)]) == 0).all()
    assert (normalize(torch.zeros(2, 3)) == 0).all()


def test_padded_cells_are_nan_and_change_nothing_else():
    patches, valid = random_patches(), torch.ones(5, 7, dtype=torch.bool)
    valid[4, :] = valid[:, 6] = False
    values = cosine_map(patches, [(2, 3), (4, 6)], valid=valid)  # a padded query is allowed
    assert values[~valid].isnan().all()
    assert torch.equal(values[valid], cosine_map(patches, [(2, 3), (4, 6)])[valid])


def test_a_second_picture_answers_the_vectors_of_the_first():
    here, there = random_patches(seed=1), random_patches(3, 4, seed=2)
    vectors, negatives = torch.stack([here[0, 0], here[4, 2]]), here[2, 2][None]
    found = cosine_map_to(there, vectors, negatives=negatives)
    for row, col in np.ndindex(3, 4):
        wanted = sum(slow_cosine(there[row, col], vector) for vector in vectors) / 2
        wanted -= slow_cosine(there[row, col], negatives[0])
        assert found[row, col].item() == pytest.approx(wanted, abs=3e-7)
    assert torch.equal(cosine_map_to(here, vectors), cosine_map(here, [(0, 0), (4, 2)]))


class LargeResults(TorchDispatchMode):
    """Names the operations whose result is as large as the map and not merely another view of it."""

    def __init__(self, size: int):
        super().__init__()
        self.size, self.names = size, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.numel() >= self.size and not func.is_view:
            self.names.append(str(func))
        return result


def test_a_click_on_unit_patches_makes_no_copy_of_the_map():
    unit = unit_patches(random_patches(9, 9, 16))
    with LargeResults(unit.numel()) as large:
        cosine_map(unit, [(1, 1), (2, 2)], negatives=[(3, 3)], unit=True)
    assert large.names == []
    with LargeResults(unit.numel()) as large:
        cosine_map(unit, [(1, 1)])
    assert large.names != []  # without unit=True the map is normalised again


@pytest.mark.parametrize("broken", [math.nan, math.inf, 3e38])
def test_features_that_are_not_finite_are_refused(broken):
    patches = random_patches()
    patches[1, 2, 3:5] = broken
    with pytest.raises(ValueError, match="1 of 35 vectors are not finite"):
        unit_patches(patches)


def test_impossible_questions_are_refused():
    patches = random_patches()
    with pytest.raises(ValueError, match="at least one query"):
        cosine_map(patches, [], negatives=[(0, 0)])
    for cell in [(5, 0), (0, 7), (-1, 0)]:
        with pytest.raises(ValueError, match="outside the 5x7 grid"):
            cosine_map(patches, [cell])
    with pytest.raises(ValueError, match="outside the 5x7 grid"):
        top_k(torch.zeros(5, 7), 3, exclude=(9, 9))
    with pytest.raises(ValueError, match="cannot be negative"):
        top_k(torch.zeros(5, 7), 3, radius=-1)


def slow_top_k(values: np.ndarray, k: int, excluded, radius: int, spacing: int) -> list[tuple[int, int]]:
    """Looks through all cells again for every answer."""
    taken: list[tuple[int, int]] = []
    while len(taken) < k:
        best = None
        for row, col in np.ndindex(*values.shape):
            near = any(max(abs(row - r), abs(col - c)) <= radius for r, c in excluded)
            near |= any(max(abs(row - r), abs(col - c)) <= spacing for r, c in taken)
            if not near and not np.isnan(values[row, col]) and (best is None or values[row, col] > values[best]):
                best = (row, col)
        if best is None:
            break
        taken.append(best)
    return taken


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(0, 12),
    st.integers(0, 3),
    st.integers(0, 3),
    st.integers(0, 999),
)
def test_best_answers_agree_with_a_brute_search(rows, cols, k, radius, spacing, seed):
    random = np.random.default_rng(seed)
    values = random.integers(-3, 4, (rows, cols)).astype(np.float32) / 4  # coarse, so that ties are common
    values[random.random((rows, cols)) < 0.1] = np.nan
    excluded = [(int(random.integers(rows)), int(random.integers(cols))) for _ in range(int(random.integers(3)))]
    found = top_k(torch.from_numpy(values), k, exclude=excluded, radius=radius, spacing=spacing)
    assert [(match.row, match.col) for match in found] == slow_top_k(values, k, excluded, radius, spacing)
    assert all(match.cosine == values[match.row, match.col] for match in found)


def test_exclusion_takes_out_a_square_of_cells():
    values = torch.zeros(5, 5)
    left = {(match.row, match.col) for match in top_k(values, 25, exclude=(2, 2), radius=1)}
    assert left == {(row, col) for row in range(5) for col in range(5) if max(abs(row - 2), abs(col - 2)) > 1}
    assert len(top_k(values, 25, exclude=(0, 0))) == 24


def test_padded_cells_never_answer():
    values = torch.tensor([[0.1, 0.9, 0.5]])
    valid = torch.tensor([[True, False, True]])
    assert top_k(values, 3, valid=valid) == [Match(0, 2, 0.5), Match(0, 0, pytest.approx(0.1))]
    assert top_k(torch.full((2, 2), torch.nan), 3) == []


def test_the_map_of_a_search_stays_as_it_was():
    values = torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
    before = values.clone()
    top_k(values, 3, exclude=(1, 1), radius=1, spacing=1)
    assert torch.equal(values, before)
