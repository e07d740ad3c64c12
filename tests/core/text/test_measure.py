"""How good a text model is, on one whose answers are known, and against chance that is really drawn."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from core.config import SourceConfig
from core.models import build_backbone
from core.models.vit import IMAGENET_MEAN, IMAGENET_STD
from core.text.captions import Captioned
from core.text.measure import classes, pixels, places, retrieval, warmer
from core.text.model import DinoText, ImageFeatures

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 220)}


class Painter(DinoText):
    """Sees colours: a patch is its mean colour, a text the colour that it names."""

    out_dim = 6

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.logit_scale = torch.nn.Parameter(torch.zeros(1))
        self.visual_model = torch.nn.Module()
        self.visual_model.backbone = build_backbone("vit_nano", patch_size=8)
        self.visual_model.patch_size = 8

    def encode_image(self, images, *, normalize=False):
        std, mean = (torch.tensor(values)[:, None, None] for values in (IMAGENET_STD, IMAGENET_MEAN))
        patches = F.avg_pool2d(images * std + mean, 8).flatten(2).transpose(1, 2) - 0.4
        vector = torch.cat([patches.mean(1), patches.mean(1)], 1)
        return ImageFeatures(F.normalize(vector, dim=1) if normalize else vector, patches, patches)

    def encode_text(self, tokens, *, normalize=False):
        colours = tokens / 255 - 0.4
        found = torch.cat([colours, colours], 1)
        return F.normalize(found, dim=1) if normalize else found


def tokenize(texts):
    texts = [texts] if isinstance(texts, str) else texts
    named = [next((rgb for name, rgb in COLOURS.items() if name in text), (110, 110, 100)) for text in texts]
    return torch.tensor(named)


def painted(path: Path, name: str, size: tuple[int, int] = (64, 48)) -> Path:
    Image.new("RGB", size, COLOURS[name]).save(path)
    return path


def test_retrieval_of_one_who_knows_is_perfect_and_of_one_who_guesses_is_chance(tmp_path):
    items = [Captioned(painted(tmp_path / f"{name}.png", name), (f"a {name} thing", f"all {name}")) for name in COLOURS]
    found = retrieval(Painter(), tokenize, items, 32)
    assert found["image_to_text/r@1"] == found["text_to_image/r@1"] == 1
    assert found["text_to_image/chance@1"] == pytest.approx(1 / 3) and found["images"] == 3 and found["captions"] == 6
    draw = np.random.default_rng(0)
    guessed = [len({0, 1} & set(draw.permutation(6)[:5].tolist())) > 0 for _ in range(4000)]
    assert found["image_to_text/chance@5"] == pytest.approx(np.mean(guessed), abs=0.01)
    assert found["image_to_text/r@1/low"] == found["image_to_text/r@1/high"] == 1


def test_captions_that_mislead_cost_their_image_and_the_interval_says_how_sure_that_is(tmp_path):
    items = [Captioned(painted(tmp_path / "red.png", "red"), ("a red thing", "a blue thing"))]
    items += [Captioned(painted(tmp_path / f"{name}.png", name), (f"a {name} thing",)) for name in ("green", "blue")]
    found = retrieval(Painter(), tokenize, items, 32)
    assert found["text_to_image/r@1"] == pytest.approx((0.5 + 1 + 1) / 3)  # captions of one image count together
    assert found["text_to_image/r@1/low"] == pytest.approx(0.5) and found["text_to_image/r@1/high"] == pytest.approx(1)


def test_classes_are_told_by_their_names_alone(tmp_path):
    for split in ("train", "val"):
        for name in COLOURS:
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(2 if name == "red" else 1):
                painted(tmp_path / split / name / f"{number}.png", name)
    found = classes(Painter(), tokenize, SourceConfig(path=str(tmp_path)), 32)
    assert found["value"] == 1 and found["images"] == 4 and found["classes"] == 3
    assert found["majority"] == 0.5 and found["chance"] == pytest.approx(1 / 3)


@pytest.fixture
def flags(tmp_path) -> Path:
    """Two pictures in stripes, with background between them, and one of another split."""
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    told = {"images": [], "classes": ["background", "red thing", "green thing", "blue thing"]}
    for key, stripes in {
        "a": ["red", "green", None, "blue"],
        "b": ["green", "green", None, None],
        "c": ["red"],
    }.items():
        picture, mask = np.full((48, 24 * len(stripes), 3), 110, np.uint8), np.zeros((48, 24 * len(stripes)), np.uint8)
        for at, name in enumerate(stripes):
            if name:
                picture[:, 24 * at : 24 * at + 24] = COLOURS[name]
                mask[:, 24 * at : 24 * at + 24] = 1 + list(COLOURS).index(name)
        Image.fromarray(picture).save(tmp_path / "images" / f"{key}.jpg", quality=98)
        Image.fromarray(mask).save(tmp_path / "masks" / f"{key}.png")
        told["images"].append({"key": key, "split": "train" if key == "c" else "val"})
    (tmp_path / "annotations.json").write_text(json.dumps(told))
    return tmp_path


def test_pixels_of_one_who_sees_are_right_and_chance_is_what_guessing_gets(flags):
    found = pixels(Painter(), tokenize, flags, side=48)
    assert found["value"] > 0.9 and found["images"] == 2 and found["classes"] == 3
    assert 0 < found["low"] <= found["value"] <= found["high"] <= 1
    # counted: red 1, green 3, blue 1 stripes of equal size
    assert found["majority"] == pytest.approx(0.6 / 3)
    truth = np.repeat([0, 1, 1, 1, 2], 20_000)
    guess = np.random.default_rng(0).integers(0, 3, len(truth))
    drawn = [((truth == c) & (guess == c)).sum() / ((truth == c) | (guess == c)).sum() for c in range(3)]
    assert found["chance"] == pytest.approx(np.mean(drawn), abs=0.005)
    assert pixels(Painter(), tokenize, flags, side=48, sliding=True)["value"] > 0.9


def test_places_of_one_who_sees_are_warm_and_of_one_who_does_not_are_at_chance(flags):
    found = places(Painter(), tokenize, flags, side=48)
    assert found["value"] > 0.95 and found["images"] == 2 and found["chance"] == 0.5
    assert np.isnan(found["people"]["value"]) and found["people"]["images"] == 0, "there are no persons"
    blind = places(
        Painter(), lambda texts: tokenize(["grey"] * len([texts] if isinstance(texts, str) else texts)), flags, side=48
    )
    assert abs(blind["value"] - 0.5) < abs(found["value"] - 0.5)


def test_warmer_counts_pairs(flags):
    rng = np.random.default_rng(0)
    cosines = torch.from_numpy(rng.integers(0, 4, (5, 6)).astype(np.float32))
    mask = torch.zeros(50, 60, dtype=torch.bool)
    mask[:20, :25] = True  # two and a half patches of a row: the third is neither on nor off
    on, off = cosines[:2, :2].flatten().tolist(), [*cosines[:2, 3:].flatten().tolist(), *cosines[2:].flatten().tolist()]
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in on for b in off]
    assert warmer(cosines, mask) == pytest.approx(np.mean(pairs))
    assert warmer(cosines, mask & (torch.arange(60) < 10)) is None, "two patches are too few"
    assert warmer(cosines, torch.ones(50, 60, dtype=torch.bool)) is None, "nothing is off it"
