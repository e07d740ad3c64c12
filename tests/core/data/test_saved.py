import io
import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from core.data.images import BrokenImage
from core.data.saved import Saved

FEATURES = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}


def image(level: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (5, 4), (level, level, level)).save(file, "PNG")
    return file.getvalue()


def save(folder: Path, files: list[pa.Table], features: dict | None = FEATURES, state: bool = True) -> Path:
    """What `datasets.save_to_disk` leaves: Arrow streams, the list of them, and what the columns mean."""
    folder.mkdir(parents=True)
    names = [f"data-{i:05}-of-{len(files):05}.arrow" for i in range(len(files))]
    for name, table in zip(names, files, strict=True):
        with pa.ipc.new_stream(str(folder / name), table.schema) as stream:
            stream.write_table(table, max_chunksize=2)
    if state:
        (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    if features is not None:
        (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    return folder


def table(levels: range, name: str = "image") -> pa.Table:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = pa.array([{"bytes": image(level), "path": f"{level}.png"} for level in levels], kind)
    return pa.table({"label": pa.array([level % 2 for level in levels], pa.int64()), name: cells})


def level(source: Saved, index: int) -> int:
    return int(np.asarray(source.read(index))[0, 0, 0])


def test_images_and_labels_come_back(tmp_path):
    source = Saved(save(tmp_path / "set", [table(range(5)), table(range(5, 8))]))
    assert [level(source, i) for i in range(len(source))] == list(range(8))
    assert [source.label(i) for i in range(8)] == ["cat", "dog"] * 4
    assert source.name(6) == f"{tmp_path}/set/6.png#6"
    copy = pickle.loads(pickle.dumps(source))
    assert level(copy, 7) == 7 and copy.label(7) == "dog"


def test_splits_are_sub_folders(tmp_path):
    save(tmp_path / "set" / "train", [table(range(3))])
    save(tmp_path / "set" / "test", [table(range(3, 5))])
    (tmp_path / "set" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    assert len(Saved(tmp_path / "set")) == 3 and level(Saved(tmp_path / "set", "test"), 0) == 3
    with pytest.raises(ValueError, match="no split 'val'; it has test, train"):
        Saved(tmp_path / "set", "val")
    with pytest.raises(ValueError, match="no splits"):
        Saved(tmp_path / "set" / "train", "test")


def test_columns_are_found_by_their_meaning_or_their_name(tmp_path):
    odd = table(range(2), "photo")
    features = {"photo": {"_type": "Image"}, "label": {"dtype": "int64", "_type": "Value"}}
    source = Saved(save(tmp_path / "told", [odd], features))
    assert level(source, 1) == 1 and source.label(1) == "1"
    source = Saved(save(tmp_path / "plain", [table(range(2), "img")], features=None, state=False))
    assert level(source, 1) == 1
    with pytest.raises(ValueError, match="no column of images; its columns are label, photo"):
        Saved(save(tmp_path / "none", [odd], features=None))


def test_plain_bytes_paths_and_missing_labels(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "x.png").write_bytes(image(9))
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = [{"bytes": None, "path": "x.png"}, {"bytes": None, "path": "gone.png"}, {"bytes": None, "path": None}, None]
    paths = pa.table({"image": pa.array(cells, kind), "label": pa.array([-1, None, 0, 1], pa.int64())})
    source = Saved(save(tmp_path / "paths", [paths]))
    (tmp_path / "paths" / "x.png").write_bytes(image(9))
    assert level(source, 0) == 9
    assert [source.label(i) for i in range(4)] == [None, None, "cat", "dog"]
    for index in (1, 2, 3):
        with pytest.raises(BrokenImage, match=f"#{index}: "):
            source.read(index)
    plain = pa.table({"image": pa.array([image(4), b"junk"])})
    source = Saved(save(tmp_path / "plain", [plain], features=None))
    assert level(source, 0) == 4 and source.label(0) is None
    with pytest.raises(BrokenImage):
        source.read(1)
    with pytest.raises(ValueError, match=r"column image of .* has no fields bytes and path"):
        Saved(save(tmp_path / "struct", [pa.table({"image": pa.array([{"x": 1}])})], features=None))


def test_what_does_not_fit_is_said(tmp_path):
    folder = save(tmp_path / "cut", [table(range(6))])
    (file,) = folder.glob("*.arrow")
    file.write_bytes(file.read_bytes()[:-400])
    with pytest.raises(ValueError, match="no readable Arrow file"):
        Saved(folder)
    with pytest.raises(ValueError, match="no rows"):
        Saved(save(tmp_path / "empty", [table(range(0))]))
    folder = save(tmp_path / "indexed", [table(range(2))])
    (folder / "state.json").write_text(json.dumps({"_indices_data_files": [{"filename": "indices.arrow"}]}))
    with pytest.raises(ValueError, match="saved with an index over its rows"):
        Saved(folder)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no \.arrow files"):
        Saved(tmp_path / "nothing")
