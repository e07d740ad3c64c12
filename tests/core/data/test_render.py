from dataclasses import replace

import kornia
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageOps

from core.config import CropsConfig, CropSizes
from core.data.augment import BRIGHTNESS, CONTRAST, HUE, SATURATION, Boxes, Colors, draw_views
from core.data.render import (
    bicubic,
    blur,
    cut_by_kernel,
    cut_by_matrices,
    distort,
    finish,
    hue,
    jitter_,
    luma,
    render,
    resize,
    solarize,
)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OPERATIONS = [BRIGHTNESS, CONTRAST, SATURATION, HUE]


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Something between a photograph and noise, with the channels side by side in memory as decoders leave them."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((width, height))
    noisy = np.asarray(coarse).astype(int) + random.integers(-30, 30, (height, width, 3))
    return torch.from_numpy(noisy.clip(0, 255).astype(np.uint8)).permute(2, 0, 1)


def to_pil(pixels: torch.Tensor) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))


def values(count: int = 6, side: int = 24, seed: int = 0) -> torch.Tensor:
    return torch.stack([picture(side, side, seed + i) for i in range(count)]).float() / 255


def colors(count: int, **changes) -> Colors:
    """Decisions that change nothing, but for what is named."""
    quiet = Colors(
        jitter=np.zeros(count, dtype=bool),
        factors=np.tile(np.array([1, 1, 1, 0], dtype=np.float32), (count, 1)),
        order=np.tile(np.arange(4), (count, 1)),
        grayscale=np.zeros(count, dtype=bool),
        sigma=np.zeros(count, dtype=np.float32),
        solarize=np.zeros(count, dtype=bool),
    )
    return quiet._replace(**changes)


def jittered(x: torch.Tensor, operation: int, factors: np.ndarray) -> torch.Tensor:
    table = colors(len(x)).factors.copy()
    table[:, operation] = factors
    out = x.clone()
    jitter_(out, colors(len(x), jitter=np.ones(len(x), dtype=bool), factors=table))
    return out


# Cropping and resizing

BOXES = [
    (0, 0, 40, 50, 32),
    (3, 5, 20, 17, 32),
    (10, 0, 37, 61, 16),
    (0, 0, 5, 4, 32),
    (2, 2, 1, 1, 8),
    (0, 9, 47, 2, 8),
]


@pytest.mark.parametrize(("top", "left", "height", "width", "size"), BOXES)
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("cut", [cut_by_kernel, cut_by_matrices])
def test_crops_are_pillows(cut, top, left, height, width, size, flip):
    pixels = picture(47, 61)
    boxes = Boxes(*(np.array([value]) for value in (top, left, height, width, flip)))
    box = to_pil(pixels).crop((left, top, left + width, top + height)).resize((size, size), Image.Resampling.BICUBIC)
    expected = np.asarray(ImageOps.mirror(box) if flip else box).transpose(2, 0, 1).astype(int)
    difference = np.abs(cut([pixels], boxes, size)[0].numpy() - expected)
    assert difference.max() <= 2 and (difference > 0).mean() < 0.05  # Pillow's own weights are rounded as well


def test_crop_i_is_of_picture_i_modulo_their_number():
    pictures = [picture(20, 30, 1), picture(33, 21, 2)]
    boxes = Boxes(
        *(np.array(column) for column in zip(*[(i, 2 * i, 12, 10, i % 2 == 1) for i in range(4)], strict=True))
    )
    for cut in (cut_by_kernel, cut_by_matrices):
        together = cut(pictures, boxes, 8)
        for index in range(4):
            alone = Boxes(*(column[index : index + 1] for column in boxes))
            torch.testing.assert_close(together[index], cut([pictures[index % 2]], alone, 8)[0])


@pytest.mark.parametrize(("side", "size"), [(48, 32), (48, 16), (48, 64), (37, 20)])
def test_resizing_is_torchs_on_floating_point(side, size):
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(x, size=(size, size), mode="bicubic", antialias=True)
    for matrices in (False, True):
        torch.testing.assert_close(resize(x, size, matrices=matrices), expected, atol=1e-5, rtol=1e-5)


