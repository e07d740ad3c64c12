import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.data.images import BrokenImage
from core.data.shards import Shards

INDEX = "zip\tentry\tsource\tlabel\tsplit\twidth\theight\n"


def image(level: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (5, 4), (level, level, level)).save(file, kind)
    return file.getvalue()


def make(path: Path, files: dict[str, bytes]) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return path
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def level(source: Shards, index: int) -> int:
    return int(np.asarray(source.read(index))[0, 0, 0])


@pytest.mark.parametrize("suffix", ["tar", "zip"])
def test_samples_of_webdataset_layout(tmp_path, suffix):
    files = {
        "0001.jpg": image(1, "JPEG"),
        "0001.cls": b"7\n",
        "sub/0002.seg.png": image(2),  # the last extension counts
        "sub/0002.json": json.dumps({"label": "dog", "caption": "x"}).encode(),
        "0003.webp": image(3, "WEBP"),
        "0003.txt": b"Katze, grau",
        "0003.json": b"{}",
        "0004.PNG": image(4),
        "0005.cls": b"no image",
        "._0001.jpg": b"what macOS adds",
        "README": b"",
        "./folder/0006.png": image(6),  # as `tar cf x.tar .` has it
    }
    source = Shards(make(tmp_path / f"x.{suffix}", files))
    assert len(source) == 5
    assert [source.name(i).split("/", 1)[1] for i in range(4)] == [
        "0001.jpg",
        "sub/0002.seg.png",
        "0003.webp",
        "0004.PNG",
    ]
    assert [source.label(i) for i in range(4)] == ["7", "dog", None, None]
    assert [level(source, i) for i in range(4)] == [1, 2, 3, 4]
    assert source.read(0).mode == "RGB" and source.label(4) == "folder"


@pytest.mark.parametrize("suffix", ["tar", "zip"])
def test_folders_are_labels(tmp_path, suffix):
    files = {
        "cat/1.png": image(1),
        "dog/2.png": image(2),
        "dog/deep/3.png": image(3),
        "dog/4.png": image(4),
        "dog/4.cls": b"wolf",
    }
    source = Shards(make(tmp_path / f"x.{suffix}", files))
    assert [source.label(i) for i in range(4)] == ["cat", "dog", "dog", "wolf"]


def test_folders_of_splits_are_honoured_over_all_shards(tmp_path):
    make(tmp_path / "a.zip", {"train/cat/1.png": image(1), "train/dog/2.png": image(2)})
    make(tmp_path / "b.tar", {"val/cat/3.png": image(3), "val/dog/4.png": image(4), "val/dog/4.cls": b"wolf"})
    train, val = Shards(tmp_path), Shards(tmp_path, "val")
    assert [level(train, i) for i in range(len(train))] == [1, 2] and train.label(0) == "cat"
    assert [level(val, i) for i in range(len(val))] == [3, 4]
    assert [val.label(i) for i in range(2)] == ["cat", "wolf"] and val.name(0) == "b.tar/val/cat/3.png"
    with pytest.raises(ValueError, match="no split 'test'; it has train, val"):
        Shards(tmp_path, "test")


def test_without_splits_there_is_only_train(tmp_path):
    path = make(tmp_path / "x.zip", {"cat/1.png": image(1)})
    with pytest.raises(ValueError, match="no splits"):
        Shards(path, "val")


def test_several_shards_are_one_source(tmp_path):
    for number in range(3):
        make(tmp_path / f"s-{number:03}.tar", {f"{i}.png": image(10 * number + i) for i in range(number + 1)})
    for pattern in (tmp_path, tmp_path / "s-*.tar", tmp_path / "s-{000..002}.tar"):
        source = Shards(pattern)
        assert [level(source, i) for i in range(len(source))] == [0, 10, 11, 20, 21, 22]
        assert source.name(3) == "s-002.tar/0.png"
    assert len(Shards(tmp_path / "s-{001..002}.tar")) == 5


def test_an_index_says_source_label_and_split(tmp_path):
    make(tmp_path / "a.zip", {f"x/{i}.png": image(i) for i in range(4)})
    make(tmp_path / "b.zip", {"x/9.png": image(9)})
    rows = [
        ("a", 3, "one", "cat", "train"),
        ("a", 1, "one", "", "train"),
        ("a", 0, "one", "cat", "val"),
        ("b", 9, "two", "dog", "train"),
    ]
    lines = [f"{shard}.zip\tx/{i}.png\t{source}\t{label}\t{split}\t5\t4\n" for shard, i, source, label, split in rows]
    (tmp_path / "index.tsv").write_text(INDEX + "".join(lines))
    source = Shards(tmp_path)
    assert [level(source, i) for i in range(len(source))] == [3, 1, 9]
    assert [source.label(i) for i in range(3)] == ["cat", None, "dog"]
    assert len(Shards(tmp_path, "val")) == len(Shards(tmp_path, name="two")) == len(Shards(tmp_path / "b.zip")) == 1
    with pytest.raises(
        ValueError, match="no image of split 'val' and source 'two'; splits: train, val; sources: one, two"
    ):
        Shards(tmp_path, "val", "two")


def test_an_index_that_does_not_fit_is_said(tmp_path):
    make(tmp_path / "a.zip", {"x/1.png": image(1)})
    (tmp_path / "index.tsv").write_text(INDEX + "a.zip\tx/2.png\ts\tc\ttrain\t5\t4\n")
    with pytest.raises(ValueError, match=r"names 'x/2\.png', which is not in it"):
        Shards(tmp_path)
    (tmp_path / "index.tsv").write_text("zip\tentry\n")
    with pytest.raises(ValueError, match="no column label, source, split"):
        Shards(tmp_path)


def test_parts_need_an_index(tmp_path):
    with pytest.raises(ValueError, match=r"only an index\.tsv names parts"):
        Shards(make(tmp_path / "x.zip", {"1.png": image(1)}), name="one")


def test_shards_without_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no images \(\.jpg, \.jpeg, \.png, \.webp\) in the 1 files"):
        Shards(make(tmp_path / "x.tar", {"1.cls": b"3"}))


def test_broken_images_are_named(tmp_path):
    source = Shards(make(tmp_path / "x.tar", {"a/1.jpg": image(1, "JPEG")[:60], "a/2.png": image(2)}))
    with pytest.raises(BrokenImage, match=r"^x\.tar/a/1\.jpg: "):
        source.read(0)
    assert level(source, 1) == 2
    source.paths[0].write_bytes(b"")  # a disk that went away
    with pytest.raises(BrokenImage, match=r"^x\.tar/a/2\.png: expected \d+ bytes"):
        source.read(1)


def test_the_larger_set_beside_the_project(shared):
    folder = shared / "data" / "pretrain"
    source = Shards(folder)
    rows = (folder / "index.tsv").read_text().splitlines()[1:]
    assert len(source) == sum(row.split("\t")[4] == "train" for row in rows) == 8830
    assert len(Shards(folder, "val", "clothing")) == 395
    width, height = rows[0].split("\t")[5:]
    assert source.read(0).size == (int(width), int(height))
