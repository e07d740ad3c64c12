"""Weight files as they lie on a disk: tensors in and out, nothing executed, nothing half done."""

import hashlib
import json
import os
import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from core.models.layouts import WeightsError, listed

TORCH_SUFFIXES = (".pth", ".pt", ".bin")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class WeightFile:
    """What was read: tensors under the names of the file, and what stood beside them.

    `sha256` is that of the file; of a model cut into shards, the digest of the shards' digests in order of
    name. `config` and `preprocessor` are the JSON files of a Hugging Face or timm folder, empty where there
    is none.
    """

    path: Path
    tensors: dict[str, Tensor]
    sha256: str
    metadata: dict[str, str] | None = None
    config: dict[str, Any] = field(default_factory=dict)
    preprocessor: dict[str, Any] = field(default_factory=dict)
    wrapper: str | None = None  # top-level key of a training export that held the tensors


def read(path: Path, *, sha256: str | None = None) -> WeightFile:
    """The tensors of a file (.safetensors, .pth, .pt, .bin) or of a folder that holds one model.

    A folder holds `model.safetensors`, or shards with their index, or exactly one weight file. With `sha256`
    (whole, or its first 8 or more hex digits) and for files that carry it in their name as torch hub does
    (`-1a2b3c4d.pth`), a difference is an error before anything is parsed. Raises WeightsError for everything
    that can be wrong.
    """
    if not path.exists():
        raise WeightsError(f"no file or folder {path}; check the path")
    if path.is_file():
        return _read_files([path], path, sha256)
    config, preprocessor = (_json(path / name) for name in ("config.json", "preprocessor_config.json"))
    return _read_files(_files_of(path), path, sha256, config=config, preprocessor=preprocessor)


def _files_of(folder: Path) -> list[Path]:
    """The weight file of a folder, or all its shards."""
    if (folder / SINGLE).exists():
        return [folder / SINGLE]
    shards = shards_of(folder)
    missing = [shard for shard in shards if not (folder / shard).exists()]
    if missing:
        raise WeightsError(
            f"{folder} lacks {listed(missing)}, of the {len(shards)} shards that {INDEX} names; download or "
            "copy the whole folder again"
        )
    if shards:
        return [folder / shard for shard in shards]
    found = sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES)
    if len(found) != 1:
        raise WeightsError(
            f"{folder} holds {len(found)} weight files ({listed(file.name for file in found) or 'none'}), "
            f"expected {SINGLE}, {INDEX} or exactly one of {', '.join(SUFFIXES)}; name the file "
            "itself"
        )
    return found


def shards_of(folder: Path) -> list[str]:
    """File names that the index of a model in several files lists; none without an index."""
    if not (folder / INDEX).exists():
        return []
    shards = _json(folder / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise WeightsError(f"{folder / INDEX} has no weight_map; download it again")
    names = sorted({str(name) for name in shards.values()})
    if any(Path(name).name != name for name in names):
        raise WeightsError(f"{folder / INDEX} names files outside its folder: {listed(names)}; do not use it")
    return names


def _read_files(files: list[Path], path: Path, expected: str | None, **beside: Any) -> WeightFile:
    digests = [_sha256(file) for file in files]
    for file, digest in zip(files, digests, strict=True):
        _check_name(file, digest)
    whole = digests[0] if len(files) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    if expected is not None and (len(expected) < 8 or not whole.startswith(expected.lower())):
        raise WeightsError(
            f"{path} has SHA-256 {whole}, expected {expected}: it is another file or was changed on the way. "
            "Nothing was loaded; download it again from a source you trust"
        )
    tensors: dict[str, Tensor] = {}
    metadata, wrapper = None, None
    for file in files:
        if file.suffix == ".safetensors":
            part, metadata = _read_safetensors(file)
        elif file.suffix in TORCH_SUFFIXES:
            part, wrapper = _read_torch(file)
        else:
            raise WeightsError(f"{file} ends in {file.suffix!r}; weight files end in {', '.join(SUFFIXES)}")
        twice = part.keys() & tensors.keys()
        if twice:
            raise WeightsError(f"{file.name} repeats tensors of another shard: {listed(sorted(twice))}")
        tensors |= part
    return WeightFile(files[0] if len(files) == 1 else path, tensors, whole, metadata, wrapper=wrapper, **beside)


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _check_name(file: Path, digest: str) -> None:
    """Torch hub's convention: the first 8 hex digits of the file's own hash end its name."""
    _, dash, suffix = file.stem.rpartition("-")
    is_hash = dash and len(suffix) == 8 and all(letter in "0123456789abcdef" for letter in suffix)
    if file.suffix in TORCH_SUFFIXES and is_hash and not digest.startswith(suffix):
        raise WeightsError(
            f"{file.name} should have a SHA-256 starting with {suffix}, but has {digest[:8]}...: the "
            "download was cut short or the file was changed. Nothing was loaded; download it again"
        )


def _json(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        content = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise WeightsError(f"{file} is not JSON ({error}); download it again") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{file} holds a {type(content).__name__}, expected an object; download it again")
    return content


def _check_start(file: Path) -> None:
    """Say what is usually there instead of weights."""
    with file.open("rb") as handle:
        start = handle.read(64)
    if not start:
        raise WeightsError(f"{file} is empty; download it again")
    if start.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{file} is a Git LFS pointer, not the weights; fetch them with `git lfs pull`")
    if start.lstrip()[:1] in (b"<", b"{", b"["):
        raise WeightsError(
            f"{file} is a web page or a text, not weights: a download that needed a login or had expired. "
            "Open the link in a browser to see what it answers, then download it again"
        )


def _read_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str] | None]:
    _check_start(file)
    try:
        with safe_open(file, "pt") as handle:
            # clone: the file is mapped into memory, and must not change the weights when it is written anew
            tensors = {key: handle.get_tensor(key).clone() for key in handle.keys()}  # noqa: SIM118
            return tensors, handle.metadata()
    except SafetensorError as error:
        raise WeightsError(
            f"{file} is cut short or no safetensors file ({error}); compare its size with the original and "
            "download it again"
        ) from error


