"""The tokenizer beside the one of transformers, with the same merges."""

import json

import pytest
import torch

from core.text.tokenizer import clip_tokenizer, letters

TEXTS = [
    "a photo of a cat",
    "  A  Photo,\n of 2 DOGS!!  it's 1999 &amp;amp; they're fine",
    "naïve café — œuvre 東京 🐶",
    "don't stop-me_now (ok?) #42 :-)",
    "",
    "jekyll and hyde",
    "<|endoftext|> in the middle",
]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    from transformers import CLIPTokenizer

    ours = clip_tokenizer()
    folder = tmp_path_factory.mktemp("clip")
    (folder / "vocab.json").write_text(json.dumps(ours._numbers))
    lines = [" ".join(pair) for pair in ours._ranks]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(lines) + "\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))


@pytest.mark.parametrize("text", TEXTS)
def test_numbers_are_those_of_transformers(theirs, text):
    ours = clip_tokenizer()
    assert [ours.start, *ours.encode(text), ours.end] == theirs(text.replace("&amp;amp;", "&"))["input_ids"]


def test_numbers_known_from_clip():
    """The numbers of CLIP's own readme example."""
    tokenizer = clip_tokenizer()
    assert (len(tokenizer), tokenizer.start, tokenizer.end) == (49_408, 49_406, 49_407)
    assert tokenizer("a diagram")[0, :5].tolist() == [49406, 320, 22697, 49407, 0]


def test_texts_become_rows_and_long_ones_are_cut():
    tokenizer = clip_tokenizer(8)
    rows = tokenizer(["a cat", "a very long text that goes on and on"])
    assert rows.shape == (2, 8) and rows.dtype == torch.int64
    assert rows[1, -1] == tokenizer.end and (rows[0, 4:] == 0).all()
    assert (rows.argmax(1) == torch.tensor([3, 7])).all()
    assert torch.equal(tokenizer("a cat"), rows[:1])


@pytest.mark.parametrize("text", ["a photo of a cat", "naïve café", "東京 🐶"])
def test_numbers_lead_back_to_the_text(text):
    tokenizer = clip_tokenizer()
    assert tokenizer.decode(tokenizer(text)[0].tolist()) == text


def test_every_byte_has_a_letter_of_its_own():
    assert len(set(letters().values())) == 256 and not any(letter.isspace() for letter in letters().values())
