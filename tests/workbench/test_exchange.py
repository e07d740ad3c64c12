"""Packs survive npz, Zarr and Parquet bit for bit, other programs can read these, and their features become packs."""

import contextlib
import dataclasses
import json
import math
import os
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zarr

from core.dense.cards import ModelCard
from core.dense.extract import DenseFeatures, Seam
from core.dense.geometry import plan
from workbench.exchange import from_npz, from_parquet, from_zarr, to_npz, to_parquet, to_zarr
from workbench.images import open_image
from workbench.looks import Look
from workbench.packs import Pack, PackError, make_pack

ROWS, COLS, DIM = 18, 5, 16
GEOMETRY = plan(COLS * 14 - 10, ROWS * 14 - 3, 14)
WAYS = {
    "npz": (to_npz, from_npz),
    "zarr": (to_zarr, from_zarr),
    "parquet": (to_parquet, from_parquet),
}


def made(*, rich: bool = False, **fields: object) -> Pack:
    """A pack of random features: -0 and NaN stand in its blocks, a zero vector among its patches."""
    numbers = torch.Generator().manual_seed(0)
    patches = torch.randn(ROWS, COLS, DIM, generator=numbers)
    patches[2, 3] = 0
    values = {
        "patches": patches,
        "cls": torch.full((DIM,), math.nan),
        "registers": torch.zeros(2 if rich else 0, DIM),
        "geometry": GEOMETRY,
        "layer": 11,
        "norm": False,
        "seam": Seam(map=torch.zeros(ROWS, COLS), mean=1 / 3, worst=math.nan, tiles=4) if rich else None,
    }
    features = DenseFeatures(**(values | fields))
    photo = open_image(np.full((GEOMETRY.height, GEOMETRY.width, 3), 99, np.uint8), name="größe.png")
    look = Look(photo, features, "a model", ModelCard("a model", licence="MIT"))
    if not rich:
        return make_pack(look)
    basis = dataclasses.replace(look.basis, low=torch.tensor([-0.0, -1, -2]))
    extra = {"texts": ["a", "\N{SNOWMAN}"], "text_vectors": -torch.zeros(2, DIM), "labels": {"run": "seven"}}
    return make_pack(look, others=[look], basis=basis, **extra)


def bits(pack: Pack) -> bytes:
    return pack.read(0, pack.size)


# There and back


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rich", [False, True])
@pytest.mark.parametrize("decoded", [False, True])
def test_packs_come_back_bit_for_bit(tmp_path, way, rich, decoded):
    to, back = WAYS[way]
    pack = made(rich=rich)
    path = to(pack, tmp_path / "new folder" / f"one.{way}", decoded=decoded)
    assert path == tmp_path / "new folder" / f"one.{way}"
    again = back(path)
    assert bits(again) == bits(pack) and again.id == pack.id
    again.verify()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("rows", "cols", "dim"), [(1, 1, 1), (1, 40, 3), (33, 1, 6)])
def test_packs_of_any_shape_come_back(tmp_path, way, rows, cols, dim):
    to, back = WAYS[way]
    features = DenseFeatures(
        patches=torch.randn(rows, cols, dim),
        cls=torch.randn(dim),
        registers=torch.randn(0, dim),
        geometry=plan(cols * 16, rows * 16, 16),
        layer=0,
        norm=True,
    )
    photo = open_image(np.zeros((rows * 16, cols * 16, 3), np.uint8))
    pack = make_pack(Look(photo, features, "a model"))
    assert bits(back(to(pack, tmp_path / f"one.{way}"))) == bits(pack)


@pytest.mark.parametrize("way", WAYS)
def test_a_wrong_suffix_is_said(tmp_path, way):
    with pytest.raises(ValueError, match=rf"one.dat ends in '.dat'; name it \*.{way}"):
        WAYS[way][0](made(), tmp_path / "one.dat")


