"""A Hugging Face data set on disk, as `datasets.save_to_disk` leaves it; read without that library."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from core.data.images import BrokenImage, decode
from core.data.listing import check_split

IMAGE_NAMES = ("image", "img", "jpg", "png", "webp")
LABEL_NAMES = ("label", "labels", "class", "cls", "fine_label")


class Saved:
    """The images of Arrow files, which stay on disk. Raises ValueError when there is no column of images."""

    def __init__(self, path: str | Path, split: str = "train", name: str = "") -> None:
        if name:
            raise ValueError(f"a saved data set has no parts, so no {name!r}")
        root = Path(path)
        splits = _json(root / "dataset_dict.json").get("splits", [])
        check_split(split, splits, root)
        self.folder = root / split if splits else root
        state = _json(self.folder / "state.json")
        if state.get("_indices_data_files") or state.get("_indices_files"):
            raise ValueError(
                f"{self.folder} was saved with an index over its rows; save it again with a newer datasets"
            )
        files = [self.folder / entry["filename"] for entry in state.get("_data_files", [])]
        self.files = files or sorted(self.folder.glob("*.arrow"))
        if not self.files:
            raise FileNotFoundError(f"no .arrow files in {self.folder}")
        self._features = _json(self.folder / "dataset_info.json").get("features") or {}
        self._open()

    def _open(self) -> None:
        import pyarrow as pa
        from pyarrow import ipc

        self._batches: list[Any] = []
        for file in self.files:
            try:
                self._batches += ipc.open_stream(pa.memory_map(str(file))).read_all().to_batches()
            except (pa.ArrowInvalid, OSError) as error:
                raise ValueError(f"{file} is no readable Arrow file ({error}); was it cut off in copying?") from error
        self._ends = np.cumsum([0, *(batch.num_rows for batch in self._batches)])
        if not self._ends[-1]:
            raise ValueError(f"no rows in {self.folder}")
        names = self._batches[0].schema.names
        image = self._column("Image", IMAGE_NAMES, names)
        if image is None:
            raise ValueError(f"{self.folder} has no column of images; its columns are {', '.join(names)}")
        self._image, kind = image, self._batches[0].schema.field(image).type
        self._is_struct = pa.types.is_struct(kind)
        if self._is_struct and {"bytes", "path"} - {field.name for field in kind}:
            raise ValueError(f"column {image} of {self.folder} has no fields bytes and path, which images have")
        self._label = self._column("ClassLabel", LABEL_NAMES, names)
        self._classes = (self._features.get(self._label) or {}).get("names") if self._label else None

    def _column(self, kind: str, usual: tuple[str, ...], names: list[str]) -> str | None:
        """A column by what dataset_info.json calls it, or by a usual name."""
        told = (n for n in names if isinstance(self._features.get(n), dict) and self._features[n].get("_type") == kind)
        return next(told, next((name for name in usual if name in names), None))

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _cell(self, index: int, column: str) -> Any:
        batch = int(np.searchsorted(self._ends, index, side="right")) - 1
        return self._batches[batch].column(column)[index - int(self._ends[batch])]

    def _path(self, index: int) -> str | None:
        cell = self._cell(index, self._image)
        return cell["path"].as_py() if self._is_struct and cell.is_valid else None

    def name(self, index: int) -> str:
        return f"{self.folder}/{self._path(index) or ''}#{index}"

    def label(self, index: int) -> str | None:
        value = self._cell(index, self._label).as_py() if self._label else None
        if value is None or (self._classes and value == -1):  # -1: datasets' own mark for no label
            return None
        return self._classes[value] if self._classes else str(value)

    def read(self, index: int) -> Image.Image:
        cell, path = self._cell(index, self._image), self._path(index)
        data = cell["bytes"].as_py() if self._is_struct and cell.is_valid else cell.as_py()
        if data is None and path is not None:  # the data set only says where its images lie
            try:
                data = (self.folder / path).read_bytes()
            except OSError as error:
                raise BrokenImage(self.name(index), str(error)) from error
        if not isinstance(data, bytes):
            raise BrokenImage(self.name(index), f"expected the bytes of a picture, found {type(data).__name__}")
        return decode(data, self.name(index))

    def __getstate__(self) -> dict[str, Any]:
        return {"files": self.files, "folder": self.folder, "_features": self._features}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()  # a memory map is not copied to a spawned worker, its file is opened again


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
