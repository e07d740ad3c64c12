"""Feature packs as npz, Zarr and Parquet, and features of another origin as packs.

    to_zarr(pack, "cat.zarr", decoded=True)  # for xarray and its kin: `patches` beside the codes
    from_npz("theirs.npz", geometry=plan(640, 480, 14, size=518))  # patches that somebody else extracted

A pack comes back bit for bit, with the same id. With `decoded` a file also holds the features as plain fp32; reading
it back takes the codes. Features of another origin need to be told which part of which picture their cells show.
"""

import base64
import json
import os
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
import torch
from jaxtyping import Float

from core.dense.cards import ModelCard
from core.dense.extract import DenseFeatures
from core.dense.geometry import Geometry
from core.dense.packfile import BLOCKS, CHUNK_ROWS, assemble, canonical
from core.models.files import replace
from workbench.images import Photo
from workbench.packs import Pack, PackError, open_pack, pack_features

HEADER = "gramscope"  # under this name the header of a pack stands in its copies
PATCHES = "patches"  # and under this one its decoded features
Array = Any  # of numpy or of Zarr: with shape, dtype and [...]


class Foreign(TypedDict, total=False):
    """What features of another origin cannot say themselves: at least their geometry."""

    geometry: Geometry
    array: str  # name of the array, or of the column, if several might be meant
    photo: Photo | str  # or the picture's name; the preview is grey then
    card: ModelCard
    layer: int  # counted from 0
    norm: bool
    labels: Mapping[str, str]


# npz


