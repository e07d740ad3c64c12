"""Coded vectors keep their cosines, as slow loops over the same numbers measure them."""

import hashlib
import math

import numpy as np
import pytest
import torch

from core.dense import coding
from core.dense.coding import (
    ROTATION,
    cosine_error,
    decode,
    encode,
    principal_axes,
    rotate,
    rotate_back,
    rotation_for,
)

DIMS = [2, 6, 20, 48, 96, 384, 768, 1280]


def patches(*shape: int, seed: int = 0, outlier: float = 0.0) -> torch.Tensor:
    """Random features, one channel far larger than the others if asked."""
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    values[..., shape[-1] // 3] += outlier
    return values


# The rotation


def plain_rotation(dim: int) -> np.ndarray:
    """The rotation as a matrix, entry by entry from its description."""
    block = next(size for size in (1 << power for power in range(13, -1, -1)) if dim % size == 0)
    numbers = np.random.PCG64(0)
    matrix = np.eye(dim)
    for _ in range(2):
        signs = [-1.0 if int(number) >> 63 else 1.0 for number in numbers.random_raw(dim)]
        raw = [int(number) for number in numbers.random_raw(dim)]
        order = sorted(range(dim), key=lambda index: raw[index])
        mixed = np.zeros_like(matrix)
        for row in range(dim):
            for col in range(dim):
                if row // block == col // block:
                    sign = (-1) ** ((row % block) & (col % block)).bit_count()
                    mixed[:, col] += matrix[:, row] * signs[row] * sign / math.sqrt(block)
        matrix = mixed[:, order]
    return matrix


@pytest.mark.parametrize("dim", [1, 2, 5, 6, 20, 24])
def test_the_rotation_is_the_one_of_its_description(dim):
    ours = rotate(torch.eye(dim, dtype=torch.float64)).numpy()
    np.testing.assert_allclose(ours, plain_rotation(dim), atol=1e-14)


@pytest.mark.parametrize("dim", [1, 7, *DIMS])
def test_the_rotation_is_orthogonal(dim):
    matrix = rotate(torch.eye(dim, dtype=torch.float64))
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(dim, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("dim", [1, 7, *DIMS, 4096])
def test_turning_back_undoes_the_rotation(dim):
    vectors = patches(2, 3, dim)
    torch.testing.assert_close(rotate_back(rotate(vectors)), vectors, atol=1e-5, rtol=0)
    torch.testing.assert_close(rotate(rotate_back(vectors.double())), vectors.double(), atol=1e-13, rtol=0)


def test_large_blocks_are_mixed_as_small_ones(monkeypatch):
    """The widest models take the product apart; both ways are one matrix."""
    vectors = patches(3, 768).double()
    expected = rotate(vectors)
    monkeypatch.setattr(coding, "GEMM", 16)
    torch.testing.assert_close(rotate(vectors), expected, atol=1e-13, rtol=0)


def test_the_rotation_never_changes():
    """Files in the world depend on these bits: another rotation needs another name."""
    signs, orders = coding._rounds(384)
    content = b"".join(part.numpy().astype("<i8").tobytes() for part in (*signs, *orders))
    assert (ROTATION, hashlib.sha256(content).hexdigest()[:16]) == ("hadamard-0", "28d2d772cb09ed12")


def test_one_large_channel_is_spread_over_all():
    spike = torch.zeros(384)
    spike[100] = 1
    assert float(rotate(spike).abs().max()) < 0.25


def test_odd_widths_are_not_rotated():
    assert [rotation_for(dim) for dim in (1, 5, 385)] == [None] * 3
    assert {rotation_for(dim) for dim in (2, 6, 96, 384, 4096)} == {ROTATION}


# Codes


@pytest.mark.parametrize("dim", [1, 5, 6, 48])
def test_codes_are_those_of_a_plain_loop(dim):
    values = patches(3, 4, dim)
    coded = encode(values)
    turned = rotate(values) if rotation_for(dim) else values
    for row in range(3):
        for col in range(4):
            vector = turned[row, col].tolist()
            scale = max(map(abs, vector)) / 127
            assert float(coded.scales[row, col]) == pytest.approx(scale, rel=1e-6)
            assert coded.codes[row, col].tolist() == [round(value / float(coded.scales[row, col])) for value in vector]
            assert float(coded.norms[row, col]) == pytest.approx(math.hypot(*values[row, col].tolist()), rel=1e-6)


@pytest.mark.parametrize("dim", [5, *DIMS])
def test_decoded_vectors_are_within_half_a_step_a_channel(dim):
    values = patches(3, 4, dim, outlier=30)
    coded = encode(values)
    off = (decode(coded.codes, coded.scales, rotation_for(dim)) - values).norm(dim=-1)
    assert (off <= coded.scales * 0.5001 * math.sqrt(dim)).all()


def test_the_full_range_of_codes_is_used():
    codes = encode(patches(6, 6, 48)).codes
    assert (codes.abs().amax(dim=-1) == 127).all() and int(codes.min()) >= -127


def test_zero_and_short_and_long_vectors_are_coded():
    values = patches(1, 4, 8)
    values[0, 0] = 0
    values[0, 1] *= 1e-17
    values[0, 2] *= 1e17
    coded = encode(values)
    assert coded.codes[0, 0].tolist() == [0] * 8 and float(coded.scales[0, 0]) == 0 == float(coded.norms[0, 0])
    off = (decode(coded.codes, coded.scales, ROTATION) - values).norm(dim=-1)
    assert (off <= 0.02 * values.norm(dim=-1)).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3e38])
