"""A look answers like plain loops over its patches, and the memory of looks is bounded and shared."""

import math
import threading
import time

import numpy as np
import pytest
import torch

from core.dense import cards as cards_module
from core.dense.cards import ModelCard, card_of
from core.dense.geometry import plan
from core.dense.store import weights_digest
from core.models import Backbone, build_backbone
from core.models.weights import load_backbone
from workbench.draw import MATCH, QUERY
from workbench.images import Photo, list_samples, open_image
from workbench.looks import Look, Looks, look_at

WEIGHTS = "dinov2_vits14_saliency"


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone(WEIGHTS)


@pytest.fixture(scope="module")
def photos() -> list[Photo]:
    return [open_image(sample.path) for sample in list_samples() if max(sample.width, sample.height) <= 1024][:5]


@pytest.fixture(scope="module")
def pair(backbone, photos) -> tuple[Look, Look]:
    return look_at(photos[1], backbone, size=154), look_at(photos[2], backbone, size=112)


def cosine(left: list[float], right: list[float]) -> float:
    product = math.fsum(a * b for a, b in zip(left, right, strict=True))
    return product / math.sqrt(math.fsum(a * a for a in left) * math.fsum(b * b for b in right))


def expected_map(look: Look, other: Look, queries: list, negatives: list) -> np.ndarray:
    """Mean cosine to the queries minus mean cosine to the negatives, one number at a time."""
    answers = np.full(other.valid.shape, np.nan)
    for row, col in other.valid.nonzero().tolist():
        patch = other.features.patches[row, col].tolist()

        def mean(cells: list, patch: list[float] = patch) -> float:
            return math.fsum(cosine(patch, look.features.patches[cell].tolist()) for cell in cells) / len(cells)

        answers[row, col] = mean(queries) - (mean(negatives) if negatives else 0)
    return answers


@pytest.mark.parametrize(("queries", "negatives"), [([(2, 3)], []), ([(2, 3), (0, 0)], [(4, 8)])])
def test_similarity_in_both_photos_is_a_plain_loop_of_cosines(pair, queries, negatives):
    here, there = pair
    assert not here.valid.all()
    np.testing.assert_allclose(
        here.similarity(queries, negatives).numpy(), expected_map(here, here, queries, negatives), atol=1e-5
    )
    np.testing.assert_allclose(
        here.similarity_in(there, queries, negatives).numpy(), expected_map(here, there, queries, negatives), atol=1e-5
    )


def test_matches_are_the_best_cells_apart_from_the_query_and_each_other(pair):
    here, _ = pair
    cosines = here.similarity([(2, 3)])
    found = here.matches(cosines, [(2, 3)])
    taken = [(2, 3)]
    for match in found:
        free = [
            (float(cosines[row, col]), row, col)
            for row, col in here.valid.nonzero().tolist()
            if all(max(abs(row - r), abs(col - c)) > 1 for r, c in taken)
        ]
        assert (match.cosine, match.row, match.col) == max(free, key=lambda entry: entry[0])
        taken.append((match.row, match.col))
    assert len(found) == 5


def test_a_point_of_the_photo_finds_its_cell(backbone):
    look = look_at(list_samples()[1].path, backbone, size=140)
    geometry = plan(500, 375, 14, size=140)
    assert look.features.geometry == geometry
    assert look.cell_at((0, 0)) == (0, 0) and look.cell_at((500, 375)) == (geometry.rows - 1, geometry.cols - 1)
    assert look.cell_at((501, 10)) is None
    assert look.model == WEIGHTS and look.photo.name == list_samples()[1].path.name


def test_the_picture_frames_query_and_matches(pair):
    here, _ = pair
    cosines = here.similarity([(2, 3)])
    matches = here.matches(cosines, [(2, 3)])
    plain = here.picture(cosines, opacity=0.5)
    framed = here.picture(cosines, queries=[(2, 3)], matches=matches, opacity=0.5)
    np.testing.assert_array_equal(plain, here.canvas.heat(cosines, opacity=0.5))
    changed = (plain != framed).any(-1)
    assert 0 < changed.mean() < 0.2
    for color in (QUERY, MATCH):
        assert (framed[changed] == color).all(-1).sum() > 100


