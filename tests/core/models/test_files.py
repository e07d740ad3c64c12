"""Weight files on a disk: whole or refused with a reason, written in one step or not at all."""

import hashlib
import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from core.models import files
from core.models.files import INDEX, read, write
from core.models.layouts import WeightsError

TENSORS = {"weight": torch.arange(600.0).reshape(20, 30), "bias": torch.arange(20.0).half()}


def refused(path: Path, match: str, sha256: str | None = None) -> None:
    with pytest.raises(WeightsError, match=match):
        read(path, sha256=sha256)


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    if first.keys() != second.keys():
        return False
    return all(torch.equal(first[key], second[key]) and first[key].dtype == second[key].dtype for key in first)


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth", "model.pt", "pytorch_model.bin"])
def test_tensors_come_back_as_they_were_written(name, tmp_path):
    write(TENSORS, tmp_path / name)
    for path in (tmp_path / name, tmp_path):
        file = read(path)
        assert same(file.tensors, TENSORS)
        assert file.path == tmp_path / name
        assert file.sha256 == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()


def test_metadata_is_kept_and_none_stays_none(tmp_path):
    path = tmp_path / "model.safetensors"
    write(TENSORS, path, {"format": "pt"})
    assert read(path).metadata == {"format": "pt"}
    write(TENSORS, path)
    assert read(path).metadata is None


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_views_are_written_without_what_they_are_views_of(suffix, tmp_path):
    whole = torch.randn(1000, 30)
    views = {"first": whole[:10], "same": whole[:10], "columns": whole[:10].T}
    write(views, tmp_path / f"model{suffix}")
    assert same(read(tmp_path / f"model{suffix}").tensors, views)
    assert (tmp_path / f"model{suffix}").stat().st_size < 3 * 10 * 30 * 4 + 3000


@pytest.mark.parametrize("size", [4, 30, 1000, -100])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_truncated_files_are_recognised(suffix, size, tmp_path):
    path = tmp_path / f"model{suffix}"
    write(TENSORS, path)
    path.write_bytes(path.read_bytes()[:size])
    refused(path, "cut short or no (torch|safetensors) file")


def test_old_pickles_that_stop_early_are_recognised(tmp_path):
    path = tmp_path / "model.pth"
    torch.save(TENSORS, path, _use_new_zipfile_serialization=False)
    assert same(read(path).tensors, TENSORS)
    whole = path.read_bytes()
    for size in range(1, len(whole), 13):
        path.write_bytes(whole[:size])
        refused(path, "cut short or no torch file")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_pages_pointers_and_nothing_in_place_of_weights_are_recognised(suffix, tmp_path):
    file = tmp_path / f"file{suffix}"
    file.write_text("<!doctype html><title>Sign in</title>")
    refused(file, "web page or a text")
    file.write_text('{"error": "expired"}')
    refused(file, "web page or a text")
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    refused(file, "Git LFS pointer")
    file.write_bytes(b"")
    refused(file, "is empty")


def test_no_code_from_a_file_is_executed(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"model": Bomb()}, tmp_path / "bomb.pth")
    refused(tmp_path / "bomb.pth", "code from a file is never run here")
    torch.save({"args": Path("x"), "model": {}}, tmp_path / "args.pth", _use_new_zipfile_serialization=False)
    refused(tmp_path / "args.pth", "code from a file is never run here")
    assert not (tmp_path / "executed").exists()


def test_what_is_no_state_dict_is_told(tmp_path):
    torch.save({"epoch": 3, "loss": 0.1}, tmp_path / "log.pth")
    refused(tmp_path / "log.pth", "not a state dict: epoch, loss are no tensors")
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    refused(tmp_path / "tensor.pth", "holds a Tensor, expected a dictionary")
    torch.save({"teacher": {}}, tmp_path / "empty.pth")
    refused(tmp_path / "empty.pth", "expected a dictionary of tensors")
    (tmp_path / "notes.txt").write_text("weights")
    refused(tmp_path / "notes.txt", "weight files end in .safetensors, .pth, .pt, .bin")
    refused(tmp_path / "nowhere.pth", "no file or folder")


