"""Classes in words: on a model whose space is known by construction."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from core.models import build_backbone
from core.text import build_dino_text
from core.text.model import DinoText, ImageFeatures
from core.text.tokenizer import Tokenizer
from core.text.zero_shot import (
    class_vectors,
    classify,
    patch_cosines,
    patch_vectors,
    recalled,
    segment_sliding,
    segment_whole,
    starts,
)

COLOURS = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0)}


class Painter(DinoText):
    """A model that sees colours: a patch is its mean colour, a text the colour that it names."""

    out_dim = 6
    visual_model = SimpleNamespace(patch_size=8)

    def __init__(self):
        torch.nn.Module.__init__(self)

    def encode_image(self, images, *, normalize=False):
        patches = F.avg_pool2d(images, 8).flatten(2).transpose(1, 2)
        vector = torch.cat([patches.mean(1), patches.mean(1)], 1)
        return ImageFeatures(F.normalize(vector, dim=1) if normalize else vector, patches, patches)

    def encode_text(self, tokens, *, normalize=False):
        return torch.cat([tokens, tokens], 1)


class Colours(Tokenizer):
    """The colour of each text in place of numbers."""

    def __init__(self):
        pass

    def __call__(self, texts):
        return torch.tensor([next(colour for name, colour in COLOURS.items() if name in text) for text in texts])


tokenize = Colours()


@pytest.fixture
def flag():
    """Three stripes of 48 x 96 pixels, a little mixed."""
    stripes = torch.tensor(list(COLOURS.values())).T[:, :, None, None].expand(3, 3, 48, 32)
    return (0.8 * stripes.permute(0, 2, 1, 3).flatten(2) + 0.1).contiguous()


@pytest.fixture
def classes():
    return patch_vectors(Painter(), tokenize, list(COLOURS), ["a {} thing", "{}"])


def test_a_class_is_a_unit_vector_and_patches_have_their_half(classes):
    whole = class_vectors(Painter(), tokenize, list(COLOURS))
    assert whole.shape == (3, 6) and classes.shape == (3, 3)
    assert_close(whole.norm(dim=1), torch.ones(3))
    assert_close(classes, torch.eye(3))


def test_templates_are_averaged_after_their_lengths_are_taken():
    """A long vector of one template counts no more than a short one of another."""

    class Loud(Painter):
        def encode_text(self, tokens, *, normalize=False):
            found = super().encode_text(tokens)
            return found * torch.tensor([1.0, 100.0])[: len(found), None]

    plain = class_vectors(Painter(), tokenize, ["red"], ["{}", "{} thing"])
    assert_close(class_vectors(Loud(), tokenize, ["red"], ["{}", "{} thing"]), plain)


def test_pictures_and_patches_are_told_apart(flag, classes):
    assert classify(Painter(), flag[None, :, :, :32], class_vectors(Painter(), tokenize, list(COLOURS))).argmax() == 0
    grid = patch_cosines(Painter(), flag[None], classes)
    assert grid.shape == (1, 3, 6, 12)
    assert (grid[0].argmax(0) == torch.arange(3).repeat_interleave(4)).all()


@pytest.mark.parametrize("segment", [segment_whole, segment_sliding])
def test_every_pixel_gets_its_class_at_the_size_that_is_asked_for(segment, flag, classes):
    how = {"window": 48, "stride": 24} if segment is segment_sliding else {}
    found = segment(Painter(), flag, classes, (24, 48), **how)
    assert found.shape == (3, 24, 48)
    middle = found.argmax(0)[:, [8, 24, 40]]
    assert (middle == torch.arange(3)).all()


def test_windows_cover_everything_and_their_mean_is_a_probability(flag, classes):
    found = segment_sliding(Painter(), flag, classes, (48, 96), window=40, stride=24)
    assert_close(found.sum(0), torch.ones(48, 96))
    assert starts(100, 40, 24) == [0, 24, 48, 60] and starts(30, 40, 24) == [0] and starts(40, 40, 24) == [0]


def test_a_window_that_patches_do_not_divide_is_fitted(flag, classes):
    found = segment_sliding(Painter(), flag, classes, (48, 96), window=37, stride=24)  # patches of 8: becomes 40
    assert_close(found, segment_sliding(Painter(), flag, classes, (48, 96), window=40, stride=24))


def test_one_window_over_all_is_the_softmax_of_the_whole(flag, classes):
    sliding = segment_sliding(Painter(), flag, classes, (48, 96), window=200)
    assert_close(sliding, segment_whole(Painter(), flag, classes, (48, 96)).softmax(0), atol=1e-6, rtol=0)


def test_sides_that_patches_do_not_divide_are_stretched(flag, classes):
    assert segment_whole(Painter(), flag[:, :45, :90], classes, (45, 90)).shape == (3, 45, 90)


def test_what_is_no_class_is_said():
    with pytest.raises(ValueError, match="at least one name"):
        class_vectors(Painter(), tokenize, [])
    with pytest.raises(ValueError, match="where the name goes"):
        class_vectors(Painter(), tokenize, ["red"], ["a photo"])


def test_recall_counts_any_of_an_images_texts_and_the_texts_image():
    images = torch.eye(3)
    texts = F.normalize(torch.tensor([[1.0, 0, 0.1], [0, 0.1, 1], [0, 1.0, 0], [0, 0.2, 1.0]]), dim=1)
    owner = torch.tensor([0, 0, 1, 2])  # the second text of the first image looks like the third
    told, shown = recalled(images, texts, owner, 1)
    assert told.tolist() == [True, True, False] and shown.tolist() == [True, False, True, True]
    assert recalled(images, texts, owner, 2)[0].all()


def test_a_real_model_takes_the_same_way():
    model = build_dino_text(
        build_backbone("vit_nano", patch_size=8), vocabulary=49_408, context=16, text_dim=16, text_heads=2, text_depth=1
    ).eval()
    from core.text.tokenizer import clip_tokenizer

    classes = patch_vectors(model, clip_tokenizer(16), ["cat", "dog"])
    found = segment_sliding(model, torch.randn(3, 64, 80), classes, (64, 80), window=48, stride=24)
    assert found.shape == (2, 64, 80) and found.isfinite().all()
