"""Extraction agrees with the plain backbone on inputs prepared by slow loops, and tiles with slow loops over tiles."""

import dataclasses
import gc
import itertools
import math
import subprocess
import sys
import weakref
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

import core.dense.extract
from core.dense.extract import (
    EXACT_PATCHES,
    TILE,
    DenseFeatures,
    Glimpse,
    extract,
    extract_batch,
    extract_many,
    extract_tiles,
    tile_spans,
)
from core.dense.geometry import Geometry, patch_to_polygon
from core.dense.inputs import cell_size, layer_index, model_input, picture_geometry, resized
from core.models import BACKBONES, Backbone, build_backbone
from core.models.vit import VisionTransformer
from core.models.weights import SATELLITE_MEAN, SATELLITE_STD, load_backbone
from workbench.images import open_image

ROOT = Path(__file__).parents[3]
SLIM = {"depths": (1, 1, 2, 1), "dims": (16, 24, 32, 48)}  # of a ConvNeXt, where only its shapes matter


def randomised(name: str, **arguments) -> Backbone:
    """A backbone whose every part has a say: fresh ones hardly leave the identity."""
    torch.manual_seed(0)
    backbone = build_backbone(name, **arguments)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return backbone.eval()


@pytest.fixture(scope="module")
def backbones() -> dict[str, Backbone]:
    """The real default, a ViT with registers, a ConvNeXt, and slim ones with and without cells of their own size."""
    return {
        "saliency": load_backbone("dinov2_vits14_saliency"),
        "nano": randomised("vit_nano", untie_cls_and_patch_norms=True),
        "convnext": randomised("convnext_tiny"),
        "slim": randomised("convnext_tiny", **SLIM),
        "slim_cells": randomised("convnext_tiny", **SLIM, patch_size=16),
    }


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(width: int, height: int, seed: int = 0) -> np.ndarray:
    """A picture of soft blobs, more like a photograph than noise is."""
    small = Image.fromarray(noise(max(2, width // 20), max(2, height // 20), seed))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


# What the backbone is shown, by slow ways


def slowly_padded(pixels: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The border pixel repeated, one pixel at a time."""
    height, width = pixels.shape[:2]
    canvas = np.zeros((geometry.padded_height, geometry.padded_width, 3), pixels.dtype)
    for y in range(geometry.padded_height):
        for x in range(geometry.padded_width):
            row = min(max(y - geometry.pad[1], 0), height - 1)
            col = min(max(x - geometry.pad[0], 0), width - 1)
            canvas[y, x] = pixels[row, col]
    return canvas


def slowly_normalised(pixels: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    planes = [(pixels[..., channel] / 255.0 - mean[channel]) / std[channel] for channel in range(3)]
    return torch.from_numpy(np.stack(planes)).float()


def triangle_resized(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Bilinear with antialiasing in floats: weights are a triangle as wide as one new pixel, two at least."""

    def weights(old: int, new: int) -> np.ndarray:
        matrix = np.zeros((new, old))
        scale = old / new
        for row in range(new):
            for col in range(old):
                distance = abs(col + 0.5 - (row + 0.5) * scale) / max(scale, 1.0)
                matrix[row, col] = max(0.0, 1.0 - distance)
            matrix[row] /= matrix[row].sum()
        return matrix

    across = np.einsum("xw,hwc->hxc", weights(pixels.shape[1], width), pixels.astype(np.float64))
    return np.einsum("yh,hxc->yxc", weights(pixels.shape[0], height), across)


def planes_last(planes: Tensor) -> np.ndarray:
    return planes.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("size", [16, 48, 96, 112, 320])
@pytest.mark.parametrize(("width", "height"), [(97, 61), (60, 101)])
def test_resizing_is_antialiased_bilinear_and_as_exact_as_pillows(size, width, height):
    picture = noise(width, height)
    geometry = picture_geometry(build_backbone("vit_nano", depth=1), picture, size=size)
    ours = planes_last(resized(picture, geometry))
    inside = ours[: geometry.input_height, : geometry.input_width]
    expected = triangle_resized(picture, geometry.input_width, geometry.input_height)
    assert np.abs(inside - expected).max() <= 1.01  # half a level from each of two roundings
    pillow = Image.fromarray(picture).resize((geometry.input_width, geometry.input_height), Image.Resampling.BILINEAR)
    off, pillow_off = (np.abs(values - expected).mean() for values in (inside, np.asarray(pillow)))
    assert abs(off - pillow_off) < 2e-3
    assert np.mean(inside != np.asarray(pillow)) < 0.05
    np.testing.assert_array_equal(ours, slowly_padded(inside, geometry))


def test_padding_repeats_the_border_on_all_four_sides():
    picture = noise(20, 9)
    geometry = Geometry(
        stored_width=20,
        stored_height=9,
        crop=(1, 2, 19, 8),
        input_width=18,
        input_height=6,
        pad=(5, 7, 9, 3),
        patch_size=16,
    )
    np.testing.assert_array_equal(planes_last(resized(picture, geometry)), slowly_padded(picture[2:8, 1:19], geometry))


@pytest.mark.parametrize("pixels", [None, (SATELLITE_MEAN, SATELLITE_STD)])
def test_pixels_are_normalised_as_the_weights_were_trained(pixels):
    backbone = randomised("vit_nano", depth=1)
    mean, std = pixels or ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    if pixels:
        backbone.pixel_mean, backbone.pixel_std = pixels
    picture = noise(50, 33)
    geometry = picture_geometry(backbone, picture)
    expected = slowly_normalised(slowly_padded(picture, geometry), mean, std)
    torch.testing.assert_close(model_input(backbone, picture, geometry), expected, atol=1e-6, rtol=1e-6)
    with torch.no_grad():
        ours, plain = extract(backbone, picture), backbone.forward_features(expected[None])
    torch.testing.assert_close(ours.patches.flatten(0, 1), plain["x_norm_patchtokens"][0], atol=1e-5, rtol=1e-5)


# An exact pass


@torch.no_grad()
def plain_layers(
    backbone: Backbone, shown: Tensor, norm: bool = True, layer: int | None = None
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Patches (H, W, D), CLS and registers of one or all layers as the backbone's own interface gives them."""
    layers = backbone.get_intermediate_layers(
        shown[None],
        n=range(backbone.depth) if layer is None else [layer],
        reshape=True,
        return_class_token=True,
        return_extra_tokens=True,
        norm=norm,
    )
    return [(maps[0].permute(1, 2, 0), cls[0], registers[0]) for maps, cls, registers in layers]


def assert_same_features(ours: DenseFeatures, expected: tuple[Tensor, Tensor, Tensor]) -> None:
    """To 1e-5 of the largest feature."""
    for name, tensor, wanted in zip(
        ("patches", "cls", "registers"), (ours.patches, ours.cls, ours.registers), expected, strict=True
    ):
        assert tensor.shape == wanted.shape, name
        scale = float(wanted.abs().max()) if wanted.numel() else 1.0
        torch.testing.assert_close(
            tensor, wanted, atol=1e-5 * max(scale, 1.0), rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("name", ["saliency", "nano", "convnext", "slim_cells"])
def test_every_layer_is_the_plain_backbones(backbones, name, norm):
    backbone, picture = backbones[name], smooth(61, 39)
    geometry = picture_geometry(backbone, picture)
    shown = slowly_normalised(slowly_padded(picture, geometry), backbone.pixel_mean, backbone.pixel_std)
    for layer, expected in enumerate(plain_layers(backbone, shown, norm)):
        ours = extract(backbone, picture, layer=layer - backbone.depth if layer % 2 else layer, norm=norm)
        assert_same_features(ours, expected)
        assert ours.patches.shape[:2] == (ours.geometry.rows, ours.geometry.cols)
        assert (ours.layer, ours.norm, ours.seam) == (layer, norm, None)


@pytest.mark.parametrize("name", ["saliency", "nano", "convnext"])
@torch.no_grad()
def test_the_default_is_what_forward_features_returns(backbones, name):
    backbone, picture = backbones[name], smooth(75, 120, seed=3)
    ours = extract(backbone, picture)
    shown = slowly_normalised(slowly_padded(picture, ours.geometry), backbone.pixel_mean, backbone.pixel_std)
    plain = backbone.forward_features(shown[None])
    grid = (ours.geometry.rows, ours.geometry.cols)
    expected = plain["x_norm_patchtokens"][0].unflatten(0, grid), plain["x_norm_clstoken"][0]
    assert_same_features(ours, (*expected, plain["x_storage_tokens"][0]))


@torch.no_grad()
def test_a_photograph_resized_by_pillow_gives_the_same_map(backbones):
    """The whole chain against another resizer: one grey level here and there must not be seen."""
    backbone = backbones["saliency"]
    with Image.open(ROOT / "workbench" / "samples" / "cat_chelsea.jpg") as image:
        ours = extract(backbone, image, size=224)
        small = np.asarray(image.resize((224, 149), Image.Resampling.BILINEAR))
    assert (ours.geometry.input_width, ours.geometry.input_height) == (224, 149)
    shown = slowly_normalised(slowly_padded(small, ours.geometry), backbone.pixel_mean, backbone.pixel_std)
    patches, cls, _ = plain_layers(backbone, shown)[-1]
    assert torch.cosine_similarity(ours.patches, patches, dim=-1).min() > 0.9995
    assert torch.cosine_similarity(ours.cls, cls, dim=0) > 0.9999


def test_results_are_plain_tensors_of_their_own():
    backbone = randomised("vit_nano", depth=2)
    features = extract(backbone, noise(64, 48))
    for tensor in (features.patches, features.cls, features.registers):
        assert not tensor.is_inference() and tensor.is_contiguous() and tensor.dtype == torch.float32
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
    weight = torch.ones(features.cls.shape, requires_grad=True)
    (features.patches @ weight).sum().backward()  # a probe can be trained on them
    torch.testing.assert_close(weight.grad, features.patches.sum((0, 1)))


def test_half_precision_weights_give_fp32_features():
    backbone = randomised("vit_nano", depth=2)
    picture = smooth(64, 48)
    exact = extract(backbone, picture)
    half = extract(backbone.bfloat16(), picture)
    assert half.patches.dtype == half.cls.dtype == half.registers.dtype == torch.float32
    assert torch.cosine_similarity(half.patches, exact.patches, dim=-1).min() > 0.99


def test_a_backbone_in_training_is_seen_as_in_evaluation_and_left_in_training():
    backbone = randomised("vit_nano", drop_path=0.9, rope_rescale=2.0)
    picture = noise(64, 48)
    expected = extract(backbone, picture).patches
    backbone.train()
    torch.testing.assert_close(extract(backbone, picture).patches, expected, atol=0, rtol=0)
    extract(backbone, picture, tile=32)
    assert all(module.training for module in backbone.modules())
    assert all(parameter.grad is None for parameter in backbone.parameters())


# Orientation and kinds of pictures

STORED = {  # how a file with this EXIF code keeps an upright picture
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}


def saved(path: Path, stored: np.ndarray, orientation: int) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_files_give_the_features_of_the_upright_picture(tmp_path, backbones, orientation):
    backbone, upright = backbones["nano"], smooth(90, 50)
    file = saved(tmp_path / "turned.png", STORED[orientation](upright), orientation)
    expected = extract(backbone, upright, size=64)
    with Image.open(file) as image:
        features = extract(backbone, image, size=64)
        assert (features.geometry.stored_width, features.geometry.stored_height) == image.size
    photo = extract(backbone, open_image(file), size=64)
    for turned in (features, photo):
        torch.testing.assert_close(turned.patches, expected.patches, atol=0, rtol=0)
        torch.testing.assert_close(turned.cls, expected.cls, atol=0, rtol=0)
        assert turned.geometry.orientation == orientation
        assert (turned.geometry.width, turned.geometry.height) == (90, 50)
    assert photo.geometry == features.geometry
    upright_again = dataclasses.replace(features.geometry, orientation=1, stored_width=90, stored_height=50)
    assert upright_again == expected.geometry


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_tiff_files_which_pillow_turns_itself_are_not_turned_twice(tmp_path, backbones, orientation):
    backbone, upright = backbones["nano"], smooth(90, 50)
    file = saved(tmp_path / "turned.tiff", STORED[orientation](upright), orientation)
    expected = extract(backbone, upright)
    for loaded in (False, True):
        with Image.open(file) as image:
            if loaded:
                image.load()
            features = extract(backbone, image)
        torch.testing.assert_close(features.patches, expected.patches, atol=0, rtol=0)
        assert (features.geometry.width, features.geometry.height) == (90, 50)


@pytest.mark.parametrize("code", [0, 9])
def test_an_undefined_orientation_leaves_the_picture_as_stored(tmp_path, code):
    backbone, picture = randomised("vit_nano", depth=1), noise(40, 30)
    with Image.open(saved(tmp_path / "odd.png", picture, code)) as image:
        features = extract(backbone, image)
    torch.testing.assert_close(features.patches, extract(backbone, picture).patches, atol=0, rtol=0)
    assert features.geometry.orientation == 1


def test_read_only_arrays_stay_as_they_are():
    picture = noise(40, 30)
    picture.flags.writeable = False
    before = picture.copy()
    extract(randomised("vit_nano", depth=1), picture)
    np.testing.assert_array_equal(picture, before)


@pytest.mark.parametrize(
    "values", [noise(8, 8).astype(np.float32) / 255, noise(8, 8)[..., 0], np.zeros((8, 8, 4), np.uint8)]
)
def test_arrays_that_are_no_pictures_are_refused(monkeypatch, values):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as it is for users
    with pytest.raises(ValueError, match=r"is not a picture; give uint8 of shape \(height, width, 3\)"):
        extract(randomised("vit_nano", depth=1), values)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_pictures_of_more_than_eight_bits_are_refused(mode):
    deep = Image.new(mode, (20, 20), 1000)
    with pytest.raises(ValueError, match="more than 8 bits a channel"):
        extract(randomised("vit_nano", depth=1), deep)


# Aspect, padding, odd sizes


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [
        (1, 1, None),
        (1, 1, 64),
        (3, 5000, 512),
        (5000, 3, 512),
        (3, 4000, None),
        (33, 49, None),
        (37, 211, 160),
        (640, 427, 100),
    ],
)
@pytest.mark.parametrize("name", ["nano", "slim"])
def test_odd_pictures_keep_their_aspect_and_are_padded_never_cut(backbones, name, width, height, size):
    backbone = backbones[name]
    features = extract(backbone, noise(width, height), size=size, layer=0)
    geometry = features.geometry
    assert geometry.crop == (0, 0, width, height)
    scale = 1.0 if size is None else max(geometry.input_width, geometry.input_height) / max(width, height)
    for side, before in ((geometry.input_width, width), (geometry.input_height, height)):
        assert side == 1 or abs(side - before * scale) <= 0.5
    if size is not None:
        assert abs(max(geometry.input_width, geometry.input_height) - size) <= 16
    multiple = 32 if name == "slim" else 16
    assert 0 <= geometry.padded_width - geometry.input_width < multiple
    assert 0 <= geometry.padded_height - geometry.input_height < multiple
    assert features.patches.shape[:2] == features.valid.shape == (geometry.rows, geometry.cols)
    assert torch.isfinite(features.patches).all()
    cell = cell_size(backbone, 0)
    if min(geometry.input_width, geometry.input_height) < cell:
        return  # thinner than a cell: which ones count then is the geometry's business
    for row, col in itertools.product(range(geometry.rows), range(geometry.cols)):
        across = min(max(geometry.input_width - col * cell, 0), cell)
        down = min(max(geometry.input_height - row * cell, 0), cell)
        assert bool(features.valid[row, col]) == (2 * across * down >= cell * cell)


@pytest.mark.parametrize(("width", "height", "size"), [(45, 70, None), (45, 70, 140), (128, 40, 64)])
@pytest.mark.parametrize("name", ["saliency", "nano", "convnext"])
def test_a_bright_patch_lands_in_its_cell_and_in_no_other(backbones, name, width, height, size):
    backbone = backbones[name]
    black = np.zeros((height, width, 3), np.uint8)
    geometry = picture_geometry(backbone, black, size=size)
    dark = model_input(backbone, black, geometry)
    cell = geometry.patch_size
    for row, col in itertools.product(range(geometry.rows), range(geometry.cols)):
        (left, top), _, (right, bottom), _ = patch_to_polygon(geometry, row, col)
        inside = [math.ceil(left), math.floor(right), math.ceil(top), math.floor(bottom)]
        if inside[0] >= inside[1] or inside[2] >= inside[3]:
            continue  # a sliver of less than a pixel
        picture = black.copy()
        picture[inside[2] : inside[3], inside[0] : inside[1]] = 255
        light = (model_input(backbone, picture, geometry) - dark).sum(0)
        light = light.unflatten(1, (-1, cell)).unflatten(0, (-1, cell)).mean(dim=(1, 3))
        assert light.shape == (geometry.rows, geometry.cols)
        assert divmod(int(light.argmax()), geometry.cols) == (row, col)
        assert light.sum() - light[row, col] < 0.35 * light[row, col]  # resizing spills at most half a new pixel
        if size is None:
            assert light.count_nonzero() == 1


def test_all_four_corners_are_shown():
    picture = np.zeros((41, 83, 3), np.uint8)
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]], np.uint8)
    picture[0, 0], picture[0, -1], picture[-1, 0], picture[-1, -1] = colours
    geometry = picture_geometry(build_backbone("vit_nano", depth=1), picture)
    shown = planes_last(resized(picture, geometry))
    for (y, x), colour in zip([(0, 0), (0, 82), (40, 0), (40, 82)], colours, strict=True):
        np.testing.assert_array_equal(shown[y, x], colour)


def test_a_crop_is_extracted_by_its_geometry(backbones):
    backbone, picture = backbones["nano"], smooth(120, 90)
    geometry = picture_geometry(backbone, picture, crop=(20, 10, 100, 74))
    cut = extract(backbone, picture, geometry=geometry)
    alone = extract(backbone, np.ascontiguousarray(picture[10:74, 20:100]))
    torch.testing.assert_close(cut.patches, alone.patches, atol=0, rtol=0)
    assert cut.geometry.crop == (20, 10, 100, 74)


# Refusals


def test_layers_that_are_not_there_are_named(backbones):
    picture = noise(32, 32)
    for layer in (6, -7, 100):
        with pytest.raises(ValueError, match=f"no layer {layer} in a backbone of 6; give 0 to 5, or -6 to -1"):
            extract(backbones["nano"], picture, layer=layer)
    with pytest.raises(ValueError, match="no layer 4 in a backbone of 4"):
        next(iter(extract_many(backbones["convnext"], [picture], layer=4)))
    assert [layer_index(backbones["nano"], layer) for layer in (0, 5, -1, -6)] == [0, 5, 5, 0]


@pytest.mark.parametrize("size", [0, -16, 4097, 100_000])
def test_sizes_out_of_range_are_refused(backbones, size):
    with pytest.raises(ValueError, match=f"1 to 4096 px, got {size}"):
        extract(backbones["nano"], noise(32, 32), size=size)


@pytest.mark.parametrize(("width", "height"), [(4097, 2), (2, 5000)])
def test_pictures_above_4096_need_a_size(backbones, width, height):
    picture = noise(width, height)
    with pytest.raises(ValueError, match=f"the picture is {width}x{height} px.*pass size=4096 or less"):
        extract(backbones["nano"], picture)
    assert extract(backbones["nano"], picture, size=64).geometry.width == width
    corner = picture_geometry(backbones["nano"], picture, crop=(0, 0, 2, 2))  # small enough as it is
    assert (corner.input_width, corner.input_height) == (2, 2)


def test_tiles_that_cannot_be_are_refused(backbones):
    backbone, picture = backbones["nano"], noise(64, 64)
    with pytest.raises(ValueError, match="tile is a side in pixels, 0 for one exact pass or None to decide, got -1"):
        extract(backbone, picture, tile=-1)
    geometry = picture_geometry(backbone, picture)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        next(extract_tiles(backbone, picture, geometry, tile=0))
    for overlap in (-0.1, 0.9, 1.0):
        with pytest.raises(ValueError, match=f"from 0 to below 0.9, got {overlap}"):
            next(extract_tiles(backbone, picture, geometry, tile=32, overlap=overlap))


def test_a_geometry_of_another_backbone_layer_or_picture_is_refused(backbones):
    picture = noise(112, 112)
    of_nano, of_saliency = (picture_geometry(backbones[name], picture) for name in ("nano", "saliency"))
    assert of_nano.padded_width == of_saliency.padded_width  # a ViT/16 takes the other's input without complaint
    with pytest.raises(ValueError, match=r"cells of 14 px on an input of 112x112 px; layer -1 .* cells of 16 px"):
        extract(backbones["nano"], picture, geometry=of_saliency)
    with pytest.raises(ValueError, match="make it with picture_geometry for the same backbone and layer"):
        next(extract_tiles(backbones["nano"], picture, of_saliency, tile=64))
    with pytest.raises(ValueError, match="layer 1 of this backbone has cells of 8 px"):
        extract(backbones["convnext"], picture, layer=1, geometry=picture_geometry(backbones["convnext"], picture))
    with pytest.raises(ValueError, match="of a picture of 112x112 px, this one has 64x112"):
        extract(backbones["nano"], picture[:, :64], geometry=of_nano)
    with pytest.raises(ValueError, match="give one of them"):
        extract(backbones["nano"], picture, size=64, geometry=of_nano)


def test_a_batch_of_different_grids_is_refused(backbones):
    pictures = [noise(32, 32), noise(64, 32)]
    geometries = [picture_geometry(backbones["nano"], picture) for picture in pictures]
    with pytest.raises(ValueError, match=r"got \[\(2, 2\), \(2, 4\)\]; extract_many"):
        extract_batch(backbones["nano"], pictures, geometries)


@pytest.mark.parametrize("patch_size", [14, 16])
def test_a_convnext_with_cells_of_its_own_covers_the_whole_input(patch_size):
    backbone = randomised("convnext_tiny", **SLIM, patch_size=patch_size)
    features = extract(backbone, noise(100, 40), layer=1)
    geometry = features.geometry
    assert geometry.padded_width % 32 == geometry.padded_width % patch_size == 0
    assert features.patches.shape == (geometry.padded_height // patch_size, geometry.padded_width // patch_size, 24)
    tiled = extract(backbone, noise(500, 40), layer=1, tile=224)
    assert tiled.seam is not None and torch.isfinite(tiled.patches).all()


# Tiles


def lonely() -> VisionTransformer:
    """A ViT in which every patch looks at itself alone: where it is and what is around changes nothing."""
    backbone = randomised("vit_nano", depth=1)
    with torch.no_grad():
        backbone.blocks[0].attn.proj.weight.zero_()
        backbone.blocks[0].attn.proj.bias.zero_()
    return backbone


@pytest.mark.parametrize(("width", "height"), [(300, 200), (64, 400), (257, 70)])
@pytest.mark.parametrize("tile", [50, 64, 128])
def test_tiles_of_a_backbone_that_sees_single_patches_show_no_seam(width, height, tile):
    backbone, picture = lonely(), noise(width, height)
    exact = extract(backbone, picture, tile=0)
    tiled = extract(backbone, picture, tile=tile)
    assert exact.seam is None and tiled.seam is not None
    assert tiled.geometry == exact.geometry
    torch.testing.assert_close(tiled.patches, exact.patches, atol=1e-6, rtol=1e-6)
    side = max(1, round(tile / 16))
    looks = torch.zeros(exact.patches.shape[:2])
    spans = [tile_spans(cells, side, 0.25) for cells in looks.shape]
    for (top, bottom), (left, right) in itertools.product(*spans):
        looks[top:bottom, left:right] += 1
    torch.testing.assert_close(torch.isnan(tiled.seam.map), looks == 1)
    assert tiled.seam.tiles == len(spans[0]) * len(spans[1])
    assert (looks > 1).any()
    assert tiled.seam.map[looks > 1].max() <= 1e-6
    assert tiled.seam.mean <= 1e-6 and tiled.seam.worst <= 1e-6


def test_tiles_that_do_not_overlap_claim_no_agreement():
    backbone, picture = lonely(), noise(60, 40)
    exact = extract(backbone, picture)
    single = extract(backbone, picture, tile=16)  # of one patch each
    torch.testing.assert_close(single.patches, exact.patches, atol=1e-6, rtol=1e-6)
    assert single.seam.tiles == 12
    assert math.isnan(single.seam.mean) and math.isnan(single.seam.worst) and single.seam.map.isnan().all()


def slow_tiles(backbone: Backbone, shown: Tensor, geometry: Geometry, layer: int, tile: int) -> dict:
    """For every cell the features that tiles gave it and their weights, by plain loops."""
    cell = geometry.patch_size
    multiple = 32 if hasattr(backbone, "output_stride") else cell
    side = max(1, round(tile / multiple)) * multiple // cell
    ramp = max(1.0, 0.25 * side)
    cells: dict[tuple[int, int], list[tuple[Tensor, float]]] = {}
    for top, bottom in tile_spans(geometry.rows, side, 0.25, multiple // cell):
        for left, right in tile_spans(geometry.cols, side, 0.25, multiple // cell):
            cut = shown[:, top * cell : bottom * cell, left * cell : right * cell]
            ((patches, _, _),) = plain_layers(backbone, cut, layer=layer)
            for row, col in itertools.product(range(top, bottom), range(left, right)):
                weight = 1.0
                for index, start, end, last in (
                    (row, top, bottom, geometry.rows),
                    (col, left, right, geometry.cols),
                ):
                    fall = 1.0
                    if start > 0:
                        fall = min(fall, (index - start + 0.5) / ramp)
                    if end < last:
                        fall = min(fall, (end - index - 0.5) / ramp)
                    weight *= fall
                cells.setdefault((row, col), []).append((patches[row - top, col - left], weight))
    return cells


@pytest.mark.parametrize(
    ("name", "layer", "tile"), [("saliency", 2, 56), ("nano", 5, 64), ("slim", 1, 96), ("slim_cells", 3, 64)]
)
def test_the_blend_and_the_seam_are_those_of_slow_loops(backbones, name, layer, tile):
    backbone, picture = backbones[name], smooth(160, 121)
    tiled = extract(backbone, picture, layer=layer, tile=tile)
    geometry = tiled.geometry
    shown = slowly_normalised(slowly_padded(picture, geometry), backbone.pixel_mean, backbone.pixel_std)
    cells = slow_tiles(backbone, shown, geometry, layer, tile)
    assert set(cells) == set(itertools.product(range(geometry.rows), range(geometry.cols)))
    gaps, overlapping = [], 0
    for (row, col), looks in cells.items():
        total = sum(weight for _, weight in looks)
        blend = sum(feature.double() * (weight / total) for feature, weight in looks)
        scale = float(blend.abs().max())
        torch.testing.assert_close(tiled.patches[row, col].double(), blend, atol=2e-5 * scale, rtol=1e-5)
        pairs = list(itertools.combinations([feature.double() for feature, _ in looks], 2))
        if not pairs:
            assert math.isnan(tiled.seam.map[row, col])
            continue
        overlapping += 1
        gap = sum(1 - float(torch.cosine_similarity(a, b, dim=0)) for a, b in pairs) / len(pairs)
        gaps.append(gap)
        assert float(tiled.seam.map[row, col]) == pytest.approx(gap, abs=2e-5)
    assert overlapping > 0
    assert max(gaps) > 1e-4  # there is something to see
    assert tiled.seam.mean == pytest.approx(sum(gaps) / len(gaps), abs=1e-5)
    assert tiled.seam.worst == pytest.approx(max(gaps), abs=2e-5)


@pytest.mark.parametrize(("name", "tile"), [("nano", 64), ("saliency", 98), ("slim", 64)])
def test_cls_and_registers_are_those_of_the_whole_picture_at_the_size_of_a_tile(backbones, name, tile):
    backbone, picture = backbones[name], smooth(190, 121)
    tiled = extract(backbone, picture, tile=tile)
    coarse = extract(backbone, picture, size=tile, tile=0)
    torch.testing.assert_close(tiled.cls, coarse.cls, atol=0, rtol=0)
    torch.testing.assert_close(tiled.registers, coarse.registers, atol=0, rtol=0)


def test_large_pictures_are_tiled_by_themselves():
    narrow = lonely()
    assert extract(narrow, noise(2048, 16)).seam is None  # long, but few patches
    side = math.isqrt(EXACT_PATCHES) * 16
    picture = noise(side + 16, side)
    features = extract(narrow, picture)
    assert features.seam is not None and features.seam.tiles == len(tile_spans(side // 16 + 1, TILE // 16, 0.25)) * 3


def test_whether_a_convnext_is_tiled_does_not_depend_on_the_layer(backbones):
    """A stage's cells may be many and small, but the pass is the same."""
    assert extract(backbones["slim"], noise(1200, 1100), layer=0).seam is None
    side = math.isqrt(EXACT_PATCHES) * 16
    assert extract(backbones["slim"], noise(side + 32, side), layer=3).seam is not None


@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(
    multiple=st.sampled_from([1, 2, 4, 8, 16]),
    cells=st.integers(1, 300),
    side=st.integers(1, 120),
    percent=st.integers(0, 89),
)
def test_spans_cover_everything_with_the_overlap_asked_for(multiple, cells, side, percent):
    cells, side = cells * multiple, side * multiple
    spans = tile_spans(cells, side, percent / 100, multiple)
    assert {end - start for start, end in spans} == {min(side, cells)}
    assert spans[0][0] == 0 and spans[-1][1] == cells
    assert all(start % multiple == 0 for start, _ in spans)
    steps = [after - before for (before, _), (after, _) in itertools.pairwise(spans)]
    if steps:
        wanted = math.ceil(side * Fraction(percent, 100))
        assert min(steps) >= multiple
        assert max(steps) == multiple or side - max(steps) >= wanted
        assert max(steps) <= side  # no gap
        assert max(steps) - min(steps) <= multiple  # evenly spaced
        if side - multiple >= wanted:  # not more tiles than needed
            longest = (side - wanted) // multiple * multiple
            assert len(spans) <= math.ceil((cells - side) / longest) + 1 + len(spans) // 20


# The coarse map, and tiles arriving


def colour_reader() -> VisionTransformer:
    """A ViT whose first three channels are the mean colour of each patch, as normalised."""
    backbone = lonely()
    with torch.no_grad():
        backbone.blocks[0].mlp.fc2.weight.zero_()
        backbone.blocks[0].mlp.fc2.bias.zero_()
        backbone.patch_embed.proj.weight.zero_()
        backbone.patch_embed.proj.bias.zero_()
        for channel in range(3):
            backbone.patch_embed.proj.weight[channel, channel] = 1 / 16**2
    return backbone


@pytest.mark.parametrize(("width", "height"), [(640, 272), (272, 640), (640, 640), (602, 343)])
@pytest.mark.parametrize("crop", [False, True])
def test_the_coarse_map_lies_where_the_fine_one_will(width, height, crop):
    """Colours that rise evenly across the picture are read at the same place by both."""
    backbone = colour_reader()
    picture = np.zeros((height, width, 3), np.uint8)
    picture[..., 0] = np.linspace(0, 255, width).round()
    picture[..., 1] = np.linspace(0, 255, height).round()[:, None]
    box = (30, 10, width - 13, height - 51) if crop else None
    geometry = picture_geometry(backbone, picture, crop=box)
    glimpses = extract_tiles(backbone, picture, geometry, norm=False, tile=160)
    coarse = next(glimpses).features()
    exact = extract(backbone, picture, norm=False, tile=0, geometry=geometry)
    assert coarse.patches.shape == exact.patches.shape and coarse.geometry == geometry
    gap = (coarse.patches - exact.patches)[..., :2].abs()
    slope = 16 / 0.225 / min(geometry.crop_width, geometry.crop_height)  # change from a cell to the next
    inner = gap[4:-4, 4:-4]  # beyond the outermost coarse centres there is nothing to read between
    assert inner.numel() and inner.max() < 0.25 * slope


def test_a_small_picture_is_not_blown_up_for_its_coarse_map(backbones):
    backbone, picture = backbones["nano"], noise(50, 40)
    geometry = picture_geometry(backbone, picture)
    first, last = extract_tiles(backbone, picture, geometry)
    exact = extract(backbone, picture)
    assert (first.done, first.total, last.done) == (0, 1, 1)
    torch.testing.assert_close(last.features().patches, exact.patches, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(last.features().cls, exact.cls, atol=0, rtol=0)


def test_glimpses_start_usable_and_only_grow_sharper(backbones):
    backbone, picture = backbones["nano"], smooth(240, 160)
    geometry = picture_geometry(backbone, picture)
    total = len(tile_spans(geometry.rows, 6, 0.25)) * len(tile_spans(geometry.cols, 6, 0.25))
    final = extract(backbone, picture, tile=96)
    sharp = torch.zeros(geometry.rows, geometry.cols, dtype=torch.bool)
    count = 0
    for count, glimpse in enumerate(extract_tiles(backbone, picture, geometry, tile=96)):
        assert isinstance(glimpse, Glimpse) and (glimpse.done, glimpse.total) == (count, total)
        features = glimpse.features()
        assert torch.isfinite(features.patches).all() and features.patches.shape == final.patches.shape
        torch.testing.assert_close(features.cls, final.cls, atol=0, rtol=0)
        assert (glimpse.sharp | ~sharp).all(), "a cell became coarse again"
        assert glimpse.sharp.sum() > sharp.sum() if count else not glimpse.sharp.any()
        assert features.seam.tiles == count
        sharp = glimpse.sharp
    assert count == total and sharp.all()
    torch.testing.assert_close(features.patches, final.patches, atol=0, rtol=0)
    # Half way, what no tile has seen yet is as in the coarse map, and what tiles have seen is not.
    glimpses = extract_tiles(backbone, picture, geometry, tile=96)
    coarse = next(glimpses).features().patches
    *_, glimpse = itertools.islice(glimpses, total // 2)
    half = glimpse.features().patches
    torch.testing.assert_close(half[~glimpse.sharp], coarse[~glimpse.sharp], atol=0, rtol=0)
    assert (half != coarse).any(-1)[glimpse.sharp].all()


@pytest.mark.long
@pytest.mark.parametrize("first", [(0, 0), (4, 9), (9, 14), (7, 2), (9, 0)])
@pytest.mark.parametrize("overlap", [0.0, 0.25])
def test_tiles_come_nearest_first_and_end_in_the_same_map(backbones, first, overlap):
    backbone, picture = backbones["nano"], smooth(240, 160)
    geometry = picture_geometry(backbone, picture)
    options = {"tile": 80, "overlap": overlap}
    *_, expected = extract_tiles(backbone, picture, geometry, **options)
    seen = torch.zeros(geometry.rows, geometry.cols, dtype=torch.bool)
    distances = []
    for glimpse in extract_tiles(backbone, picture, geometry, first=first, **options):
        rows, cols = torch.nonzero(glimpse.sharp & ~seen, as_tuple=True)
        seen = glimpse.sharp
        if glimpse.done == 1:
            assert glimpse.sharp[first], "the first tile does not show the cell asked for"
        if glimpse.done and not overlap:  # then what is new is exactly one tile
            row, col = (float(cells.float().mean()) for cells in (rows, cols))
            distances.append(math.hypot(row - first[0], col - first[1]))
    assert distances == sorted(distances)
    assert glimpse.done == glimpse.total == expected.total
    torch.testing.assert_close(glimpse.features().patches, expected.features().patches, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["nano", "slim"])
def test_the_coarse_pass_comes_along_on_its_own_grid(backbones, name):
    backbone, picture = backbones[name], smooth(240, 160)
    geometry = picture_geometry(backbone, picture)
    alone = extract(backbone, picture, size=96, tile=0)
    for glimpse in extract_tiles(backbone, picture, geometry, tile=96):
        assert_same_features(glimpse.coarse, (alone.patches, alone.cls, alone.registers))
        assert glimpse.coarse.geometry == alone.geometry and glimpse.coarse.seam is None


# Progress and cancelling


class Cancelled(Exception):
    pass


@pytest.mark.parametrize(
    ("name", "layer", "layers"),
    [("saliency", -1, 12), ("saliency", 3, 4), ("nano", 0, 1), ("convnext", -1, 4), ("convnext", 1, 2)],
)
def test_progress_is_told_of_every_layer(backbones, name, layer, layers):
    told: list[tuple[int, int, str]] = []
    extract(backbones[name], noise(64, 64), layer=layer, progress=lambda *step: told.append(step))
    assert told == [(done, layers, "layers") for done in range(1, layers + 1)]


@pytest.mark.parametrize("name", ["nano", "slim"])
def test_progress_is_told_of_every_tile(backbones, name):
    told: list[tuple[int, int, str]] = []
    features = extract(backbones[name], noise(200, 100), tile=64, progress=lambda *step: told.append(step))
    tiles = features.seam.tiles
    assert tiles > 4
    assert told == [(done, tiles, "tiles") for done in range(tiles + 1)]


def live_tensors() -> int:
    gc.collect()
    return sum(type(thing) in (Tensor, nn.Parameter) for thing in gc.get_objects())


@pytest.mark.long
@pytest.mark.parametrize(("name", "tile"), [("saliency", 0), ("nano", 0), ("nano", 70), ("slim", 0), ("slim", 70)])
def test_raising_in_progress_cancels_and_leaves_nothing_behind(backbones, name, tile):
    backbone, picture = backbones[name], noise(110, 90)
    expected = extract(backbone, picture, tile=tile).patches
    before = live_tensors()
    for stop in (0, 1, 3):
        calls = 0

        def progress(done: int, total: int, what: str, stop: int = stop) -> None:
            nonlocal calls
            calls += 1
            if done >= stop:
                raise Cancelled

        with pytest.raises(Cancelled):
            extract(backbone, picture, tile=tile, progress=progress)
        assert calls == (max(stop, 1) if tile == 0 else stop + 1)  # and no layer or tile after that
        assert live_tensors() == before
        assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()
        torch.testing.assert_close(extract(backbone, picture, tile=tile).patches, expected, atol=0, rtol=0)


def test_closing_the_tiles_cancels(backbones):
    backbone, picture = backbones["nano"], noise(150, 100)
    geometry = picture_geometry(backbone, picture)
    before = live_tensors()
    glimpses = extract_tiles(backbone, picture, geometry, tile=64)
    next(glimpses), next(glimpses)
    glimpses.close()
    del glimpses
    assert live_tensors() == before
    assert not torch.is_inference_mode_enabled()


# Many pictures


class Watched(VisionTransformer):
    """A ViT that writes down the shape of every batch it is shown; its twin for inference shares the list."""

    def run_blocks(self, images, masks=None):
        self.shown.append(tuple(images[0].shape))
        yield from super().run_blocks(images, masks)


def watched() -> Watched:
    torch.manual_seed(0)
    backbone = Watched(**(BACKBONES["vit_nano"].keywords | {"depth": 2}))
    backbone.init_weights()
    backbone.shown = []
    return backbone.eval()


def test_many_pictures_are_the_same_as_one_by_one_in_order(backbones):
    shapes = [(64, 48), (64, 48), (48, 64), (64, 48), (60, 40), (50, 47), (200, 16), (64, 48)]
    pictures = [smooth(*shape, seed=index) for index, shape in enumerate(shapes)]
    for name in ("saliency", "nano", "slim"):
        backbone = backbones[name]
        for size, layer, norm in ((None, 3, True), (96, 1, False)):
            many = list(extract_many(backbone, pictures, size=size, layer=layer, norm=norm))
            assert len(many) == len(pictures)
            for features, picture in zip(many, pictures, strict=True):
                alone = extract(backbone, picture, size=size, layer=layer, norm=norm)
                assert_same_features(features, (alone.patches, alone.cls, alone.registers))
                assert features.geometry == alone.geometry
                assert (features.layer, features.norm) == (alone.layer, alone.norm)
                assert features.patches.untyped_storage().nbytes() == features.patches.nbytes  # not the batch's


def test_neighbours_of_one_shape_share_a_pass():
    backbone = watched()
    # 64x48 gives 12 cells, and so does 50x47; 48x64 gives them in another shape.
    shapes = [(64, 48), (50, 47), (64, 48), (48, 64), (64, 48), (64, 48), (160, 160)]
    pictures = [noise(*shape) for shape in shapes]
    list(extract_many(backbone, pictures, batch_patches=24))
    assert [batch[0] for batch in backbone.shown] == [2, 1, 1, 2, 1]
    assert [batch[2:] for batch in backbone.shown] == [(48, 64)] * 2 + [(64, 48), (48, 64), (160, 160)]
    backbone.shown.clear()
    list(extract_many(backbone, pictures))
    assert [batch[0] for batch in backbone.shown] == [3, 1, 2, 1]


def test_large_pictures_among_many_are_tiled(monkeypatch):
    monkeypatch.setattr(core.dense.extract, "EXACT_PATCHES", 20)  # or this would take a while
    monkeypatch.setattr(core.dense.extract, "TILE", 64)
    backbone = lonely()
    small, large = noise(32, 32), noise(100, 90)
    before, tiled, after = extract_many(backbone, [small, large, small])
    assert before.seam is None and after.seam is None and tiled.seam is not None
    torch.testing.assert_close(before.patches, after.patches, atol=0, rtol=0)


def test_pictures_are_taken_as_needed_and_let_go():
    backbone = watched()
    taken: list[weakref.ref] = []

    def endless() -> Iterator[np.ndarray]:
        for seed in itertools.count():
            picture = noise(64, 48, seed)
            taken.append(weakref.ref(picture))
            # This one and the one before, which the caller's loop still holds; not all that wait for a pass.
            assert sum(ref() is not None for ref in taken) <= 2
            yield picture

    results = extract_many(backbone, endless(), batch_patches=12 * 5)
    assert not taken
    for count in range(12):
        next(results)
        assert len(taken) <= 5 * (count // 5 + 1) + 1
    assert len(backbone.shown) == 3


# Memory


MEMORY = """
import re, sys
from pathlib import Path
import numpy as np
import torch
from core.dense.extract import extract
from core.models import build_backbone

def peak():  # of this process image; getrusage would start from the size of the parent
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

torch.set_num_threads(2)
backbone = build_backbone("vit_nano", depth=2)
picture = np.random.default_rng(0).integers(0, 256, (2048, 2048, 3), dtype=np.uint8)
extract(backbone, picture[:64, :64])
before = peak()
features = extract(backbone, picture)
assert features.seam is None and features.patches.shape == (128, 128, 128)
print(peak() - before)
"""


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc, not there here")
def test_memory_of_an_exact_pass_grows_with_the_patches_not_with_their_square():
    tokens = 128 * 128 + 5
    one_map = 4 * tokens * 128
    bound = 40 * one_map  # 336 MB: some twenty maps alive at a time, the picture resized and normalised, and air
    assert bound < 4 * tokens**2 / 3  # a third of the scores of a single head
    out = subprocess.run([sys.executable, "-c", MEMORY], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert out.returncode == 0, out.stderr
    assert int(out.stdout) < bound, f"{int(out.stdout) / one_map:.0f} maps"
