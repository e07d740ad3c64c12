"""Contrast of images and texts: every image picks its text among all, and every text its image (paper section 5.3)."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from core.distributed import all_sum, gather_with_grad, rank

CHUNK = 1024  # images whose logits exist at once: 1024 x 32768 are 128 MB


def contrastive(
    images: Float[Tensor, "B D"], texts: Float[Tensor, "B D"], scale: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """Symmetric InfoNCE over the batch of all processes; `scale` multiplies cosines.

    Its mean over processes is the loss of the whole batch, and so is that of the gradients. Logits are made in chunks,
    and once more for the backward pass, so that no process ever holds them all.
    """
    images, texts = F.normalize(images.float(), dim=-1), F.normalize(texts.float(), dim=-1)
    return _Contrastive.apply(images, texts, scale.float().reshape(()))


class _Contrastive(torch.autograd.Function):
    """Softmax both ways needs only two vectors of log-sums; what stands below them is made again when it is needed."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
        every_text = gather_with_grad(texts)
        first = rank() * len(images)
        rows, columns = [], None
        for part in images.split(CHUNK):
            logits = scale * part @ every_text.T
            rows.append(logits.logsumexp(1))
            mine = logits.logsumexp(0)
            columns = mine if columns is None else torch.logaddexp(columns, mine)
        assert columns is not None
        row, column = torch.cat(rows), gather_with_grad(columns[None]).logsumexp(0)
        own = torch.arange(first, first + len(images), device=images.device)
        right = scale * (images * texts).sum(1)
        ctx.save_for_backward(images, texts, scale, row, column)
        return -(2 * right - row - column[own]).mean() / 2

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        images, texts, scale, row, column = ctx.saved_tensors
        every_text, count = gather_with_grad(texts), len(images)
        first = rank() * count
        to_images, to_texts = torch.zeros_like(images), torch.zeros_like(every_text)
        to_scale = torch.zeros((), device=images.device)
        for start in range(0, count, CHUNK):
            part = images[start : start + CHUNK]
            cosine = part @ every_text.T
            logits = scale * cosine
            slope = (logits - row[start : start + CHUNK, None]).exp() + (logits - column).exp()
            at = torch.arange(len(part), device=part.device)
            slope[at, first + start + at] -= 2
            slope *= grads[0] / (2 * count)
            to_images[start : start + CHUNK] = scale * slope @ every_text
            to_texts += scale * slope.T @ part
            to_scale += (slope * cosine).sum()
        # Other processes' images pull at our texts as well. They, too, divided by a local batch: the sum over processes
        # is what the mean of their losses, which is taken later, asks for.
        to_texts = all_sum(to_texts)[first : first + count]
        return to_images, to_texts, to_scale
