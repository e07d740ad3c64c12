"""Images with captions, from folders as they come."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Captioned:
    """An image and what people wrote about it."""

    path: Path
    captions: tuple[str, ...]


def read_captions(folder: Path, split: str) -> list[Captioned]:
    """The images of a split, in the order of their names.

    A folder has images/ and either captions.tsv (key, split, caption; one line a caption) or annotations.json
    ({"images": [{"key", "split", "captions"}]}). Raises ValueError for a folder with neither, or without that split.
    """
    table, annotations = folder / "captions.tsv", folder / "annotations.json"
    told: dict[str, list[str]] = {}
    if table.is_file():
        with table.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
                if row["split"] == split:
                    told.setdefault(row["key"], []).append(row["caption"])
    elif annotations.is_file():
        for image in json.loads(annotations.read_text(encoding="utf-8"))["images"]:
            if image["split"] == split and image.get("captions"):
                told[image["key"]] = list(image["captions"])
    else:
        raise ValueError(f"{folder} holds no captions: neither captions.tsv nor annotations.json")
    if not told:
        raise ValueError(f"{folder} has no captions of the split {split!r}")
    return [Captioned(folder / "images" / f"{key}.jpg", tuple(captions)) for key, captions in sorted(told.items())]
