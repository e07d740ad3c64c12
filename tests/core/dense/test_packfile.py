"""A file that is no whole pack is refused, each kind with its own sentence; the files here are damaged real ones."""

import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from core.dense.cards import ModelCard
from core.dense.extract import DenseFeatures
from core.dense.geometry import plan
from core.dense.packfile import HEADER, header_id
from core.dense.packs import PackError, open_pack, pack_features, save_pack


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> bytes:
    """A pack of 20 x 3 cells with 16 channels."""
    numbers = torch.Generator().manual_seed(0)
    features = DenseFeatures(
        patches=torch.randn(20, 3, 16, generator=numbers),
        cls=torch.randn(16, generator=numbers),
        registers=torch.randn(1, 16, generator=numbers),
        geometry=plan(48, 320, 16),
        layer=3,
        norm=True,
    )
    path = tmp_path_factory.mktemp("pack") / "one.dfp"
    return save_pack(pack_features(features, ModelCard("a model"), "one.png"), path).read_bytes()


def header_of(content: bytes) -> dict:
    return json.loads(content[16 : 16 + struct.unpack("<I", content[12:16])[0]])


def blocks_of(content: bytes) -> bytes:
    return content[16 + struct.unpack("<I", content[12:16])[0] :]


def with_text(content: bytes, text: bytes) -> bytes:
    """The file with another header, whatever that is."""
    text = text.ljust(len(text) + -(16 + len(text)) % 64)
    return content[:12] + struct.pack("<I", len(text)) + text + blocks_of(content)


def with_header(content: bytes, header: dict, *, signed: bool = True) -> bytes:
    """The file with another header that says its right size and, `signed`, its right id."""
    for _ in range(3):
        header["id"] = header_id(header) if signed else header["id"]
        result = with_text(content, json.dumps(header, sort_keys=True, separators=(",", ":")).encode())
        header["bytes"] = len(result)
    return result


def refused(content: bytes, tmp_path: Path) -> str:
    """The sentence with which a file of these bytes is refused; in memory it is the same one."""
    path = tmp_path / "bad.dfp"
    path.write_bytes(content)
    with pytest.raises(PackError) as error:
        open_pack(path)
    sentence = str(error.value)
    assert sentence.startswith(str(path)) and "\n" not in sentence and len(sentence) < 600
    with pytest.raises(PackError) as error:
        open_pack(content)
    assert str(error.value) == sentence.replace(str(path), "the pack")
    return sentence.removeprefix(f"{path} ")


def test_the_sound_file_opens(content):
    pack = open_pack(content)
    pack.verify()
    assert with_header(content, header_of(content)) == content


# The start


def test_a_missing_file_or_a_folder_is_said(tmp_path):
    for path in (tmp_path / "none.dfp", tmp_path):
        with pytest.raises(PackError, match=f"there is no file {re.escape(str(path))}; check the path"):
            open_pack(path)


def test_a_file_that_may_not_be_read_is_said(tmp_path, content, monkeypatch):
    (tmp_path / "one.dfp").write_bytes(content)

    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(np, "memmap", denied)
    with pytest.raises(PackError, match=r"one.dfp cannot be opened \(Permission denied\); check that you may read it"):
        open_pack(tmp_path / "one.dfp")


def test_an_empty_file_is_said(tmp_path):
    assert refused(b"", tmp_path) == "is empty; copy or download it again"


@pytest.mark.parametrize("length", range(1, 16))
def test_a_file_cut_in_its_start_is_said(tmp_path, content, length):
    sentence = f"is cut short after {length} bytes, within its start; copy or download it again"
    assert refused(content[:length], tmp_path) == sentence


@pytest.mark.parametrize(
    "mangle",
    [
        lambda content: content.replace(b"\r\n", b"\n"),
        lambda content: content.replace(b"\n", b"\r\n"),
        lambda content: content.replace(b"\r", b"\n"),
        lambda content: content.replace(b"\n", b"\r"),
        lambda content: bytes(byte & 127 for byte in content),
        lambda content: content.decode("latin-1").encode(),
        lambda content: content.decode("cp1252", "replace").encode(),
        lambda content: content.decode("utf-8", "replace").encode(),
        lambda content: content.decode("ascii", "ignore").encode(),
    ],
    ids=["to LF", "to CRLF", "CR to LF", "to CR", "7 bits", "Latin 1", "Windows", "UTF-8", "ASCII"],
)
def test_a_transfer_in_text_mode_is_said(tmp_path, content, mangle):
    sentence = "was changed by a transfer in text mode; copy it again in binary mode"
    assert refused(mangle(content), tmp_path) == sentence


