"""What lies where in tar and zip files, and its bytes. Nothing is ever extracted to disk."""

import hashlib
import os
import struct
import tarfile
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from core.data.listing import Strings

OPEN_FILES = 64  # a process
PLAIN = -1  # the bytes are there as they are: a member of a tar
STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED  # an entry of a zip, which starts with a header
HEADER = struct.Struct("<4s22xHH")  # of a zip entry: signature, length of its name, length of what else is there
BLOCK = 512  # bytes; what a tar is made of
LARGE = 64 << 20  # bytes of a tar from which its index is kept: without one the whole file must be walked through


class Members(NamedTuple):
    """The files in an archive."""

    names: Strings
    places: Int[np.ndarray, "n 3"]  # offset (of the header in a zip), length as it is stored, PLAIN, STORED or DEFLATED


def members(path: Path) -> Members:
    """The files in a tar or zip. Raises ValueError for archives that are cut off, compressed as a whole, or encrypted.

    The index of a large tar is kept in the user's cache, by the file's path, size and time.
    """
    kept = _cache_file(path) if path.suffix != ".zip" and path.stat().st_size >= LARGE else None
    if kept is not None and (found := _cached(kept)) is not None:
        return found
    entries = list(_zip_entries(path) if path.suffix == ".zip" else _tar_entries(path))
    places = np.array([entry[1:] for entry in entries], dtype=np.int64).reshape(-1, 3)
    found = Members(Strings.of(entry[0] for entry in entries), places)
    if kept is not None:
        _keep(kept, found)
    return found


def _zip_entries(path: Path) -> Iterator[tuple[str, int, int, int]]:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise ValueError(f"{path} is no readable zip file ({error}); was it cut off in copying?") from error
    for entry in entries:
        if entry.flag_bits & 1 or entry.compress_type not in (STORED, DEFLATED):
            raise ValueError(f"{path} has {entry.filename!r} encrypted or in a rare compression; store it plainly")
        yield entry.filename, entry.header_offset, entry.compress_size, entry.compress_type


def _tar_entries(path: Path) -> Iterator[tuple[str, int, int, int]]:
    size, end = path.stat().st_size, 0
    try:
        with tarfile.open(path, "r:") as archive:
            for entry in archive:
                archive.members = []  # type: ignore[attr-defined] # tarfile would keep every header
                end = entry.offset_data + (-(-entry.size // BLOCK) * BLOCK if entry.isreg() else 0)
                if end > size:
                    raise tarfile.ReadError(f"{entry.name!r} goes on beyond the end of the file")
                if entry.isreg() and not entry.issparse():  # links, folders and devices are none of ours
                    yield entry.name, entry.offset_data, entry.size, PLAIN
        with path.open("rb") as file:  # tarfile takes what it cannot read for the end
            file.seek(end)
            if file.read(BLOCK) != bytes(BLOCK):
                raise tarfile.ReadError("the mark at its end is missing")
    except (tarfile.TarError, OSError) as error:
        raise ValueError(
            f"{path} is no readable tar file ({error}); was it cut off in copying, or is it compressed as a whole? "
            "Images are found by their offset, so unpack a .tar.gz to a .tar"
        ) from error


def _cache_file(path: Path) -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gramscope" / "tars"
    status = path.stat()
    key = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}"
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"


def _cached(file: Path) -> Members | None:
    with suppress(OSError, ValueError, KeyError, zipfile.BadZipFile), np.load(file) as table:
        return Members(Strings(table["letters"], table["ends"]), table["places"])  # a damaged one is made again
    return None


def _keep(file: Path, found: Members) -> None:
    with suppress(OSError):  # a home that cannot be written costs the walk at every start, and nothing else
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}.npz")
        np.savez(part, letters=found.names.letters, ends=found.names.ends, places=found.places)
        part.replace(file)


class Reader:
    """Bytes out of archives. Every process opens the files itself, so copies of a reader do not disturb each other."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self._handles: OrderedDict[int, int] = OrderedDict()
        self._owner = os.getpid()

    def read(self, archive: int, place: Int[np.ndarray, "3"]) -> bytes:
        """What lies at a place of an archive, unpacked. Raises OSError."""
        offset, length, method = (int(number) for number in place)
        handle = self._handle(archive)
        if method == PLAIN:
            return _exactly(handle, offset, length)
        signature, name_length, extra_length = HEADER.unpack(_exactly(handle, offset, HEADER.size))
        if signature != b"PK\x03\x04":
            raise OSError(f"no zip entry starts at offset {offset}")
        data = _exactly(handle, offset + HEADER.size + name_length + extra_length, length)
        if method == STORED:
            return data
        try:
            return zlib.decompress(data, -zlib.MAX_WBITS)
        except zlib.error as error:
            raise OSError(str(error)) from error

    def close(self) -> None:
        """Closes the files; reading opens them again."""
        if self._owner == os.getpid():
            for handle in self._handles.values():
                os.close(handle)
        self._handles = OrderedDict()

    def __del__(self) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"paths": self.paths}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["paths"])  # type: ignore[misc]

    def _handle(self, archive: int) -> int:
        if self._owner != os.getpid():  # after a fork the handles are the parent's
            self._handles, self._owner = OrderedDict(), os.getpid()
        if archive not in self._handles:
            self._handles[archive] = os.open(self.paths[archive], os.O_RDONLY)
            if len(self._handles) > OPEN_FILES:
                os.close(self._handles.popitem(last=False)[1])
        self._handles.move_to_end(archive)
        return self._handles[archive]


def _exactly(handle: int, offset: int, length: int) -> bytes:
    data = os.pread(handle, length, offset)
    if len(data) != length:
        raise OSError(f"expected {length} bytes at offset {offset}, found {len(data)}")
    return data