def to_npz(pack: Pack, path: str | os.PathLike[str], *, decoded: bool = False) -> Path:
    """The path of an npz file with every block of the pack as an array, and the header as JSON in `gramscope`."""
    path = _named(path, ".npz")
    arrays = _blocks(pack) | {HEADER: np.array(canonical(pack.header).decode())}
    if decoded:
        arrays[PATCHES] = pack.rows_of(0, pack.rows)

    def write(file: Path) -> None:
        with file.open("wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]

    replace(path, write)
    return path


def from_npz(path: str | os.PathLike[str], **foreign: Unpack[Foreign]) -> Pack:
    """The pack in an npz file of `to_npz`, or made of the (H, W, D) or (N, D) array in any other.

    PackError for a damaged file, and for one of another origin when `geometry` is not given or does not fit.
    """
    path = _there(path)
    try:
        with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as file:
            arrays = {name: array for name, array in file.items() if isinstance(array, np.ndarray)}
    except Exception as error:  # what a damaged file raises depends on which of five readers meets the damage
        raise PackError(f"{path} is damaged or no npz file of plain arrays ({error}); copy or save it again") from error
    if HEADER not in arrays:
        return _from_elsewhere(path, arrays, foreign)
    return _rebuilt(path, str(arrays[HEADER]), arrays, foreign)


# Zarr


def to_zarr(pack: Pack, path: str | os.PathLike[str], *, decoded: bool = False) -> Path:
    """The path of a new Zarr group (format 3) with every block as an array and the header in its attributes.

    Chunks are of sixteen rows, so a part of a large map can be read alone. Raises FileExistsError rather than replace
    a folder.
    """
    import zarr  # half a second; only who uses it pays for it

    path = _named(path, ".zarr")
    if path.exists():
        raise FileExistsError(f"{path} is there already; remove it or choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.zarr")
    try:
        group = zarr.open_group(temporary, mode="w", zarr_format=3, attributes={HEADER: dict(pack.header)})
        arrays = _blocks(pack) | ({PATCHES: pack.rows_of(0, pack.rows)} if decoded else {})
        for name, array in arrays.items():
            first = CHUNK_ROWS if array.shape[:2] == (pack.rows, pack.cols) else len(array)
            chunks = tuple(max(1, side) for side in (first, *array.shape[1:]))
            # A chunk of nothing but zeros would be left out, and -0 and NaN with it.
            group.create_array(name, data=array, chunks=chunks, config={"write_empty_chunks": True})
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path


def from_zarr(path: str | os.PathLike[str], **foreign: Unpack[Foreign]) -> Pack:
    """The pack in a Zarr group of `to_zarr`, or made of the array that any other holds; PackError as in `from_npz`."""
    import zarr

    path = Path(path)
    if not path.exists():
        raise PackError(f"there is no {path}; check the path")
    try:
        found = zarr.open(path, mode="r")
        if isinstance(found, zarr.Array):
            return _from_elsewhere(path, {path.stem: found}, foreign)
        arrays = dict(sorted(found.arrays(), key=lambda entry: entry[0]))  # they come in any order
        header = found.attrs.get(HEADER)
        if header is None:
            return _from_elsewhere(path, arrays, foreign)
        blocks = {name: np.asarray(arrays[name][...]) for name in BLOCKS if name in arrays}
        return _rebuilt(path, json.dumps(header), blocks, foreign)
    except PackError:
        raise
    except Exception as error:  # what a damaged file raises depends on which of its codecs meets the damage
        raise PackError(f"{path} is damaged or no Zarr group ({error}); copy or save it again") from error


# Parquet


def to_parquet(pack: Pack, path: str | os.PathLike[str], *, decoded: bool = False) -> Path:
    """The path of a Parquet file with one row a cell: row, col, valid, norm, scale, codes and, decoded, patches.

    A row group is sixteen rows of the map. The header and the other blocks stand in the file's metadata, in base64.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = _named(path, ".parquet")
    rows, cols = np.indices((pack.rows, pack.cols), np.int32)
    blocks = _blocks(pack)
    columns = {
        "row": pa.array(rows.reshape(-1)),
        "col": pa.array(cols.reshape(-1)),
        "valid": pa.array(pack.valid.reshape(-1)),
        "norms": pa.array(blocks.pop("norms").reshape(-1)),
        "scales": pa.array(blocks.pop("scales").reshape(-1)),
        "codes": pa.FixedSizeListArray.from_arrays(pa.array(blocks.pop("codes").reshape(-1)), pack.dim),
    }
    if decoded:
        patches = pa.array(pack.rows_of(0, pack.rows).reshape(-1))
        columns[PATCHES] = pa.FixedSizeListArray.from_arrays(patches, pack.dim)
    table = pa.table(columns)
    notes = {f"{HEADER}:{name}": base64.b64encode(block.tobytes()).decode() for name, block in blocks.items()}

    def write(file: Path) -> None:
        # Without dictionaries, in which one NaN stands for all.
        with pq.ParquetWriter(file, table.schema, compression="zstd", use_dictionary=False) as writer:
            writer.write_table(table, row_group_size=CHUNK_ROWS * pack.cols)
            writer.add_key_value_metadata({HEADER: canonical(pack.header).decode(), **notes})

    replace(path, write)
    return path


def from_parquet(path: str | os.PathLike[str], **foreign: Unpack[Foreign]) -> Pack:
    """The pack in a Parquet file of `to_parquet`, or made of the patches that any other holds, one a row.

    Those are a column of lists or one column of floats a channel. With columns `row` and `col` they may come in any
    order, else they are taken row by row. PackError as in `from_npz`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = _there(path)
    try:
        with pq.ParquetFile(path) as file:
            notes = {key.decode(): value for key, value in (file.metadata.metadata or {}).items()}
            if HEADER not in notes:
                return _from_elsewhere(path, _columns(path, file.read(), foreign.get("array")), foreign)
            table = file.read(["norms", "scales", "codes"])
        told = json.loads(notes[HEADER])["blocks"]
        blocks = {name: _flat(table[name]) for name in ("norms", "scales", "codes")}
        for name in told.keys() - blocks.keys():
            content = base64.b64decode(notes[f"{HEADER}:{name}"], validate=True)
            blocks[name] = np.frombuffer(content, BLOCKS[name][0])
        shaped = {name: blocks[name].reshape(told[name]["shape"]) for name in told}
    except PackError:
        raise
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise PackError(f"{path} is damaged or no Parquet file ({error}); copy or save it again") from error
    return _rebuilt(path, notes[HEADER].decode(), shaped, foreign)


def _flat(column: Any) -> np.ndarray:
    """The numbers of a column, those of lists one after the other."""
    import pyarrow as pa

    array = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    return (array.flatten() if pa.types.is_nested(array.type) else array).to_numpy(zero_copy_only=False)


def _columns(path: Path, table: Any, wanted: str | None) -> dict[str, np.ndarray]:
    """What may be patches in a table of another origin: its columns of lists, and its columns of floats as one."""
    import pyarrow as pa

    order = np.arange(len(table))
    if {"row", "col"} <= set(table.column_names):
        rows, cols = _flat(table["row"]), _flat(table["col"])
        order = np.lexsort((cols, rows))
        if not np.array_equal((rows * (cols.max(initial=0) + 1) + cols)[order], np.arange(len(table))):
            raise PackError(
                f"the columns row and col of {path} do not number every cell of a grid once; leave them out"
            )
    found, plain = {}, []
    for name in table.column_names:
        kind = table.schema.field(name).type
        if pa.types.is_nested(kind) and pa.types.is_floating(getattr(kind, "value_type", None)):
            numbers = _flat(table[name])
            if len(table) and len(numbers) % len(table) == 0:
                found[name] = numbers.reshape(len(table), -1)[order]
        elif pa.types.is_floating(kind) and (wanted is None or name.startswith(wanted)):
            plain.append(name)
    if plain:
        name = wanted or "the columns of floats"
        found.setdefault(name, np.stack([_flat(table[column]) for column in plain], axis=1)[order])
    return found


# Both ways


def _named(path: str | os.PathLike[str], suffix: str) -> Path:
    path = Path(path)
    if path.suffix != suffix:
        raise ValueError(f"{path} ends in {path.suffix!r}; name it *{suffix}")
    return path


def _there(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if not path.is_file():
        raise PackError(f"there is no file {path}; check the path")
    return path


def _blocks(pack: Pack) -> dict[str, np.ndarray]:
    return {name: pack.block(name) for name in BLOCKS if name in pack.header["blocks"]}


def _rebuilt(path: Path, text: str, blocks: Mapping[str, np.ndarray], foreign: Foreign) -> Pack:
    """The pack with this header and these blocks, which must have the id that the header names."""
    if foreign:
        raise PackError(f"{path} holds a pack, which says everything itself; leave out {', '.join(foreign)}")
    try:
        header = json.loads(text)
        pack = open_pack(assemble(header, {name: blocks[name] for name in BLOCKS if name in header["blocks"]}))
    except PackError as error:
        raise PackError(f"{path}: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PackError(f"{path} holds no whole pack ({error!r}); save it again") from error
    if pack.id != header.get("id"):
        raise PackError(f"{path} is damaged: its content is not the one it was saved with; save it again")
    return pack


def _from_elsewhere(path: Path, arrays: Mapping[str, Array], foreign: Foreign) -> Pack:
    """A pack of the one array that has the shape of the geometry's grid."""
    geometry = foreign.get("geometry")
    if geometry is None:
        raise PackError(
            f"{path} was not saved from a pack, so it does not say which part of the picture its cells show; pass "
            "geometry=, as core.dense.geometry.plan makes it"
        )
    patches = torch.from_numpy(_patches_in(path, arrays, geometry, foreign.get("array")))
    dim = patches.shape[-1]
    cls, registers = torch.full((dim,), torch.nan), torch.zeros(0, dim)
    if "cls" in arrays and tuple(arrays["cls"].shape) == (dim,):
        cls = torch.from_numpy(np.array(arrays["cls"][...], np.float32))
    if "registers" in arrays and tuple(arrays["registers"].shape[1:]) == (dim,):
        registers = torch.from_numpy(np.array(arrays["registers"][...], np.float32))
    features = DenseFeatures(
        patches=patches,
        cls=cls,
        registers=registers,
        geometry=geometry,
        layer=foreign.get("layer", -1),
        norm=foreign.get("norm", False),
    )
    card = foreign.get("card", ModelCard("unknown"))
    try:
        return pack_features(features, card, foreign.get("photo", path.stem), labels=foreign.get("labels"))
    except ValueError as error:
        raise PackError(f"{path}: {error}") from error


def _patches_in(
    path: Path, arrays: Mapping[str, Array], geometry: Geometry, wanted: str | None
) -> Float[np.ndarray, "H W D"]:
    grid = (geometry.rows, geometry.cols)

    def fits(array: Array) -> bool:
        shape = tuple(array.shape)
        shape = shape[1:] if len(shape) == 4 and shape[0] == 1 else shape  # a batch of one
        cells = shape[:2] == grid if len(shape) == 3 else shape[:1] == (grid[0] * grid[1],) and len(shape) == 2
        return cells and shape[-1] > 0 and np.issubdtype(array.dtype, np.floating)

    listed = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in arrays.items()) or "nothing"
    if wanted is not None and wanted not in arrays:
        raise PackError(f"{path} has no array {wanted!r}; it holds {listed}")
    fitting = [name for name, array in arrays.items() if wanted in (None, name) and fits(array)]
    if not fitting:
        raise PackError(
            f"{path} holds {listed}, and no floats of {grid[0]}x{grid[1]} cells with their channels last, as "
            "the geometry has; pass the geometry the features were extracted with"
        )
    if len(fitting) > 1:
        raise PackError(f"{path} holds several maps of this grid; say which with array=, one of {', '.join(fitting)}")
    return np.array(arrays[fitting[0]][...], np.float32).reshape(*grid, -1)