def test_resizing_keeps_8_bits():
    x = torch.stack([picture(48, 48, i) for i in range(3)])
    for matrices in (False, True):
        out = resize(x, 20, matrices=matrices)
        expected = np.stack([np.asarray(to_pil(one).resize((20, 20), Image.Resampling.BICUBIC)) for one in x])
        assert out.dtype == torch.uint8
        assert (out.int() - torch.from_numpy(expected.astype(np.int32)).permute(0, 3, 1, 2)).abs().max() <= 2
        assert resize(x, 48, matrices=matrices) is x


def test_matrices_do_not_look_outside_their_box():
    matrix = bicubic(np.array([3]), np.array([10]), 20, 4)[0]
    assert (matrix[:, :3] == 0).all() and (matrix[:, 13:] == 0).all()
    torch.testing.assert_close(matrix.sum(dim=1), torch.ones(4))


# Colours


def test_brightness_contrast_and_saturation_agree_with_kornia():
    x, factors = values(), np.array([0.6, 0.8, 1.0, 1.2, 1.4, 0.0], dtype=np.float32)
    kinds = {
        BRIGHTNESS: kornia.enhance.adjust_brightness_accumulative,
        CONTRAST: kornia.enhance.adjust_contrast_with_mean_subtraction,
        SATURATION: kornia.enhance.adjust_saturation_with_gray_subtraction,
    }
    for operation, reference in kinds.items():
        expected = reference(x, torch.from_numpy(factors))
        torch.testing.assert_close(jittered(x, operation, factors), expected, atol=1e-6, rtol=0)


def test_brightness_contrast_and_saturation_agree_with_pillow():
    """To within the 8 bits that Pillow rounds to."""
    x = values()
    kinds = {BRIGHTNESS: ImageEnhance.Brightness, CONTRAST: ImageEnhance.Contrast, SATURATION: ImageEnhance.Color}
    for operation, reference in kinds.items():
        for factor in (0.6, 1.4):
            out = jittered(x, operation, np.full(len(x), factor)) * 255
            for one, pixels in zip(out, (x * 255).round().byte(), strict=True):
                expected = np.asarray(reference(to_pil(pixels)).enhance(factor)).transpose(2, 0, 1)
                assert np.abs(one.numpy() - expected).max() < 1.5


@pytest.mark.parametrize("shift", [-0.5, -0.1, 0.0, 0.05, 0.1, 0.37])
def test_hue_agrees_with_kornia(shift):
    x = values()
    x[0, :, :4] = 0.3  # gray has no hue
    x[1, :, :2], x[2, :, :2] = torch.tensor([1.0, 1.0, 0.0])[:, None, None], 0.0
    expected = kornia.enhance.adjust_hue(x, 2 * np.pi * shift)
    torch.testing.assert_close(hue(x, torch.full((len(x),), shift)), expected, atol=2e-5, rtol=0)
    torch.testing.assert_close(jittered(x, HUE, np.full(len(x), shift)), expected, atol=2e-5, rtol=0)


def test_a_third_of_the_colour_circle_moves_the_channels():
    x = values()
    torch.testing.assert_close(hue(x, torch.full((len(x),), 1 / 3)), x[:, [2, 0, 1]], atol=1e-5, rtol=0)


def test_each_picture_has_its_own_order():
    random = np.random.default_rng(0)
    count = 24
    x = values(count)
    factors = np.column_stack([random.uniform(0.6, 1.4, (count, 3)), random.uniform(-0.1, 0.1, count)]).astype(
        np.float32
    )
    order = np.argsort(random.random((count, 4)), axis=1)
    active = random.random(count) < 0.7
    out = x.clone()
    jitter_(out, colors(count, jitter=active, factors=factors, order=order))
    for index in range(count):
        expected = x[index : index + 1]
        for operation in order[index] if active[index] else ():
            expected = jittered(expected, operation, factors[index, operation : operation + 1])
        torch.testing.assert_close(out[index], expected[0], atol=1e-5, rtol=0)