def test_colours_hide_the_padding_and_what_is_asked(pair):
    here, _ = pair
    hidden = torch.zeros_like(here.valid)
    hidden[:2] = True
    dark = here.canvas.spread((hidden | ~here.valid).numpy()) | ~here.canvas.inside
    shown = here.colors(hidden=hidden)
    np.testing.assert_array_equal(shown[dark], here.canvas.photo[dark] // 3)
    np.testing.assert_array_equal(shown[~dark], here.colors()[~dark])


def test_a_look_carries_the_card_of_its_weights(backbone, photos, pair):
    source = backbone.source
    card = ModelCard(WEIGHTS, weights_digest(backbone), source.licence, source.licence_url, source.licence_notice)
    assert card.licence and card.notice
    assert pair[0].card == card == card_of(backbone)
    assert Looks().get(lambda: backbone, "a name of one's own", photos[0], size=56).card == card
    assert Look(photos[0], pair[0].features, WEIGHTS).card is None


def test_weights_of_nobody_have_a_card_without_terms():
    nano = build_backbone("vit_nano", depth=1)
    assert card_of(nano) == ModelCard("VisionTransformer", weights_digest(nano))


def test_weights_are_read_again_only_when_they_change(monkeypatch):
    nano, read = build_backbone("vit_nano", depth=1), []
    monkeypatch.setattr(cards_module, "weights_digest", lambda backbone: read.append(1) or weights_digest(backbone))
    first = card_of(nano).weights
    assert card_of(nano).weights == first and len(read) == 1
    with torch.no_grad():
        next(nano.parameters()).add_(1)
    second = card_of(nano).weights
    assert second == weights_digest(nano) != first and len(read) == 2
    nano.pixel_mean = (0.5, 0.5, 0.5)
    assert card_of(nano).weights == weights_digest(nano) != second and len(read) == 3
    with torch.inference_mode():
        frozen = build_backbone("vit_nano", depth=1)
    assert card_of(frozen).weights == weights_digest(frozen)


class Lender:
    """Lends the backbone and counts how often it was needed."""

    def __init__(self, backbone: Backbone, seconds: float = 0.0) -> None:
        self.backbone, self.seconds, self.count = backbone, seconds, 0

    def __call__(self) -> Backbone:
        self.count += 1
        time.sleep(self.seconds)
        return self.backbone


def test_what_was_looked_at_is_remembered(backbone, photos):
    lender, looks = Lender(backbone), Looks()
    first = looks.get(lender, WEIGHTS, photos[0], size=56)
    assert looks.get(lender, WEIGHTS, photos[0], size=56) is first and lender.count == 1
    others = ({"size": 70}, {"size": 56, "layer": 3}, {"size": 56, "norm": False}, {"size": 70, "tile": 56})
    for count, settings in enumerate(others, start=2):
        assert looks.get(lender, WEIGHTS, photos[0], **settings) is not first
        assert lender.count == count
    assert looks.get(lender, "other weights", photos[0], size=56) is not first
    assert looks.get(lender, WEIGHTS, photos[1], size=56) is not first
    same_pixels = Photo(photos[0].pixels.copy(), *photos[0].size, name="copy.png")
    assert looks.get(lender, WEIGHTS, same_pixels, size=56) is first


def test_looks_unused_for_longest_go_when_the_bound_is_passed(backbone, photos):
    lender, looks = Lender(backbone), Looks()
    sizes = [looks.get(lender, WEIGHTS, photo, size=56).bytes for photo in photos[:4]]
    bound = max(sum(sizes[i] for i in kept) for kept in ((0, 1, 2), (0, 2, 3)))
    looks = Looks(max_bytes=bound)
    for photo in photos[:3]:
        looks.get(lender, WEIGHTS, photo, size=56)
    count = lender.count
    looks.get(lender, WEIGHTS, photos[0], size=56)  # used again: now the second one is the oldest
    assert lender.count == count
    looks.get(lender, WEIGHTS, photos[3], size=56)
    assert sum(look.bytes for look in looks._looks.values()) <= bound
    digests = [key[1] for key in looks._looks]
    assert photos[1].digest not in digests and photos[3].digest in digests
    assert set(looks._locks) == set(looks._looks)  # nothing is left of those that went
    looks.get(lender, WEIGHTS, photos[1], size=56)
    assert lender.count == count + 2


def test_a_look_larger_than_the_bound_is_kept_alone(backbone, photos):
    looks = Looks(max_bytes=1)
    for photo in photos[:3]:
        look = looks.get(lambda: backbone, WEIGHTS, photo, size=56)
    assert list(looks._looks.values()) == [look]


def test_the_bytes_of_a_look_cover_what_it_keeps(pair):
    for look in pair:
        cosines = look.similarity([(0, 0)])
        look.picture(cosines), look.colors(), look.null  # fills everything that is kept
        canvas = look.canvas.__dict__.values()
        kept = [look.features.patches, look.unit, look.valid, cosines, look.photo.pixels]
        kept += [look.null.same_image, look.null.by_distance, look.basis.axes]
        total = sum(part.nbytes for part in kept) + sum(getattr(part, "nbytes", 0) for part in canvas)
        assert total - look.photo.pixels.nbytes <= look.bytes + 4 * 1024 * 1024
        assert look.bytes >= 2 * look.features.patches.nbytes + look.photo.pixels.nbytes


def test_two_who_ask_at_once_wait_for_one_extraction(backbone, photos):
    lender, looks, answers = Lender(backbone, seconds=0.3), Looks(), []
    threads = [
        threading.Thread(target=lambda: answers.append(looks.get(lender, WEIGHTS, photos[0], size=56)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lender.count == 1 and len(answers) == 4 and len({id(look) for look in answers}) == 1


def test_different_photos_do_not_wait_for_each_other(backbone, photos):
    looks, entered = Looks(), threading.Barrier(2, timeout=20)

    def lend() -> Backbone:
        entered.wait()  # passes only when both extractions have begun
        return backbone

    threads = [
        threading.Thread(target=looks.get, args=(lend, WEIGHTS, photo), kwargs={"size": 56}) for photo in photos[:2]
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(looks._looks) == 2


def test_an_extraction_that_fails_or_is_cancelled_leaves_nothing_behind(backbone, photos):
    looks = Looks()

    def cancel(done: int, total: int, what: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        looks.get(lambda: backbone, WEIGHTS, photos[0], size=56, progress=cancel)
    with pytest.raises(ValueError):
        looks.get(lambda: backbone, WEIGHTS, photos[0], size=56, layer=99)
    assert len(looks._looks) == 0
    assert looks.get(lambda: backbone, WEIGHTS, photos[0], size=56).features.layer == 11