@pytest.mark.parametrize("way", ["npz", "parquet"])
def test_files_are_replaced_in_one_step(tmp_path, way, monkeypatch):
    to, back = WAYS[way]
    pack, other = made(), made(rich=True)
    path = to(pack, tmp_path / f"one.{way}")
    to(other, path)
    assert back(path).id == other.id

    def fails(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np if way == "npz" else pq.ParquetWriter, "savez" if way == "npz" else "write_table", fails)
    with pytest.raises(OSError, match="No space left"):
        to(pack, path)
    assert back(path).id == other.id and os.listdir(tmp_path) == [path.name]


def test_a_zarr_folder_is_never_replaced_and_never_half_there(tmp_path, monkeypatch):
    path = to_zarr(made(), tmp_path / "one.zarr")
    with pytest.raises(FileExistsError, match=r"one.zarr is there already; remove it or choose another name"):
        to_zarr(made(rich=True), path)
    assert from_zarr(path).id == made().id

    def fails(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zarr.Group, "create_array", fails)
    with pytest.raises(OSError, match="No space left"):
        to_zarr(made(), tmp_path / "two.zarr")
    assert os.listdir(tmp_path) == ["one.zarr"]


# What other programs find


def test_an_npz_has_plain_arrays(tmp_path):
    pack = made()
    with np.load(to_npz(pack, tmp_path / "one.npz", decoded=True), allow_pickle=False) as file:
        np.testing.assert_array_equal(file["patches"], pack.rows_of(0, ROWS))
        np.testing.assert_array_equal(file["codes"], pack.codes)
        np.testing.assert_array_equal(file["valid"], pack.valid)
        assert json.loads(str(file["gramscope"])) == pack.header
        assert set(file) == {*pack.header["blocks"], "gramscope", "patches"}


def test_a_zarr_group_has_plain_arrays_in_chunks_of_rows(tmp_path):
    pack = made()
    group = zarr.open_group(to_zarr(pack, tmp_path / "one.zarr", decoded=True), mode="r")
    assert group.metadata.zarr_format == 3 and group.attrs["gramscope"] == pack.header
    for name, expected in {"patches": pack.rows_of(0, ROWS), "codes": pack.codes, "scales": pack.scales}.items():
        np.testing.assert_array_equal(group[name][...], expected)
        assert group[name].chunks == (16, *expected.shape[1:])


def test_a_parquet_file_has_a_row_for_every_cell(tmp_path):
    pack = made()
    path = to_parquet(pack, tmp_path / "one.parquet", decoded=True)
    table = pq.read_table(path).to_pydict()
    assert list(table) == ["row", "col", "valid", "norms", "scales", "codes", "patches"]
    assert len(table["row"]) == ROWS * COLS
    patches = pack.rows_of(0, ROWS)
    for index in (0, 7, ROWS * COLS - 1):
        row, col = table["row"][index], table["col"][index]
        assert (row, col) == divmod(index, COLS)
        assert table["patches"][index] == patches[row, col].tolist()
        assert table["codes"][index] == pack.codes[row, col].tolist()
        assert table["norms"][index] == pack.norms[row, col] and table["valid"][index] == pack.valid[row, col]
    file = pq.ParquetFile(path)
    assert [file.metadata.row_group(index).num_rows for index in range(2)] == [16 * COLS, 2 * COLS]


def test_without_asking_no_fp32_is_written(tmp_path):
    pack = made()
    assert "patches" not in np.load(to_npz(pack, tmp_path / "one.npz"))
    assert "patches" not in zarr.open_group(to_zarr(pack, tmp_path / "one.zarr"), mode="r")
    assert "patches" not in pq.read_schema(to_parquet(pack, tmp_path / "one.parquet")).names


# Features of another origin


