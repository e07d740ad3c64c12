"""Many names in little memory, files by pattern, and splits by folder."""

import glob
import re
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import overload

import numpy as np
from jaxtyping import Int, UInt8

SPLITS = ("train", "val", "valid", "validation", "test")


class Strings(Sequence[str]):
    """Strings as one block of bytes: a million names cost their letters, and forked workers share them."""

    def __init__(self, letters: UInt8[np.ndarray, "n"], ends: Int[np.ndarray, "m"]) -> None:
        self.letters, self.ends = letters, ends  # ends has a 0 in front

    @classmethod
    def of(cls, strings: Iterable[str]) -> "Strings":
        """These strings, copied."""
        encoded = [string.encode("utf-8", "surrogateescape") for string in strings]
        ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), dtype=np.uint8), ends)

    @classmethod
    def joined(cls, parts: Sequence["Strings"]) -> "Strings":
        """The strings of several blocks, one after the other."""
        starts = np.cumsum([0, *(part.ends[-1] for part in parts)])
        ends = [part.ends[1:] + start for part, start in zip(parts, starts, strict=False)]
        return cls(np.concatenate([part.letters for part in parts]), np.concatenate([[0], *ends]).astype(np.int64))

    def __len__(self) -> int:
        return len(self.ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"no string {index} among {len(self)}")
        index %= len(self)
        return self.letters[self.ends[index] : self.ends[index + 1]].tobytes().decode("utf-8", "surrogateescape")


def coded(labels: Iterable[str | None]) -> tuple[list[str], Int[np.ndarray, "n"]]:
    """The sorted classes, and for each label the number of its class: -1 for None."""
    met: dict[str, int] = {}  # in the order of their first appearance
    codes = np.fromiter((-1 if label is None else met.setdefault(label, len(met)) for label in labels), dtype=np.int32)
    classes = sorted(met)
    places = np.array([*np.argsort([met[label] for label in classes]), -1], dtype=np.int32)  # code -1 stays
    return classes, places[codes]


def find_files(path: str | Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Files by name, by folder, or by pattern (`*`, `?`, `{00..12}`, `{a,b}`), sorted. Raises FileNotFoundError."""
    if Path(path).is_file():
        return [Path(path)]
    if Path(path).is_dir():
        found = [file for file in sorted(Path(path).iterdir()) if file.suffix in suffixes]
    else:
        found = sorted({Path(name) for pattern in expand(str(path)) for name in glob.glob(pattern, recursive=True)})
    if not found:
        raise FileNotFoundError(f"no {' or '.join(suffixes)} file at {path}")
    return found


def expand(pattern: str) -> list[str]:
    """The patterns that braces stand for: `a-{008..010}.tar` is three names, `{a,b}` two."""
    pieces = re.split(r"\{([^{}]*)\}", pattern)
    choices = [[piece] if index % 2 == 0 else _alternatives(piece) for index, piece in enumerate(pieces)]
    return ["".join(chosen) for chosen in product(*choices)]


def _alternatives(braces: str) -> list[str]:
    if bounds := re.fullmatch(r"(\d+)\.\.(\d+)", braces):
        first, last = bounds.groups()
        return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return braces.split(",")


def has_splits(folders: Iterable[str]) -> bool:
    """Whether these top folders are splits: all of them, or two; a class may be called `train` as well."""
    names = set(folders)
    found = names & set(SPLITS)
    return bool(found) and (found == names or len(found) > 1)


def check_split(split: str, known: Iterable[str], where: str | Path) -> None:
    """Raises ValueError when a split is asked for that is not there; without any, `train` is everything."""
    names = sorted(known)
    if not names and split != "train":
        raise ValueError(f"{where} has no splits (folders {', '.join(SPLITS)}), so no {split!r}: use 'train' for all")
    if names and split not in names:
        raise ValueError(f"{where} has no split {split!r}; it has {', '.join(names)}")