def test_gray_is_kornias():
    torch.testing.assert_close(luma(values()), kornia.color.rgb_to_grayscale(values()), atol=1e-6, rtol=0)
    gray = distort(values(2), colors(2, grayscale=np.array([False, True])))
    torch.testing.assert_close(gray[0], values(2)[0])
    torch.testing.assert_close(gray[1], luma(values(2))[1].expand(3, -1, -1))


def test_solarisation_inverts_from_128_on():
    x = values()
    torch.testing.assert_close(solarize(x), kornia.enhance.solarize(x, 128 / 255), atol=1e-6, rtol=0)
    levels = torch.tensor([0, 127, 128, 255]).div(255).expand(1, 3, 1, 4)
    torch.testing.assert_close(
        solarize(levels)[0, 0, 0] * 255, torch.tensor([0.0, 127.0, 127.0, 0.0]), atol=1e-4, rtol=0
    )
    pillow = np.asarray(ImageOps.solarize(to_pil((x[0] * 255).round().byte()), 128)).transpose(2, 0, 1)
    assert np.abs(solarize(x)[0].numpy() * 255 - pillow).max() < 0.01


@pytest.mark.parametrize("side", [5, 8, 24, 33])
def test_blur_agrees_with_kornia(side):
    x, sigma = values(5, side), torch.tensor([0.1, 0.3, 0.9, 1.5, 2.0])
    expected = kornia.filters.gaussian_blur2d(x, (9, 9), sigma[:, None].expand(5, 2), border_type="reflect")
    torch.testing.assert_close(blur(x, sigma), expected, atol=1e-6, rtol=0)


def test_crops_smaller_than_the_blur_reaches_are_refused():
    with pytest.raises(ValueError, match="crops of 4 px are too small"):
        blur(values(1, 4), torch.ones(1))