def theirs(seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((ROWS, COLS, DIM)).astype(np.float32)


def save_foreign(way: str, path: Path, **arrays: np.ndarray) -> Path:
    if way == "npz":
        np.savez(path, **arrays)
    elif way == "zarr":
        group = zarr.open_group(path, mode="w")
        for name, array in arrays.items():
            group.create_array(name, data=array)
    else:
        columns = {name: list(array.reshape(-1, array.shape[-1])) for name, array in arrays.items()}
        pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", [(ROWS, COLS, DIM), (ROWS * COLS, DIM), (1, ROWS, COLS, DIM)])
def test_features_of_another_origin_become_a_pack(tmp_path, way, shape):
    patches = theirs()
    path = save_foreign(way, tmp_path / f"theirs.{way}", tokens=patches.reshape(shape))
    pack = WAYS[way][1](path, geometry=GEOMETRY)
    features = pack.features()
    assert pack.geometry == GEOMETRY and pack.error["cosine_max"] < 0.03
    np.testing.assert_allclose(features.patches.numpy(), patches, atol=0.05)
    assert np.isnan(pack.cls).all() and pack.registers.shape == (0, DIM)
    assert pack.layer is None and pack.norm is None
    assert pack.picture == {"name": "theirs", "digest": None} and pack.model == ModelCard("unknown")


@pytest.mark.parametrize("way", WAYS)
def test_what_is_known_of_them_is_kept(tmp_path, way):
    path = save_foreign(way, tmp_path / f"theirs.{way}", tokens=theirs())
    photo = open_image(np.full((GEOMETRY.height, GEOMETRY.width, 3), 99, np.uint8), name="cat.png")
    card = ModelCard("theirs", licence="MIT")
    pack = WAYS[way][1](
        path, geometry=GEOMETRY, photo=photo, card=card, layer=3, norm=True, labels={"from": "elsewhere"}
    )
    assert pack.picture == {"name": "cat.png", "digest": photo.digest} and pack.model == card
    assert (pack.layer, pack.norm, pack.labels) == (3, True, {"from": "elsewhere"})
    assert WAYS[way][1](path, geometry=GEOMETRY, photo="cat.png").picture["name"] == "cat.png"


@pytest.mark.parametrize("way", ["npz", "zarr"])
def test_cls_and_registers_beside_them_are_taken(tmp_path, way):
    cls, registers = np.ones(DIM, np.float64), np.full((3, DIM), 2, np.float16)
    path = save_foreign(way, tmp_path / f"theirs.{way}", tokens=theirs(), cls=cls, registers=registers)
    pack = WAYS[way][1](path, geometry=GEOMETRY)
    np.testing.assert_allclose(pack.cls, cls, atol=1e-5)
    np.testing.assert_allclose(pack.registers, registers, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
@pytest.mark.parametrize("way", WAYS)
def test_other_precisions_are_taken(tmp_path, way, dtype):
    path = save_foreign(way, tmp_path / f"theirs.{way}", tokens=theirs().astype(dtype))
    np.testing.assert_allclose(WAYS[way][1](path, geometry=GEOMETRY).rows_of(0, ROWS), theirs(), atol=0.05)


@pytest.mark.parametrize("way", WAYS)
def test_without_a_geometry_they_are_refused(tmp_path, way):
    path = save_foreign(way, tmp_path / f"theirs.{way}", tokens=theirs())
    with pytest.raises(PackError, match=r"was not saved from a pack.* pass geometry=, as core.dense.geometry.plan"):
        WAYS[way][1](path)


@pytest.mark.parametrize("way", WAYS)
def test_a_geometry_of_another_grid_is_refused(tmp_path, way):
    path = save_foreign(way, tmp_path / f"theirs.{way}", tokens=theirs())
    sentence = r"holds tokens float32\[.*\], and no floats of 18x6 cells with their channels last, as the geometry has"
    with pytest.raises(PackError, match=sentence):
        WAYS[way][1](path, geometry=plan(6 * 14, 18 * 14, 14))


@pytest.mark.parametrize("way", WAYS)
def test_of_several_maps_one_must_be_named(tmp_path, way):
    path = save_foreign(way, tmp_path / f"theirs.{way}", early=theirs(1), late=theirs(2))
    with pytest.raises(PackError, match=r"several maps of this grid; say which with array=, one of early, late"):
        WAYS[way][1](path, geometry=GEOMETRY)
    pack = WAYS[way][1](path, geometry=GEOMETRY, array="late")
    np.testing.assert_allclose(pack.rows_of(0, ROWS), theirs(2), atol=0.05)
    with pytest.raises(PackError, match=r"has no array 'none'; it holds "):
        WAYS[way][1](path, geometry=GEOMETRY, array="none")


@pytest.mark.parametrize("way", WAYS)
def test_features_that_are_not_finite_or_whole_numbers_are_refused(tmp_path, way):
    broken = theirs()
    broken[3, 3, 3] = np.nan
    with pytest.raises(PackError, match=r"theirs\..*: 1 of 90 patches are not finite in fp32"):
        WAYS[way][1](save_foreign(way, tmp_path / f"theirs.{way}", tokens=broken), geometry=GEOMETRY)
    whole = save_foreign(way, tmp_path / f"whole.{way}", tokens=theirs().astype(np.int32))
    with pytest.raises(PackError, match=r"and no floats of 18x5 cells"):
        WAYS[way][1](whole, geometry=GEOMETRY)


@pytest.mark.parametrize("way", WAYS)
def test_a_photograph_of_another_size_is_refused(tmp_path, way):
    path = save_foreign(way, tmp_path / f"theirs.{way}", tokens=theirs())
    photo = open_image(np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(PackError, match="the photograph has 9x9 px and the geometry is of one with 60x249 px"):
        WAYS[way][1](path, geometry=GEOMETRY, photo=photo)


def test_a_bare_zarr_array_and_the_old_format_are_taken(tmp_path):
    zarr.create_array(tmp_path / "bare.zarr", data=theirs())
    np.testing.assert_allclose(
        from_zarr(tmp_path / "bare.zarr", geometry=GEOMETRY).rows_of(0, ROWS), theirs(), atol=0.05
    )
    zarr.open_group(tmp_path / "old.zarr", mode="w", zarr_format=2).create_array("a", data=theirs())
    np.testing.assert_allclose(
        from_zarr(tmp_path / "old.zarr", geometry=GEOMETRY).rows_of(0, ROWS), theirs(), atol=0.05
    )


def test_a_table_with_a_column_a_channel_is_taken(tmp_path):
    flat = theirs().reshape(-1, DIM)
    columns = {"patch_idx": np.arange(len(flat))} | {f"feature_{index}": flat[:, index] for index in range(DIM)}
    pq.write_table(pa.table(columns), tmp_path / "flat.parquet", row_group_size=7)
    for options in ({}, {"array": "feature_"}):
        pack = from_parquet(tmp_path / "flat.parquet", geometry=GEOMETRY, **options)
        np.testing.assert_allclose(pack.rows_of(0, ROWS), theirs(), atol=0.05)
    pq.write_table(pa.table(columns | {"score": flat[:, 0]}), tmp_path / "more.parquet")
    assert from_parquet(tmp_path / "more.parquet", geometry=GEOMETRY, array="feature_").dim == DIM


def test_rows_of_a_table_are_put_where_they_say(tmp_path):
    flat, order = theirs().reshape(-1, DIM), np.random.default_rng(0).permutation(ROWS * COLS)
    columns = {"row": order // COLS, "col": order % COLS, "tokens": list(flat[order])}
    pq.write_table(pa.table(columns), tmp_path / "shuffled.parquet", row_group_size=11)
    pack = from_parquet(tmp_path / "shuffled.parquet", geometry=GEOMETRY)
    np.testing.assert_allclose(pack.rows_of(0, ROWS), theirs(), atol=0.05)
    for wrong in (order // COLS * 0, order // COLS + 1):
        pq.write_table(pa.table(columns | {"row": wrong}), tmp_path / "wrong.parquet")
        with pytest.raises(PackError, match="do not number every cell of a grid once; leave them out"):
            from_parquet(tmp_path / "wrong.parquet", geometry=GEOMETRY)


def test_lists_of_different_length_are_no_patches(tmp_path):
    pq.write_table(pa.table({"tokens": [[0.5] * (3 + index % 2) for index in range(90)]}), tmp_path / "ragged.parquet")
    with pytest.raises(PackError, match="and no floats of 18x5 cells"):
        from_parquet(tmp_path / "ragged.parquet", geometry=GEOMETRY)


@pytest.mark.parametrize("way", WAYS)
def test_a_pack_takes_no_word_of_somebody_else(tmp_path, way):
    to, back = WAYS[way]
    path = to(made(), tmp_path / f"one.{way}")
    with pytest.raises(PackError, match="holds a pack, which says everything itself; leave out geometry, layer"):
        back(path, geometry=GEOMETRY, layer=3)


# Damage


@pytest.mark.parametrize("way", WAYS)
def test_a_missing_file_is_said(tmp_path, way):
    with pytest.raises(PackError, match=r"there is no .*none; check the path"):
        WAYS[way][1](tmp_path / "none")


@pytest.mark.parametrize("way", ["npz", "parquet"])
@pytest.mark.parametrize("cut", [0, 10, 2000, -1])
def test_a_file_that_was_cut_is_said(tmp_path, way, cut):
    to, back = WAYS[way]
    path = to(made(), tmp_path / f"one.{way}")
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(PackError, match=r"one\.\w+ is damaged or no \w+ file"):
        back(path)


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS)
def test_no_damage_raises_anything_else(tmp_path, way):
    to, back = WAYS[way]
    pack = made()
    path = to(pack, tmp_path / f"one.{way}")
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    numbers = np.random.default_rng(0)
    for _ in range(60):
        file = files[int(numbers.integers(len(files)))]
        content = file.read_bytes()
        changed = bytearray(content)
        changed[int(numbers.integers(len(changed)))] ^= 1 << int(numbers.integers(8))
        file.write_bytes(changed)
        with contextlib.suppress(PackError):
            assert bits(back(path)) == bits(pack)  # changed was a date or a name that nobody reads
        file.write_bytes(content)
    assert bits(back(path)) == bits(pack)


def test_changed_arrays_are_noticed_even_where_a_file_has_no_checksum(tmp_path):
    pack = made()
    path = to_npz(pack, tmp_path / "one.npz")
    arrays = dict(np.load(path))
    for name in ("codes", "scales", "preview"):
        changed = arrays | {name: arrays[name].copy()}
        changed[name].reshape(-1)[7] += 1
        np.savez(path, **changed)
        with pytest.raises(PackError, match=r"one.npz is damaged: its content is not the one it was saved with"):
            from_npz(path)
    np.savez(path, **{name: array for name, array in arrays.items() if name != "scales"})
    with pytest.raises(PackError, match=r"one.npz holds no whole pack \(KeyError\('scales'\)\)"):
        from_npz(path)
    np.savez(path, **arrays | {"gramscope": np.array("[]")})
    with pytest.raises(PackError, match="holds no whole pack"):
        from_npz(path)
    np.savez(path, **arrays | {"codes": arrays["codes"][:5]})
    with pytest.raises(PackError, match=r"one.npz: the pack is no sound pack: its block codes is"):
        from_npz(path)


def test_nothing_in_a_file_is_executed(tmp_path):
    class Bomb:
        def __reduce__(self) -> tuple:
            return (pytest.fail, ("executed",))

    np.savez(tmp_path / "bomb.npz", tokens=np.array([Bomb()], dtype=object))
    with pytest.raises(PackError, match=r"damaged or no npz file of plain arrays \(.*allow_pickle"):
        from_npz(tmp_path / "bomb.npz", geometry=GEOMETRY)
    np.save(tmp_path / "single.npy", np.zeros(3))
    with pytest.raises(PackError, match=r"damaged or no npz file of plain arrays \(File is not a zip file\)"):
        from_npz(tmp_path / "single.npy", geometry=GEOMETRY)
    with zipfile.ZipFile(tmp_path / "other.npz", "w") as file:
        file.writestr("readme.txt", "hello")
    with pytest.raises(PackError, match="holds nothing, and no floats of 18x5 cells"):
        from_npz(tmp_path / "other.npz", geometry=GEOMETRY)
