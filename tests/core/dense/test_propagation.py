"""Label propagation against a plain loop, and on a video whose answer is known."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from core.dense.propagation import neighbours, propagate, track


def slowly(query, context, labels, rows, cols, radius, square, topk, temperature):
    """One patch at a time, as the definition reads."""
    result = torch.zeros(len(query), labels.shape[-1])
    for place in range(len(query)):
        votes = []
        for frame in range(len(context)):
            for other in range(len(context[frame])):
                down, across = (abs(a - b) for a, b in zip(divmod(place, cols), divmod(other, cols), strict=True))
                if radius is None or (max(down, across) if square else math.hypot(down, across)) <= radius:
                    votes.append((float(query[place] @ context[frame][other]), labels[frame][other]))
        votes = sorted(votes, key=lambda vote: -vote[0])[:topk]
        weights = torch.tensor([vote[0] / temperature for vote in votes]).softmax(0)
        result[place] = sum(weight * vote[1] for weight, vote in zip(weights, votes, strict=True))
    return result


@pytest.mark.parametrize(("radius", "square"), [(None, False), (1.5, False), (2.0, True), (0.5, False)])
def test_labels_are_those_of_the_definition(radius, square):
    draw = torch.Generator().manual_seed(0)
    rows, cols, frames = 4, 5, 3
    query = F.normalize(torch.randn(rows * cols, 6, generator=draw), dim=-1)
    context = F.normalize(torch.randn(frames, rows * cols, 6, generator=draw), dim=-1)
    labels = torch.rand(frames, rows * cols, 2, generator=draw)
    near = neighbours(rows, cols, radius, square=square)
    ours = propagate(query, context, labels, near, topk=5, temperature=0.2)
    assert_close(ours, slowly(query, context, labels, rows, cols, radius, square, 5, 0.2), atol=1e-5, rtol=1e-5)


def test_rows_at_a_time_change_nothing(monkeypatch):
    draw = torch.Generator().manual_seed(0)
    query, context = torch.randn(30, 4, generator=draw), torch.randn(2, 30, 4, generator=draw)
    labels = torch.rand(2, 30, 3, generator=draw)
    whole = propagate(query, context, labels)
    monkeypatch.setattr("core.dense.propagation.ROWS", 7)
    assert_close(propagate(query, context, labels), whole)


def test_an_object_that_moves_is_followed():
    """Every patch of a 6 x 8 picture has a colour of its own; the picture shifts by one patch a frame."""
    draw = torch.Generator().manual_seed(0)
    world = torch.randn(6, 20, 16, generator=draw)
    frames = [world[:, at : at + 8] for at in range(6)]
    first = torch.zeros(6, 8, 2)
    first[..., 0] = 1
    first[2:4, 5:7] = torch.tensor([0.0, 1.0])
    followed = list(track(frames, first, radius=2.0, topk=1, context=1))
    for number in range(1, 6):
        found = followed[number].argmax(-1).bool()
        expected = torch.zeros(6, 8, dtype=torch.bool)
        expected[2:4, 5 - number : 7 - number] = True
        known = slice(0, 8 - number)  # what came in from the right was never seen before
        assert torch.equal(found[:, known], expected[:, known]), number


def test_only_the_first_frame_and_the_last_few_are_remembered():
    """Labels of a frame that has left the context cannot come back."""
    flat = [torch.ones(1, 1, 2)] * 5
    labels = list(track(flat, torch.tensor([[[0.0, 1.0]]]), context=1, topk=2))
    assert all(torch.equal(label, labels[0]) for label in labels)


@pytest.mark.parametrize("wrong", [{"context": 0}, {"topk": 0}, {"temperature": 0.0}])
def test_settings_without_meaning_are_refused(wrong):
    with pytest.raises(ValueError, match="at least 1 and temperature is positive"):
        next(track([torch.ones(1, 1, 2)], torch.ones(1, 1, 1), **wrong))
