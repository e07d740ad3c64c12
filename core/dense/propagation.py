"""Following a mask through a video with nothing but features: patches take the labels of the patches they resemble.

The paper's tracking (section 6.1.5, appendix D.5): for each patch the most similar patches of the first frame and of
the last few, not too far from its own place, vote with softmax weights. Nothing is trained.
"""

from collections import deque
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

CONTEXT, RADIUS, TOPK, TEMPERATURE = 7, 12.0, 5, 0.2  # the official notebook's, appendix table 27 second row
ROWS = 1024  # query patches at a time: bounds the matrix of cosines to 40 MB for eight frames of 1200 patches


def neighbours(rows: int, cols: int, radius: float | None, *, square: bool = False) -> Bool[Tensor, "P P"] | None:
    """Which patches of another frame a patch may look at: those within `radius` patches of its place; None: all."""
    if radius is None:
        return None
    y, x = (part.flatten().float() for part in torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij"))
    down, across = (y[:, None] - y).abs(), (x[:, None] - x).abs()
    return torch.maximum(down, across) <= radius if square else down.square() + across.square() <= radius**2


def propagate(
    query: Float[Tensor, "P D"],
    context: Float[Tensor, "T Q D"],
    labels: Float[Tensor, "T Q K"],
    near: Bool[Tensor, "P Q"] | None = None,
    *,
    topk: int = TOPK,
    temperature: float = TEMPERATURE,
) -> Float[Tensor, "P K"]:
    """Soft labels of the query's patches: the mean over their `topk` most similar patches of all context frames.

    Features are unit vectors. Weights are the softmax of cosine / temperature over those patches.
    """
    keys, values, result = context.flatten(0, 1), labels.flatten(0, 1), []
    for start in range(0, len(query), ROWS):
        part = slice(start, start + ROWS)
        cosine = query[part] @ keys.T
        if near is not None:
            cosine.masked_fill_(~near[part].repeat(1, len(context)), -torch.inf)
        best, index = cosine.topk(min(topk, len(keys)), dim=1)
        weight = (best / temperature).softmax(dim=1)  # patches out of reach weigh nothing
        result.append((weight[..., None] * values[index]).sum(dim=1))
    return torch.cat(result)


def track(
    frames: Iterable[Float[Tensor, "h w D"]],
    first: Float[Tensor, "h w K"],
    *,
    context: int = CONTEXT,
    radius: float | None = RADIUS,
    square: bool = False,
    topk: int = TOPK,
    temperature: float = TEMPERATURE,
) -> Iterator[Float[Tensor, "h w K"]]:
    """Soft labels of every frame on the patch grid, those of the first as given; frames are read one at a time.

    first: labels of the first frame, background included, which sum to 1. Memory holds `context` + 1 frames.
    """
    if context < 1 or topk < 1 or temperature <= 0:
        raise ValueError(
            f"context and topk are at least 1 and temperature is positive, got {context}, {topk}, {temperature}"
        )
    near: Bool[Tensor, "P P"] | None = None
    kept: deque[tuple[Tensor, Tensor]] = deque(maxlen=context)
    anchor: tuple[Tensor, Tensor] | None = None
    for frame in frames:
        features = F.normalize(frame.float(), dim=-1).flatten(0, 1)
        if anchor is None:
            near = neighbours(frame.shape[0], frame.shape[1], radius, square=square)
            anchor = features, first.flatten(0, 1)
            yield first
            continue
        seen = [anchor, *kept]
        labels = propagate(
            features,
            torch.stack([features for features, _ in seen]),
            torch.stack([labels for _, labels in seen]),
            near,
            topk=topk,
            temperature=temperature,
        )
        kept.append((features, labels))
        yield labels.unflatten(0, frame.shape[:2])
