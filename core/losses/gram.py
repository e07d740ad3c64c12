"""Gram anchoring: the student's similarities between patches stay near those of an earlier teacher (paper section 4).

The paper writes the squared Frobenius norm of the difference; like the released code this is the mean over its
entries, and weights are for the mean.
"""

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def gram(
    student: Float[Tensor, "B P D"],
    teacher: Float[Tensor, "B P D"],
    *,
    normalized: bool = True,
    level: Literal["image", "batch"] = "image",
    negatives: Literal["keep", "drop", "drop_teacher"] = "keep",
) -> Float[Tensor, ""]:
    """Mean squared difference of the two matrices of patch similarities, fp32.

    level: one P x P matrix an image, or one of all B P patches together. negatives: "drop" clamps both matrices at 0;
    "drop_teacher" the teacher's alone (the released code then means to clamp the student where both are negative, but
    asks after clamping, which is never true; we do what it does).
    """
    student, teacher = student.float(), teacher.detach().float()  # bf16 loses the small differences this is about
    if level == "batch":
        student, teacher = student.reshape(1, -1, student.shape[-1]), teacher.reshape(1, -1, teacher.shape[-1])
    if normalized:
        student, teacher = F.normalize(student, dim=-1), F.normalize(teacher, dim=-1)
    ours, theirs = student @ student.mT, teacher @ teacher.mT
    if negatives != "keep":
        theirs = theirs.clamp(min=0)
    if negatives == "drop":
        ours = ours.clamp(min=0)
    return F.mse_loss(ours, theirs)


def resize_tokens(tokens: Float[Tensor, "B P D"], patches: int, *, antialias: bool = False) -> Float[Tensor, "B Q D"]:
    """A square map of P tokens brought to `patches` ones, bicubic: how a teacher at 2x meets the student's grid.

    Raises ValueError for maps that are not square.
    """
    if tokens.shape[1] == patches:
        return tokens
    side, wanted = round(tokens.shape[1] ** 0.5), round(patches**0.5)
    if side**2 != tokens.shape[1] or wanted**2 != patches:
        raise ValueError(f"Gram maps are square, got {tokens.shape[1]} and {patches} tokens; use square crops")
    grid = tokens.transpose(1, 2).unflatten(2, (side, side))
    grid = F.interpolate(grid.float(), size=(wanted, wanted), mode="bicubic", antialias=antialias)
    return grid.flatten(2).transpose(1, 2)
