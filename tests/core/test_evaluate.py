"""Numbers on a teacher: which pictures are asked, and that features and chance are what they should be."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from core.config import Config, DataConfig, SourceConfig
from core.dense.degradation import lidar, rank_me
from core.evaluate import Labelled, cls_features, corner_views, evaluate, load_benchmark, spectrum
from core.models import build_backbone


@pytest.fixture
def folder(tmp_path) -> Path:
    draw = np.random.default_rng(0)
    for split, counts in (("train", {"red": 9, "blue": 6}), ("val", {"red": 2, "blue": 6})):
        for name, count in counts.items():
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 90, (24, 32, 3), dtype=np.uint8)
                pixels[..., 0 if name == "red" else 2] += 150
                Image.fromarray(pixels).save(tmp_path / split / name / f"{number}.png")
    return tmp_path


def config(folder: Path) -> Config:
    return replace(Config(), data=DataConfig(sources=(SourceConfig(path=str(folder)),), batch_size=2))


def test_colours_are_told_apart_and_the_commonest_class_is_the_baseline(folder):
    torch.manual_seed(0)
    benchmark = load_benchmark(config(folder), side=16)
    ((train, val),) = benchmark.parts.values()
    assert train.images.shape == (15, 3, 16, 16) and val.images.shape == (8, 3, 16, 16)
    backbone = build_backbone("vit_nano", patch_size=8, depth=1, layer_scale=None).eval()
    numbers = evaluate(backbone, benchmark)
    assert numbers["majority"] == 2 / 8  # red, the commonest class of the training split
    assert numbers["top1_k10"] > 0.9
    assert set(numbers) == {f"{p}{n}" for p in ("", f"{folder.name}/") for n in ("top1_k10", "top1_k20", "majority")}


def test_features_are_those_of_normalised_pictures(folder):
    torch.manual_seed(0)
    backbone = build_backbone("vit_nano", patch_size=8, depth=1).eval()
    images = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    features = cls_features(backbone, images, mean, std, batch=2)
    pictures = (images / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    with torch.no_grad():
        torch.testing.assert_close(features, backbone(pictures))


def test_views_are_corners_enlarged_and_the_right_ones_mirrored():
    images = torch.arange(2 * 3 * 16 * 16).remainder(251).to(torch.uint8).view(2, 3, 16, 16)
    views = corner_views(images)
    assert views.shape == (2, 4, 3, 16, 16) and views.dtype == torch.uint8
    for number, (top, left) in enumerate([(0, 0), (0, 4), (4, 0), (4, 4)]):
        for index, view in enumerate(views[:, number]):
            part = images[index, :, top : top + 12, left : left + 12].permute(1, 2, 0).numpy()
            wanted = np.asarray(Image.fromarray(part).resize((16, 16), Image.Resampling.BILINEAR)).astype(int)
            found = view.permute(1, 2, 0).numpy().astype(int)
            assert np.abs((found[:, ::-1] if left else found) - wanted).max() <= 1


def test_the_spectrum_is_that_of_four_views_of_each_validation_picture(folder):
    torch.manual_seed(0)
    benchmark = load_benchmark(config(folder), side=16)
    ((_, val),) = benchmark.parts.values()
    backbone = build_backbone("vit_nano", patch_size=8, depth=1, layer_scale=None).eval()
    shift, scale = (torch.tensor(values)[:, None, None] for values in (benchmark.mean, benchmark.std))
    with torch.no_grad():
        plain = torch.stack([backbone((views / 255 - shift) / scale) for views in corner_views(val.images)])
    assert plain.shape[:2] == (8, 4)
    numbers = spectrum(backbone, benchmark)
    assert numbers["rank_me"] == pytest.approx(rank_me(plain.flatten(0, 1)), rel=1e-4)
    assert numbers["lidar"] == pytest.approx(lidar(plain), rel=1e-3)
    assert numbers[f"{folder.name}/lidar"] == numbers["lidar"]
    some = spectrum(backbone, benchmark, limit=3)
    assert some["lidar"] == pytest.approx(lidar(plain[[0, 3, 7]]), rel=1e-3)


def test_of_a_single_picture_there_is_no_spectrum(folder):
    benchmark = load_benchmark(config(folder), side=16)
    ((train, val),) = benchmark.parts.values()
    backbone = build_backbone("vit_nano", patch_size=8, depth=1).eval()
    single = Labelled(val.images[:1], val.labels[:1])
    assert spectrum(backbone, replace(benchmark, parts={"single": (train, single)})) == {}


def test_at_most_so_many_pictures_are_read(folder):
    ((train, val),) = load_benchmark(config(folder), side=16, limit=4).parts.values()
    assert (len(train.labels), len(val.labels)) == (4, 4)
    assert set(train.labels.tolist()) == {0, 1}  # spread over the split, not its beginning


def test_sources_without_labels_are_left_out(tmp_path):
    for number in range(3):
        Image.new("RGB", (20, 20)).save(tmp_path / f"{number}.png")
    assert load_benchmark(config(tmp_path), side=16).parts == {}
