"""A pack gives back what was put in, up to the error it states, and reads no more of its file than it must."""

import dataclasses
import hashlib
import io
import json
import math
import os
import re
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from core.dense.cards import ModelCard
from core.dense.coding import rotate
from core.dense.color import fit_basis, project
from core.dense.extract import DenseFeatures, Seam
from core.dense.geometry import Geometry, plan, valid_cells
from core.dense.packfile import BLOCKS, assemble
from core.dense.reference import null_curves
from core.dense.store import weights_digest
from core.models.weights import load_backbone
from workbench.images import Photo, list_samples, open_image
from workbench.looks import Look, look_at
from workbench.packs import make_pack, open_pack, pack_features, save_pack

WEIGHTS = "dinov2_vits14_saliency"
CARD = ModelCard("a model", "0123456789abcdef", "MIT", "https://example.org/licence", "Free to use.")


def picture(width: int, height: int, name: str = "picture.png") -> Photo:
    """A photograph of smooth colours."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return open_image(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8), name=name)


def made(rows: int = 5, cols: int = 7, dim: int = 48, *, registers: int = 2, seed: int = 0, **fields: object) -> Look:
    """A look with random features of a picture whose right and bottom cells lie half in the padding."""
    numbers = torch.Generator().manual_seed(seed)
    geometry = plan(cols * 16 - 10, rows * 16 - 3, 16)
    values = {
        "patches": torch.randn(rows, cols, dim, generator=numbers),
        "cls": torch.randn(dim, generator=numbers),
        "registers": torch.randn(registers, dim, generator=numbers),
        "geometry": geometry,
        "layer": 7,
        "norm": True,
    }
    features = DenseFeatures(**(values | fields))
    return Look(picture(geometry.width, geometry.height), features, CARD.name, CARD)


@pytest.fixture(scope="module")
def backbone():
    return load_backbone(WEIGHTS)


@pytest.fixture(scope="module")
def look(backbone) -> Look:
    return look_at(list_samples()[0].path, backbone, size=154)


def cosines(vectors: np.ndarray) -> np.ndarray:
    rows = vectors.reshape(-1, vectors.shape[-1]).astype(np.float64)
    rows = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows @ rows.T


# What comes back


def test_features_come_back_within_the_coding_error(tmp_path):
    look = made()
    pack = open_pack(save_pack(look, tmp_path / "new folder" / "one.dfp"))
    features, expected = pack.features(), look.features
    bound = pack.scales * 0.5001 * math.sqrt(pack.dim)  # half a step in every channel
    assert ((features.patches - expected.patches).norm(dim=-1).numpy() <= bound).all()
    torch.testing.assert_close(features.cls, expected.cls, atol=1e-5, rtol=0)
    torch.testing.assert_close(features.registers, expected.registers, atol=1e-5, rtol=0)
    assert (features.geometry, features.layer, features.norm) == (expected.geometry, 7, True)
    assert features.seam is None and not features.valid.all()
    np.testing.assert_array_equal(pack.valid, features.valid.numpy())
    np.testing.assert_allclose(pack.norms, expected.patches.norm(dim=-1).numpy(), rtol=1e-6)


def test_everything_said_of_a_pack_comes_back(tmp_path):
    look = made(norm=False, layer=0)
    pack = open_pack(save_pack(look, tmp_path / "one.dfp", labels={"run": "five", "größe": "\N{SNOWMAN}"}))
    assert pack.model == look.card == CARD
    assert pack.picture == {"name": "picture.png", "digest": look.photo.digest}
    assert pack.labels == {"run": "five", "größe": "\N{SNOWMAN}"}
    assert (pack.layer, pack.norm, pack.rows, pack.cols, pack.dim) == (0, False, 5, 7, 48)
    assert pack.geometry == look.features.geometry
    assert pack.path == tmp_path / "one.dfp" and pack.size == pack.path.stat().st_size
    assert re.fullmatch("[0-9a-f]{16}", pack.id) and pack.id in repr(pack) and "5x7x48" in repr(pack)
    assert pack.header["versions"]["torch"] == torch.__version__
    assert pack.texts is None and pack.text is None and pack.basis is None and pack.null_other is None
    pack.verify()


def test_every_part_of_the_geometry_comes_back():
    geometry = Geometry(
        stored_width=500, stored_height=333, orientation=6, crop=(3, 5, 300, 404), input_width=40, input_height=60,
        pad=(3, 1, 5, 3), patch_size=16,
    )  # fmt: skip
    look = made(4, 3, geometry=geometry)
    look = dataclasses.replace(look, photo=picture(333, 500))
    assert make_pack(look).geometry == geometry


def test_a_pack_in_memory_is_the_one_of_the_file(tmp_path):
    pack = make_pack(made())
    path = save_pack(pack, tmp_path / "one.dfp")
    content = path.read_bytes()
    for other in map(open_pack, (path, str(path), content, bytearray(content), memoryview(content))):
        assert other.header == pack.header
        assert other.read(0, other.size) == content
        np.testing.assert_array_equal(other.features().patches, pack.features().patches)
    assert pack.path is None and open_pack(content).path is None


@pytest.mark.parametrize(
    ("seam", "told"),
    [
        (Seam(map=torch.zeros(5, 7), mean=0.1 + 0.2, worst=1 / 3, tiles=7), (0.1 + 0.2, 1 / 3, 7)),
        (Seam(map=torch.full((5, 7), math.nan), mean=math.nan, worst=math.nan, tiles=1), (math.nan, math.nan, 1)),
    ],
)
def test_what_is_known_of_seams_comes_back(seam, told):
    found = make_pack(made(seam=seam)).features().seam
    np.testing.assert_equal((found.mean, found.worst, found.tiles), told)
    assert found.map.shape == (5, 7) and found.map.isnan().all()


def test_a_basis_comes_back_turned_like_the_features():
    look = made()
    pack = make_pack(look, basis=look.basis)
    basis, expected = pack.basis, look.basis
    for name in ("mean", "axes"):
        torch.testing.assert_close(getattr(basis, name), getattr(expected, name), atol=1e-6, rtol=0)
    for name in ("low", "high", "explained"):
        assert torch.equal(getattr(basis, name), getattr(expected, name))
    assert basis.source == expected.source
    # A reader that never turns anything back gets the same scores.
    scores = (pack.codes * pack.scales[..., None] - pack.block("basis_mean")) @ pack.block("basis_components").T
    np.testing.assert_allclose(scores, project(basis, pack.features().patches).numpy(), atol=1e-4)


def test_texts_come_back_with_their_vectors():
    vectors = torch.randn(2, 48)
    pack = make_pack(made(), texts=["a cat", "eine Tür"], text_vectors=vectors)
    assert pack.texts == ["a cat", "eine Tür"]
    np.testing.assert_allclose(pack.text, vectors.numpy(), atol=1e-6)
    np.testing.assert_allclose(pack.block("text"), rotate(vectors).numpy(), atol=1e-6)


def test_reference_curves_are_those_of_the_look():
    look, others = made(20, 16), [made(4, 5, seed=1), made(3, 3, seed=2)]
    pack = make_pack(look, others=others)
    curves = null_curves(
        look.features.patches,
        [other.features.patches for other in others],
        look.valid,
        others_valid=[other.valid for other in others],
    )
    np.testing.assert_array_equal(pack.null_same, np.sort(curves.same_image.numpy()))
    np.testing.assert_array_equal(pack.null_other, np.sort(curves.other_images.numpy()))
    np.testing.assert_array_equal(pack.null_distance, curves.by_distance.numpy())
    assert len(pack.null_same) <= 20_000 and len(pack.null_distance) == 20 + 16 - 2
    alone = make_pack(look)
    np.testing.assert_array_equal(alone.null_same, np.sort(look.null.same_image.numpy()))
    assert alone.null_other is None


@pytest.mark.parametrize(
    ("size", "shown"),
    [((640, 480), (640, 480)), ((1024, 5), (1024, 5)), ((1500, 1000), (1024, 683)), ((20, 2048), (10, 1024)),
     ((2049, 1000), (2048, 1000)), ((30, 3000), (20, 2048))],
)  # fmt: skip
def test_the_preview_is_a_small_jpeg_of_the_picture(size, shown):
    geometry = plan(*size, 16, size=64)
    look = made(geometry.rows, geometry.cols, 4, geometry=geometry)
    photo = picture(*size)
    pack = make_pack(dataclasses.replace(look, photo=photo))
    image = Image.open(io.BytesIO(pack.preview))
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", shown)
    expected = Image.fromarray(photo.pixels).resize(shown, Image.Resampling.BOX).convert("L")
    assert np.abs(np.asarray(image.convert("L")).astype(int) - np.asarray(expected)).mean() < 4


def test_a_preview_of_a_turned_photograph_is_upright():
    stored = np.zeros((40, 60, 3), np.uint8)
    stored[:, :20] = 255  # white at the left of the file, on top after code 6
    file = io.BytesIO()
    Image.fromarray(stored).save(file, "PNG", exif=_exif(6))
    photo = open_image(file.getvalue(), name="turned.png")
    geometry = plan(60, 40, 4, orientation=6)
    look = made(15, 10, 6, geometry=geometry)
    pack = make_pack(dataclasses.replace(look, photo=photo))
    shown = np.asarray(Image.open(io.BytesIO(pack.preview)))
    assert shown.shape == (60, 40, 3) and shown[:18].min() > 240 and shown[22:].max() < 15


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def test_names_that_are_no_text_do_not_stop_a_pack():
    look = made()
    look = dataclasses.replace(look, photo=picture(*look.photo.size, name=os.fsdecode(b"caf\xe9.jpg")))
    pack = make_pack(look)
    assert pack.picture["name"] == "caf?.jpg"
    pack.verify()


@pytest.mark.parametrize("dim", [1, 2, 5, 6, 37, 96, 385])
def test_any_number_of_channels_is_coded(dim):
    look = made(4, 3, dim)
    pack = make_pack(look)
    assert pack.header["rotation"] == (None if dim % 2 else "hadamard-0")
    bound = pack.scales * 0.5001 * math.sqrt(dim)
    assert (np.linalg.norm(pack.rows_of(0, 4) - look.features.patches.numpy(), axis=-1) <= bound).all()
    np.testing.assert_allclose(pack.cls, look.features.cls.numpy(), atol=1e-5)


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (1, 9), (16, 1), (17, 2), (33, 3)])
def test_any_grid_is_coded(rows, cols):
    look = made(rows, cols, 8, registers=0)
    pack = make_pack(look)
    assert pack.features().patches.shape == (rows, cols, 8) and pack.registers.shape == (0, 8)
    assert len(pack.header["blocks"]["codes"]["crc32"]) == -(-rows // 16)
    assert len(pack.null_distance) == rows + cols - 2
    if int(look.valid.sum()) == 1:
        assert len(pack.null_same) == 0 and pack.error == {"cosine_max": 0, "cosine_mean": 0, "pairs": 0, "exact": True}


def test_the_card_of_a_look_without_one_is_its_name():
    look = dataclasses.replace(made(), card=None)
    assert make_pack(look).model == ModelCard("a model")


def test_a_look_through_a_backbone_carries_its_card(look, backbone):
    source = backbone.source
    pack = make_pack(look)
    assert pack.model == ModelCard(
        WEIGHTS, weights_digest(backbone), source.licence, source.licence_url, source.licence_notice
    )
    assert pack.model.licence and pack.picture["name"] == list_samples()[0].path.name


# The error


def test_the_stated_error_is_that_of_the_readers_formula():
    look = made(9, 8)
    pack = make_pack(look)
    exact, coded = cosines(look.features.patches.numpy()), cosines(pack.codes)
    off = np.abs(exact - coded)[np.triu_indices(72, 1)]
    assert pack.error["exact"] and pack.error["pairs"] == len(off)
    assert pack.error["cosine_max"] == pytest.approx(off.max(), abs=1e-6)
    assert pack.error["cosine_mean"] == pytest.approx(off.mean(), abs=1e-6)
    assert np.abs(exact - cosines(pack.rows_of(0, 9))).max() <= pack.error["cosine_max"] + 1e-6


@pytest.mark.long
@pytest.mark.parametrize(
    ("layer", "norm", "sample"),
    [(0, False, 1), (0, True, 2), (5, False, 3), (8, True, 4), (11, False, 0), (11, True, 5)],
)
def test_real_features_keep_their_cosines(backbone, layer, norm, sample):
    look = look_at(list_samples()[sample].path, backbone, size=448, layer=layer, norm=norm)
    pack = make_pack(look)
    off = np.abs(cosines(look.features.patches.numpy()) - cosines(pack.codes))
    assert off.max() <= 0.004
    assert pack.error["cosine_max"] == pytest.approx(off.max(), abs=1e-6)


def test_channels_are_cut_on_request_only_and_the_cost_is_measured():
    look = made(9, 8)
    assert make_pack(look).header["reduced"] is None and make_pack(look, dims=48).header["reduced"] is None
    pack = make_pack(look, dims=12, basis=look.basis, texts=["a"], text_vectors=torch.randn(1, 48))
    assert pack.dim == 12 == pack.features().patches.shape[-1] and pack.codes.shape == (9, 8, 12)
    assert pack.cls.shape == (12,) and pack.registers.shape == (2, 12) and pack.text.shape == (1, 12)
    assert pack.basis.axes.shape == (3, 12)
    reduced, error = pack.header["reduced"], pack.error["cosine_max"]
    assert (reduced["from"], reduced["how"]) == (48, "pca")
    exact = cosines(look.features.patches.numpy())
    assert error == pytest.approx(np.abs(exact - cosines(pack.codes)).max(), abs=1e-6)
    assert error > 0.3  # noise has no small number of axes, and the pack says so
    assert reduced["cosine_max"] == pytest.approx(error, abs=0.05)
    kept = make_pack(look).error["cosine_max"]
    assert kept < 0.02


def test_features_of_few_directions_can_be_cut_without_loss():
    basis = torch.randn(6, 48, generator=torch.Generator().manual_seed(1))
    look = made(patches=torch.randn(5, 7, 6, generator=torch.Generator().manual_seed(2)) @ basis)
    pack = make_pack(look, dims=6)
    assert pack.header["reduced"]["cosine_max"] < 1e-5 and pack.error["cosine_max"] < 0.02
    colors = fit_basis(look.features.patches, valid=look.valid)
    cut = make_pack(look, dims=6, basis=colors)
    torch.testing.assert_close(
        project(cut.basis, cut.features().patches), project(colors, look.features.patches), atol=0.2, rtol=0
    )


# Reading


def big_pack(path: Path, rows: int = 256, cols: int = 256, dim: int = 384) -> Path:
    """A file of 25 MB that costs nothing to make: all codes are 1."""
    small = make_pack(made(1, 1, dim))
    geometry = plan(cols * 16, rows * 16, 16)
    blocks = {name: small.block(name) for name in small.header["blocks"]}
    blocks |= {name: np.ones((rows, cols), np.float32) for name in ("scales", "norms")}
    blocks |= {"valid": valid_cells(geometry), "null_distance": np.zeros(rows + cols - 2)}
    blocks |= {"codes": np.ones((rows, cols, dim), np.int8)}
    path.write_bytes(assemble({**small.header, "rows": rows, "cols": cols, "geometry": geometry.to_dict()}, blocks))
    return path


def resident(path: Path) -> int:
    """Bytes of a mapped file that this process has touched."""
    maps = Path("/proc/self/smaps").read_text()
    return 1024 * sum(int(size) for size in re.findall(rf"{re.escape(str(path))}\n(?:.*\n)*?Rss: +(\d+) kB", maps))


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the system does not tell what is in memory")
def test_opening_reads_no_codes_and_rows_only_themselves(tmp_path):
    path = big_pack(tmp_path / "big.dfp")
    assert path.stat().st_size > 25_000_000
    pack = open_pack(path)
    opened = resident(path)
    assert 0 < opened < 5_000_000  # scales, norms, valid: 0.6 MB; systems map up to 2 MB at a time
    rows = pack.rows_of(128, 144)  # 1.6 MB
    assert rows.shape == (16, 256, 384)
    pack.read(0, 1000), pack.cls, pack.basis, pack.null_same, pack.preview, repr(pack)
    assert resident(path) < opened + 6_000_000
    pack.verify()
    assert resident(path) > 25_000_000  # the measure measures


def test_rows_are_those_of_the_whole():
    pack = make_pack(made(37, 3, 8))
    whole = pack.rows_of(0, 37)
    for start, stop in [(0, 1), (5, 9), (15, 17), (16, 32), (0, 32), (30, 37), (36, 37), (3, 3), (37, 37)]:
        np.testing.assert_array_equal(pack.rows_of(start, stop), whole[start:stop])
    for start, stop in [(-1, 3), (0, 38), (5, 4)]:
        with pytest.raises(ValueError, match=f"rows {start} to {stop} are not all in a map of 37 rows"):
            pack.rows_of(start, stop)


def test_bytes_are_those_of_the_file(tmp_path):
    path = save_pack(made(), tmp_path / "one.dfp")
    pack, content = open_pack(path), path.read_bytes()
    for start, stop in [(0, 16), (7, 4099), (len(content) - 1, len(content)), (5, 5), (0, len(content))]:
        assert pack.read(start, stop) == content[start:stop]
    for start, stop in [(-1, 5), (5, 4), (0, len(content) + 1)]:
        with pytest.raises(ValueError, match=f"bytes {start} to {stop} are not all in a pack of {len(content)} bytes"):
            pack.read(start, stop)


def test_nobody_can_write_into_a_pack(tmp_path):
    path = save_pack(made(), tmp_path / "one.dfp")
    for pack in (open_pack(path), open_pack(path.read_bytes()), open_pack(bytearray(path.read_bytes()))):
        for name in pack.header["blocks"]:
            assert not pack.block(name).flags.writeable
        with pytest.raises(dataclasses.FrozenInstanceError):
            pack.path = None
        pack.features().patches.zero_()  # the caller's own
        assert pack.features().patches.abs().sum() > 0


# Saving


def test_saving_again_leaves_an_open_pack_alone(tmp_path):
    path = tmp_path / "one.dfp"
    first = open_pack(save_pack(made(), path))
    expected = first.rows_of(0, 5)
    assert save_pack(made(seed=1), path) == path
    np.testing.assert_array_equal(first.rows_of(0, 5), expected)
    assert open_pack(path).id != first.id
    save_pack(first, path)  # back over the file it does not lie in any more
    assert open_pack(path).id == first.id
    save_pack(open_pack(path), path)  # and over the file it does lie in
    open_pack(path).verify()
    assert [file.name for file in tmp_path.iterdir()] == ["one.dfp"]


def test_a_pack_appears_complete_or_not_at_all(tmp_path, monkeypatch):
    path = save_pack(made(), tmp_path / "one.dfp")
    before = path.read_bytes()

    def full(self: Path, content: bytes) -> None:
        with self.open("wb") as file:
            file.write(memoryview(content)[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    for target in (path, tmp_path / "two.dfp"):
        with pytest.raises(OSError, match="No space left"):
            save_pack(made(seed=1), target)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["one.dfp"]


def test_threads_may_save_the_same_file(tmp_path):
    packs = [make_pack(made(seed=seed)) for seed in range(4)]
    threads = [threading.Thread(target=save_pack, args=(pack, tmp_path / "one.dfp")) for pack in packs * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = open_pack(tmp_path / "one.dfp")
    found.verify()
    assert found.id in {pack.id for pack in packs}


def test_options_go_to_the_making_and_not_to_a_pack(tmp_path):
    assert open_pack(save_pack(made(), tmp_path / "one.dfp", dims=8)).dim == 8
    with pytest.raises(ValueError, match="a pack is saved as it is; give dims to make_pack"):
        save_pack(make_pack(made()), tmp_path / "two.dfp", dims=8)
    with pytest.raises(ValueError, match=r"two.npz ends in '.npz'; a feature pack is called \*.dfp"):
        save_pack(made(), tmp_path / "two.npz")


@pytest.mark.parametrize("left_out", ["labels", "look"])
def test_the_id_names_the_content(left_out):
    first = make_pack(made(), labels={"a": "b"})
    assert make_pack(made(), labels={"a": "b"}).id == first.id
    other = make_pack(made(), labels={"a": "c"}) if left_out == "labels" else make_pack(made(seed=1), labels={"a": "b"})
    assert other.id != first.id


def test_parts_that_do_not_fit_are_refused():
    look = made()
    for refused, sentence in [
        ({"dims": 0}, "dims is the number of channels to keep, 1 to 48, got 0"),
        ({"dims": 49}, "dims is the number of channels to keep, 1 to 48, got 49"),
        ({"labels": {"epoch": 3}}, r"labels are text; convert epoch with str\(\)"),
        ({"texts": ["a"]}, "1 texts came with 0 vectors; give one for each"),
        ({"text_vectors": torch.zeros(2, 48)}, "0 texts came with 2 vectors"),
        ({"texts": ["a"], "text_vectors": torch.zeros(1, 8)}, "the text vectors came with 8 channels, the patches"),
        ({"basis": made(dim=8).basis}, "the basis came with 8 channels, the patches with 48"),
        ({"others": [made(dim=8)]}, "another look came with 8 channels, the patches with 48"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            make_pack(look, **refused)
    with pytest.raises(ValueError, match="the features are a map of 4x7x48 and the geometry has 5x7 cells"):
        make_pack(made(patches=torch.zeros(4, 7, 48)))
    with pytest.raises(ValueError, match="the photograph has 9x9 px and the geometry is of one with 102x77 px"):
        make_pack(dataclasses.replace(look, photo=picture(9, 9)))
    with pytest.raises(ValueError, match="35 of 35 patches are not finite in fp32"):
        make_pack(made(patches=torch.full((5, 7, 48), math.nan)))


def test_features_from_elsewhere_need_no_photograph():
    look = made(layer=-1, norm=True, cls=torch.full((48,), math.nan))
    pack = pack_features(look.features, ModelCard("theirs"), "theirs.png")
    assert pack.picture == {"name": "theirs.png", "digest": None} and pack.model == ModelCard("theirs")
    assert pack.layer is None and pack.norm is None and np.isnan(pack.cls).all()
    assert (pack.features().layer, pack.features().norm) == (-1, False)
    shown = np.asarray(Image.open(io.BytesIO(pack.preview)))
    assert shown.shape == (77, 102, 3) and np.ptp(shown) == 0


def test_a_growing_map_is_packed_without_reference_cosines():
    look = made()
    patches = look.features.patches.clone()
    patches[2:] = 0  # not there yet
    pack = pack_features(dataclasses.replace(look.features, patches=patches), CARD, look.photo, growing=True)
    assert len(pack.null_same) == 0 and pack.null_other is None and np.isnan(pack.null_distance).all()
    assert not pack.codes[2:].any() and pack.codes[:2].any(-1).all()
    assert not pack.rows_of(2, 5).any()
    # Rows that have come are those of the whole map, so a reader may keep them.
    whole = make_pack(look)
    np.testing.assert_array_equal(pack.codes[:2], whole.codes[:2])


# The format, read without any of our code


def test_the_file_is_the_one_that_is_described(tmp_path):
    look = made(21, 7)
    path = save_pack(
        look, tmp_path / "one.dfp", others=[made(seed=1)], basis=look.basis, texts=["a"],
        text_vectors=torch.ones(1, 48), labels={"a": 'has "id":"0" in it'},
    )  # fmt: skip
    content = path.read_bytes()
    assert content[:8] == bytes.fromhex("89 44 46 50 0D 0A 1A 0A")
    version, length = struct.unpack("<II", content[8:16])
    assert version == 1 and (16 + length) % 64 == 0
    text = content[16 : 16 + length]
    header = json.loads(text)
    assert text.rstrip(b" ") == json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert header.keys() == {
        "format", "id", "bytes", "model", "picture", "layer", "norm", "rows", "cols", "dim", "geometry", "rotation",
        "reduced", "error", "seam", "basis", "texts", "versions", "labels", "blocks",
    }  # fmt: skip
    # The id needs no JSON writer: it is the hash of the text without the id.
    without = text.rstrip(b" ").replace(b'"id":"%s",' % header["id"].encode(), b"", 1)
    assert header["id"] == hashlib.sha256(without).hexdigest()[:16]
    assert header["bytes"] == len(content)
    end, letters = 0, {"H": 21, "W": 7, "D": 48, "3": 3, "T": 1, "L": 26, "R": 2}
    assert sorted(header["blocks"], key=lambda name: header["blocks"][name]["offset"]) == list(BLOCKS)
    for name, (dtype, shape) in BLOCKS.items():
        told = header["blocks"][name]
        assert told["dtype"] == dtype and told["offset"] % 64 == 0 and 0 <= told["offset"] - end < 64
        assert all(letters.get(letter, size) == size for letter, size in zip(shape, told["shape"], strict=True))
        end = told["offset"] + told["bytes"]
        data = content[16 + length + told["offset"] : 16 + length + end]
        assert len(data) == math.prod(told["shape"]) * np.dtype(dtype).itemsize
        assert hashlib.sha256(data).hexdigest() == told["sha256"]
    assert 16 + length + end == len(content)
    chunk = 16 * 7 * 48
    crc32 = [zlib.crc32(data[start : start + chunk]) for start in range(0, len(data), chunk)]
    assert (told["chunk_rows"], told["crc32"]) == (16, crc32) and len(crc32) == 2
    codes = np.frombuffer(data, np.int8).reshape(21, 7, 48)
    np.testing.assert_array_equal(codes, open_pack(path).codes)


@pytest.mark.long
def test_a_pack_of_a_4k_picture_is_made_in_bounded_memory(tmp_path):
    """293x293 cells of 384 channels: 132 MB in fp32, 33 MB coded."""
    script = """
import resource, sys, torch, numpy as np
from core.dense.extract import DenseFeatures
from core.dense.geometry import plan
from core.dense.cards import ModelCard
from workbench.packs import pack_features, save_pack
patches = torch.randn(293, 293, 384)
features = DenseFeatures(patches=patches, cls=patches[0, 0], registers=patches[0, :4], geometry=plan(4102, 4102, 14),
                         layer=11, norm=True)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pack = pack_features(features, ModelCard("a model"), "noise.png")
print(pack.size, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200, check=True)
    size, grown = map(int, out.stdout.split())
    assert 33_000_000 < size < 35_000_000
    assert grown < 1000  # MB
