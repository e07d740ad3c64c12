"""Files of features come back bit for bit or are refused, and a folder of them forgets what was used longest ago."""

import contextlib
import dataclasses
import hashlib
import json
import math
import resource
import struct
import threading
import warnings
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from core.dense.extract import DenseFeatures, Seam, extract
from core.dense.geometry import Geometry, plan
from core.dense.store import (
    FeatureFolder,
    FeatureKey,
    FeaturesError,
    load_features,
    load_labels,
    save_features,
    weights_digest,
)
from core.models import build_backbone
from core.models.weights import load_backbone, save_backbone


def made(
    *, rows: int = 3, cols: int = 4, dim: int = 8, registers: int = 2, tiled: bool = False, seed: int = 0
) -> DenseFeatures:
    """Features of numbers that a careless copy would change: NaN with a payload, -0, infinity, subnormals."""
    numbers = torch.Generator().manual_seed(seed)
    patches = torch.randn(rows, cols, dim, generator=numbers)
    payload = struct.unpack("<f", struct.pack("<I", 0x7FC12345))[0]
    patches[0, 0, :5] = torch.tensor([payload, -0.0, math.inf, -math.inf, 1e-42])
    seam = Seam(map=torch.full((rows, cols), torch.nan), mean=math.nan, worst=math.nan, tiles=1)
    if tiled:
        seam.map[1] = 0.25
        seam = dataclasses.replace(seam, mean=0.1 + 0.2, worst=1 / 3, tiles=7)
    return DenseFeatures(
        patches=patches,
        cls=torch.randn(dim, generator=numbers),
        registers=torch.randn(registers, dim, generator=numbers),
        geometry=plan(cols * 16 - 3, rows * 16 - 5, 16, orientation=1),
        layer=11,
        norm=True,
        seam=seam if tiled or seed % 2 else None,
    )


def assert_same_bits(ours: DenseFeatures, expected: DenseFeatures) -> None:
    for name in ("patches", "cls", "registers"):
        one, other = getattr(ours, name), getattr(expected, name)
        assert one.dtype == torch.float32 and one.shape == other.shape and one.is_contiguous()
        assert one.numpy().tobytes() == other.numpy().tobytes(), name
    assert (ours.geometry, ours.layer, ours.norm) == (expected.geometry, expected.layer, expected.norm)
    assert (ours.seam is None) == (expected.seam is None)
    if ours.seam is not None and expected.seam is not None:
        assert ours.seam.map.numpy().tobytes() == expected.seam.map.numpy().tobytes()
        numbers = [(seam.mean, seam.worst, seam.tiles) for seam in (ours.seam, expected.seam)]
        assert struct.pack("<ddq", *numbers[0]) == struct.pack("<ddq", *numbers[1])


# Files


@pytest.mark.parametrize(
    "features",
    [made(), made(tiled=True), made(seed=1), made(registers=0), made(rows=1, cols=1, dim=5, registers=1)],
    ids=["exact", "tiled", "no overlap", "no registers", "smallest"],
)
def test_features_come_back_bit_for_bit(tmp_path, features):
    path = save_features(features, tmp_path / "new folder" / "one.safetensors")
    assert path == tmp_path / "new folder" / "one.safetensors"
    assert_same_bits(load_features(path), features)


def test_every_part_of_the_geometry_comes_back(tmp_path):
    geometry = Geometry(
        stored_width=500, stored_height=333, orientation=6, crop=(3, 5, 300, 404), input_width=40, input_height=60,
        pad=(3, 1, 5, 3), patch_size=16,
    )  # fmt: skip
    features = dataclasses.replace(made(rows=4, cols=3), geometry=geometry, layer=0, norm=False)
    assert_same_bits(load_features(save_features(features, tmp_path / "one.safetensors")), features)


def test_extracted_features_come_back_and_are_the_callers_own(tmp_path):
    torch.manual_seed(0)
    picture = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    features = extract(build_backbone("vit_nano", depth=2), picture, tile=48)
    assert features.seam is not None
    path = save_features(features, tmp_path / "one.safetensors")
    loaded = load_features(path)
    assert_same_bits(loaded, features)
    path.write_bytes(b"gone")
    loaded.patches.add_(1)  # neither the file nor a mapping of it
    torch.testing.assert_close(loaded.patches, features.patches + 1, atol=0, rtol=0)


def test_views_are_saved_without_what_they_are_a_view_of(tmp_path):
    tokens = torch.randn(1 + 2 + 12, 8)
    whole = made()
    features = dataclasses.replace(whole, patches=tokens[3:].unflatten(0, (3, 4)), cls=tokens[0], registers=tokens[1:3])
    path = save_features(features, tmp_path / "one.safetensors")
    assert_same_bits(load_features(path), features)
    turned = dataclasses.replace(whole, patches=torch.randn(8, 3, 4).permute(1, 2, 0))
    loaded = load_features(save_features(turned, path))
    torch.testing.assert_close(loaded.patches, turned.patches, atol=0, rtol=0)


