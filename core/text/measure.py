"""How good a text model is: `python -m core.text.measure RUN DATA` writes RUN/numbers.json, numbers beside chance.

DATA is a folder with captions_flickr8k, coco_mini and pretrain (caltech101 in it), of which only validation splits are
asked: retrieval both ways, classes of photographs, classes of pixels. Nothing is trained.
"""

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor

from core.config import SourceConfig
from core.data import BrokenImage, open_source
from core.dense.inputs import model_input, picture_geometry
from core.dense.scorecard import interval
from core.evals.objects import SEEN, share_below
from core.evals.segmentation import IGNORED, confusion
from core.run_folder import replace_text
from core.text.asking import photo_vector
from core.text.assemble import load_text
from core.text.captions import Captioned, read_captions
from core.text.config import TextConfig, load_config
from core.text.model import DinoText
from core.text.tokenizer import Tokenize
from core.text.zero_shot import (
    class_vectors,
    fitted,
    patch_cosines,
    patch_vectors,
    recalled,
    segment_sliding,
    segment_whole,
)

DRAWS = 1000  # of the bootstrap


def measured(hits: Float[np.ndarray, "N"]) -> dict[str, float]:
    """A share with its 95 % bootstrap interval over photographs."""
    found = interval(hits)
    return {"value": found.mean, "low": found.low, "high": found.high}


@torch.no_grad()
def retrieval(model: DinoText, tokenizer: Tokenize, items: list[Captioned], side: int) -> dict[str, float]:
    """Recall at 1, 5 and 10 from photographs to captions and back, over all of both: `image_to_text/r@5`, with /low and
    /high of 95 % intervals over photographs, and `image_to_text/chance@5`, what as many random answers get."""
    images = torch.stack([photo_vector(model, read(item.path), side) for item in items])
    device = model.logit_scale.device
    captions = [(index, caption) for index, item in enumerate(items) for caption in item.captions]
    parts = [[caption for _, caption in captions[start : start + 64]] for start in range(0, len(captions), 64)]
    texts = torch.cat([model.encode_text(tokenizer(part).to(device), normalize=True).cpu() for part in parts])
    owner = torch.tensor([index for index, _ in captions])
    counts = torch.bincount(owner)
    found: dict[str, float] = {"images": float(len(items)), "captions": float(len(captions))}
    for k in (1, 5, 10):
        told, shown = (hits.double() for hits in recalled(images, texts, owner, k))
        each = (
            torch.zeros(len(items), dtype=torch.float64).index_add_(0, owner, shown) / counts
        )  # captions of one agree
        answers = range(min(k, len(captions)))
        missed = [np.prod([max(1 - len(i.captions) / (len(captions) - n), 0) for n in answers]) for i in items]
        chances = (1 - float(np.mean(missed)), min(k / len(items), 1.0))
        for way, hits, chance in zip(("image_to_text", "text_to_image"), (told, each), chances, strict=True):
            number = measured(hits.numpy())
            found |= {f"{way}/r@{k}": number["value"], f"{way}/chance@{k}": chance}
            found |= {f"{way}/r@{k}/{end}": number[end] for end in ("low", "high")}
    return found


@torch.no_grad()
def classes(model: DinoText, tokenizer: Tokenize, source: SourceConfig, side: int) -> dict[str, Any]:
    """Share of photographs of a validation split whose class is the likeliest; all that is told is the classes' names.

    chance: one in as many as there are classes. majority: always the class that is commonest there.
    """
    val = open_source(replace(source, split="val"))
    vectors, labels = [], []
    for index in range(len(val)):
        label = val.label(index)
        try:
            picture = val.read(index)
        except BrokenImage:
            continue
        if label is not None:
            vectors.append(photo_vector(model, np.asarray(picture.convert("RGB")), side))
            labels.append(label)
    names = sorted(set(labels))
    asked = class_vectors(model, tokenizer, [name.replace("_", " ").lower() for name in names])
    best = (torch.stack(vectors) @ asked.T).argmax(1)
    hits = np.array([names[at] == label for at, label in zip(best.tolist(), labels, strict=True)], np.float64)
    return measured(hits) | {
        "chance": 1 / len(names),
        "majority": Counter(labels).most_common(1)[0][1] / len(labels),
        "images": len(labels),
        "classes": len(names),
    }


@torch.no_grad()
def pixels(
    model: DinoText, tokenizer: Tokenize, folder: Path, *, side: int, sliding: bool = False, split: str = "val"
) -> dict[str, Any]:
    """Mean intersection over union of the classes that a split has, background left out, told by their names alone.

    side: short side of the input in pixels. chance: a class at random for every pixel. majority: everywhere the
    commonest class. The interval resamples photographs.
    """
    told = json.loads((folder / "annotations.json").read_text(encoding="utf-8"))
    keys = [image["key"] for image in told["images"] if image["split"] == split]
    masks = [torch.from_numpy(np.asarray(Image.open(folder / "masks" / f"{key}.png")).astype(np.int64)) for key in keys]
    for mask in masks:
        mask[mask == 0] = IGNORED
    there = sorted({int(value) for mask in masks for value in mask.unique()} - {IGNORED})
    numbers = torch.full((IGNORED + 1,), IGNORED)
    numbers[there] = torch.arange(len(there))
    asked = patch_vectors(model, tokenizer, [told["classes"][at] for at in there])
    tables = []
    for key, mask in zip(keys, masks, strict=True):
        picture = read(folder / "images" / f"{key}.jpg")
        shape = (mask.shape[0], mask.shape[1])
        shown = _shown(model, picture, side)
        look = segment_sliding if sliding else segment_whole
        tables.append(confusion(look(model, shown, asked, shape).argmax(0), numbers[mask], len(there)))
    counts = torch.stack(tables).double()
    draw = np.random.default_rng(0)
    again = [_mean_iou(counts[draw.integers(0, len(keys), len(keys))].sum(0)) for _ in range(DRAWS)]
    share = counts.sum((0, 2)) / counts.sum()
    random = share / len(there) / (share + 1 / len(there) - share / len(there))
    low, high = np.quantile(again, [0.025, 0.975])
    return {
        "value": _mean_iou(counts.sum(0)),
        "low": float(low),
        "high": float(high),
        "chance": float(random.mean()),
        "majority": float(share.max()) / len(there),
        "images": len(keys),
        "classes": len(there),
    }