def test_finish_normalises_and_does_each_crop_alone():
    x = torch.stack([picture(16, 16, i) for i in range(4)])
    plain = finish(x, None, MEAN, STD)
    expected = (x / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    torch.testing.assert_close(plain, expected, atol=1e-5, rtol=0)
    some = colors(4, sigma=np.array([0, 1, 0, 2], dtype=np.float32), solarize=np.array([False, False, True, True]))
    together = finish(x, some, MEAN, STD)
    for index in range(4):
        alone = finish(x[index : index + 1], some.part(slice(index, index + 1)), MEAN, STD)
        torch.testing.assert_close(together[index], alone[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(together[0], plain[0])
    assert finish(x[:0], colors(0), MEAN, STD).shape == (0, 3, 16, 16)


def test_work_in_parts_changes_nothing(monkeypatch):
    x = torch.stack([picture(16, 16, i) for i in range(7)])
    decisions = colors(7, sigma=np.linspace(0, 2, 7, dtype=np.float32), grayscale=np.arange(7) % 3 == 0)
    whole = finish(x, decisions, MEAN, STD)
    monkeypatch.setattr("core.data.render.TOGETHER", 2 * 3 * 16 * 16)
    torch.testing.assert_close(finish(x, decisions, MEAN, STD), whole, atol=1e-6, rtol=0)


# All together

SIZES = CropSizes(global_size=48, local_size=32)


def rendered(crops: CropsConfig, sizes: CropSizes = SIZES, *, matrices: bool = False, seed: int = 0):
    pictures = [picture(70, 90, 1), picture(96, 60, 2), picture(50, 50, 3)]
    heights, widths = (np.array([p.shape[axis] for p in pictures]) for axis in (1, 2))
    views = draw_views(crops, sizes, np.arange(3), heights, widths, seed=seed)
    return pictures, views, render(pictures, views, crops, sizes, MEAN, STD, matrices=matrices)


VARIANTS = {
    "plain": (CropsConfig(num_local=4), SIZES),
    "shared jitter": (CropsConfig(num_local=4, share_jitter=True), SIZES),
    "windows": (CropsConfig(num_local=4, local_in_global=True), SIZES),
    "Gram, distorted": (CropsConfig(num_local=2), replace(SIZES, gram_size=64)),
    "Gram, undistorted": (CropsConfig(num_local=2, gram_distorted=False), replace(SIZES, gram_size=64)),
    "Gram, smaller": (CropsConfig(num_local=2, gram_distorted=False), replace(SIZES, gram_size=32)),
    "Gram and windows": (CropsConfig(num_local=2, local_in_global=True), replace(SIZES, gram_size=64)),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_worker_and_device_make_the_same_crops(variant):
    crops, sizes = VARIANTS[variant]
    for kernel, matrix in zip(*(rendered(crops, sizes, matrices=m)[2] for m in (False, True)), strict=True):
        if kernel is None:
            assert matrix is None
            continue
        difference = (kernel - matrix).abs() * 0.225 * 255  # in levels of 8 bits
        # One level of a crop can become more by contrast; solarisation turns it round at its threshold.
        assert difference.mean() < 0.05 and difference.quantile(0.999) < 4


@pytest.mark.parametrize("variant", VARIANTS)
def test_shapes_are_crop_major(variant):
    crops, sizes = VARIANTS[variant]
    _, views, (global_crops, local_crops, gram) = rendered(crops, sizes)
    assert global_crops.shape == (6, 3, 48, 48) and local_crops.shape == (3 * crops.num_local, 3, 32, 32)
    assert gram is None if sizes.gram_size is None else gram.shape == (6, 3, sizes.gram_size, sizes.gram_size)
    assert all(crop.isfinite().all() for crop in (global_crops, local_crops))
    assert len(views.global_boxes.top) == 6


def calm(**changes) -> CropsConfig:
    """Geometry alone."""
    quiet = {"jitter": 0.0, "grayscale": 0.0, "blur": (0.0, 0.0, 0.0), "solarize": 0.0, "num_local": 4}
    return CropsConfig(**quiet | changes)


def test_gram_crops_show_what_global_crops_show():
    for distorted in (False, True):
        sizes = replace(SIZES, gram_size=96)
        _, _, (global_crops, _, gram) = rendered(calm(gram_distorted=distorted), sizes)
        assert gram is not None
        small = F.interpolate(gram, size=(48, 48), mode="bicubic", antialias=True)
        assert (small - global_crops).abs().max() * 0.225 * 255 < 3


def test_undistorted_gram_crops_have_neither_colour_nor_blur():
    sizes = replace(SIZES, gram_size=64)
    plain = rendered(calm(gram_distorted=False), sizes)[2]
    wild = rendered(CropsConfig(num_local=4, gram_distorted=False), sizes)[2]
    assert plain[2] is not None and wild[2] is not None
    torch.testing.assert_close(plain[2], wild[2])
    assert (plain[0] - wild[0]).abs().max() > 0.1
    distorted = rendered(CropsConfig(num_local=4), sizes)[2]
    assert distorted[2] is not None and (distorted[2] - wild[2]).abs().max() > 0.1


def test_windows_are_parts_of_their_global_crop():
    _, views, (global_crops, local_crops, _) = rendered(calm(local_in_global=True))
    assert views.windows is not None
    for index, (top, left) in enumerate(views.windows.tolist()):
        crop, image = divmod(index, 3)
        whole = global_crops[3 * (crop >= 2) + image]
        torch.testing.assert_close(local_crops[index], whole[:, top : top + 32, left : left + 32])


def test_a_shared_jitter_gives_all_crops_the_same_colours():
    crops = calm(share_jitter=True, grayscale=1.0)
    _, _, (global_crops, local_crops, _) = rendered(crops)
    scaled = [
        x * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None] for x in (global_crops, local_crops)
    ]
    for x in scaled:
        torch.testing.assert_close(x[:, :1].expand_as(x), x, atol=1e-5, rtol=0)


def test_pictures_are_left_alone():
    pictures, _, _ = rendered(CropsConfig(num_local=4, share_jitter=True))
    assert torch.equal(pictures[0], picture(70, 90, 1))
