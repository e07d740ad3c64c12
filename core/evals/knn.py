"""k-nearest-neighbour classification of frozen features: what is alike should lie close."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def knn_votes(
    train: Float[Tensor, "N D"],
    labels: Int[Tensor, "N"],
    queries: Float[Tensor, "Q D"],
    *,
    k: int = 10,
    temperature: float = 0.07,
    num_classes: int | None = None,
) -> Float[Tensor, "Q C"]:
    """How strongly the k nearest training images, by cosine, vote for each class: exp(cosine / temperature) each.

    k larger than the training set is cut to it. Raises ValueError for k below 1 or an empty training set.
    """
    if k < 1 or not len(train):
        raise ValueError(f"k-NN takes k of at least 1 among at least 1 training image, got k {k} among {len(train)}")
    num_classes = int(labels.max()) + 1 if num_classes is None else num_classes
    train = F.normalize(train.float(), dim=1)
    votes = []
    for part in F.normalize(queries.float(), dim=1).split(4096):  # bounds the matrix of cosines
        cosine, nearest = (part @ train.T).topk(min(k, len(train)), dim=1)
        weight = (cosine / temperature).softmax(dim=1)
        votes.append(weight.new_zeros(len(part), num_classes).scatter_add_(1, labels[nearest], weight))
    return torch.cat(votes)


def knn_accuracy(
    train: Float[Tensor, "N D"],
    labels: Int[Tensor, "N"],
    queries: Float[Tensor, "Q D"],
    answers: Int[Tensor, "Q"],
    *,
    ks: Sequence[int] = (10, 20),
    temperature: float = 0.07,
) -> dict[str, float]:
    """Share of queries whose strongest class is theirs, for each k: `top1_k10` and so on, 0 to 1."""
    classes = int(max(labels.max(), answers.max())) + 1
    result = {}
    for k in ks:
        votes = knn_votes(train, labels, queries, k=k, temperature=temperature, num_classes=classes)
        result[f"top1_k{k}"] = float((votes.argmax(dim=1) == answers).float().mean())
    return result