@torch.no_grad()
def places(model: DinoText, tokenizer: Tokenize, folder: Path, *, side: int, split: str = "val") -> dict[str, Any]:
    """How often a patch on a thing is warmer for its name than one off it (area under the ROC curve, 0.5 by chance):
    the mean over classes of a photograph and over photographs.

    Asks only where a thing is, and unlike `pixels` not which of all kinds it is. Things of fewer than SEEN patches are
    left out. people: the same for persons alone.
    """
    told = json.loads((folder / "annotations.json").read_text(encoding="utf-8"))
    asked = patch_vectors(model, tokenizer, told["classes"])
    every, people = [], []
    for key in [image["key"] for image in told["images"] if image["split"] == split]:
        mask = torch.from_numpy(np.asarray(Image.open(folder / "masks" / f"{key}.png")).astype(np.int64))
        shown = _shown(model, read(folder / "images" / f"{key}.jpg"), side)
        maps = patch_cosines(model, fitted(model, shown)[None], asked)[0]
        found = {at: warmer(maps[at], mask == at) for at in mask.unique().tolist() if at}
        kept = {told["classes"][at]: value for at, value in found.items() if value is not None}
        every += [float(np.mean(list(kept.values())))] if kept else []
        people += [kept["person"]] if "person" in kept else []
    return measured(np.array(every)) | {
        "chance": 0.5,
        "images": len(every),
        "people": measured(np.array(people)) | {"images": len(people)},
    }


def warmer(cosines: Float[Tensor, "H W"], mask: Bool[Tensor, "y x"]) -> float | None:
    """The share of pairs of a patch on the mask and one off it in which the first is warmer, ties counting half; None
    for fewer than SEEN of either. On: more than half of the patch is; off: nothing of it."""
    share = F.adaptive_avg_pool2d(mask[None].float(), (cosines.shape[0], cosines.shape[1]))[0]
    on, off = cosines[share > 0.5], cosines[share == 0]
    if min(len(on), len(off)) < SEEN:
        return None
    return float(share_below(on[None], off[None]).mean())


def measure(folder: Path, data: Path) -> dict[str, Any]:
    """All numbers of a finished text run, and a sentence of them for people."""
    config: TextConfig = load_config(folder)
    model, tokenizer = load_text(folder)
    side = config.image_size
    caltech = SourceConfig(path=str(data / "pretrain"), name="caltech101")
    captioned = read_captions(data / "captions_flickr8k", "val") + read_captions(data / "coco_mini", "val")
    found = {
        "retrieval": retrieval(model, tokenizer, captioned, side),
        "caltech101": classes(model, tokenizer, caltech, side),
        "coco_mini": pixels(model, tokenizer, data / "coco_mini", side=2 * side),
        "places": places(model, tokenizer, data / "coco_mini", side=2 * side),
        "coco_mini_sliding": pixels(model, tokenizer, data / "coco_mini", side=2 * side, sliding=True),
    }
    return found | {"sentence": sentence(found)}


def sentence(found: dict[str, Any]) -> str:
    """What a view says of how good a model is."""
    whole, photos, parts, where = (found[name] for name in ("retrieval", "caltech101", "coco_mini", "places"))
    people = where["people"]["value"]
    return (
        f"Of {whole['images']:.0f} held-out photographs it has the right one among its first five for "
        f"{whole['text_to_image/r@5']:.0%} of their captions (chance {whole['text_to_image/chance@5']:.0%}); it names "
        f"{photos['value']:.0%} of photographs of {photos['classes']} kinds of things (chance {photos['chance']:.0%}, "
        f"the commonest {photos['majority']:.0%}); a patch on a thing is warmer for its name than one off it in "
        f"{where['value']:.0%} of pairs (chance 50%), on people in {people:.0%}; its maps of {parts['classes']} "
        f"kinds reach a mean IoU of {parts['value']:.3f} (chance {parts['chance']:.3f}, the commonest "
        f"{parts['majority']:.3f})"
    )


def _mean_iou(table: Float[Tensor, "C C"]) -> float:
    """Over the classes that are anywhere in the truth."""
    both, truth, found = table.diagonal(), table.sum(1), table.sum(0)
    there = truth > 0
    return float((both[there] / (truth + found - both)[there]).mean())


def _shown(model: DinoText, picture: np.ndarray, side: int) -> Float[Tensor, "3 h w"]:
    """The picture as the backbone takes it, `side` pixels on its short side."""
    backbone = model.visual_model.backbone
    height, width = picture.shape[:2]
    geometry = picture_geometry(backbone, picture, size=round(side * max(height, width) / min(height, width)))
    shown = model_input(backbone, picture, geometry)
    return shown[:, : geometry.input_height, : geometry.input_width]


def read(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """A photograph as the sets keep them: upright, RGB."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python -m core.text.measure RUN DATA, a finished text run and a folder of data sets")
    numbers = measure(Path(sys.argv[1]), Path(sys.argv[2]))
    replace_text(Path(sys.argv[1]) / "numbers.json", json.dumps(numbers, indent=2) + "\n")
    print(numbers["sentence"])
