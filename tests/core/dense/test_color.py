"""Colour bases agree with scikit-learn's PCA and SciPy's Procrustes, and keep their promises of stability."""

import colorsys
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from sklearn.decomposition import PCA

from core.dense.color import (
    ColorBasis,
    align,
    fit_basis,
    foreground,
    load_basis,
    otsu_threshold,
    project,
    save_basis,
    shared_limits,
    to_rgb,
)


def scene(rows: int = 12, cols: int = 17, dim: int = 24, seed: int = 0) -> torch.Tensor:
    """Smooth features along a few directions of unequal strength, away from the origin, with some noise."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.linspace(0, 1, rows), torch.linspace(0, 1, cols), indexing="ij")
    waves = torch.stack([torch.sin(5 * x + y), torch.cos(7 * y - 2 * x), torch.sin(9 * x * y), x - y], dim=-1)
    directions = torch.linalg.qr(torch.randn(dim, 4, generator=generator)).Q.T
    strengths = torch.tensor([6.0, 3.5, 2.0, 1.0])
    noise = torch.randn(rows, cols, dim, generator=generator)
    return 3 * torch.randn(dim, generator=generator) + (waves * strengths) @ directions + 0.1 * noise


def shuffled(patches: torch.Tensor, seed: int = 0) -> torch.Tensor:
    rows = patches.reshape(-1, patches.shape[-1])
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]


def difference(a: torch.Tensor, b: torch.Tensor) -> int:
    return int((a.int() - b.int()).abs().max())


# ---------------------------------------------------------------------------------------------- fit


def test_basis_agrees_with_scikit_learn():
    patches = scene()
    rows = patches.reshape(-1, 24).double().numpy()
    pca = PCA(n_components=3, svd_solver="full").fit(rows)
    basis = fit_basis(patches)
    np.testing.assert_allclose(basis.mean.numpy(), pca.mean_, atol=1e-6)
    np.testing.assert_allclose(basis.explained.numpy(), pca.explained_variance_ratio_, rtol=1e-6)
    np.testing.assert_allclose(np.abs((basis.axes.numpy() * pca.components_).sum(axis=1)), 1, atol=1e-6)
    signs = np.sign((basis.axes.numpy() * pca.components_).sum(axis=1))
    scores = pca.transform(rows) * signs
    np.testing.assert_allclose(project(basis, patches).reshape(-1, 3).numpy(), scores, atol=1e-5)
    np.testing.assert_allclose(basis.low.numpy(), np.percentile(scores, 1, axis=0), atol=1e-5)
    np.testing.assert_allclose(basis.high.numpy(), np.percentile(scores, 99, axis=0), atol=1e-5)


def test_axes_point_the_way_of_their_largest_loading():
    for seed in range(5):
        axes = fit_basis(scene(seed=seed)).axes
        assert (axes.gather(1, axes.abs().argmax(dim=1, keepdim=True)) > 0).all()


@pytest.mark.parametrize("seed", range(4))
def test_the_order_of_patches_moves_no_colour_by_more_than_a_step(seed):
    patches = scene(30, 30, 64, seed=seed)
    one = to_rgb(fit_basis(patches), patches)
    other = to_rgb(fit_basis(shuffled(patches, seed)), patches)
    assert difference(one, other) <= 1


def test_several_maps_with_masks_are_one_list_of_patches():
    maps = [scene(6, 7, seed=1), scene(9, 4, seed=2), scene(1, 5, seed=3)]
    generator = torch.Generator().manual_seed(0)
    valid = [torch.rand(m.shape[:2], generator=generator) > 0.2 for m in maps]
    front = [torch.rand(m.shape[:2], generator=generator) > 0.3 for m in maps]
    rows = torch.cat([m[v & f] for m, v, f in zip(maps, valid, front, strict=True)])
    joint, plain = fit_basis(maps, valid=valid, foreground=front), fit_basis(rows)
    for name in ("mean", "axes", "low", "high", "explained"):
        torch.testing.assert_close(getattr(joint, name), getattr(plain, name), atol=1e-6, rtol=0)
    assert joint.source == plain.source


def test_padded_patches_do_not_enter_the_basis():
    patches, valid = scene(), torch.ones(12, 17, dtype=torch.bool)
    valid[-1] = False
    spoiled = patches.clone()
    spoiled[-1] = 1e4
    assert torch.equal(fit_basis(spoiled, valid=valid).axes, fit_basis(patches[:-1]).axes)


def test_the_source_names_the_features():
    patches = scene()
    changed = patches.clone()
    changed[0, 0, 0] += 1e-3
    assert fit_basis(patches).source == fit_basis(patches.clone()).source
    assert fit_basis(patches).source != fit_basis(changed).source
    assert fit_basis(patches).source.startswith("sha256:")


def test_half_precision_features_are_fitted_in_full():
    patches = scene().half()
    assert torch.equal(fit_basis(patches).axes, fit_basis(patches.float()).axes)
    assert project(fit_basis(patches), patches).dtype == torch.float32


@pytest.mark.parametrize(
    ("patches", "masks", "message"),
    [
        (torch.zeros(1, 5), {}, "at least two patches, got 1"),
        (torch.zeros(4, 2), {}, "at least 3 channels"),
        (torch.full((4, 5), torch.nan), {}, "NaN or infinity"),
        (torch.zeros(4, 5), {"valid": torch.zeros(4, dtype=torch.bool)}, "got 0; check the valid"),
        ([torch.zeros(4, 5)], {"valid": [torch.ones(3, dtype=torch.bool)]}, "one mask per map"),
    ],
)
def test_features_that_carry_no_basis_are_refused(patches, masks, message):
    with pytest.raises(ValueError, match=message):
        fit_basis(patches, **masks)


def test_maps_of_two_widths_share_no_basis():
    with pytest.raises((ValueError, TypeError)):  # a type error where annotations are checked
        fit_basis([torch.zeros(4, 5), torch.zeros(4, 6)])


# ---------------------------------------------------------------------------------------------- colours


def test_colours_run_between_the_percentiles_of_the_fitted_patches():
    patches = scene(60, 60)
    basis = fit_basis(patches)
    rgb = to_rgb(basis, patches)
    share = (project(basis, patches).double() - basis.low) / (basis.high - basis.low)
    np.testing.assert_array_equal(rgb.numpy(), np.round(255 * share.clamp(0, 1).numpy()).astype(np.uint8))
    for channel in range(3):
        below = (share[..., channel] < 0).double().mean().item()
        above = (share[..., channel] > 1).double().mean().item()
        assert below == pytest.approx(0.01, abs=1 / 3600) and above == pytest.approx(0.01, abs=1 / 3600)


def test_colours_are_not_stretched_per_picture():
    patches = scene()
    basis = fit_basis(patches)
    faded = basis.mean + 0.1 * (patches - basis.mean)
    spans = [to_rgb(basis, p).flatten(0, 1).int().aminmax(dim=0) for p in (patches, faded)]
    full, small = (span.max - span.min for span in spans)
    assert (full == 255).all() and (small < 50).all()


def test_padded_cells_are_black():
    patches, valid = scene(), torch.ones(12, 17, dtype=torch.bool)
    valid[:, -2:] = False
    basis = fit_basis(patches, valid=valid)
    rgb = to_rgb(basis, patches, valid=valid)
    assert (rgb[:, -2:] == 0).all()
    assert torch.equal(rgb[:, :-2], to_rgb(basis, patches)[:, :-2])


@pytest.mark.parametrize("rounding", [0.0, 1e-7])
def test_a_collapsed_map_is_grey_not_rainbow(rounding):
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(16, generator=generator).expand(8, 9, 16)
    patches = patches + rounding * torch.randn(8, 9, 16, generator=generator)
    basis = fit_basis(patches)
    assert (to_rgb(basis, patches) == 128).all()
    assert torch.equal(basis.low, basis.high)


def test_axes_that_are_missing_stay_grey():
    line = torch.linspace(-1, 1, 50)[:, None] * torch.tensor([[2.0, 1.0, 0.0, 0.0]]) + torch.tensor([5.0, 0, 0, 1])
    basis = fit_basis(line)
    torch.testing.assert_close(basis.explained, torch.tensor([1.0, 0.0, 0.0]), atol=1e-6, rtol=0)
    assert (to_rgb(basis, line[None])[..., 1:] == 128).all()


def hues(rgb: torch.Tensor) -> np.ndarray:
    """Hue in degrees of every pixel, NaN where it is too grey to have one."""
    values = [colorsys.rgb_to_hsv(*pixel) for pixel in (rgb.flatten(0, 1).double() / 255).tolist()]
    return np.array([360 * hue if saturation > 0.2 else math.nan for hue, saturation, _ in values])


def mean_hue_change(frames: list[torch.Tensor]) -> float:
    turns = [hues(frame) for frame in frames]
    change = np.abs((np.diff(np.stack(turns), axis=0) + 180) % 360 - 180)
    return float(np.nanmean(change))


def test_a_clip_on_one_basis_has_no_hue_flips_where_a_basis_per_frame_has():
    generator = torch.Generator().manual_seed(0)
    still, dim = scene(10, 14, 16), 16
    visitor = 4 * torch.randn(dim, generator=generator)
    frames = []
    for step in range(90):  # something walks through; the other patches only carry noise
        frame = still + 0.02 * torch.randn(10, 14, dim, generator=generator)
        frame[4:, max(0, step - 70) % 14 : max(0, step - 70) % 14 + 4] = visitor
        frames.append(frame)
    basis = fit_basis(frames[0])
    locked = [to_rgb(basis, frame)[:4] for frame in frames]  # the rows that nobody walks through
    loose = [to_rgb(fit_basis(frame), frame)[:4] for frame in frames]
    assert mean_hue_change(locked) < 2
    assert mean_hue_change(loose) > mean_hue_change(locked)


def test_features_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"24 channels.*16"):
        project(fit_basis(scene()), scene(dim=16))


# ---------------------------------------------------------------------------------------------- foreground


def with_object(mask: torch.Tensor, contrast: float, dim: int = 16, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    ground, thing = torch.randn(2, dim, generator=generator)
    patches = torch.where(mask[..., None], ground + contrast * thing, ground)
    return patches + 0.3 * torch.randn(*mask.shape, dim, generator=generator)


@pytest.mark.parametrize("contrast", [3.0, -3.0])
@pytest.mark.parametrize(
    "box",
    [(3, 9, 4, 12), (1, 11, 1, 15), (6, 12, 5, 9), (0, 6, 0, 5)],
    ids=["middle", "large", "standing", "corner"],
)
def test_the_object_is_found_whatever_the_sign(box, contrast):
    mask = torch.zeros(12, 17, dtype=torch.bool)
    mask[box[0] : box[1], box[2] : box[3]] = True
    patches = with_object(mask, contrast)
    assert torch.equal(foreground(patches), mask)
    flipped = fit_basis(patches)
    flipped = replace(flipped, axes=-flipped.axes, low=-flipped.high, high=-flipped.low)
    assert torch.equal(foreground(patches, basis=flipped), mask)


def test_a_basis_of_another_picture_serves_for_the_foreground():
    masks = [torch.zeros(12, 17, dtype=torch.bool) for _ in range(2)]
    masks[0][3:9, 3:9] = True
    masks[1][5:11, 8:14] = True
    first, second = (with_object(mask, 3.0) for mask in masks)
    assert torch.equal(foreground(second, basis=fit_basis(first)), masks[1])


def test_padding_is_neither_object_nor_frame():
    mask, valid = torch.zeros(12, 17, dtype=torch.bool), torch.ones(12, 17, dtype=torch.bool)
    mask[3:9, 4:12] = True
    valid[-2:] = valid[:, -3:] = False
    patches = with_object(mask, 3.0)
    patches[~valid] = 50.0
    assert torch.equal(foreground(patches, valid=valid), mask)


def test_the_frame_of_a_round_picture_is_its_outermost_valid_cells():
    y, x = torch.meshgrid(torch.arange(15) - 7, torch.arange(15) - 7, indexing="ij")
    valid, mask = y**2 + x**2 <= 50, y**2 + x**2 <= 9
    patches = with_object(mask, -3.0)
    basis = fit_basis(patches, valid=valid)
    above = project(basis, patches)[..., 0] > 0
    if not (above & valid & ~mask).any():  # the hard sign: background above the threshold
        basis = replace(basis, axes=-basis.axes, low=-basis.high, high=-basis.low)
    assert torch.equal(foreground(patches, basis=basis, valid=valid), mask)


def test_without_contrast_there_is_no_foreground():
    flat = torch.ones(5, 6, 8) + 1e-8 * torch.randn(5, 6, 8, generator=torch.Generator().manual_seed(0))
    assert not foreground(flat).any()
    assert not foreground(flat, basis=fit_basis(scene(dim=8))).any()
    with pytest.raises(ValueError, match="at least one valid patch"):
        foreground(flat, valid=torch.zeros(5, 6, dtype=torch.bool))


def slow_otsu(values: np.ndarray) -> tuple[float, float]:
    """The gap between neighbouring values that leaves the least variance within the two sides."""
    ordered = np.unique(values)
    best = min(
        range(len(ordered) - 1),
        key=lambda i: sum(
            len(side) * side.var() for side in (values[values <= ordered[i]], values[values > ordered[i]])
        ),
    )
    return ordered[best], ordered[best + 1]


@pytest.mark.parametrize("seed", range(6))
def test_otsu_agrees_with_trying_every_cut(seed):
    random = np.random.default_rng(seed)
    values = np.concatenate([random.normal(0, 1, 60), random.normal(4, 0.5, 25)]).round(1)
    low, high = slow_otsu(values)
    threshold = otsu_threshold(torch.from_numpy(values))
    assert threshold == pytest.approx((low + high) / 2)


def test_otsu_has_no_cut_for_equal_values():
    assert otsu_threshold(torch.full((5,), 2.0)) is None
    assert otsu_threshold(torch.tensor([1.0])) is None
    assert otsu_threshold(torch.tensor([1.0, 3.0])) == 2.0


# ---------------------------------------------------------------------------------------------- several bases


def rotated_network(patches: torch.Tensor, scale: float = 0.2, seed: int = 5) -> torch.Tensor:
    """The same features as another network might give them: turned, mirrored, scaled and shifted."""
    dim = patches.shape[-1]
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(dim + 8, dim, generator=generator)).Q.T
    return scale * patches @ turn + torch.randn(dim + 8, generator=generator)


def test_alignment_undoes_what_another_network_did_to_the_same_features():
    patches = scene()
    other = rotated_network(patches)
    reference, basis = fit_basis(patches), fit_basis(other)
    basis = replace(  # and an order and signs that nobody would choose
        basis,
        axes=basis.axes[[2, 0, 1]] * torch.tensor([[-1.0], [1.0], [-1.0]]),
        explained=basis.explained[[2, 0, 1]],
    )
    aligned, residual = align(basis, other, reference, patches)
    assert residual < 1e-4
    assert difference(to_rgb(aligned, other), to_rgb(reference, patches)) <= 1
    torch.testing.assert_close(aligned.explained, reference.explained, atol=1e-5, rtol=0)


def test_alignment_is_the_orthogonal_procrustes_rotation():
    patches = scene()
    other = rotated_network(patches) + 0.2 * torch.randn(12, 17, 32, generator=torch.Generator().manual_seed(1))
    reference, basis = fit_basis(patches), fit_basis(other)
    aligned, residual = align(basis, other, reference, patches)
    mine, theirs = (project(b, p).reshape(-1, 3).double().numpy() for b, p in ((basis, other), (reference, patches)))
    mine, theirs = mine - mine.mean(axis=0), theirs - theirs.mean(axis=0)
    rotation, _ = orthogonal_procrustes(mine, theirs)
    np.testing.assert_allclose(aligned.axes.numpy(), rotation.T @ basis.axes.numpy(), atol=1e-5)
    turned = mine @ rotation
    scale = (turned * theirs).sum() / (turned**2).sum()
    missed = np.linalg.norm(scale * turned - theirs) / np.linalg.norm(theirs)
    assert residual == pytest.approx(missed, abs=1e-5) and 0.02 < residual < 0.9
    gram = aligned.axes @ aligned.axes.T
    torch.testing.assert_close(gram, torch.eye(3), atol=1e-5, rtol=0)
    assert aligned.explained.sum().item() == pytest.approx(basis.explained.sum().item(), abs=1e-6)
    again, same = align(aligned, other, reference, patches)
    torch.testing.assert_close(again.axes, aligned.axes, atol=1e-5, rtol=0)
    assert same == pytest.approx(residual, abs=1e-6)


def test_alignment_looks_at_valid_patches_only():
    patches, valid = scene(), torch.ones(12, 17, dtype=torch.bool)
    valid[-1] = False
    other = rotated_network(patches)
    reference, basis = fit_basis(patches, valid=valid), fit_basis(other, valid=valid)
    other[-1] = 100.0
    assert align(basis, other, reference, patches, valid=valid).residual < 1e-4
    assert align(basis, other, reference, patches).residual > 0.1


def test_unrelated_features_leave_almost_everything_over():
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 3000, 8, generator=generator)
    assert align(fit_basis(one), one, fit_basis(other), other).residual > 0.98


def test_a_collapsed_map_aligns_with_nothing_and_nothing_aligns_with_it():
    patches, flat = scene(), torch.ones(12, 17, 24)
    noisy = flat + 1e-7 * torch.randn(12, 17, 24, generator=torch.Generator().manual_seed(0))
    for collapsed in (flat, noisy):
        basis = fit_basis(collapsed)
        aligned, residual = align(basis, collapsed, fit_basis(patches), patches)
        assert residual > 0.9 and (to_rgb(aligned, collapsed) == 128).all()
    with pytest.raises(ValueError, match="patches that differ"):
        align(fit_basis(patches), patches, basis, flat)
    with pytest.raises(ValueError, match="at least two, got 0"):
        align(basis, flat, basis, flat, valid=torch.zeros(12, 17, dtype=torch.bool))


def test_shared_limits_show_the_weaker_picture_as_weaker():
    strong = scene()
    weak = strong.mean(dim=(0, 1)) + 0.2 * (strong - strong.mean(dim=(0, 1)))
    own = [fit_basis(strong), fit_basis(weak)]
    assert difference(to_rgb(own[0], strong), to_rgb(own[1], weak)) <= 1
    common = shared_limits(own)
    assert all(torch.equal(basis.low, own[0].low) and torch.equal(basis.high, own[0].high) for basis in common)
    span = to_rgb(common[1], weak).flatten(0, 1).int().aminmax(dim=0)
    assert (span.max - span.min < 100).all()
    with pytest.raises(ValueError, match="at least one basis"):
        shared_limits([])


def test_a_basis_survives_its_file(tmp_path):
    patches = scene()
    basis = fit_basis(patches)
    save_basis(basis, tmp_path / "basis.npz")
    loaded = load_basis(tmp_path / "basis.npz")
    assert loaded.source == basis.source
    for name in ("mean", "axes", "low", "high", "explained"):
        assert torch.equal(getattr(loaded, name), getattr(basis, name))
    assert torch.equal(to_rgb(loaded, patches), to_rgb(basis, patches))


def test_files_and_parts_that_are_no_basis_are_refused(tmp_path):
    np.savez(tmp_path / "other.npz", mean=np.zeros(4), colour=np.zeros(3))
    with pytest.raises(ValueError, match=r"has the fields axes.*got colour, mean"):
        load_basis(tmp_path / "other.npz")
    record = fit_basis(scene()).to_dict()
    with pytest.raises(ValueError, match="exceeds high"):
        ColorBasis.from_dict({**record, "low": record["high"], "high": record["low"]})
    with pytest.raises(ValueError, match="NaN or infinity"):
        ColorBasis.from_dict({**record, "low": np.full(3, np.nan)})
    with pytest.raises((ValueError, TypeError)):  # a type error where annotations are checked
        ColorBasis.from_dict({**record, "axes": record["axes"][:2]})
