"""DINO: the student's CLS of one crop predicts the teacher's prototypes of another (paper section 3.2)."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from core.threads import in_chunks

ROWS = 64  # of logits that a thread takes at a time: 1 MB of 4096 prototypes, which stays in a CPU's cache


def soft_cross_entropy(
    logits: Float[Tensor, "*n K"], target: Float[Tensor, "*n K"], temperature: float
) -> Float[Tensor, "*n"]:
    """Cross entropy of a softmax with target probabilities, fp32. The target gets no gradient: it is the teacher's."""
    return SoftCrossEntropy.apply(logits, target, temperature)


class SoftCrossEntropy(torch.autograd.Function):
    """logsumexp(z) - p . z of z = logits / temperature, and while at it the gradient, softmax(z) - p.

    So every logit is exponentiated once, and one matrix is kept instead of three.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, temperature: float) -> Tensor:
        precision = torch.promote_types(logits.dtype, torch.float32)  # a softmax over 65k in bf16 loses the tail
        losses = logits.new_empty(logits.shape[:-1], dtype=precision)
        slopes = torch.empty_like(logits, dtype=precision)

        def work(part: slice) -> None:
            z, p, slope = logits[part], target[part], slopes[part]
            largest = z.amax(dim=-1, keepdim=True).to(precision)
            torch.sub(z, largest, out=slope).div_(temperature).exp_()
            total = slope.sum(dim=-1, keepdim=True)
            slope.div_(total).sub_(p)
            match = torch.linalg.vecdot(p.to(precision), z.to(precision))
            torch.sub(total.log().squeeze(-1), (match - largest.squeeze(-1)) / temperature, out=losses[part])

        in_chunks(work, len(logits), max(1, ROWS // logits.shape[1:-1].numel()), logits.device)
        ctx.temperature, ctx.dtype = temperature, logits.dtype
        ctx.save_for_backward(slopes)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (slopes,), (gradient,) = ctx.saved_tensors, gradients
        return (slopes * (gradient / ctx.temperature)[..., None]).to(ctx.dtype), None, None


def dino_local(
    student: Float[Tensor, "L B K"], teacher: Float[Tensor, "G B K"], temperature: float = 0.1
) -> Float[Tensor, ""]:
    """Mean cross entropy of every local crop's logits with every global crop's teacher probabilities."""
    # The mean over the teacher's crops can be taken first, as the loss is linear in them.
    target = teacher.mean(dim=0).expand_as(student)
    return soft_cross_entropy(student, target, temperature).mean()


def dino_global(
    student: Float[Tensor, "G B K"],
    teacher: Float[Tensor, "G B K"],
    temperature: float = 0.1,
    *,
    ignore_diagonal: bool = True,
) -> Float[Tensor, ""]:
    """Mean cross entropy over pairs of global crops; with `ignore_diagonal` a crop is not paired with itself."""
    target = teacher.sum(dim=0).expand_as(student)
    pairs = len(teacher)
    if ignore_diagonal:
        target, pairs = target - teacher, pairs - 1
    return soft_cross_entropy(student, target / pairs, temperature).mean()
