"""The cross entropy that computes its gradient at once, against finite differences and torch's own operators."""

import pytest
import torch
from torch.testing import assert_close

from core.losses import dino
from core.losses.dino import dino_local, soft_cross_entropy


@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 7)], ids=["patches", "crops"])
def test_gradient_is_that_of_finite_differences(monkeypatch, shape):
    monkeypatch.setattr(dino, "ROWS", 2)
    torch.manual_seed(0)
    logits = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    target = torch.rand(shape[-2:], dtype=torch.float64).expand(shape)  # need not sum to 1
    assert torch.autograd.gradcheck(lambda z: soft_cross_entropy(z, target, 0.3), (logits,))


def test_logits_of_any_size_give_finite_losses():
    logits = torch.tensor([[1e4, -1e4, 0.0], [-3e4, -3e4, -3e4]], requires_grad=True)
    target = torch.tensor([[1.0, 0.0, 0.0], [0.2, 0.3, 0.5]])
    loss = soft_cross_entropy(logits, target, 0.1)
    assert_close(loss, torch.tensor([1.0, 3.0]).log())
    loss.sum().backward()
    assert_close(logits.grad, torch.tensor([[0.0, 0.0, 0.0], [1 / 3 - 0.2, 1 / 3 - 0.3, 1 / 3 - 0.5]]) / 0.1)


def test_a_gradient_can_be_asked_for_twice():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 7, requires_grad=True)
    loss = dino_local(logits, torch.randn(2, 3, 7).softmax(dim=-1))
    (first,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (second,) = torch.autograd.grad(loss, logits)
    assert torch.equal(first, second) and first.any()


def test_half_precision_gets_its_gradient_in_half_precision():
    logits = torch.randn(4, 7, dtype=torch.bfloat16, requires_grad=True)
    target = torch.randn(4, 7).softmax(dim=-1)
    loss = soft_cross_entropy(logits, target, 0.1)
    loss.sum().backward()
    assert loss.dtype == torch.float32 and logits.grad.dtype == torch.bfloat16
    expected = ((logits.detach().float() / 0.1).softmax(dim=-1) - target) / 0.1
    assert_close(logits.grad, expected.bfloat16())
