"""iBOT: at masked patches the student predicts the prototypes that the teacher sees there (paper section 3.2)."""

from jaxtyping import Float
from torch import Tensor

from core.losses.dino import soft_cross_entropy


def ibot(
    student: Float[Tensor, "m K"],
    teacher: Float[Tensor, "m K"],
    weights: Float[Tensor, "m"],
    num_crops: int,
    temperature: float = 0.1,
) -> Float[Tensor, ""]:
    """Cross entropy at m masked patches, each crop weighing the same however much of it is masked.

    weights: one over the number of masked patches of the patch's crop. num_crops: global crops, masked or not, as the
    released code divides; with half of them masked the value is about half a mean over masked crops.
    """
    return (soft_cross_entropy(student, teacher, temperature) * weights).sum() / num_crops
