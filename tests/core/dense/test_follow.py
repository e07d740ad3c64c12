"""Following from cached features against the plain propagation; corrections, votes, and what is refused."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from core.dense.follow import Follower, Rules, grown, largest
from core.dense.propagation import track
from core.threads import num_threads


def clip(frames: int = 9, rows: int = 7, cols: int = 11, dim: int = 24, seed: int = 0) -> torch.Tensor:
    """Random features that drift, so that neighbouring frames resemble one another."""
    draw = torch.Generator().manual_seed(seed)
    world = torch.randn(rows, cols + frames, dim, generator=draw)
    noise = torch.randn(frames, rows, cols, dim, generator=draw)
    return torch.stack([world[:, at : at + cols] for at in range(frames)]) + noise / 3


@pytest.fixture
def mask() -> torch.Tensor:
    mask = torch.zeros(7, 11, dtype=torch.long)
    mask[2:5, 3:6], mask[1:3, 8:10] = 1, 2
    return mask


SETTINGS = [{}, {"radius": 2.5}, {"radius": None, "topk": 3}, {"context": 2, "topk": 20}, {"temperature": 0.05}]


@pytest.mark.parametrize("how", SETTINGS)
def test_labels_are_those_of_the_paper_when_nothing_is_corrected(how, mask):
    features = clip()
    found = Follower(features).follow({0: mask}, Rules(**how))
    wanted = torch.stack(list(track(features, F.one_hot(mask, 3).float(), **how)))
    assert_close(found.labels, wanted, atol=1e-5, rtol=1e-5)


def slowly(features, marks, context, radius, topk, temperature):
    """One patch at a time, marked frames in the context for good."""
    unit = F.normalize(features, dim=-1)
    frames, rows, cols, _ = features.shape
    labels = torch.zeros(frames, rows, cols, 1 + max(int(mask.max()) for mask in marks.values()))
    for frame in range(min(marks), frames):
        if frame in marks:
            labels[frame] = F.one_hot(marks[frame], labels.shape[-1]).float()
            continue
        before = [at for at in marks if at < frame]
        seen = {*before, *range(max(*before, frame - context), frame)}
        for row in range(rows):
            for col in range(cols):
                votes = sorted(
                    (float(unit[frame, row, col] @ unit[at, y, x]), at, y, x)
                    for at in seen
                    for y in range(rows)
                    for x in range(cols)
                    if (y - row) ** 2 + (x - col) ** 2 <= radius**2
                )[-topk:]
                weights = torch.tensor([vote[0] / temperature for vote in votes]).softmax(0)
                labels[frame, row, col] = sum(
                    weight * labels[vote[1:]] for weight, vote in zip(weights, votes, strict=True)
                )
    return labels


def test_a_correction_stays_in_the_context_as_a_plain_loop_has_it(mask):
    features, better = clip(frames=8), mask.roll(-3, 1)
    marks = {1: mask, 4: better}
    found = Follower(features).follow(marks, Rules(context=2, radius=3.0, topk=4))
    assert_close(found.labels, slowly(features, marks, 2, 3.0, 4, 0.2), atol=1e-5, rtol=1e-5)
    assert found.labels[0].count_nonzero() == 0, "what comes before the first mark is not followed"


def test_a_correction_goes_forward_only(mask):
    follower = Follower(clip())
    before = follower.follow({0: mask})
    told = []
    better = mask.clone()
    better[2:5, 3:6] = 0
    after = follower.follow({0: mask, 5: better}, former=before, progress=lambda *said: told.append(said))
    assert torch.equal(after.labels[:5], before.labels[:5]) and torch.equal(after.voters[:5], before.voters[:5])
    assert told == [(done, 4, "frames") for done in range(1, 5)]
    assert torch.equal(after.masks[5], better)
    whole = follower.follow({0: mask, 5: better})
    assert_close(after.labels, whole.labels, atol=0, rtol=0)
    assert not torch.equal(after.masks[6:], before.masks[6:])
    back = follower.follow({0: mask}, former=after)
    assert_close(back.labels, before.labels, atol=0, rtol=0)


def test_an_object_may_be_added_later(mask):
    follower, nearest = Follower(clip()), Rules(topk=1)
    alone = mask * (mask == 1)
    before = follower.follow({0: alone}, nearest)
    later = before.masks[4].clone()
    later[5:7, 6:9] = 2
    after = follower.follow({0: alone, 4: later}, nearest, former=before)
    assert after.labels.shape[-1] == 3
    assert torch.equal(after.labels[:4, ..., :2], before.labels[:4])
    assert (after.masks[5] == 2).any()


def test_other_settings_ask_neither_for_the_model_nor_for_another_search(mask, monkeypatch):
    follower = Follower(clip())
    follower.follow({0: mask})
    monkeypatch.setattr(Follower, "_search_tile", lambda *given: pytest.fail("searched again"))
    for rules in (Rules(topk=1), Rules(topk=16), Rules(temperature=1.0)):
        other = follower.follow({0: mask.roll(1, 0)}, rules)
        assert_close(other.labels.sum(-1), torch.ones(9, 7, 11))


def test_a_correction_searches_its_own_frame_alone(mask, monkeypatch):
    follower, rules, asked = Follower(clip()), Rules(context=3), []
    before = follower.follow({0: mask}, rules)
    search = Follower._search

    def told(self, frames, others, rules):
        asked.extend((frame, other) for frame in frames for other in others)
        search(self, frames, others, rules)

    monkeypatch.setattr(Follower, "_search", told)
    follower.follow({0: mask, 2: mask.roll(1, 1)}, rules, former=before)
    assert sorted(asked) == [(frame, 2) for frame in (6, 7, 8)], "of the others all have been searched"


@pytest.mark.parametrize("radius", [None, 2.0])
def test_a_correction_searched_from_behind_finds_what_a_search_of_each_frame_finds(mask, radius):
    rules, marks = Rules(context=2, radius=radius), {0: mask, 3: mask.roll(1, 0)}
    follower = Follower(clip())
    follower.follow({0: mask}, rules)
    found, plain = follower.follow(marks, rules), Follower(clip()).follow(marks, rules)
    assert_close(found.labels, plain.labels, atol=1e-6, rtol=0)
    assert torch.equal(found.voters, plain.voters)


def test_searches_that_are_no_longer_kept_are_made_again(mask, monkeypatch):
    expected = Follower(clip()).follow({0: mask})
    monkeypatch.setattr("core.dense.follow.KEPT", 0)
    follower = Follower(clip())
    for _ in range(2):
        found = follower.follow({0: mask})
        assert_close(found.labels, expected.labels, atol=1e-6, rtol=0)
    assert len(follower._found) <= 8 * num_threads()
    for at in range(2, 8):  # corrections alone bring no more than that either
        follower.follow({0: mask, at: mask.roll(1, 0)})
    assert len(follower._found) <= 8 * num_threads()


def test_votes_add_up_to_the_label(mask):
    found = Follower(clip()).follow({0: mask}, Rules(context=3, radius=4.0))
    for frame, row, col in ((1, 0, 0), (5, 3, 4), (8, 6, 10)):
        votes = found.votes(frame, (row, col))
        assert 1 <= len(votes) <= 5
        assert sorted((vote.weight for vote in votes), reverse=True) == [vote.weight for vote in votes]
        assert sum(vote.weight for vote in votes) == pytest.approx(1, abs=1e-5)
        assert all(vote.frame == 0 or frame - 3 <= vote.frame < frame for vote in votes)
        assert all((vote.row - row) ** 2 + (vote.col - col) ** 2 <= 16 for vote in votes)
        label = sum(vote.weight * found.labels[vote.frame, vote.row, vote.col] for vote in votes)
        assert_close(label, found.labels[frame, row, col])
    assert found.votes(0, (0, 0)) == []
    with pytest.raises(IndexError, match="no patch 7, 0 in frame 1: 9 frames of 7x11"):
        found.votes(1, (7, 0))


def test_a_patch_with_nobody_in_reach_but_itself_has_fewer_votes(mask):
    found = Follower(clip(frames=2)).follow({0: mask}, Rules(radius=0.0))
    assert [(vote.frame, vote.row, vote.col) for vote in found.votes(1, (3, 4))] == [(0, 3, 4)]
    assert torch.equal(found.masks[1], mask)


def test_features_in_half_precision_give_the_same_within_their_rounding(mask):
    features = clip()
    half, whole = (Follower(each).follow({0: mask}) for each in (features.half(), features))
    assert (half.voters[1:] == whole.voters[1:]).float().mean() > 0.98
    assert_close(half.weights, whole.weights, atol=2e-3, rtol=0)


@pytest.mark.parametrize(("length", "count"), [(1000, 5), (1003, 16), (40, 8), (6, 9)])
def test_the_largest_are_those_of_topk(length, count):
    values = torch.randn(13, length, generator=torch.Generator().manual_seed(length))
    values[:, ::7] = -torch.inf
    best, index = largest(values, count)
    wanted = values.topk(min(count, length), dim=1)
    assert torch.equal(best, wanted.values)
    finite = best > -torch.inf
    assert torch.equal(index[finite], wanted.indices[finite])


def test_to_cancel_is_to_raise_and_nothing_is_lost(mask):
    follower = Follower(clip())
    before = follower.follow({0: mask})

    def stop(done, total, what):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        follower.follow({0: mask.roll(2, 1)}, former=before, progress=stop)
    assert_close(follower.follow({0: mask}).labels, before.labels, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("marks", "words"),
    [
        ({}, "nothing is marked"),
        ({0: torch.zeros(7, 11, dtype=torch.long)}, "nothing is marked"),
        ({9: torch.ones(7, 11, dtype=torch.long)}, "no frame 9 to mark; the clip has 0 to 8"),
        ({0: torch.ones(7, 10, dtype=torch.long)}, "mark of frame 0 is 7x10, the grid of patches 7x11"),
    ],
)
def test_marks_that_cannot_be_are_refused(marks, words):
    with pytest.raises(ValueError, match=words):
        Follower(clip()).follow(marks)


@pytest.mark.parametrize("wrong", [{"context": 0}, {"topk": 0}, {"temperature": 0.0}, {"radius": -1.0}])
def test_rules_without_meaning_are_refused(wrong):
    with pytest.raises(ValueError, match="at least 1, temperature is positive"):
        Rules(**wrong)


def test_a_region_grows_over_what_is_alike_and_hangs_together():
    features = torch.zeros(5, 6, 2)
    features[..., 0] = 1
    features[1:4, 1:3] = features[0, 5] = torch.tensor([0.0, 1.0])
    region = grown(features, (2, 1), 0.9)
    wanted = torch.zeros(5, 6, dtype=torch.bool)
    wanted[1:4, 1:3] = True
    assert torch.equal(region, wanted), "the corner is alike, but far away"
    assert grown(features, (2, 1), -1.0).all()
    assert grown(features, (2, 1), 1.1).sum() == 1
    with pytest.raises(ValueError, match="no patch 5, 0"):
        grown(features, (5, 0), 0.5)
