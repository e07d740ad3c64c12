"""Training text beside a frozen backbone: it learns, it goes on, and several processes do what one does."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from core import distributed
from core.config import to_json
from core.models import build_backbone
from core.models.weights import save_backbone
from core.schedules import Schedule
from core.text.assemble import load_text
from core.text.captions import read_captions
from core.text.config import RECIPES, TextConfig, load_config, recipe
from core.text.train import build_optimizer, train, trained
from core.text.views import Views, draw

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 220), "white": (240, 240, 240)}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Coloured pictures with captions, and an untrained backbone, which sees colours well enough."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "images").mkdir()
    draw = np.random.default_rng(0)
    rows = ["key\tsplit\tcaption"]
    for index in range(40):
        name = list(COLOURS)[index % 4]
        noise = draw.integers(-20, 20, (48, 64, 3))
        picture = np.clip(np.array(COLOURS[name]) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(picture).save(folder / "images" / f"{index:02d}.jpg", quality=95)
        split = "train" if index < 32 else "val"
        rows += [f"{index:02d}\t{split}\ta {name} thing", f'{index:02d}\t{split}\tit is "{name}" all over']
    (folder / "captions.tsv").write_text("\n".join(rows) + "\n")
    torch.manual_seed(0)
    save_backbone(build_backbone("vit_nano", patch_size=8, depth=1), folder / "backbone.safetensors")
    return folder


def config_of(place: Path, **changes) -> TextConfig:
    config = TextConfig(
        name="colours", steps=60, backbone=str(place / "backbone.safetensors"), sources=(str(place),), batch_size=16,
        image_size=32, crop_scale=(0.5, 1.0), views=2, text_dim=32, text_heads=2, text_depth=1, context=16,
        head_drop_path=0.0, lr=Schedule(start=0.0, peak=3e-3, end=0.0, warmup=5, cosine=None), log_every=1,
        checkpoint_every=20, evaluate_every=60,
    )  # fmt: skip
    return replace(config, **changes)


def start(folder: Path, config: TextConfig) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(to_json(config))
    return folder


def losses(folder: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["contrastive"]) for line in lines]


@pytest.fixture(scope="module")
def whole(place, tmp_path_factory) -> Path:
    """A run that nobody disturbed."""
    folder = start(tmp_path_factory.mktemp("runs") / "whole", config_of(place))
    assert train(folder) == 60
    return folder


@pytest.mark.long
def test_it_learns_which_picture_is_which(whole):
    found = losses(whole)
    assert [step for step, _ in found] == list(range(60))
    assert np.mean([loss for _, loss in found[-5:]]) < 0.8 * found[0][1]
    told = json.loads((whole / "evals" / "60" / "retrieval.json").read_text())
    assert told["images"] == 8 and told["captions"] == 16
    assert told["image_to_text/r@5"] > told["image_to_text/chance@5"]


def test_what_it_learned_is_asked_from_its_folder(whole):
    model, tokenizer = load_text(whole)
    with torch.no_grad():
        texts = model.encode_text(tokenizer(["a red thing", "a blue thing"]), normalize=True)
    assert texts.shape == (2, model.out_dim) and float(texts[0] @ texts[1]) < 0.999


def test_a_run_stopped_and_resumed_is_the_same_run(place, whole, tmp_path):
    folder = start(tmp_path / "run", config_of(place))
    assert train(folder, stop_after=20) == 20
    (folder / "metrics.jsonl").open("a").write(json.dumps({"step": 20, "contrastive": 9.0}) + "\n")  # killed after it
    assert train(folder) == 60
    assert losses(folder) == losses(whole)


def test_views_are_looked_at_once_and_found_again(place, whole):
    config = load_config(whole)
    items = read_captions(place, "train")
    model, _ = load_text(whole)
    asked = []
    look = model.visual_model.look
    model.visual_model.look = lambda images: asked.append(len(images)) or look(images)
    views = Views(items, model.visual_model, config, whole / "seen")
    again = views.of([3, 4], step=0)
    assert sum(asked) == 1  # one picture, to learn how many tokens there are
    fresh = Views(items, model.visual_model, replace(config, views=0), whole / "none").of([3, 4], step=0)
    assert again.shape == fresh.shape and not torch.allclose(again, fresh)  # a view of its own
    other = replace(config, seed=5)
    with pytest.raises(ValueError, match="keeps what another run saw"):
        Views(items, model.visual_model, other, whole / "seen").of([0], step=0)


def test_every_image_comes_once_a_pass_with_any_of_its_captions(place):
    config, items = config_of(place), read_captions(place, "train")
    first, second = (draw(items, config, step) for step in (0, 1))
    assert sorted(first[0] + second[0]) == list(range(32))
    assert {at for step in range(10) for at in draw(items, config, step)[1]} == {0, 1}
    assert draw(items, config, 0) == first != draw(items, config, 2)
    with pytest.raises(ValueError, match="a batch of 64 needs as many images"):
        draw(items, replace(config, batch_size=64), 0)


def test_norms_biases_and_the_scale_do_not_decay(whole):
    model, _ = load_text(whole)
    optimizer = build_optimizer(model, load_config(whole))
    names = {id(parameter): name for name, parameter in trained(model).items()}
    decayed, spared = ({names[id(x)] for x in group["params"]} for group in optimizer.param_groups)
    assert "logit_scale" in spared and "visual_model.head.ln_final.weight" in spared
    assert "text_model.head.linear_projection.weight" in decayed
    assert not any(name.startswith("visual_model.backbone") for name in decayed | spared)


def test_the_gram_term_holds_patches_together(place, tmp_path):
    folder = start(tmp_path / "run", config_of(place, steps=4, gram_weight=1.0, gram_share=0.5, evaluate_every=4))
    train(folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(0 <= line["gram"] < 1 for line in lines)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"crop_scale": (0.0, 1.0)}, "crop_scale"),
        ({"gram_share": 0.0}, "gram_share"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_settings_that_cannot_be_are_refused(place, changes, words):
    with pytest.raises(ValueError, match=words):
        config_of(place, **changes)


def test_folders_without_captions_are_named(tmp_path, place):
    with pytest.raises(ValueError, match=r"neither captions\.tsv nor annotations\.json"):
        read_captions(tmp_path, "train")
    with pytest.raises(ValueError, match="no captions of the split 'test'"):
        read_captions(place, "test")


def test_captions_with_quotes_are_read_as_they_are(place):
    assert read_captions(place, "train")[0].captions == ("a red thing", 'it is "red" all over')


def test_annotations_of_coco_are_read_as_well(tmp_path):
    images = [
        {"key": "2", "split": "train", "captions": ["two"]},
        {"key": "1", "split": "train", "captions": ["one", "eins"]},
        {"key": "3", "split": "train", "captions": []},
    ]
    (tmp_path / "annotations.json").write_text(json.dumps({"images": images}))
    found = read_captions(tmp_path, "train")
    assert [(item.path.name, item.captions) for item in found] == [("1.jpg", ("one", "eins")), ("2.jpg", ("two",))]


def test_recipes_are_known_by_name_and_survive_a_file(tmp_path):
    for name in RECIPES:
        (tmp_path / "config.json").write_text(to_json(recipe(name)))
        assert load_config(tmp_path) == recipe(name)
    official = recipe("official")
    assert (official.batch_size, official.steps, official.lr.peak, official.weight_decay) == (8192, 50_000, 7e-4, 1e-4)
    with pytest.raises(ValueError, match="no text recipe called 'nothing'; known: official"):
        recipe("nothing")


@pytest.mark.long
def test_two_processes_train_as_one_does(place, whole, run_processes, tmp_path):
    config = config_of(place, steps=3, head_drop_path=0.0, evaluate_every=3)
    alone, both = start(tmp_path / "alone", config), start(tmp_path / "both", config)
    train(alone)
    run_processes(__file__, 2, both)
    for (step, wanted), (other, found) in zip(losses(alone), losses(both), strict=True):
        assert step == other and found == pytest.approx(wanted, rel=1e-4)


if __name__ == "__main__":
    train(Path(sys.argv[1]))
    distributed.stop()
