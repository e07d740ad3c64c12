"""What frozen teachers saw of views that come again, kept on disk: teachers then look at each view once.

One file an output, `<name>.f16`, with a row of two global crops a view, and `known.u8`, which says of which views there
is something. Files are as long as all views need and take the room of those that were seen. Numbers are half precision
from the first time on, so that a view that is looked at and one that is looked up give the same.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from core.run_folder import replace_text


class SeenStore:
    """A folder of outputs for `count` views. Several processes may write to it: a view is the same from all of them.

    about: what the outputs depend on, as JSON; a folder of something else is refused with a ValueError.
    """

    def __init__(self, folder: Path, count: int, about: Mapping[str, object]) -> None:
        self.folder, self.count = folder, count
        told, text = folder / "about.json", json.dumps(about, indent=2, sort_keys=True) + "\n"
        if told.exists() and told.read_text(encoding="utf-8") != text:
            raise ValueError(
                f"{folder} keeps what other teachers saw, or of other crops; name another folder in distill.keep"
            )
        folder.mkdir(parents=True, exist_ok=True)
        if not told.exists():
            replace_text(told, text)
        self.known = self._map("known.u8", np.uint8, (count,))
        self.rows: dict[str, np.memmap] = {}
        for line in self._shapes().items():
            self._open(*line)

    def read(self, keys: Tensor) -> dict[str, Tensor] | None:
        """By name what was seen of these views, crop-major (2 n, ...) fp32; None unless all of them are known."""
        index = keys.numpy()
        if not len(self.rows) or (index < 0).any() or not self.known[index].all():
            return None
        return {name: _crop_major(torch.from_numpy(rows[index])).float() for name, rows in self.rows.items()}

    def write(self, keys: Tensor, seen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Keeps what was seen, and returns it as `read` will. A key below 0 is a view that is not kept."""
        half = {name: x.detach().cpu().unflatten(0, (2, -1)).transpose(0, 1).half() for name, x in seen.items()}
        index = keys.numpy()
        kept = index >= 0
        for name, x in half.items():
            if name not in self.rows:
                self._open(name, tuple(x.shape[1:]))
            self.rows[name][index[kept]] = x.numpy()[kept]
        self.known[index[kept]] = 1  # last: a view that is half written is not known
        return {name: _crop_major(x).float() for name, x in half.items()}

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        file = self.folder / "shapes.json"
        return {name: tuple(s) for name, s in json.loads(file.read_text()).items()} if file.exists() else {}

    def _open(self, name: str, shape: tuple[int, ...]) -> None:
        shapes = self._shapes()
        if shapes.setdefault(name, shape) != shape:
            raise ValueError(f"{self.folder} keeps {name} as {shapes[name]}, got {shape}; name another folder")
        replace_text(self.folder / "shapes.json", json.dumps(shapes, indent=2, sort_keys=True) + "\n")
        self.rows[name] = self._map(f"{name}.f16", np.float16, (self.count, *shape))

    def _map(self, name: str, dtype: type, shape: tuple[int, ...]) -> np.memmap:
        path = self.folder / name
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        with path.open("ab") as file:
            if file.tell() < size:
                file.truncate(size)  # a hole: no room is taken yet
        return np.memmap(path, dtype=dtype, mode="r+", shape=shape)


def _crop_major(rows: Tensor) -> Tensor:
    """(n, 2, ...) as (2 n, ...): first crops, then second ones."""
    return rows.transpose(0, 1).flatten(0, 1)
