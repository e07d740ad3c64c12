"""DINO: the student's CLS of one crop predicts the teacher's prototypes of another (paper section 3.2)."""

import torch
from jaxtyping import Float
from torch import Tensor


def soft_cross_entropy(
    logits: Float[Tensor, "*n K"], target: Float[Tensor, "*n K"], temperature: float
) -> Float[Tensor, "*n"]:
    """Cross entropy of a softmax with target probabilities that sum to 1, fp32."""
    # - sum p log softmax(z) = logsumexp(z) - p . z: no (n, K) matrix of log-probabilities is kept for the gradient.
    logits = logits.float() / temperature  # softmax over 65k prototypes in bf16 loses the tail
    return logits.logsumexp(dim=-1) - torch.linalg.vecdot(target, logits)


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
