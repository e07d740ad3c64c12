"""A folder of images: the first sub-folder is the class, below that anything goes."""

import os
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from core.data.images import EXTENSIONS, BrokenImage, decode
from core.data.listing import SPLITS, Strings, check_split, coded, has_splits


class Folder:
    """The images below a folder, sorted by path. Raises ValueError when there are none or the split is missing.

    Sub-folders that are splits (`train`, `val`, ...) are honoured; classes are then the folders inside them.
    """

    def __init__(self, path: str | Path, split: str = "train", name: str = "") -> None:
        if name:
            raise ValueError(f"a folder of images has no parts, so no {name!r}; give the path of a sub-folder instead")
        root = Path(path)
        if not root.is_dir():
            raise FileNotFoundError(f"{root} is not a folder")
        tops = [entry.name for entry in os.scandir(root) if entry.is_dir()]
        splits = has_splits(tops)
        check_split(split, set(tops) & set(SPLITS) if splits else (), root)
        self.root = root / split if splits else root
        names = list(image_files(self.root))
        if not names:
            raise ValueError(f"no images ({', '.join(EXTENSIONS)}) in {self.root}")
        self._names = Strings.of(names)
        self._classes, self._codes = coded([name.split("/")[0] if "/" in name else None for name in names])

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return str(self.root / self._names[index])

    def label(self, index: int) -> str | None:
        code = self._codes[index]
        return None if code < 0 else self._classes[code]

    def read(self, index: int) -> Image.Image:
        path = self.name(index)
        try:
            with open(path, "rb") as file:
                data = file.read()
        except OSError as error:
            raise BrokenImage(path, str(error)) from error
        return decode(data, path)


def image_files(root: Path) -> Iterator[str]:
    """Paths below a folder of what is called like an image, sorted, with `/`; hidden ones are left out."""
    seen = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:  # links may lead in circles
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        place = Path(folder).relative_to(root).as_posix()
        for name in sorted(files):
            if not name.startswith(".") and name.lower().endswith(EXTENSIONS):
                yield name if place == "." else f"{place}/{name}"