def test_vectors_that_are_not_finite_are_refused(bad):
    values = patches(2, 3, 8)
    values[1, 1] = bad
    with pytest.raises(ValueError, match="1 of 6 patches are not finite in fp32"):
        encode(values)


def test_coding_a_few_at_a_time_gives_the_same_codes(monkeypatch):
    values = patches(5, 7, 24)
    axes = principal_axes(values, 6)
    whole, cut = encode(values), encode(values, axes)
    monkeypatch.setattr(coding, "CHUNK", 8)
    for ours, expected in ((encode(values), whole), (encode(values, axes), cut)):
        for part, other in zip(ours, expected, strict=True):
            torch.testing.assert_close(part, other, rtol=1e-6, atol=1 if part.dtype == torch.int8 else 0)
    torch.testing.assert_close(principal_axes(values, 6).abs(), axes.abs(), atol=1e-5, rtol=0)


def test_other_precisions_and_views_are_coded_like_fp32():
    values = patches(8, 3, 4).permute(1, 2, 0)
    assert not values.is_contiguous()
    for given in (values, values.double(), values.half()):
        coded = encode(given)
        torch.testing.assert_close(coded.codes, encode(given.float().contiguous()).codes)
        assert coded.scales.dtype == coded.norms.dtype == torch.float32


# Errors


def plain_error(exact: torch.Tensor, coded: torch.Tensor, queries: range | list[int]) -> tuple[float, float]:
    left, right = (rows.reshape(-1, rows.shape[-1]).double().numpy() for rows in (exact, coded))
    gaps = []
    for query in queries:
        for other in range(len(left)):
            if other != query:
                cosines = [
                    float(rows[query] @ rows[other] / np.linalg.norm(rows[query]) / np.linalg.norm(rows[other]))
                    for rows in (left, right)
                ]
                gaps.append(abs(cosines[0] - cosines[1]))
    return max(gaps), sum(gaps) / len(gaps)


def test_the_error_of_all_pairs_is_that_of_a_plain_loop():
    values = patches(5, 6, 16)
    codes = encode(values).codes
    error = cosine_error(values, codes)
    assert (error.pairs, error.exact) == (30 * 29 // 2, True)
    worst, mean = plain_error(values, codes, range(30))
    assert error.cosine_max == pytest.approx(worst, abs=1e-6) and error.cosine_mean == pytest.approx(mean, abs=1e-6)


def test_beyond_the_bound_the_error_is_that_of_drawn_queries_with_all_others(monkeypatch):
    values = patches(5, 6, 16)
    codes = encode(values).codes
    monkeypatch.setattr(coding, "EXACT_PATCHES", 29)
    monkeypatch.setattr(coding, "QUERIES", 4)
    monkeypatch.setattr(coding, "CHUNK", 7)
    error = cosine_error(values, codes, seed=3)
    assert error == cosine_error(values, codes, seed=3)
    assert (error.pairs, error.exact) == (4 * 29, False)
    drawn = torch.randperm(30, generator=torch.Generator().manual_seed(3))[:4].tolist()
    worst, mean = plain_error(values, codes, drawn)
    assert error.cosine_max == pytest.approx(worst, abs=1e-6) and error.cosine_mean == pytest.approx(mean, abs=1e-6)


def test_the_error_against_itself_is_none():
    values = patches(4, 4, 8)
    assert cosine_error(values, values) == (0.0, 0.0, 120, True)
    assert cosine_error(values[:1, :1], values[:1, :1]) == (0.0, 0.0, 0, True)


def test_zero_vectors_count_as_orthogonal():
    values = patches(2, 2, 8)
    values[0, 0] = 0
    assert cosine_error(values, encode(values).codes).cosine_max < 0.02


def test_the_rotation_is_there_for_channels_that_stand_out():
    values = patches(20, 20, 384, outlier=25)
    coded = encode(values)
    scale = values.abs().amax(dim=-1, keepdim=True) / 127
    plain = (values / scale).round().to(torch.int8)
    assert 3 * cosine_error(values, coded.codes).cosine_max < cosine_error(values, plain).cosine_max


def test_principal_axes_keep_most_of_the_directions():
    values = patches(9, 9, 12) * torch.linspace(0.1, 3, 12) + torch.linspace(-1, 1, 12)
    axes = principal_axes(values, 4)
    torch.testing.assert_close(axes @ axes.T, torch.eye(4), atol=1e-5, rtol=0)
    unit = torch.nn.functional.normalize(values.reshape(-1, 12), dim=-1)
    best = torch.linalg.svdvals(unit.double())[:4].square().sum()
    assert float((unit @ axes.T).square().sum()) == pytest.approx(float(best), rel=1e-5)
    whole = principal_axes(values, 12)
    assert cosine_error(values, values @ whole.T).cosine_max < 1e-6  # nothing cut, nothing lost
