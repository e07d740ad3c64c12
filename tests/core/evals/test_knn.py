"""k-NN against a plain loop and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch.testing import assert_close

from core.evals.knn import knn_accuracy, knn_votes


def clouds(per_class: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points of five classes around five random directions."""
    draw = torch.Generator().manual_seed(seed)
    centres = torch.randn(5, 12, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(5).repeat(per_class)
    return centres[labels] + 1.5 * torch.randn(len(labels), 12, generator=draw), labels


def test_votes_agree_with_a_plain_loop():
    (train, labels), (queries, _) = clouds(4, 0), clouds(2, 1)
    votes = knn_votes(train, labels, queries, k=7, temperature=0.1)
    unit = train / train.norm(dim=1, keepdim=True)
    for query, vote in zip(queries, votes, strict=True):
        cosine = [float(query @ x / query.norm()) for x in unit]
        nearest = sorted(range(len(train)), key=lambda i, c=cosine: -c[i])[:7]
        weights = [math.exp(cosine[i] / 0.1) for i in nearest]
        expected = torch.zeros(5)
        for i, weight in zip(nearest, weights, strict=True):
            expected[labels[i]] += weight / sum(weights)
        assert_close(vote, expected, atol=1e-5, rtol=0)


def test_accuracy_agrees_with_scikit_learn():
    (train, labels), (queries, answers) = clouds(40, 0), clouds(30, 1)
    ours = knn_accuracy(train, labels, queries, answers, ks=(10,))["top1_k10"]

    def weights(distances: np.ndarray) -> np.ndarray:
        return np.exp((1 - distances) / 0.07)

    theirs = KNeighborsClassifier(10, metric="cosine", weights=weights).fit(train, labels).score(queries, answers)
    assert ours == pytest.approx(theirs, abs=1 / len(queries))  # one tie may fall either way
    assert ours > 0.5


def test_scale_does_not_matter():
    (train, labels), (queries, _) = clouds(4, 0), clouds(2, 1)
    assert_close(knn_votes(train * 7, labels, queries, k=3), knn_votes(train, labels, queries / 3, k=3))


def test_more_neighbours_than_images_are_all_images():
    (train, labels), (queries, _) = clouds(1, 0), clouds(1, 1)
    assert torch.equal(knn_votes(train, labels, queries, k=500), knn_votes(train, labels, queries, k=5))


@pytest.mark.parametrize(("k", "count"), [(0, 5), (3, 0)])
def test_no_neighbours_are_refused(k, count):
    train, labels = clouds(1, 0)
    with pytest.raises(ValueError, match="k-NN takes k of at least 1"):
        knn_votes(train[:count], labels[:count], train, k=k)
