"""The part of a map that depends on the place alone."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from core.dense.extract import extract
from core.dense.inputs import picture_geometry
from core.dense.position import empty_pictures, position_basis, without
from core.models import build_backbone
from core.models.weights import load_backbone
from workbench.images import list_samples, open_image


def place_only(patch: int = 8) -> nn.Module:
    """A backbone whose features are its positions: learned ones, and nothing of the picture."""
    torch.manual_seed(0)
    model = build_backbone("dinov2_small", depth=1, embed_dim=32, num_heads=2, patch_size=patch, pos_grid=6)
    with torch.no_grad():
        model.patch_embed.proj.weight.zero_()
        model.pos_embed.normal_()
        for block in model.blocks:
            block.ls1.gamma.zero_()
            block.ls2.gamma.zero_()
    return model.eval()


def noise_picture(seed: int, side: int = 96) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def test_features_of_positions_alone_are_taken_out_whole():
    model, picture = place_only(), noise_picture(5)
    features = extract(model, picture)
    basis = position_basis(model, features.geometry, rank=31)
    rest, share = without(features.patches, basis)
    assert share > 0.99
    spread = (rest - rest.mean((0, 1))).square().sum() / (
        features.patches - features.patches.mean((0, 1))
    ).square().sum()
    assert float(spread) == pytest.approx(1 - share, abs=1e-6)


def test_of_random_features_no_more_is_taken_than_chance():
    draw = torch.Generator().manual_seed(0)
    dim, rank = 384, 8
    basis = torch.linalg.qr(torch.randn(dim, rank, generator=draw))[0].T
    shares = [without(torch.randn(24, 24, dim, generator=draw), basis)[1] for _ in range(40)]
    chance = rank / dim
    sigma = math.sqrt(2 * rank / (dim * (dim + 2) * 24 * 24)) * math.sqrt(1 - rank / dim)
    assert all(share < chance + 3 * max(sigma, np.std(shares)) for share in shares)
    assert np.mean(shares) == pytest.approx(chance, rel=0.05)


def test_the_directions_are_orthonormal_and_come_from_nothing(tmp_path):
    model = load_backbone("dinov2_vits14_saliency")
    picture = open_image(list_samples()[0].path)
    geometry = picture_geometry(model, picture, size=196)
    basis = position_basis(model, geometry, rank=4, noises=1)
    assert torch.allclose(basis @ basis.T, torch.eye(4), atol=1e-5)
    features = extract(model, picture, geometry=geometry)
    rest, share = without(features.patches, basis, features.valid)
    assert 0 < share < 0.9
    again, nothing = without(rest, basis, features.valid)
    assert nothing < 1e-6 and torch.allclose(again, rest, atol=1e-3)
    assert torch.allclose(rest[features.valid].mean(0), features.patches[features.valid].mean(0), atol=1e-4)


def test_empty_pictures_are_grey_and_noise_and_always_the_same():
    model = place_only()
    first, second = (list(empty_pictures(model, 20, 10, 2, 0)) for _ in range(2))
    assert [picture.shape for picture in first] == [(10, 20, 3)] * 3
    assert all((a == b).all() for a, b in zip(first, second, strict=True))
    assert len(np.unique(first[0].reshape(-1, 3), axis=0)) == 1 and first[1].std() > 60
    assert (first[1] != first[2]).any()


def test_a_constant_map_has_no_share():
    constant, basis = torch.ones(3, 3, 4), torch.eye(4)[:2]
    rest, share = without(constant, basis)
    assert share == 0 and torch.equal(rest, constant)


def test_no_directions_are_refused():
    model = place_only()
    with pytest.raises(ValueError, match="at least 1"):
        position_basis(model, picture_geometry(model, noise_picture(0)), rank=0)


def test_the_mean_stays_where_it_was():
    draw = torch.Generator().manual_seed(1)
    patches: Tensor = torch.randn(5, 4, 16, generator=draw) + 3
    rest, _ = without(patches, torch.linalg.qr(torch.randn(16, 3, generator=draw))[0].T)
    assert torch.allclose(rest.mean((0, 1)), patches.mean((0, 1)), atol=1e-5)
