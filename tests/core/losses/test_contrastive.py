"""Contrast beside torch's cross entropy, in one process and in several."""

import math
import sys

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from core import distributed
from core.losses import contrastive as module_function
from core.losses.contrastive import contrastive

CONTRASTIVE = sys.modules["core.losses.contrastive"]


def plain(images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The whole table of logits."""
    logits = scale * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    right = torch.arange(len(images))
    return (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2


def leaves(count: int = 12, dim: int = 16) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    images, texts = (torch.randn(count, dim, generator=draw) * 3 for _ in range(2))
    return [images.requires_grad_(), texts.requires_grad_(), torch.tensor(14.3, requires_grad=True)]


@pytest.mark.parametrize("chunk", [1, 5, 12, 1000])
def test_loss_and_gradients_are_those_of_the_cross_entropy(chunk, monkeypatch):
    monkeypatch.setattr(CONTRASTIVE, "CHUNK", chunk)
    ours, theirs = leaves(), leaves()
    loss, wanted = contrastive(*ours), plain(*theirs)
    assert_close(loss, wanted, atol=1e-6, rtol=1e-6)
    (2 * loss).backward()
    (2 * wanted).backward()
    for mine, other in zip(ours, theirs, strict=True):
        assert_close(mine.grad, other.grad, atol=1e-6, rtol=1e-5)


def test_gradients_agree_with_finite_differences():
    images, texts, scale = (x.detach().double() for x in leaves(4, 3))

    def loss(scale: torch.Tensor) -> torch.Tensor:
        return contrastive(images, texts, scale).double()

    scale.requires_grad_()
    (slope,) = torch.autograd.grad(loss(scale), scale)
    around = [float(loss(scale.detach() + step)) for step in (-1e-2, 1e-2)]
    assert float(slope) == pytest.approx((around[1] - around[0]) / 2e-2, rel=1e-3)


def test_perfect_pairs_cost_nothing_and_equal_ones_the_logarithm_of_their_number():
    eye = torch.eye(8)
    assert float(contrastive(eye, eye, torch.tensor(100.0))) < 1e-6
    same = torch.ones(8, 4)
    assert float(contrastive(same, same, torch.tensor(100.0))) == pytest.approx(math.log(8), abs=1e-5)


def test_lengths_do_not_matter():
    images, texts, scale = (x.detach() for x in leaves())
    assert_close(contrastive(images * 7, texts / 3, scale), contrastive(images, texts, scale))


def test_it_is_in_the_table():
    assert module_function is contrastive


@pytest.mark.long
def test_two_processes_give_the_loss_and_gradients_of_one(run_processes):
    assert run_processes(__file__, 2) == ["done\n"] * 2


def compare() -> None:
    """Each process has half of the batch."""
    images, texts, scale = leaves()
    wanted = plain(images, texts, scale)
    wanted.backward()
    world = distributed.start("cpu")
    each = len(images) // world.size
    mine = slice(world.rank * each, (world.rank + 1) * each)
    ours = [
        images.detach()[mine].requires_grad_(),
        texts.detach()[mine].requires_grad_(),
        scale.detach().requires_grad_(),
    ]
    loss = contrastive(*ours)
    loss.backward()
    assert_close(distributed.all_mean(loss.detach()), wanted.detach(), atol=1e-6, rtol=1e-6)
    # Averaged over processes, as FSDP does: a leaf of one process counts as zero in the other.
    for part, whole in zip(ours[:2], (images, texts), strict=True):
        assert_close(part.grad / world.size, whole.grad[mine], atol=1e-6, rtol=1e-5)
    assert_close(distributed.all_mean(ours[2].grad), scale.grad, atol=1e-6, rtol=1e-5)
    distributed.stop()
    print("done")


if __name__ == "__main__":
    compare()