def _read_torch(file: Path) -> tuple[dict[str, Tensor], str | None]:
    """Tensors of a .pth, without executing what it pickles; the EMA teacher of a training export."""
    _check_start(file)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle makes torch raise nearly anything
        refused = isinstance(error, pickle.UnpicklingError) and re.search(r"nsupported|GLOBAL|Can only", str(error))
        if refused and _pickles_end(file):
            raise WeightsError(
                f"{file} pickles more than tensors, and code from a file is never run here. If you trust it, "
                "load it once in its own project and save only the state dict: torch.save(model.state_dict(), path)"
            ) from error
        raise WeightsError(f"{file} is cut short or no torch file; download it again") from error
    for wrapper in ("teacher", "model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            return _only_tensors(content[wrapper], file), wrapper
    return _only_tensors(content, file), None


def _pickles_end(file: Path) -> bool:
    """Whether the file's pickles are whole: one that is cut inside a name looks like code from somewhere else."""
    if zipfile.is_zipfile(file):
        return True
    try:
        with file.open("rb") as handle:
            for _ in range(4):  # magic number, protocol, system, object
                for _ in pickletools.genops(handle):
                    pass
    except ValueError:
        return False
    return True


def _only_tensors(content: object, file: Path) -> dict[str, Tensor]:
    if not isinstance(content, dict) or not content:
        raise WeightsError(f"{file} holds a {type(content).__name__}, expected a dictionary of tensors")
    others = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise WeightsError(
            f"{file} is not a state dict: {listed(others)} are no tensors (of {len(content)} entries); "
            "save the backbone's state dict alone"
        )
    return {str(key): value for key, value in content.items()}


def write(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Tensors into a .safetensors (with metadata) or .pth file that appears complete or not at all."""
    if path.suffix == ".safetensors":
        said = None if metadata is None else dict(metadata)
        replace(path, lambda file: save_file(_owned(tensors), file, metadata=said))
    elif path.suffix in TORCH_SUFFIXES:
        replace(path, lambda file: torch.save(_owned(tensors), file))
    else:
        raise WeightsError(f"{path} ends in {path.suffix!r}; name a file ending in {', '.join(SUFFIXES)}")


def _owned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor with memory of its own: safetensors refuses views, torch writes all that a view is of."""
    owned: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, tensor in tensors.items():
        storage = tensor.untyped_storage()
        shared = storage.data_ptr() in seen or storage.nbytes() != tensor.nbytes
        owned[key] = tensor.clone(memory_format=torch.contiguous_format) if shared else tensor.contiguous()
        seen.add(storage.data_ptr())
    return owned


def replace(path: Path, write_to: Callable[[Path], object]) -> None:
    """Let `write_to` fill a temporary file beside `path`, then put it in place in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # what the user's umask gives; safetensors makes files private
        write_to(temporary)
        temporary.chmod(mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
