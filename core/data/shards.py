"""Tar and zip files of images in WebDataset layout, read at random.

A sample is what shares a name up to its first dot: `n01/0007.jpg`, `n01/0007.cls`. Its label stands in a `.cls`,
`.json` or `.txt` beside the image, or else is the folder it lies in. An `index.tsv` beside the shards, with columns
`zip entry source label split`, says all of that instead.
"""

import csv
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image

from core.data.archives import Members, Reader, members
from core.data.images import BrokenImage, decode
from core.data.listing import SPLITS, Strings, check_split, coded, find_files, has_splits

IMAGES = ("jpg", "jpeg", "png", "webp")
LABELS = ("cls", "json", "txt")  # in order of preference
NONE = (0, 0, 0)  # no file with a label


class Shards:
    """The images of tar and zip files. Raises ValueError for shards that are cut off or hold no images."""

    def __init__(self, path: str | Path, split: str = "train", name: str = "") -> None:
        self.paths = find_files(path, (".tar", ".zip"))
        self._reader = Reader(self.paths)
        index = _read_index(self.paths, split, name)
        if name and index is None:
            raise ValueError(f"only an index.tsv names parts of shards, and there is none beside {self.paths[0]}")
        tables = [_table(file, None if index is None else index.get(file, {})) for file in self.paths]
        self._names = Strings.joined([table[0] for table in tables])
        self._places, notes, self._classes, self._codes, self._archives = _stacked(tables)
        self._notes = notes if notes.any() else None
        if index is None:
            self._pick(split, path)
        if not len(self):
            known = ", ".join(f".{extension}" for extension in IMAGES)
            raise ValueError(f"no images ({known}) in the {len(self.paths)} files of {path}")

    def __len__(self) -> int:
        return len(self._archives)

    def name(self, index: int) -> str:
        return f"{self.paths[self._archives[index]].name}/{self._names[index]}"

    def label(self, index: int) -> str | None:
        if self._notes is not None and self._notes[index].any():
            text = self._bytes(index, self._notes[index]).decode("utf-8", "replace").strip()
            try:
                return _label_in(text)
            except json.JSONDecodeError as error:
                raise ValueError(f"the label of {self.name(index)} is no JSON: {error}") from error
        code = self._codes[index]
        return None if code < 0 else self._classes[code]

    def read(self, index: int) -> Image.Image:
        return decode(self._bytes(index, self._places[index]), self.name(index))

    def _bytes(self, index: int, place: np.ndarray) -> bytes:
        try:
            return self._reader.read(int(self._archives[index]), place)
        except OSError as error:
            raise BrokenImage(self.name(index), str(error)) from error

    def _pick(self, split: str, path: str | Path) -> None:
        """Keeps the images of a split, where the top folders of all shards together are splits."""
        tops = {next(iter(_folders(name)), "") for name in self._names}
        splits = has_splits(tops)
        check_split(split, tops & set(SPLITS) if splits else (), path)
        if splits:
            chosen = np.array([i for i, name in enumerate(self._names) if _folders(name)[:1] == [split]])
            self._names = Strings.of(self._names[int(i)] for i in chosen)
            self._places, self._archives = self._places[chosen], self._archives[chosen]
            self._notes = None if self._notes is None else self._notes[chosen]
        self._classes, self._codes = coded(next(iter(_folders(name)[splits:]), None) for name in self._names)


Table = tuple[Strings, np.ndarray, np.ndarray, list[str | None]]  # names, places, places of labels, labels


def _table(path: Path, listed: dict[str, str] | None) -> Table:
    """The images of a shard: those that an index lists, or all, each with the file that holds its label."""
    found = members(path)
    if listed is not None:
        numbers = {name: number for number, name in enumerate(found.names)}
        if missing := next((entry for entry in listed if entry not in numbers), None):
            raise ValueError(f"the index.tsv beside {path} names {missing!r}, which is not in it")
        images = [numbers[entry] for entry in listed]
        labels: list[str | None] = [label or None for label in listed.values()]
        return Strings.of(listed), found.places[images], np.zeros((len(images), 3), dtype=np.int64), labels
    images, notes = _samples(found)
    places = np.array([NONE if note is None else found.places[note] for note in notes], dtype=np.int64).reshape(-1, 3)
    return Strings.of(found.names[i] for i in images), found.places[images], places, [None] * len(images)


def _samples(found: Members) -> tuple[list[int], list[int | None]]:
    """Members that are images, and for each the member with its label."""
    samples: defaultdict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    for number, name in enumerate(found.names):
        folder, _, base = name.rpartition("/")
        stem, _, extension = base.partition(".")
        if stem:  # a hidden file has none; macOS hides one beside every image
            samples[folder, stem][extension.lower()] = number
    images, notes = [], []
    for parts in samples.values():
        image = next((part for extension, part in parts.items() if extension.rpartition(".")[2] in IMAGES), None)
        if image is not None:
            images.append(image)
            notes.append(next((parts[extension] for extension in LABELS if extension in parts), None))
    return images, notes


def _folders(name: str) -> list[str]:
    return name.removeprefix("./").strip("/").split("/")[:-1]


def _stacked(tables: list[Table]) -> tuple[np.ndarray, np.ndarray, list[str], np.ndarray, np.ndarray]:
    _, places, notes, labels = zip(*tables, strict=True)
    classes, codes = coded([label for part in labels for label in part])
    archives = np.repeat(np.arange(len(tables), dtype=np.int32), [len(part) for part in places])
    return np.concatenate(places), np.concatenate(notes), classes, codes, archives


def _label_in(text: str) -> str | None:
    if text.startswith("{"):
        table = json.loads(text)
        found = next((table[key] for key in ("label", "cls", "class") if key in table), None)
        return None if found is None else str(found)
    return text or None


def _read_index(paths: list[Path], split: str, name: str) -> dict[Path, dict[str, str]] | None:
    """By shard the entries of a split and part with their labels, from the index.tsv beside it; None without one."""
    shards = {(path.parent, path.name): path for path in paths}
    tables = [folder / "index.tsv" for folder in sorted({path.parent for path in paths})]
    tables = [table for table in tables if table.is_file()]
    chosen: defaultdict[Path, dict[str, str]] = defaultdict(dict)
    splits, parts = set(), set()
    for table in tables:
        with table.open(encoding="utf-8", newline="") as lines:
            rows = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
            if missing := {"zip", "entry", "source", "label", "split"} - set(rows.fieldnames or ()):
                raise ValueError(f"{table} has no column {', '.join(sorted(missing))}")
            for row in rows:
                splits.add(row["split"])
                parts.add(row["source"])
                shard = shards.get((table.parent, row["zip"]))
                if shard and row["split"] == split and name in ("", row["source"]):
                    chosen[shard][row["entry"]] = row["label"]
    if tables and not chosen:
        raise ValueError(
            f"{tables[0]} lists no image of split {split!r}{f' and source {name!r}' if name else ''}; "
            f"splits: {', '.join(sorted(splits))}; sources: {', '.join(sorted(parts))}"
        )
    return chosen if tables else None
