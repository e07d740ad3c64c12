"""The bytes of a feature pack (.dfp, version 1): put together, taken apart, and refused when anything is wrong.

    bytes 0-7    89 44 46 50 0D 0A 1A 0A, which a transfer in text mode would change
    bytes 8-11   the version, 1, little-endian as all numbers
    bytes 12-15  N, the length of the header, which is padded with spaces until 16 + N is a multiple of 64
    N bytes      the header: canonical JSON in UTF-8 (sorted keys, no spaces between), see `HEADER`
    then         the blocks, see `BLOCKS`; their offsets count from 16 + N and are multiples of 64

The codes come last, so that one range request brings all the rest. Whoever writes such files elsewhere finds here
what a reader insists on.
"""

import hashlib
import json
import math
import re
import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from core.dense.coding import ROTATION
from core.dense.geometry import Geometry, valid_cells

FORMAT, VERSION = "gramscope-pack", 1
MAGIC = b"\x89DFP\r\n\x1a\n"
ALIGN = 64  # bytes: any array type may be viewed in place
CHUNK_ROWS = 16  # of the grid, checked together by one CRC-32: a reader can trust what has arrived
MAX_HEADER = 1 << 26  # bytes; that of a 4K pack has 5 kB

# Blocks in the order of the file, with dtype and shape: H rows, W columns, D channels, T texts, L distances on the
# grid; R, N, M and n are whatever they are.
BLOCKS: dict[str, tuple[str, str]] = {
    "scales": ("float32", "HW"),  # feature = code * scale, then turned back
    "norms": ("float32", "HW"),  # length of the fp32 feature
    "valid": ("uint8", "HW"),
    "cls": ("float32", "D"),
    "registers": ("float32", "RD"),
    "null_same": ("float32", "N"),
    "null_other": ("float32", "M"),
    "null_distance": ("float32", "L"),
    "basis_mean": ("float32", "D"),
    "basis_components": ("float32", "3D"),
    "basis_low": ("float32", "3"),
    "basis_high": ("float32", "3"),
    "text": ("float32", "TD"),
    "preview": ("uint8", "n"),  # a JPEG
    "codes": ("int8", "HWD"),
}
BASIS = {"basis_mean", "basis_components", "basis_low", "basis_high"}
OPTIONAL = {"null_other", "text", *BASIS}


class PackError(ValueError):
    """A file that holds no pack, or not all of one; the message is one sentence that says what to do."""


def dtype_of(kind: str) -> np.dtype:
    return np.dtype(kind).newbyteorder("<")


# Putting together


def assemble(header: Mapping[str, Any], blocks: Mapping[str, np.ndarray]) -> bytes:
    """The bytes of a pack with these blocks; `id`, `bytes` and `blocks` of the header are made here."""
    told: dict[str, dict[str, Any]] = {}
    content: list[bytes] = []
    offset = 0
    for name, (kind, _) in BLOCKS.items():
        if name not in blocks:
            continue
        array = np.ascontiguousarray(blocks[name], dtype_of(kind))
        data = array.tobytes()
        told[name] = {"dtype": kind, "shape": list(array.shape), "offset": offset, "bytes": len(data)}
        told[name]["sha256"] = hashlib.sha256(data).hexdigest()
        if name == "codes":
            told[name] |= {"chunk_rows": CHUNK_ROWS, "crc32": [zlib.crc32(chunk) for chunk in chunks(array)]}
        else:
            data += bytes(-len(data) % ALIGN)
        content.append(data)
        offset += len(data)
    record = {**header, "blocks": told, "id": "", "bytes": 0}
    while record["bytes"] != (size := _end(record) + offset):  # its own digits count
        record["bytes"] = size
    record["id"] = header_id(record)
    end = _end(record)
    start = MAGIC + struct.pack("<II", VERSION, end - len(MAGIC) - 8)
    return b"".join([(start + canonical(record)).ljust(end), *content])


