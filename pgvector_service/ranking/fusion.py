"""Two rankings of the same items made one: by their ranks, or by their scores."""

import numpy as np
from numpy.typing import NDArray

from pgvector_service.arrays import Floats

Ranks = NDArray[np.int64]


def ranks(badness: Floats) -> Ranks:
    """The rank of each item by its badness, 1 for the least; equals share a rank, and NaN (not found) has rank 0."""
    found = ~np.isnan(badness)
    places = np.searchsorted(np.sort(badness[found]), badness, side="left") + 1
    return np.where(found, places, 0)


def by_rank(sides: list[Ranks], k: float) -> Floats:
    """Reciprocal rank fusion: the sum of 1 / (k + rank) over the sides that have found an item; more is better.

    Cormack, Clarke and Buettcher, Reciprocal Rank Fusion outperforms Condorcet (SIGIR 2009), where k is 60.
    """
    fused: Floats = np.sum([np.where(side > 0, 1.0 / np.maximum(k + side, 1), 0.0) for side in sides], axis=0)
    return fused


def by_score(distances: Floats, scores: Floats, alpha: float) -> Floats:
    """alpha * nearness + (1 - alpha) * score, both scaled to 0..1 over the items that their side has found.

    An item that a side has not found (NaN) gets 0 of it. Weaviate calls this relative score fusion.
    """
    return alpha * scaled(-distances) + (1 - alpha) * scaled(scores)


def scaled(goodness: Floats) -> Floats:
    """The best is 1, the worst 0, all are 1 if they are equal; NaN gives 0."""
    found = ~np.isnan(goodness)
    if not found.any():
        return np.zeros(len(goodness))
    low, high = goodness[found].min(), goodness[found].max()
    between = (goodness - low) / (high - low) if high > low else np.ones(len(goodness))
    return np.where(found, between, 0.0)
