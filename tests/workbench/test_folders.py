"""A folder of photographs gives what each of them gives alone, in order, once, and past the broken ones."""

import dataclasses
import itertools
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import workbench.folders
from core.dense.extract import DenseFeatures, extract
from core.dense.store import FeatureFolder
from core.models import BACKBONES
from core.models.vit import VisionTransformer
from workbench.folders import extract_folder
from workbench.images import BadImage, list_samples, load_folder, open_image

SMALL = ["cat_abyssinian_1.jpg", "cat_abyssinian_3.jpg", "cat_abyssinian_4.jpg", "cat_bengal.jpg", "cat_chelsea.jpg"]


class Watched(VisionTransformer):
    """A ViT that writes down the shape of every batch it is shown; its twin for inference shares the list."""

    def run_blocks(self, images, masks=None):
        self.shown.append(tuple(images[0].shape))
        yield from super().run_blocks(images, masks)


@pytest.fixture
def backbone() -> Watched:
    torch.manual_seed(0)
    backbone = Watched(**(BACKBONES["vit_nano"].keywords | {"depth": 2}))
    backbone.init_weights()
    backbone.shown = []
    return backbone.eval()


@pytest.fixture
def folder(tmp_path) -> Path:
    """Small sample photographs, with broken and foreign files between them."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    samples = {sample.path.name: sample.path for sample in list_samples()}
    for name in SMALL:
        shutil.copy(samples[name], folder)
    (folder / "cat_b_broken.jpg").write_bytes(samples["roses.jpg"].read_bytes()[:3000])
    (folder / "a_empty.png").write_bytes(b"")
    (folder / "z_last.gif").write_text("no picture")
    (folder / "notes.txt").write_text("no picture either, and not offered as one")
    return folder


ORDER = ["a_empty.png", SMALL[0], SMALL[1], SMALL[2], "cat_b_broken.jpg", SMALL[3], SMALL[4], "z_last.gif"]


def assert_same(ours: DenseFeatures, expected: DenseFeatures) -> None:
    for name in ("patches", "cls", "registers"):
        torch.testing.assert_close(getattr(ours, name), getattr(expected, name), atol=1e-5, rtol=1e-5)
    assert (ours.geometry, ours.layer, ours.norm) == (expected.geometry, expected.layer, expected.norm)


@pytest.mark.parametrize(("size", "layer", "norm"), [(96, -1, True), (64, 0, False)])
def test_a_folder_gives_what_each_picture_gives_alone_in_order(backbone, folder, size, layer, norm):
    results = list(extract_folder(backbone, folder, size=size, layer=layer, norm=norm))
    assert [name for name, _ in results] == ORDER
    for name, result in results:
        if name in SMALL:
            alone = extract(backbone, open_image(folder / name), size=size, layer=layer, norm=norm)
            assert_same(result, alone)
        else:
            assert isinstance(result, BadImage) and str(result).startswith(f"{name}: ")


def test_all_samples_can_be_extracted(backbone):
    folder = list_samples()[0].path.parent
    results = dict(extract_folder(backbone, folder, size=64))
    assert set(results) == {sample.path.name for sample in list_samples()}
    for sample in list_samples():
        features = results[sample.path.name]
        assert isinstance(features, DenseFeatures)
        assert (features.geometry.width, features.geometry.height) == (sample.width, sample.height)
        assert torch.isfinite(features.patches).all()


def copies(folder: Path, count: int, size: tuple[int, int] = (48, 32)) -> Path:
    """Different pictures of one shape, 00.png and so on."""
    folder.mkdir(exist_ok=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return folder


def test_pictures_of_one_shape_share_a_pass_across_broken_files(backbone, tmp_path):
    folder = copies(tmp_path / "pictures", 5)
    (folder / "02.png").write_bytes(b"broken")
    results = list(extract_folder(backbone, folder))
    assert [name for name, _ in results] == [f"{number:02}.png" for number in range(5)]
    assert backbone.shown == [(4, 3, 32, 48)]


def test_pictures_in_the_cache_are_not_run_again(backbone, folder, tmp_path):
    cache = FeatureFolder(tmp_path / "cache")
    first = dict(extract_folder(backbone, folder, size=96, cache=cache))
    assert len(list(cache.path.iterdir())) == len(SMALL)
    passes = len(backbone.shown)
    assert passes
    again = list(extract_folder(backbone, folder, size=96, cache=FeatureFolder(tmp_path / "cache")))
    assert len(backbone.shown) == passes
    assert [name for name, _ in again] == ORDER
    for name, result in again:
        if isinstance(result, DenseFeatures):
            torch.testing.assert_close(result.patches, first[name].patches, atol=0, rtol=0)
            assert result.geometry == first[name].geometry
        else:
            assert str(result) == str(first[name])
    # A new picture is run alone, among the others and in its place.
    shutil.copy(folder / SMALL[0], folder / "cat_a_turned.jpg")
    Image.open(folder / SMALL[0]).transpose(Image.Transpose.ROTATE_180).save(folder / "cat_a_turned.png")
    results = list(extract_folder(backbone, folder, size=96, cache=cache))
    assert [name for name, _ in results] == sorted([*ORDER, "cat_a_turned.jpg", "cat_a_turned.png"])
    assert len(backbone.shown) == passes + 1 and backbone.shown[-1][0] == 1  # the copy's pixels were known
    assert_same(dict(results)["cat_a_turned.jpg"], first[SMALL[0]])


@pytest.mark.parametrize("changed", [{"size": 64}, {"layer": 0}, {"norm": False}, {"weights": 1.5}])
def test_other_settings_and_weights_are_run_anew(backbone, folder, tmp_path, changed):
    cache = FeatureFolder(tmp_path / "cache")
    list(extract_folder(backbone, folder, size=96, cache=cache))
    passes = len(backbone.shown)
    if factor := changed.pop("weights", None):
        with torch.no_grad():
            backbone.blocks[1].mlp.fc2.weight.mul_(factor)
    options = {"size": 96, "cache": cache} | changed
    results = dict(extract_folder(backbone, folder, **options))
    assert len(backbone.shown) > passes
    assert len(list(cache.path.iterdir())) == 2 * len(SMALL)
    options.pop("cache")
    assert_same(results[SMALL[0]], extract(backbone, open_image(folder / SMALL[0]), **options))
    # The last layer is found under its number as well.
    passes = len(backbone.shown)
    list(extract_folder(backbone, folder, **(options | {"layer": options.get("layer", 1), "cache": cache})))
    assert len(backbone.shown) == passes


def test_equal_pixels_from_a_turned_file_keep_their_own_geometry(backbone, tmp_path):
    folder = copies(tmp_path / "pictures", 1)
    stored = np.rot90(np.asarray(Image.open(folder / "00.png")))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.ascontiguousarray(stored)).save(folder / "01.png", exif=exif)
    cache = FeatureFolder(tmp_path / "cache")
    list(extract_folder(backbone, folder, cache=cache))
    assert len(list(cache.path.iterdir())) == 1
    passes = len(backbone.shown)
    (_, upright), (_, turned) = extract_folder(backbone, folder, cache=cache)
    assert len(backbone.shown) == passes
    torch.testing.assert_close(upright.patches, turned.patches, atol=0, rtol=0)
    assert (upright.geometry.orientation, turned.geometry.orientation) == (1, 6)
    assert (turned.geometry.stored_width, turned.geometry.stored_height) == (32, 48)
    assert turned.geometry == extract(backbone, open_image(folder / "01.png")).geometry
    assert dataclasses.replace(turned.geometry, orientation=1, stored_width=48, stored_height=32) == upright.geometry


def test_a_damaged_file_in_the_cache_is_computed_again_and_replaced(backbone, folder, tmp_path):
    cache = FeatureFolder(tmp_path / "cache")
    first = dict(extract_folder(backbone, folder, size=96, cache=cache))
    damaged = sorted(cache.path.iterdir())[2]
    damaged.write_bytes(damaged.read_bytes()[:1000])
    passes = len(backbone.shown)
    with pytest.warns(UserWarning, match="They are computed again"):
        results = list(extract_folder(backbone, folder, size=96, cache=cache))
    assert [name for name, _ in results] == ORDER
    assert len(backbone.shown) == passes + 1
    for name in SMALL:
        assert_same(dict(results)[name], first[name])
    list(extract_folder(backbone, folder, size=96, cache=cache))  # without a warning, which would be an error
    assert len(backbone.shown) == passes + 1


def test_pictures_too_large_for_their_own_size_are_reported_and_passed_by(backbone, tmp_path):
    folder = copies(tmp_path / "pictures", 2)
    Image.new("RGB", (4100, 20)).save(folder / "00_large.png")
    results = dict(extract_folder(backbone, folder))
    assert list(results) == ["00.png", "00_large.png", "01.png"]
    assert str(results["00_large.png"]) == "00_large.png: 4100x20 pixels are too many; pass size=4096 or less."
    assert isinstance(dict(extract_folder(backbone, folder, size=64))["00_large.png"], DenseFeatures)


def test_progress_is_told_of_every_picture_and_can_cancel(backbone, folder):
    told: list[tuple[int, int, str]] = []
    list(extract_folder(backbone, folder, size=64, progress=lambda *step: told.append(step)))
    assert told == [(done, len(ORDER), "pictures") for done in range(1, len(ORDER) + 1)]

    def cancel(done: int, total: int, what: str) -> None:
        if done == 3:
            raise InterruptedError

    results = extract_folder(backbone, folder, size=64, progress=cancel)
    assert [name for name, _ in itertools.islice(results, 2)] == ORDER[:2]
    with pytest.raises(InterruptedError):
        next(results)
    assert len(list(extract_folder(backbone, folder, size=64))) == len(ORDER)


def test_what_was_done_before_a_stop_is_in_the_cache(backbone, tmp_path):
    folder, cache = copies(tmp_path / "pictures", 4), FeatureFolder(tmp_path / "cache")
    results = extract_folder(backbone, folder, cache=cache)
    next(results), next(results)
    results.close()
    assert len(list(cache.path.iterdir())) == 2
    backbone.shown.clear()
    list(extract_folder(backbone, folder, cache=cache))
    assert backbone.shown == [(2, 3, 32, 48)]


@pytest.mark.parametrize("cached", [False, True])
def test_a_long_folder_streams(backbone, tmp_path, monkeypatch, cached):
    """Photographs are opened a pass ahead at most, and neither they nor features pile up."""
    count = 40
    folder = copies(tmp_path / "pictures", count, size=(256, 256))  # 256 cells: 16 share a pass
    cache = FeatureFolder(tmp_path / "cache")
    if cached:
        list(extract_folder(backbone, folder, cache=cache))
    opened: list[weakref.ref] = []

    def watched(folder):
        for photo in load_folder(folder):
            opened.append(weakref.ref(photo))
            assert sum(ref() is not None for ref in opened) <= 2
            yield photo
            del photo

    monkeypatch.setattr(workbench.folders, "load_folder", watched)
    handed_out: list[weakref.ref] = []
    for done, (_, features) in enumerate(extract_folder(backbone, folder, cache=cache if cached else None), start=1):
        assert len(opened) <= (done if cached else 16 * ((done + 15) // 16) + 1)
        handed_out.append(weakref.ref(features))
        del features
        assert sum(ref() is not None for ref in handed_out) <= (
            1 if cached else 16 + 1
        )  # those of a pass come together
    assert len(opened) == count


def test_wrong_arguments_are_said_at_once(backbone, folder, tmp_path):
    with pytest.raises(BadImage, match="there is no folder of this name"):
        extract_folder(backbone, tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no layer 2 in a backbone of 2"):
        extract_folder(backbone, folder, layer=2)
    with pytest.raises(ValueError, match="1 to 4096 px, got 5000"):
        extract_folder(backbone, folder, size=5000)


def test_an_empty_folder_gives_nothing(backbone, tmp_path):
    assert list(extract_folder(backbone, tmp_path)) == []
