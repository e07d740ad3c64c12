"""Sinkhorn-Knopp: teacher logits to soft assignments that use every prototype alike (paper section 3.2; SwAV)."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributed import ProcessGroup

from core.distributed import all_max, all_sum


@torch.no_grad()
def sinkhorn_knopp(
    logits: Float[Tensor, "n K"],
    temperature: float,
    *,
    iterations: int = 3,
    group: ProcessGroup | None = None,
) -> Float[Tensor, "n K"]:
    """Assignments of n samples to K prototypes, fp32: every row sums to 1, all columns to about n / K.

    Normalises over the samples of all processes in `group`; their numbers may differ, as they do for masked patches.
    """
    logits = logits.float() / temperature
    # A factor per prototype is undone by the first normalisation, so each may have its own largest logit subtracted:
    # without that exp overflows at logits of 3.5 (temperature 0.04), as it does in the released code.
    top = logits.amax(dim=0) if len(logits) else logits.new_full(logits.shape[1:], -torch.inf)
    # A sample far below every prototype's best would be 0 / 0 all along: nothing goes below exp(-60), 1e-26.
    scores = logits.sub_(all_max(top, group)).clamp_(min=-60).exp_()
    # The two normalisations only scale rows and columns. Keeping the scales apart reads the matrix twice a round and
    # rewrites it once in all.
    samples = all_sum(scores.new_tensor(float(len(scores))), group)
    rows, columns = scores.new_ones(len(scores)), scores.new_ones(scores.shape[1])
    for _ in range(iterations):
        columns = 1 / (all_sum(rows @ scores, group) * scores.shape[1])
        rows = 1 / ((scores @ columns) * samples)
    return scores.mul_(columns).mul_((rows * samples)[:, None])
