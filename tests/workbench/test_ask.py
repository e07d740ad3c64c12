"""Asking in words, without a page: the same numbers as the model's own, and a sentence for what is no phrase."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from core.dense.coding import rotate
from core.models import build_backbone
from core.text import build_dino_text
from core.text.asking import photo_vector, read_phrase, shares, text_features
from core.text.tokenizer import clip_tokenizer
from core.text.zero_shot import class_vectors, patch_vectors
from workbench.ask import Asker, answers, ask_about, checked_phrases, load_asker, model_state
from workbench.images import list_samples, open_image


@pytest.fixture(scope="module")
def asker() -> Asker:
    """A model that has learned nothing: what it says is known all the same."""
    torch.manual_seed(0)
    backbone = build_backbone("vit_nano", patch_size=8)
    model = build_dino_text(backbone, context=32, text_dim=32, text_heads=2, text_depth=1)
    return Asker("blank", model.eval(), clip_tokenizer(32), 32, {})


@pytest.fixture(scope="module")
def paths() -> list[Path]:
    return [sample.path for sample in list_samples() if max(sample.width, sample.height) <= 2048][:3]


def picture(sides: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (sides[1], sides[0], 3), dtype=np.uint8)


def shown(asker: Asker, pixels: np.ndarray) -> torch.Tensor:
    backbone = asker.model.visual_model.backbone
    mean, std = (torch.tensor(x)[:, None, None] for x in (backbone.pixel_mean, backbone.pixel_std))
    return ((torch.from_numpy(pixels).permute(2, 0, 1).float() / 255 - mean) / std)[None]


def test_patches_of_a_photograph_are_those_after_the_head(asker):
    pixels = picture((48, 32))
    found = text_features(asker.model, pixels)
    with torch.no_grad():
        images = asker.model.encode_image(shown(asker, pixels))
    assert found.patches.shape == (4, 6, asker.model.out_dim // 2)
    assert_close(found.patches.flatten(0, 1), images.patches[0])
    assert_close(found.cls, images.vector[0, : asker.model.out_dim // 2])


def test_the_whole_of_a_photograph_is_its_middle_square(asker):
    pixels = picture((48, 32))
    with torch.no_grad():
        middle = asker.model.encode_image(shown(asker, pixels[:, 8:40]), normalize=True)
    assert_close(photo_vector(asker.model, pixels, 32), middle.vector[0])


def test_a_phrase_is_read_as_classes_are(asker):
    model, tokenizer = asker.model, asker.tokenizer
    found = read_phrase(model, tokenizer, "a small dog")
    for vector, expected in (
        (found.whole, class_vectors(model, tokenizer, ["a small dog"], ("{}",))),
        (found.patch, patch_vectors(model, tokenizer, ["a small dog"], ("{}",))),
        (found.templated_whole, class_vectors(model, tokenizer, ["a small dog"])),
        (found.templated_patch, patch_vectors(model, tokenizer, ["a small dog"])),
    ):
        assert_close(vector, expected[0], atol=1e-6, rtol=0)
    assert [word for word, _ in found.without] == ["a", "small", "dog"]
    assert_close(found.without[1][1], patch_vectors(model, tokenizer, ["a dog"], ("{}",))[0], atol=1e-6, rtol=0)
    assert read_phrase(model, tokenizer, "dog").without == []


def test_rows_of_the_answers_give_the_cosines_of_packs(asker, paths):
    asked = ask_about(asker, paths, size=96)
    phrases = checked_phrases([{"text": " a  cat "}, {"text": "grass", "role": "contrast"}])
    state, blobs = answers(asker, phrases, asked)
    vectors = np.frombuffer(blobs["vectors"], "<f4").reshape(-1, asker.model.out_dim // 2)
    told = state["phrases"]["a cat"]
    for photo in asked:
        exact = photo.look.unit @ asker.phrase("a cat").templated_patch
        codes = torch.from_numpy(photo.pack.codes.copy()).float()
        coded = F.normalize(codes, dim=-1) @ torch.from_numpy(vectors[told["templated"]].copy())
        assert_close(coded, exact, atol=0.004, rtol=0)
    word, row = told["without"][0]
    assert word == "a"
    assert_close(torch.from_numpy(vectors[row].copy()), rotate(asker.phrase("cat").patch), atol=1e-5, rtol=0)
    assert told["scores"]["plain"] == pytest.approx(
        [float(p.whole @ asker.phrase("a cat").whole) for p in asked], abs=1e-6
    )
    assert answers(asker, phrases, asked)[0]["version"] == state["version"]
    assert answers(asker, phrases[:1], asked)[0]["version"] != state["version"]
    assert answers(asker, phrases, asked[:2])[0]["version"] != state["version"]
    empty, nothing = answers(asker, [], asked)
    assert empty["phrases"] == {} and nothing["vectors"] == b""


def test_shares_are_a_softmax(asker):
    cosines = torch.tensor([[0.2, 0.1], [0.0, 0.3]])
    found = shares(cosines, 0.1)
    assert_close(found, torch.tensor([[np.e, 1], [1, np.e**3]]) / torch.tensor([[np.e + 1], [1 + np.e**3]]))
    with pytest.raises(ValueError, match="temperature is above 0"):
        shares(cosines, 0.0)
    assert asker.temperature == pytest.approx(0.07)


@pytest.mark.parametrize(
    ("phrases", "words"),
    [
        ([{"text": "  "}], "at least one word"),
        ([{"text": "dog " * 60}], "at most 200 letters"),
        ([{"text": "dog", "role": "boss"}], "'boss'"),
        ([{"text": f"dog {n}"} for n in range(13)], "at most 12 phrases"),
    ],
)
def test_what_is_no_phrase_is_said(phrases, words):
    with pytest.raises(ValueError, match=words):
        checked_phrases(phrases)


def test_a_phrase_counts_once():
    assert checked_phrases([{"text": "a dog"}, {"text": "a  dog", "role": "contrast"}]) == [
        {"text": "a dog", "role": "ask"}
    ]


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no finished text run"):
        load_asker(tmp_path)


def test_a_view_is_told_who_answers(asker):
    told = model_state(asker)
    assert told["name"] == "blank on VisionTransformer" and told["temperature"] == pytest.approx(0.07)
    assert told["numbers"] == {}


def test_photographs_of_any_kind_will_do(asker, paths):
    one, other = ask_about(asker, [paths[0], open_image(paths[0])], size=64)
    assert one.pack.picture["digest"] == other.pack.picture["digest"]
    assert_close(one.whole, other.whole)