@pytest.mark.parametrize(
    ("foreign", "sentence"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "is no feature pack; choose a file that save_pack wrote"),
        (b"PK\x03\x04" + bytes(100), "is no feature pack; choose a file that save_pack wrote"),
        (bytes(1000), "is no feature pack; choose a file that save_pack wrote"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer, not the pack"),
        (b"\n<!DOCTYPE html><html>", "is a web page or a text, not a pack"),
        (b'{"error": "not found"}', "is a web page or a text, not a pack"),
    ],
)
def test_other_files_are_said(tmp_path, foreign, sentence):
    assert refused(foreign, tmp_path).startswith(sentence)


@pytest.mark.parametrize("version", [2, 7, 2**32 - 1])
def test_a_newer_version_is_said(tmp_path, content, version):
    newer = content[:8] + struct.pack("<I", version) + content[12:]
    assert refused(newer, tmp_path) == (
        f"was written by a newer Gramscope (version {version} of the format, this one reads 1); update Gramscope, or "
        "make the pack again here"
    )


@pytest.mark.parametrize("length", [0, 1, 47, 49, 2**26 + 48, 2**31, 2**32 - 16, 2**32 - 1])
def test_an_absurd_header_length_is_said(tmp_path, content, length):
    changed = content[:12] + struct.pack("<I", length) + content[16:]
    sentence = f"is damaged at its start (version 1, a header of {length} bytes); copy or download it again"
    assert refused(changed, tmp_path) == sentence
    assert refused(content[:8] + bytes(4) + content[12:], tmp_path).startswith("is damaged at its start (version 0,")


# The header


@pytest.mark.parametrize("length", [16, 17, 1000])
def test_a_file_cut_in_its_header_is_said(tmp_path, content, length):
    sentence = f"is cut short within its header: it has {length} bytes and the header alone ends at "
    assert refused(content[:length], tmp_path).startswith(sentence)


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{", b"not JSON", b"\xff\xfe{}", b'{"a": NaN}', b'{"a": 1e999}', b"[" * 100_000, b'{"a": 1,}',
        b'{"format": "gramscope-pack"} and more', b'{"a": ' + b"1" * 5000 + b"}",
    ],
)  # fmt: skip
def test_a_header_that_is_no_json_is_said(tmp_path, content, text):
    assert refused(with_text(content, text), tmp_path).startswith("is damaged: its header is no JSON in UTF-8 (")


@pytest.mark.parametrize("text", [b"[]", b"null", b"3", b'"gramscope-pack"', b"{}", b'{"format": "other"}'])
def test_a_header_of_something_else_is_said(tmp_path, content, text):
    sentence = "has the header of something else than a feature pack; choose one that save_pack wrote"
    assert refused(with_text(content, text), tmp_path) == sentence


def test_any_changed_byte_of_the_header_is_noticed(tmp_path, content):
    end = len(content) - len(blocks_of(content))
    last = content[:end].rstrip(b" ")
    for place in [*range(16, len(last), 41), len(last) - 1]:
        changed = bytearray(content)
        changed[place] ^= 1
        with pytest.raises(PackError, match=r"is damaged: its header|has the header of something else"):
            open_pack(bytes(changed))
    renamed = content.replace(b'"name":"a model"', b'"name":"b model"')
    assert renamed != content
    sentence = "is damaged: its header was changed after it was written; copy or download it again"
    assert refused(renamed, tmp_path) == sentence
    header = header_of(content)
    header["id"] = "0" * 16
    assert refused(with_header(content, header, signed=False), tmp_path) == sentence


@pytest.mark.parametrize("key", [key for key in HEADER if key not in ("format", "id", "bytes")])
def test_a_header_that_lacks_something_is_said(tmp_path, content, key):
    header = header_of(content)
    del header[key]
    assert refused(with_header(content, header), tmp_path) == (
        f"is no whole pack: its header lacks {key}; make it again"
    )


