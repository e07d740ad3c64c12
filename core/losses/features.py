"""Feature distillation: the student's tokens, projected, lie where a frozen teacher's lie.

This project's own, not the paper's: the paper distils through prototypes, which only a training run has, and this
needs nothing of a teacher but features. The mixture of cosine and smooth L1 is that of AM-RADIO (Ranzinger et al. 2024,
section 3.2), which the paper compares with.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

L1_SHARE = 0.1  # AM-RADIO's weight on smooth L1, the rest on the cosine


def features(
    student: Float[Tensor, "*n D"], teacher: Float[Tensor, "*n D"], *, l1_share: float = L1_SHARE
) -> Float[Tensor, ""]:
    """Mean over tokens of (1 - s) times one minus the cosine plus s times smooth L1, fp32; 0 when they are alike."""
    student, teacher = student.float(), teacher.float()
    angle = 1 - F.cosine_similarity(student, teacher, dim=-1).mean()
    return (1 - l1_share) * angle + l1_share * F.smooth_l1_loss(student, teacher)
