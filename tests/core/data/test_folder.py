import numpy as np
import pytest
from PIL import Image

from core.data.folder import Folder
from core.data.images import BrokenImage


@pytest.fixture
def put(tmp_path):
    def put(*names: str) -> None:
        for level, name in enumerate(names):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (6, 4), level).save(path)

    return put


def names(source: Folder) -> list[str]:
    return [source.name(i).removeprefix(f"{source.root}/") for i in range(len(source))]


def test_the_first_folder_is_the_class(tmp_path, put):
    put("dog/b.png", "dog/deep/a.JPG", "cat/z.png", "top.png", "Ärger/ü.png")
    source = Folder(tmp_path)
    found = dict(zip(names(source), [source.label(i) for i in range(5)], strict=True))
    assert found == {
        "cat/z.png": "cat",
        "dog/b.png": "dog",
        "dog/deep/a.JPG": "dog",
        "top.png": None,
        "Ärger/ü.png": "Ärger",
    }
    assert np.asarray(source.read(names(source).index("cat/z.png"))).tolist() == [[[2] * 3] * 6] * 4


def test_order_does_not_depend_on_the_disk(tmp_path, put):
    put("b/2.png", "a/9.png", "b/1.png", "a/10.png")
    assert names(Folder(tmp_path)) == ["a/10.png", "a/9.png", "b/1.png", "b/2.png"]


def test_splits_are_honoured(tmp_path, put):
    put("train/cat/1.png", "val/cat/2.png", "val/dog/3.png", "more/4.png")
    assert names(Folder(tmp_path)) == ["cat/1.png"]
    val = Folder(tmp_path, "val")
    assert names(val) == ["cat/2.png", "dog/3.png"] and val.label(1) == "dog"
    with pytest.raises(ValueError, match="no split 'test'; it has train, val"):
        Folder(tmp_path, "test")


def test_train_may_be_a_class(tmp_path, put):
    put("train/1.png", "bus/2.png")
    source = Folder(tmp_path)
    assert [source.label(i) for i in range(2)] == ["bus", "train"]
    with pytest.raises(ValueError, match="has no splits"):
        Folder(tmp_path, "val")


def test_hidden_and_other_files_are_left_out(tmp_path, put):
    put("a/1.png", ".trash/2.png")
    (tmp_path / "a" / "._1.png").write_bytes(b"what macOS adds")
    (tmp_path / "a" / "notes.txt").write_text("x")
    assert names(Folder(tmp_path)) == ["a/1.png"]


def test_links_are_followed_and_circles_are_not(tmp_path, put):
    put("images/a/1.png")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "a").symlink_to(tmp_path / "images" / "a")
    (tmp_path / "images" / "a" / "again").symlink_to(tmp_path / "images")
    assert names(Folder(tmp_path / "linked")) == ["a/1.png"]
    assert names(Folder(tmp_path / "images")) == ["a/1.png"]


def test_what_is_not_there_is_said(tmp_path, put):
    with pytest.raises(FileNotFoundError, match="nothing is not a folder"):
        Folder(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"no images \(\.jpg, .*\) in "):
        Folder(tmp_path)
    put("a/1.png")
    with pytest.raises(ValueError, match="has no parts, so no 'x'"):
        Folder(tmp_path, name="x")


def test_broken_and_vanished_files_are_named(tmp_path, put):
    put("a/1.png", "a/2.png")
    source = Folder(tmp_path)
    (tmp_path / "a" / "1.png").write_bytes(b"")
    (tmp_path / "a" / "2.png").unlink()
    for index in range(2):
        with pytest.raises(BrokenImage, match=rf"a/{index + 1}\.png: "):
            source.read(index)