def header_id(header: Mapping[str, Any]) -> str:
    """The id that belongs to a header: it names the whole content, as the blocks' hashes stand in the header."""
    rest = {key: value for key, value in header.items() if key != "id"}
    return hashlib.sha256(canonical(rest)).hexdigest()[:16]


def canonical(record: Mapping[str, Any]) -> bytes:
    """JSON with sorted keys and nothing between them, as Python writes numbers."""
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "replace")  # names of files may hold bytes that are no text


def chunks(codes: np.ndarray) -> list[memoryview]:
    """The bytes of every sixteen rows."""
    return [codes[row : row + CHUNK_ROWS].reshape(-1).view(np.uint8).data for row in range(0, len(codes), CHUNK_ROWS)]


def _end(record: Mapping[str, Any]) -> int:
    """Where the header ends and the blocks begin."""
    length = 16 + len(canonical({**record, "id": "0" * 16}))
    return length + -length % ALIGN


# Taking apart


def parse(data: np.ndarray, name: str) -> tuple[dict[str, Any], int]:
    """The checked header of a pack's bytes and where the blocks begin; PackError says what is wrong with them.

    Everything but the codes is compared with its SHA-256; of the codes nothing is read.
    """
    end = _check_start(data, name)
    header = _read_header(data[16:end].tobytes(), name)
    _check_header(header, name)
    if len(data) != header["bytes"]:
        what = "is cut short" if len(data) < header["bytes"] else "has something added at its end"
        raise PackError(
            f"{name} {what}: it has {len(data)} bytes and should have {header['bytes']}; copy or download it again"
        )
    _check_blocks(header, len(data) - end, name)
    for block in header["blocks"]:
        if block != "codes":
            check_block(data, header, end, block, name)
    if not np.array_equal(view(data, header, end, "valid"), valid_cells(Geometry.from_dict(header["geometry"]))):
        raise PackError(f"{name} counts other cells as valid than its geometry does; make it again")
    return header, end


def view(data: np.ndarray, header: Mapping[str, Any], start: int, block: str) -> np.ndarray:
    """One block where it lies."""
    told = header["blocks"][block]
    first = start + told["offset"]
    return data[first : first + told["bytes"]].view(dtype_of(told["dtype"])).reshape(told["shape"])


def check_block(data: np.ndarray, header: Mapping[str, Any], start: int, block: str, name: str) -> None:
    """PackError when a block has not the SHA-256 it should have."""
    told = header["blocks"][block]
    first = start + told["offset"]
    if hashlib.sha256(data[first : first + told["bytes"]].data).hexdigest() != told["sha256"]:
        raise PackError(f"{name} is damaged in its block {block}; copy or download it again")


def check_chunk(codes: np.ndarray, header: Mapping[str, Any], chunk: int, name: str) -> None:
    """PackError when sixteen rows of codes have not the CRC-32 they should have."""
    rows = codes[chunk * CHUNK_ROWS : (chunk + 1) * CHUNK_ROWS]
    if zlib.crc32(chunks(rows)[0]) != header["blocks"]["codes"]["crc32"][chunk]:
        first = chunk * CHUNK_ROWS
        raise PackError(
            f"{name} is damaged in the codes of rows {first} to {first + len(rows) - 1}; copy or download it again"
        )


def _check_start(data: np.ndarray, name: str) -> int:
    """Where the blocks begin, from the sixteen bytes before the header."""
    start = data[:64].tobytes()
    if not start:
        raise PackError(f"{name} is empty; copy or download it again")
    if not start.startswith(MAGIC):
        raise PackError(f"{name} {_why_foreign(start)}")
    if len(start) < 16:
        raise PackError(f"{name} is cut short after {len(start)} bytes, within its start; copy or download it again")
    number, length = struct.unpack("<II", start[8:16])
    if number > VERSION:
        raise PackError(
            f"{name} was written by a newer Gramscope (version {number} of the format, this one reads {VERSION}); "
            "update Gramscope, or make the pack again here"
        )
    if number < VERSION or length > MAX_HEADER or not length or (16 + length) % ALIGN:
        raise PackError(
            f"{name} is damaged at its start (version {number}, a header of {length} bytes); copy or download it again"
        )
    if 16 + length > len(data):
        raise PackError(
            f"{name} is cut short within its header: it has {len(data)} bytes and the header alone ends at "
            f"{16 + length}; copy or download it again"
        )
    return 16 + length


