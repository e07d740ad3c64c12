"""The text model that comes with the project is what its page says."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from core.text.asking import photo_vector, read_phrase
from core.text.assemble import PRETRAINED, load_text
from core.text.captions import read_captions
from core.text.config import load_config
from core.text.measure import retrieval

FOLDER = PRETRAINED / "captions_minilm"
SAMPLES = Path(__file__).parents[3] / "workbench" / "samples"


@pytest.fixture(scope="module")
def loaded():
    return load_text(FOLDER)


def test_its_page_has_its_numbers():
    page = (FOLDER / "README.md").read_text()
    numbers = json.loads((FOLDER / "numbers.json").read_text())
    told = [numbers["retrieval"][f"{way}/r@5"] for way in ("image_to_text", "text_to_image")]
    told += [numbers[part]["value"] for part in ("caltech101", "coco_mini", "coco_mini_sliding", "places")]
    told += [numbers["places"]["people"]["value"]]
    for value in told:
        assert f"{value:.3f}" in page
    for way in ("image_to_text", "text_to_image"):
        assert numbers["retrieval"][f"{way}/r@5/low"] > 5 * numbers["retrieval"][f"{way}/chance@5"]
    things = numbers["caltech101"]
    assert things["low"] > max(things["chance"], things["majority"]), "beyond its rivals"
    assert numbers["places"]["low"] > numbers["places"]["chance"]
    assert load_config(FOLDER).backbone in page


def test_it_knows_a_cup_from_a_cat(loaded):
    model, tokenizer = loaded
    side = load_config(FOLDER).image_size
    photos = {}
    for name in ("coffee_cup", "cat_bengal", "sunflower_2", "mountains_sheep"):
        with Image.open(SAMPLES / f"{name}.jpg") as image:
            photos[name] = photo_vector(model, np.asarray(image.convert("RGB")), side)
    for phrase, name in (
        ("a cup on a table", "coffee_cup"),
        ("an animal", "cat_bengal"),
        ("mountains", "mountains_sheep"),
    ):
        vector = read_phrase(model, tokenizer, phrase).templated_whole
        scores = {photo: float(found @ vector) for photo, found in photos.items()}
        assert max(scores, key=lambda photo: scores[photo]) == name


@pytest.mark.long
def test_its_retrieval_is_measured_again(loaded, shared):
    model, tokenizer = loaded
    items = [
        item for name in ("captions_flickr8k", "coco_mini") for item in read_captions(shared / "data" / name, "val")
    ]
    with torch.no_grad():
        found = retrieval(model, tokenizer, items, load_config(FOLDER).image_size)
    told = json.loads((FOLDER / "numbers.json").read_text())["retrieval"]
    for name, value in told.items():
        assert found[name] == pytest.approx(value, abs=0.012), "half precision moves two captions at most"