def test_a_wrong_hash_stops_before_anything_is_parsed(tmp_path):
    path = tmp_path / "model.pth"
    write(TENSORS, path)
    digest = read(path).sha256
    assert read(path, sha256=digest).sha256 == read(path, sha256=digest[:8].upper()).sha256 == digest
    refused(path, f"has SHA-256 {digest}, expected 00112233", sha256="00112233")
    refused(path, "expected :", sha256="")  # an empty expectation is not one that is met
    refused(path, "expected", sha256=digest[:7])
    path.write_bytes(b"not even a torch file")
    refused(path, f"expected {digest}", sha256=digest)


def test_the_hash_in_a_name_is_checked(tmp_path):
    write(TENSORS, tmp_path / "model.pth")
    digest = read(tmp_path / "model.pth").sha256
    named = (tmp_path / "model.pth").rename(tmp_path / f"dinov3_vits16_pretrain_lvd1689m-{digest[:8]}.pth")
    assert same(read(named).tensors, TENSORS)
    wrong = named.rename(tmp_path / "dinov3_vits16_pretrain_lvd1689m-08c60483.pth")
    refused(wrong, f"should have a SHA-256 starting with 08c60483, but has {digest[:8]}")


def test_shards_are_read_together(tmp_path):
    write({"weight": TENSORS["weight"]}, tmp_path / "model-1.safetensors")
    write({"bias": TENSORS["bias"]}, tmp_path / "model-2.safetensors")
    index = {"weight_map": {"weight": "model-1.safetensors", "bias": "model-2.safetensors"}}
    (tmp_path / INDEX).write_text(json.dumps(index))
    (tmp_path / "config.json").write_text('{"depth": 3}')
    file = read(tmp_path)
    assert same(file.tensors, TENSORS)
    assert file.config == {"depth": 3}
    digests = [hashlib.sha256((tmp_path / f"model-{i}.safetensors").read_bytes()).hexdigest() for i in (1, 2)]
    assert file.sha256 == hashlib.sha256("".join(digests).encode()).hexdigest()
    write(TENSORS, tmp_path / "model-2.safetensors")
    refused(tmp_path, "repeats tensors of another shard: weight")
    (tmp_path / "model-2.safetensors").unlink()
    refused(tmp_path, "lacks model-2.safetensors, of the 2 shards")


@pytest.mark.parametrize(
    ("index", "match"),
    [
        ('{"weight_map": {"norm.bias": "../other.safetensors"}}', "names files outside its folder"),
        ('{"weight_map": {}}', "has no weight_map"),
        ("[]", "holds a list, expected an object"),
        ("{", "is not JSON"),
    ],
)
def test_a_broken_index_is_told(index, match, tmp_path):
    (tmp_path / INDEX).write_text(index)
    refused(tmp_path, match)


def test_a_folder_holds_exactly_one_model(tmp_path):
    refused(tmp_path, r"holds 0 weight files \(none\)")
    write(TENSORS, tmp_path / "a.pth")
    write(TENSORS, tmp_path / "b.pth")
    refused(tmp_path, r"holds 2 weight files \(a.pth, b.pth\)")
    write(TENSORS, tmp_path / "model.safetensors")
    assert read(tmp_path).path.name == "model.safetensors"


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(suffix, tmp_path, monkeypatch):
    path = tmp_path / "deep" / f"model{suffix}"
    write(TENSORS, path)
    before = path.read_bytes()

    def full(tensors: dict[str, Tensor], file: Path, **_: object) -> None:
        Path(file).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(files, "save_file", full)
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="no space left"):
        write(TENSORS, path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_files_are_as_readable_as_any_other_and_have_a_known_suffix(tmp_path):
    write(TENSORS, tmp_path / "model.safetensors")
    (tmp_path / "other").touch()
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode
    with pytest.raises(WeightsError, match=r"ends in '.onnx'; name a file ending in .safetensors"):
        write(TENSORS, tmp_path / "model.onnx")


def test_what_was_read_does_not_change_with_the_file(tmp_path):
    """A file mapped into memory and written anew in place would change the weights under a model."""
    path = tmp_path / "model.safetensors"
    write(TENSORS, path)
    tensors = read(path).tensors
    header = 8 + struct.unpack("<Q", path.read_bytes()[:8])[0]
    with path.open("r+b") as file:
        file.seek(header)
        file.write(b"\xff" * (path.stat().st_size - header))
    with safe_open(path, "pt") as file:
        assert not torch.equal(file.get_tensor("weight"), TENSORS["weight"])
    assert same(tensors, TENSORS)