def _why_foreign(start: bytes) -> str:
    if MAGIC.startswith(start):
        return f"is cut short after {len(start)} bytes, within its start; copy or download it again"
    # Line ends exchanged, the byte that is no ASCII lost, or all of it read in one encoding and written in another.
    if re.match(rb"[^D]{0,3}DFP[\r\n]", start):
        return "was changed by a transfer in text mode; copy it again in binary mode"
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the pack; fetch it with `git lfs pull`"
    if start.lstrip()[:1] in (b"<", b"{"):
        return "is a web page or a text, not a pack; see in a browser what the link answers, then download it again"
    return "is no feature pack; choose a file that save_pack wrote"


def _read_header(text: bytes, name: str) -> dict[str, Any]:
    def refuse(number: str) -> float:
        if not math.isfinite(value := float(number)):
            raise ValueError(f"{number} is no number")
        return value

    try:
        header = json.loads(text.decode(), parse_constant=refuse, parse_float=refuse)
        digest = header_id(header) if isinstance(header, dict) else None
    except (ValueError, RecursionError) as error:
        raise PackError(
            f"{name} is damaged: its header is no JSON in UTF-8 ({error}); copy or download it again"
        ) from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise PackError(f"{name} has the header of something else than a feature pack; choose one that save_pack wrote")
    if header.get("id") != digest:
        raise PackError(f"{name} is damaged: its header was changed after it was written; copy or download it again")
    return header


# Headers

Check = Callable[[Any], bool]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{16}", value) is not None


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53  # whole in a double


def _is_positive(value: Any) -> bool:
    return _is_count(value) and value > 0


