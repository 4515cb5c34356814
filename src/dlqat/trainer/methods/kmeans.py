# SPDX-License-Identifier: Apache-2.0
"""Lloyd's k-means with k-means++ seeding (Arthur and Vassilvitskii, 2007), deterministic by its seed."""

from __future__ import annotations

import torch
from torch import Tensor

ITERATIONS = 50
STARTS = 3


def kmeans(points: Tensor, clusters: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """centroids float32 [clusters, d] and labels int64 [n] of points [n, d]: the best of a few starts.

    Each centroid is the mean of its points. A cluster that loses all its points takes the point that lies farthest
    from its own centroid.
    """
    x = points.float()
    generator = torch.Generator().manual_seed(seed)
    found = [_lloyd(x, _seeds(x, clusters, generator)) for _ in range(STARTS)]
    return min(found, key=lambda pair: inertia(x, *pair))


def inertia(points: Tensor, centroids: Tensor, labels: Tensor) -> float:
    """Sum of squared distances of the points to their centroids: what k-means makes small."""
    return float((points.double() - centroids.double()[labels]).square().sum())


def _seeds(x: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    first = int(torch.randint(len(x), (1,), generator=generator))
    chosen = [first]
    nearest = _distances(x, x[first : first + 1])[:, 0]
    for _ in range(clusters - 1):
        # Points that are centroids already have weight 0; where all have (duplicates), any point will do.
        weights = nearest.cpu() if float(nearest.sum()) > 0 else torch.ones(len(x))
        chosen.append(int(torch.multinomial(weights, 1, generator=generator)))
        nearest = torch.minimum(nearest, _distances(x, x[chosen[-1] :][:1])[:, 0])
    return x[chosen].clone()


def _lloyd(x: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    labels = _distances(x, centroids).argmin(1)
    for _ in range(ITERATIONS):
        centroids = _means(x, labels, centroids)
        moved = _distances(x, centroids).argmin(1)
        if torch.equal(moved, labels):
            break
        labels = moved
    return _means(x, labels, centroids), labels


def _means(x: Tensor, labels: Tensor, centroids: Tensor) -> Tensor:
    count = torch.bincount(labels, minlength=len(centroids))
    sums = torch.zeros_like(centroids).index_add_(0, labels, x)
    means = sums / count.clamp(min=1)[:, None]
    if bool((empty := count == 0).any()):
        far = (x - centroids[labels]).square().sum(1).argsort(descending=True)
        means[empty] = x[far[: int(empty.sum())]]
    return means


def _distances(x: Tensor, centroids: Tensor) -> Tensor:
    """Squared, [n, k]."""
    products = x @ centroids.T
    return (x.square().sum(1, keepdim=True) - 2 * products + centroids.square().sum(1)).clamp_(min=0)
