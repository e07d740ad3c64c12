import os

import numpy as np
import pytest
from PIL import Image

from core.config import SourceConfig
from core.data import DATASETS, detect, open_source


def test_the_built_in_set_opens_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train, val = (open_source(SourceConfig(path="tiny", split=split)) for split in ("train", "val"))
    assert (len(train), len(val)) == (1178, 310)
    labels = [[source.label(i) for i in range(len(source))] for source in (train, val)]
    assert len(set(labels[0])) == 62 and set(labels[0]) == set(labels[1])
    assert len(open_source(SourceConfig(path="", kind="tiny", name="clothing"))) == 228


def test_every_image_of_the_built_in_set_is_sound_and_shown_once():
    pictures = set()
    for split in ("train", "val"):
        source = open_source(SourceConfig(path="tiny", split=split))
        for index in range(len(source)):
            picture = source.read(index)
            assert picture.mode == "RGB" and min(picture.size) >= 48 and max(picture.size) <= 176
            pictures.add(picture.tobytes())
    assert len(pictures) == 1488


def test_the_kind_is_told_from_the_path(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(folder / "x.png")
    for name in ("shards", "saved"):
        (tmp_path / name).mkdir()
    (tmp_path / "shards" / "x.zip").touch()
    (tmp_path / "saved" / "state.json").write_text("{}")
    assert [detect(tmp_path / name) for name in ("folder", "shards", "saved")] == ["folder", "shards", "saved"]
    for pattern in ("shards/x.zip", "shards/*.zip", "shards/{a,b}.tar", "shards/x-{00..10}.tar"):
        assert detect(tmp_path / pattern) == "shards"


def test_what_fits_nothing_says_what_was_looked_for(tmp_path):
    with pytest.raises(ValueError, match=r"Looked for: \.tar or \.zip files .*save_to_disk.*\.jpg"):
        detect(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no folder or file .*nothing; .*'tiny'"):
        detect(tmp_path / "nothing")
    (tmp_path / "x.txt").touch()
    with pytest.raises(ValueError, match=r"neither a \.tar nor a \.zip"):
        detect(tmp_path / "x.txt")


def test_unknown_kinds_list_the_known_ones():
    with pytest.raises(ValueError, match="called 'webdataset'; known: auto, folder, shards, saved, tiny"):
        open_source(SourceConfig(path="x", kind="webdataset"))
    assert list(DATASETS) == ["folder", "shards", "saved", "tiny"]


def test_a_home_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "pictures").mkdir()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "pictures" / "x.png")
    assert open_source(SourceConfig(path=f"~{os.sep}pictures")).name(0) == str(tmp_path / "pictures" / "x.png")