def _or_null(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _is_list(check: Check, count: int | None = None) -> Check:
    return lambda value: isinstance(value, list) and count in (None, len(value)) and all(map(check, value))


def _is_record(**checks: Check) -> Check:
    return lambda value: (
        isinstance(value, dict)
        and value.keys() == checks.keys()
        and all(check(value[key]) for key, check in checks.items())
    )


def _is_geometry(value: Any) -> bool:
    try:
        return isinstance(value, dict) and bool(Geometry.from_dict(value))
    except (ValueError, TypeError):
        return False


_MAYBE_TEXT, _MAYBE_NUMBER = _or_null(_is_text), _or_null(_is_number)

# Every key with what its value must be; null where nothing is known.
HEADER: dict[str, Check] = {
    "format": _is_text,
    "id": _is_digest,
    "bytes": _is_positive,
    "model": _is_record(
        name=_is_text, weights=_or_null(_is_digest), licence=_MAYBE_TEXT, licence_url=_MAYBE_TEXT, notice=_MAYBE_TEXT
    ),
    "picture": _is_record(name=_is_text, digest=_or_null(_is_digest)),
    "layer": _or_null(_is_count),
    "norm": _or_null(_is_flag),
    "rows": _is_positive,
    "cols": _is_positive,
    "dim": _is_positive,
    "geometry": _is_geometry,
    "rotation": _MAYBE_TEXT,
    "reduced": _or_null(_is_record(**{"from": _is_positive, "how": _is_text, "cosine_max": _is_number})),
    "error": _is_record(cosine_max=_is_number, cosine_mean=_is_number, pairs=_is_count, exact=_is_flag),
    "seam": _or_null(_is_record(mean=_MAYBE_NUMBER, worst=_MAYBE_NUMBER, tiles=_is_count)),
    "basis": _or_null(_is_record(source=_is_text, explained=_is_list(_is_number, 3))),
    "texts": _or_null(_is_list(_is_text)),
    "versions": _is_record(gramscope=_MAYBE_TEXT, torch=_MAYBE_TEXT),
    "labels": lambda value: isinstance(value, dict) and all(map(_is_text, value.values())),
    "blocks": lambda value: isinstance(value, dict),
}
_is_block = {"dtype": _is_text, "shape": _is_list(_is_count), "offset": _is_count, "bytes": _is_count}
_is_block["sha256"] = lambda value: isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None
_BLOCK = _is_record(**_is_block)
_CODES = _is_record(**_is_block, chunk_rows=lambda value: value == CHUNK_ROWS, crc32=_is_list(_is_count))


def _check_header(header: Mapping[str, Any], name: str) -> None:
    if missing := sorted(HEADER.keys() - header.keys()):
        raise PackError(f"{name} is no whole pack: its header lacks {', '.join(missing)}; make it again")
    if unknown := sorted(header.keys() - HEADER.keys()):
        raise PackError(
            f"{name} says things that this Gramscope does not know ({', '.join(unknown)}); update Gramscope, or make "
            "the pack again here"
        )
    if wrong := [key for key, check in HEADER.items() if not check(header[key])]:
        raise PackError(f"{name} is no sound pack: {wrong[0]} in its header makes no sense; make it again")
    if header["rotation"] not in (None, ROTATION):
        raise PackError(
            f"{name} was turned by a rotation {header['rotation']!r} that this Gramscope does not know; update "
            "Gramscope, or make the pack again here"
        )


def _check_blocks(header: Mapping[str, Any], room: int, name: str) -> None:
    """That the blocks of a header lie one after the other in `room` bytes, with shapes that fit together."""
    blocks, geometry = header["blocks"], Geometry.from_dict(header["geometry"])
    here = [block for block in BLOCKS if block in blocks]
    needed = set(BLOCKS) - OPTIONAL | (BASIS if header["basis"] else set()) | ({"text"} if header["texts"] else set())
    if missing := sorted(needed - blocks.keys()):
        raise PackError(f"{name} is no whole pack: it lacks the block {missing[0]}; make it again")
    if surplus := sorted(blocks.keys() - needed - {"null_other"}):
        raise PackError(f"{name} is no sound pack: it should not have the block {surplus[0]}; make it again")
    if (header["rows"], header["cols"]) != (geometry.rows, geometry.cols):
        raise PackError(
            f"{name} is no sound pack: its map has {header['rows']}x{header['cols']} cells and its geometry "
            f"{geometry.rows}x{geometry.cols}; make it again"
        )
    sizes = {"H": header["rows"], "W": header["cols"], "D": header["dim"], "L": geometry.rows + geometry.cols - 2}
    sizes |= {"3": 3, "T": len(header["texts"] or ())}
    end = 0
    for block in here:
        told, (kind, letters) = blocks[block], BLOCKS[block]
        if not (_CODES if block == "codes" else _BLOCK)(told):
            raise PackError(f"{name} is no sound pack: what it says of its block {block} makes no sense; make it again")
        shape = [sizes.get(letter, size) for letter, size in zip(letters, told["shape"], strict=False)]
        if told["dtype"] != kind or len(told["shape"]) != len(letters) or told["shape"] != shape:
            raise PackError(
                f"{name} is no sound pack: its block {block} is {told['dtype']} of shape {told['shape']}, which does "
                "not fit the others; make it again"
            )
        fits = told["bytes"] == math.prod(shape) * dtype_of(kind).itemsize
        placed = told["offset"] == end + -end % ALIGN
        end = told["offset"] + told["bytes"]
        if not fits or not placed or end > room:
            raise PackError(
                f"{name} is no sound pack: its block {block} of {told['bytes']} bytes at {told['offset']} does not lie "
                "where it should in the file; make it again"
            )
    crc32, count = blocks["codes"]["crc32"], -(-header["rows"] // CHUNK_ROWS)
    if len(crc32) != count:
        raise PackError(f"{name} is no sound pack: it has {len(crc32)} checksums for {count} chunks; make it again")
