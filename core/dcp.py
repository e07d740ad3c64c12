"""Torch's distributed checkpoints: tensors by name into a folder and back, each process its own part."""

import contextlib
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

from core import distributed
from core.models.layouts import listed


def write(state: dict[str, Tensor], folder: Path) -> None:
    """The tensors in a folder, on the disk when this returns. Raises CheckpointException on every process."""
    with _alone_in_silence():
        dcp.save(
            state,
            storage_writer=dcp.FileSystemWriter(folder, sync_files=True),
            process_group=distributed.own(),
            no_dist=distributed.size() == 1,
        )


def read(folder: Path, state: dict[str, Tensor], *, alone: bool = False) -> None:
    """Fills the tensors in place, cut as they are here; `alone`: this process reads for itself."""
    try:
        with _alone_in_silence():
            dcp.load(
                state,
                storage_reader=_Reader(folder),
                process_group=distributed.own(),
                no_dist=alone or distributed.size() == 1,
            )
    except (Exception, CheckpointException) as error:
        raise ValueError(
            f"{folder} could not be read: {cause(error)}. Copy it again, or move it away to go on from an older one"
        ) from error


def describe(folder: Path) -> dict[str, TensorStorageMetadata]:
    """Shapes and dtypes of the tensors in a folder, by name. Raises ValueError for a damaged or foreign one."""
    try:
        entries = _Reader(folder).read_metadata().state_dict_metadata
    except Exception as error:  # a damaged pickle raises nearly anything
        raise ValueError(f"{folder / '.metadata'} could not be read: {error}. Copy the checkpoint again") from error
    if others := sorted(key for key, entry in entries.items() if not isinstance(entry, TensorStorageMetadata)):
        raise ValueError(f"{folder} holds more than tensors: {listed(others)}; it is not a checkpoint of this project")
    return {key: entry for key, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}


def cause(error: BaseException) -> BaseException:
    """The system's error under torch's wrapping, of the first process that has one; else the error itself."""
    if isinstance(error, CheckpointException) and error.failures:
        error = error.failures[min(error.failures)][0]
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, OSError):
        inner = inner.__cause__ or inner.__context__
    return inner or error


@contextlib.contextmanager
def _alone_in_silence() -> Iterator[None]:
    """Torch warns of a single process even when that is what was asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


class _Reader(dcp.FileSystemReader):
    """Reads the pickled description of a checkpoint without running code from it."""

    def read_metadata(self, *arguments: Any, **options: Any) -> Metadata:
        with (Path(self.path) / ".metadata").open("rb") as file:
            metadata = _Unpickler(file).load()
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


_DTYPES = tuple(name for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype))
_KNOWN = {
    "torch": ("Size", *_DTYPES),
    "torch.serialization": ("_get_layout",),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.distributed.checkpoint.metadata": (
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    ),
    "pathlib": ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in _KNOWN.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, and code from a file is never run here")