def test_a_header_that_says_more_is_said(tmp_path, content):
    header = header_of(content) | {"depth": 3}
    assert refused(with_header(content, header), tmp_path).startswith(
        "says things that this Gramscope does not know (depth); update Gramscope"
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bytes", "many"), ("model", None), ("model", {"name": "a"}), ("picture", {"name": 3, "digest": None}),
        ("picture", {"name": "a", "digest": "short"}), ("layer", -1), ("layer", 1.5), ("layer", True), ("norm", 1),
        ("rows", 0), ("rows", "20"), ("cols", -3), ("dim", 0), ("dim", 1 << 60), ("geometry", {}), ("geometry", None),
        ("geometry", {"patch_size": 16}), ("rotation", 3), ("reduced", {}), ("error", None),
        ("error", {"cosine_max": "0", "cosine_mean": 0, "pairs": 0, "exact": True}), ("seam", {"mean": 1}),
        ("basis", {"source": "a", "explained": [1, 2]}), ("texts", "a"), ("texts", [1]), ("versions", {}),
        ("labels", {"a": 1}), ("labels", None), ("blocks", []),
    ],
)  # fmt: skip
def test_a_header_whose_value_makes_no_sense_is_said(tmp_path, content, key, value):
    header = header_of(content) | {key: value}
    text = json.dumps(header | {"id": header_id(header)}).encode()
    sentence = f"is no sound pack: {key} in its header makes no sense; make it again"
    assert refused(with_text(content, text), tmp_path) == sentence


def test_an_unknown_rotation_is_said(tmp_path, content):
    header = header_of(content) | {"rotation": "hadamard-1"}
    assert refused(with_header(content, header), tmp_path).startswith(
        "was turned by a rotation 'hadamard-1' that this Gramscope does not know; update Gramscope"
    )


# The blocks


def test_a_file_cut_in_its_blocks_is_said(tmp_path, content):
    size = len(content)
    for length in (size - 1, size - 500, size - len(blocks_of(content)) + 10, size - len(blocks_of(content))):
        sentence = f"is cut short: it has {length} bytes and should have {size}; copy or download it again"
        assert refused(content[:length], tmp_path) == sentence
    assert refused(content + b"\n", tmp_path) == (
        f"has something added at its end: it has {size + 1} bytes and should have {size}; copy or download it again"
    )


def place_in(content: bytes, block: str) -> int:
    """Where a block begins in the file."""
    return len(content) - len(blocks_of(content)) + header_of(content)["blocks"][block]["offset"]


@pytest.mark.parametrize(
    "block", ["scales", "norms", "valid", "cls", "registers", "null_same", "null_distance", "preview"]
)
def test_a_changed_byte_in_a_small_block_is_said(tmp_path, content, block):
    changed = bytearray(content)
    changed[place_in(content, block) + 2] ^= 16
    assert refused(bytes(changed), tmp_path) == f"is damaged in its block {block}; copy or download it again"