def test_other_programs_can_read_the_file(tmp_path):
    features = made(tiled=True)
    path = save_features(features, tmp_path / "one.safetensors", picture="cat.jpg")
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == {"patches", "cls", "registers", "seam"}
        metadata = file.metadata()
    assert json.loads(metadata["geometry"]) == features.geometry.to_dict()
    assert json.loads(metadata["labels"]) == {"picture": "cat.jpg"}
    assert (json.loads(metadata["layer"]), json.loads(metadata["norm"])) == (11, True)
    without_overlap = made(seed=1)
    assert without_overlap.seam is not None and math.isnan(without_overlap.seam.mean)
    with safe_open(save_features(without_overlap, path), "pt") as file:
        assert "NaN" not in "".join(file.metadata().values())  # which is no JSON


def test_labels_are_kept_whatever_they_are_called(tmp_path):
    labels = {"features": "a", "path": "b", "geometry": 'ö \n"', "": "empty"}
    path = save_features(made(), tmp_path / "one.safetensors", **labels)
    assert load_labels(path) == labels
    assert load_labels(save_features(made(), path)) == {}


def test_what_cannot_be_kept_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as it is for users
    with pytest.raises(ValueError, match="labels are text; convert size, tile with str"):
        save_features(made(), tmp_path / "one.safetensors", size=3, tile=None, name="x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"ends in '\.npz'; features are kept in safetensors files"):
        save_features(made(), tmp_path / "one.npz")
    half = dataclasses.replace(made(), cls=torch.zeros(8, dtype=torch.float16))
    with pytest.raises(ValueError, match=r"kept in fp32, cls is torch\.float16"):
        save_features(half, tmp_path / "one.safetensors")
    assert not list(tmp_path.iterdir())


@contextlib.contextmanager
def disk_of(size: int):
    """Within it no file grows beyond `size` bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path):
    old = made(seed=2)
    path = save_features(old, tmp_path / "one.safetensors")
    with disk_of(100_000), pytest.raises(OSError, match=r"large|space"):
        save_features(made(rows=60, cols=60), path)
    assert list(tmp_path.iterdir()) == [path]
    assert_same_bits(load_features(path), old)


def said(path: Path) -> str:
    """The refusal, after checking that it is one plain sentence."""
    with pytest.raises(FeaturesError) as refused:
        load_features(path)
    text = str(refused.value)
    assert str(path) in text and "\n" not in text and "Traceback" not in text
    with pytest.raises(FeaturesError):
        load_labels(path)
    return text


def test_a_file_cut_short_anywhere_is_refused(tmp_path):
    path = save_features(made(tiled=True), tmp_path / "one.safetensors")
    whole = path.read_bytes()
    for length in sorted({0, 1, 7, 8, 100, len(whole) // 2, len(whole) - 1}):
        path.write_bytes(whole[:length])
        assert "damaged, cut short or no file of features" in said(path)
    path.write_bytes(whole + b"\0")
    assert "extract them again" in said(path)
    path.write_bytes(whole)
    load_features(path)


def test_a_single_changed_bit_is_noticed(tmp_path):
    path = save_features(made(tiled=True), tmp_path / "one.safetensors", picture="cat")
    whole = bytearray(path.read_bytes())
    header = int.from_bytes(whole[:8], "little")
    places = [*range(8, 8 + header, 11), *range(8 + header, len(whole), 29)]
    assert len(places) > 60
    refused = 0
    for place in places:
        changed = bytearray(whole)
        changed[place] ^= 1
        path.write_bytes(changed)
        try:
            features, labels = load_features(path), load_labels(path)
        except FeaturesError:
            refused += 1
            continue
        # Blanks with which safetensors fills its header say nothing.
        assert 8 <= place < 8 + header and whole[place] == ord(" ")
        assert labels == {"picture": "cat"} and features.layer == 11
    assert refused > 0.9 * len(places)


def test_other_files_are_refused_by_name(tmp_path):
    path = tmp_path / "one.safetensors"
    assert "there is no file" in said(path)
    path.mkdir()
    assert "there is no file" in said(path)
    path.rmdir()
    path.write_text("<html>Please log in</html>")
    assert "no file of features" in said(path)
    save_file({"patches": torch.zeros(2, 2, 3)}, path)
    assert "something else than features" in said(path)
    save_backbone(build_backbone("vit_nano", depth=1), path)
    assert "something else than features" in said(path)
    save_file({"patches": torch.zeros(2, 2, 3)}, path, metadata={"format": "gramscope-features-99"})
    assert "written by another version (gramscope-features-99" in said(path)


# Names for weights


def test_the_digest_follows_every_tensor_and_nothing_else():
    torch.manual_seed(0)
    backbone = build_backbone("vit_nano", depth=1)
    digest = weights_digest(backbone)
    assert len(digest) == 16 and set(digest) <= set("0123456789abcdef")
    assert weights_digest(backbone.train()) == weights_digest(backbone.eval()) == digest
    seen = {digest}
    with torch.no_grad():
        for name, tensor in backbone.state_dict().items():
            before = tensor.clone()
            tensor.view(-1)[-1] += 1
            assert weights_digest(backbone) not in seen, name
            seen.add(weights_digest(backbone))
            tensor.copy_(before)
    assert weights_digest(backbone) == digest
    assert weights_digest(backbone.bfloat16()) not in seen


def test_the_digest_is_that_of_a_slow_loop():
    """Written out byte by byte, so that caches of today are found tomorrow."""
    torch.manual_seed(0)
    backbone = build_backbone("vit_nano", depth=1, untie_cls_and_patch_norms=True)
    told = {name: backbone.arguments.get(name) for name in (
        "num_heads", "norm_eps", "rope_base", "rope_min_period", "rope_max_period", "rope_coords", "pos_offset",
        "pos_antialias", "patch_size",
    )}  # fmt: skip
    content = json.dumps([told, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).encode()
    for name in sorted(backbone.state_dict()):
        tensor = backbone.state_dict()[name]
        shape = ", ".join(str(side) for side in tensor.shape) + ("," if tensor.ndim == 1 else "")
        content += f"{name} ({shape}) torch.float32".encode() + tensor.numpy().tobytes()
    assert weights_digest(backbone) == hashlib.sha256(content).hexdigest()[:16]


def test_what_changes_features_without_a_tensor_changes_the_digest(tmp_path):
    torch.manual_seed(0)
    backbone = build_backbone("dinov2_small", depth=1)
    path = save_backbone(backbone, tmp_path / "weights.pth")
    digests = {weights_digest(load_backbone(path, pos_interpolation=way)) for way in ("official", "hf", "timm")}
    assert len(digests) == 3
    digests.add(weights_digest(load_backbone(path, num_heads=3)))
    satellite = load_backbone(path)
    assert weights_digest(satellite) == weights_digest(load_backbone(path, pos_interpolation="official"))
    satellite.pixel_std = (0.2, 0.2, 0.2)
    digests.add(weights_digest(satellite))
    assert len(digests) == 5


def test_equal_weights_from_different_files_share_a_digest(tmp_path):
    torch.manual_seed(0)
    for name in ("vit_nano", "convnext_tiny"):
        backbone = build_backbone(name, **({"depth": 1} if name == "vit_nano" else {}))
        digest = weights_digest(backbone)
        for suffix in ("pth", "safetensors"):
            assert weights_digest(load_backbone(save_backbone(backbone, tmp_path / f"{name}.{suffix}"))) == digest


# The cache


def key(number: int = 0, **changed) -> FeatureKey:
    return FeatureKey(**({"picture": f"{number:016x}", "weights": "f" * 16, "layer": 11} | changed))


def test_the_cache_returns_what_was_put_under_exactly_this_key(tmp_path):
    cache = FeatureFolder(tmp_path / "cache")
    keys = [key(), key(1), key(weights="e" * 16), key(size=224), key(size=22, tile=4), key(tile=0), key(tile=224)]
    assert len({one.file_name for one in keys}) == len(keys)
    for count, one in enumerate(keys):
        assert cache.get(one) is None
        cache.put(one, made(seed=10 + 2 * count, tiled=count % 2 == 1))
    raw, shallow = key(norm=False), key(layer=1)
    assert cache.get(raw) is None and cache.get(shallow) is None
    cache.put(raw, dataclasses.replace(made(seed=90), norm=False))
    cache.put(shallow, dataclasses.replace(made(seed=92), layer=1))
    for count, one in enumerate(keys):
        assert_same_bits(FeatureFolder(tmp_path / "cache").get(one), made(seed=10 + 2 * count, tiled=count % 2 == 1))
    assert cache.get(raw).norm is False and cache.get(shallow).layer == 1


def test_features_do_not_go_under_a_key_of_another_layer_or_norm(tmp_path):
    cache = FeatureFolder(tmp_path)
    for wrong in (key(layer=3), key(norm=False)):
        with pytest.raises(ValueError, match=r"features of layer 11 \(norm True\) do not belong under a key of"):
            cache.put(wrong, made())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", [{"picture": "../../secret"}, {"weights": ""}, {"picture": "F" * 16}])
def test_keys_take_only_digests(wrong):
    with pytest.raises(ValueError, match="is a digest of 16 hex digits"):
        key(**wrong)


def test_keys_count_layers_from_the_start():
    with pytest.raises(ValueError, match=r"use extract\.layer_index"):
        key(layer=-1)


def test_a_damaged_file_is_said_and_replaced(tmp_path):
    cache = FeatureFolder(tmp_path)
    cache.put(key(), made())
    (file,) = tmp_path.iterdir()
    for damage in (b"", file.read_bytes()[:-4]):
        file.write_bytes(damage)
        with pytest.warns(UserWarning, match="damaged, cut short.*They are computed again"):
            assert cache.get(key()) is None
        cache.put(key(), made(seed=4))
        assert_same_bits(cache.get(key()), made(seed=4))
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_under_the_name_of_another_is_not_believed(tmp_path):
    cache = FeatureFolder(tmp_path)
    cache.put(key(1), made())
    (tmp_path / key(1).file_name).rename(tmp_path / key(2).file_name)
    with pytest.warns(UserWarning, match="not those of its name"):
        assert cache.get(key(2)) is None


def test_the_bound_removes_what_was_used_longest_ago(tmp_path):
    probe = FeatureFolder(tmp_path / "probe")
    probe.put(key(), made())
    (file,) = (tmp_path / "probe").iterdir()
    size = file.stat().st_size
    cache = FeatureFolder(tmp_path / "cache", max_bytes=3 * size + size // 2)

    def kept() -> list[int]:
        return [picture for picture in range(10) if (tmp_path / "cache" / key(picture).file_name).exists()]

    for picture in range(3):
        cache.put(key(picture), made())
    assert kept() == [0, 1, 2]
    cache.get(key(0))
    cache.put(key(3), made())
    assert kept() == [0, 2, 3]
    cache.put(key(2), made())
    cache.put(key(4), made())
    assert kept() == [2, 3, 4]
    assert sum(file.stat().st_size for file in (tmp_path / "cache").iterdir()) <= 3.5 * size
    assert cache.get(key(0)) is None  # without a warning: forgotten is not damaged
    # A smaller bound takes hold with the next picture.
    FeatureFolder(tmp_path / "cache", max_bytes=size).put(key(5), made())
    assert kept() == [5]


def test_features_above_the_bound_are_not_kept_and_cost_no_others(tmp_path):
    FeatureFolder(tmp_path).put(key(1), made())
    (file,) = tmp_path.iterdir()
    cache = FeatureFolder(tmp_path, max_bytes=2 * file.stat().st_size)
    with pytest.warns(UserWarning, match="bytes are not kept: the bound is"):
        cache.put(key(2), made(rows=40, cols=40))
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("bound", [0, -5])
def test_a_bound_below_one_byte_is_refused(tmp_path, bound):
    with pytest.raises(ValueError, match=f"or None for no bound; got {bound}"):
        FeatureFolder(tmp_path, max_bytes=bound)


def test_other_files_in_the_folder_are_not_touched_but_leftovers_are(tmp_path):
    weights = save_backbone(build_backbone("vit_nano", depth=1), tmp_path / "weights.safetensors")
    save_features(made(), tmp_path / "mine.safetensors")
    stem = key(7).file_name.removesuffix(".safetensors")
    (tmp_path / f".{stem}.4711.safetensors").write_bytes(bytes(5000))  # of a process that was killed while writing
    FeatureFolder(tmp_path, max_bytes=5000).put(key(1), made())
    FeatureFolder(tmp_path, max_bytes=5000).put(key(2), made())
    left = {path.name for path in tmp_path.iterdir()}
    assert {weights.name, "mine.safetensors", key(2).file_name} <= left
    assert f".{stem}.4711.safetensors" not in left


def test_threads_may_share_a_folder(tmp_path):
    """Eight threads write, read and evict the same few keys; every answer is whole, and nobody fails."""
    size = 0
    FeatureFolder(tmp_path).put(key(0), made(seed=2))
    size = (tmp_path / key(0).file_name).stat().st_size
    failures: list[BaseException] = []

    def work(start: int) -> None:
        try:
            cache = FeatureFolder(tmp_path, max_bytes=2 * size + 10)
            for count in range(25):
                picture = (start + count) % 4
                if (features := cache.get(key(picture))) is not None:
                    assert_same_bits(features, made(seed=2 + 2 * picture))
                cache.put(key(picture), made(seed=2 + 2 * picture))
        except BaseException as error:
            failures.append(error)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        threads = [threading.Thread(target=work, args=(start,)) for start in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures, failures[0]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
