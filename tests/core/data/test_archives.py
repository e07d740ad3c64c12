import io
import multiprocessing
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import pytest

from core.data import archives
from core.data.archives import Reader, members

FILES = {"a/1.jpg": b"first", "a/1.cls": b"7", "ü/2.png": os.urandom(5000), "empty.txt": b""}


def make_tar(path: Path, files: dict[str, bytes] = FILES, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def make_zip(path: Path, files: dict[str, bytes] = FILES, method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def contents(path: Path) -> dict[str, bytes]:
    found, reader = members(path), Reader([path])
    return {name: reader.read(0, place) for name, place in zip(found.names, found.places, strict=True)}


def test_bytes_come_back_from_tars_and_zips(tmp_path):
    assert contents(make_tar(tmp_path / "x.tar")) == FILES
    assert contents(make_zip(tmp_path / "stored.zip")) == FILES
    assert contents(make_zip(tmp_path / "deflated.zip", method=zipfile.ZIP_DEFLATED)) == FILES


def test_long_names_and_other_formats_are_read(tmp_path):
    files = {f"{'long/' * 60}{i}.jpg": bytes([i] * i) for i in range(20)}
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(tmp_path / "x.tar", "w", format=kind) as archive:
            for name, data in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
        assert contents(tmp_path / "x.tar") == files


def test_links_and_devices_are_left_out(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name, kind in [("link.jpg", tarfile.SYMTYPE), ("hard.jpg", tarfile.LNKTYPE), ("dev.jpg", tarfile.CHRTYPE)]:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "/etc/hostname"
            archive.addfile(entry)
    assert contents(tmp_path / "x.tar") == {}


def test_hostile_names_are_names_and_nothing_more(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    hostile = {"../outside.jpg": b"1", "/absolute.jpg": b"2", "a/../../b.jpg": b"3"}
    before = sorted(tmp_path.rglob("*"))
    assert contents(make_tar(inside / "x.tar", hostile)) == hostile
    assert contents(make_zip(inside / "x.zip", hostile)) == hostile
    assert sorted(set(tmp_path.rglob("*")) - set(before)) == [inside / "x.tar", inside / "x.zip"]


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.8])
def test_archives_that_are_cut_off_are_named(tmp_path, share):
    files = {f"{i}.jpg": os.urandom(3000) for i in range(20)}
    for path in (make_tar(tmp_path / "x.tar", files), make_zip(tmp_path / "x.zip", files)):
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
        with pytest.raises(ValueError, match=rf"{path.name} is no readable .*cut off"):
            members(path)


def test_a_tar_that_ends_between_two_files_is_cut_off(tmp_path):
    path = make_tar(tmp_path / "x.tar", {"1.jpg": bytes([1] * 512), "2.jpg": bytes([2] * 512)})
    whole = path.read_bytes()
    for length in (1024, 1200, 2048):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="the mark at its end is missing"):
            members(path)
    path.write_bytes(whole[:2560])
    assert len(members(path).names) == 2


def test_tars_compressed_as_a_whole_are_refused(tmp_path):
    path = make_tar(tmp_path / "x.tar", mode="w:gz")
    with pytest.raises(ValueError, match=r"unpack a \.tar\.gz"):
        members(path)


def test_an_empty_file_is_no_archive(tmp_path):
    (tmp_path / "x.zip").touch()
    with pytest.raises(ValueError, match="no readable zip"):
        members(tmp_path / "x.zip")


def test_damage_inside_is_an_error_of_reading(tmp_path):
    path = make_zip(tmp_path / "x.zip", {"a.jpg": bytes(3000)}, zipfile.ZIP_DEFLATED)
    found = members(path)
    data = bytearray(path.read_bytes())
    data[:4] = b"junk"
    path.write_bytes(data)
    with pytest.raises(OSError, match="no zip entry starts at offset 0"):
        Reader([path]).read(0, found.places[0])
    data[:4], data[36:40] = b"PK\x03\x04", b"\xff\xff\xff\xff"
    path.write_bytes(data)
    with pytest.raises(OSError):
        Reader([path]).read(0, found.places[0])
    path.write_bytes(data[:20])
    with pytest.raises(OSError, match="expected 30 bytes at offset 0, found 20"):
        Reader([path]).read(0, found.places[0])


def test_the_index_of_a_large_tar_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(archives, "LARGE", 1)
    path = make_tar(tmp_path / "x.tar")
    first = members(path)
    (kept,) = (tmp_path / "cache").rglob("*.npz")
    with monkeypatch.context() as patch:
        patch.setattr(archives, "_tar_entries", None)
        second = members(path)
    assert list(first.names) == list(second.names) == list(FILES)
    assert (first.places == second.places).all()
    kept.write_bytes(b"damaged")
    assert list(members(path).names) == list(FILES)
    make_tar(path, {"other.jpg": b"12"})
    assert list(members(path).names) == ["other.jpg"]


def test_few_files_stay_open(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "OPEN_FILES", 2)
    paths = [make_tar(tmp_path / f"{i}.tar", {"x": bytes([i])}) for i in range(6)]
    places = [members(path).places[0] for path in paths]
    reader = Reader(paths)
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    for number in [0, 1, 2, 3, 4, 5, 0, 5, 1]:
        assert reader.read(number, places[number]) == bytes([number])
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before + 2
        reader.close()
        assert len(os.listdir("/proc/self/fd")) == before


def _read_in_child(reader: Reader, place, answers) -> None:
    answers.put((reader.read(0, place), os.getpid() == reader._owner))


def test_copies_in_other_processes_open_the_files_again(tmp_path):
    path = make_tar(tmp_path / "x.tar")
    reader, place = Reader([path]), members(path).places[0]
    assert reader.read(0, place) == b"first"
    assert pickle.loads(pickle.dumps(reader)).read(0, place) == b"first"
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=_read_in_child, args=(reader, place, answers))
    child.start()
    assert answers.get(timeout=30) == (b"first", True)
    child.join()
    assert reader.read(0, place) == b"first"