@pytest.mark.parametrize(("row", "first", "last"), [(0, 0, 15), (15, 0, 15), (16, 16, 19), (19, 16, 19)])
def test_a_changed_byte_in_the_codes_is_said_when_they_are_read(tmp_path, content, row, first, last):
    changed = bytearray(content)
    changed[place_in(content, "codes") + row * 3 * 16 + 5] ^= 1
    path = tmp_path / "bad.dfp"
    path.write_bytes(changed)
    pack = open_pack(path)  # does not read them
    with pytest.raises(PackError, match=r"bad.dfp is damaged in its block codes; copy or download it again"):
        pack.verify()
    sentence = f"bad.dfp is damaged in the codes of rows {first} to {last}; copy or download it again"
    for read in (pack.features, lambda: pack.rows_of(first, last + 1)):
        with pytest.raises(PackError, match=sentence):
            read()
    pack.rows_of(0, 16) if first else pack.rows_of(16, 20)  # the other rows are sound


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"offset": 64 * 10_000}, "its block codes of 960 bytes at 640000 does not lie where it should in the file"),
        ({"offset": 0}, "its block codes of 960 bytes at 0 does not lie where it should in the file"),
        ({"bytes": 959}, "its block codes of 959 bytes at"),
        ({"bytes": 1 << 50}, "its block codes of 1125899906842624 bytes at"),
        ({"shape": [20, 3, 15]}, "its block codes is int8 of shape [20, 3, 15], which does not fit the others"),
        ({"shape": [3, 20, 16]}, "its block codes is int8 of shape [3, 20, 16], which does not fit the others"),
        ({"shape": [20, 48]}, "its block codes is int8 of shape [20, 48], which does not fit the others"),
        ({"shape": [20, 3, 16, 1]}, "its block codes is int8 of shape [20, 3, 16, 1], which does not fit"),
        ({"dtype": "uint8"}, "its block codes is uint8 of shape [20, 3, 16], which does not fit the others"),
        ({"shape": [20, 3, -16]}, "what it says of its block codes makes no sense"),
        ({"offset": -64}, "what it says of its block codes makes no sense"),
        ({"offset": 1.0}, "what it says of its block codes makes no sense"),
        ({"sha256": "00"}, "what it says of its block codes makes no sense"),
        ({"chunk_rows": 8}, "what it says of its block codes makes no sense"),
        ({"crc32": "none"}, "what it says of its block codes makes no sense"),
        ({"more": 1}, "what it says of its block codes makes no sense"),
        ({"crc32": [1]}, "it has 1 checksums for 2 chunks"),
    ],
)
def test_a_block_that_does_not_fit_is_said(tmp_path, content, change, sentence):
    header = header_of(content)
    header["blocks"]["codes"] |= change
    told = refused(with_header(content, header), tmp_path)
    assert told.startswith(f"is no sound pack: {sentence}") and told.endswith("; make it again")


def test_blocks_may_not_overlap_or_leave_room(tmp_path, content):
    for block in ("norms", "preview"):
        for move in (-64, 64):
            header = header_of(content)
            header["blocks"][block]["offset"] += move
            assert "does not lie where it should in the file" in refused(with_header(content, header), tmp_path)


@pytest.mark.parametrize("block", ["scales", "cls", "null_same", "preview", "codes"])
def test_a_missing_block_is_said(tmp_path, content, block):
    header = header_of(content)
    del header["blocks"][block]
    sentence = f"is no whole pack: it lacks the block {block}; make it again"
    assert refused(with_header(content, header), tmp_path) == sentence


@pytest.mark.parametrize("block", ["text", "basis_mean", "gram"])
def test_a_block_that_belongs_to_nothing_is_said(tmp_path, content, block):
    header = header_of(content)
    header["blocks"][block] = header["blocks"]["cls"]
    sentence = f"is no sound pack: it should not have the block {block}; make it again"
    assert refused(with_header(content, header), tmp_path) == sentence


def test_blocks_that_the_header_promises_must_be_there(tmp_path, content):
    for promise, block in [
        ({"texts": ["a"]}, "text"),
        ({"basis": {"source": "a", "explained": [1, 0, 0]}}, "basis_components"),
    ]:
        sentence = f"is no whole pack: it lacks the block {block}; make it again"
        assert refused(with_header(content, header_of(content) | promise), tmp_path) == sentence


def test_a_map_that_is_not_its_geometrys_is_said(tmp_path, content):
    header = header_of(content)
    header["geometry"] |= {"input_height": 160}
    assert refused(with_header(content, header), tmp_path) == (
        "is no sound pack: its map has 20x3 cells and its geometry 10x3; make it again"
    )
    header = header_of(content)
    header["geometry"] |= {"input_width": 36, "pad": [0, 0, 12, 0]}  # the last column is padding then
    assert refused(with_header(content, header), tmp_path) == (
        "counts other cells as valid than its geometry does; make it again"
    )


@pytest.mark.parametrize("seed", range(5))
def test_no_damage_raises_anything_else(content, seed):
    """Whatever happens to a file, it is read or refused."""
    numbers = np.random.default_rng(seed)
    for _ in range(150):
        changed = bytearray(content)
        for _ in range(int(numbers.integers(1, 6))):
            place = int(numbers.integers(0, len(changed)))
            changed[place] = int(numbers.integers(256))
        if numbers.random() < 0.3:
            del changed[int(numbers.integers(0, len(changed))) :]
        try:
            pack = open_pack(bytes(changed))
            pack.verify()
        except PackError:
            continue
        assert pack.header == header_of(content)  # only what pads the blocks was changed
