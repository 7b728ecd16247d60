"""Of many good candidates, those that say different things."""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from pgvector_service.arrays import Floats, Rows
from pgvector_service.errors import InvalidInput
from pgvector_service.ranking.distances import row_norms
from pgvector_service.ranking.fusion import scaled

MAX_CANDIDATES = 1_000


@dataclass(frozen=True, slots=True)
class Mmr:
    """Maximal marginal relevance: of the `candidates` most relevant items each next one is chosen that is relevant and
    unlike those before; `diversity` 0 looks at relevance only, 1 at difference only.
    """

    diversity: float = 0.5
    candidates: int = 100

    def __post_init__(self) -> None:
        if not 0 <= self.diversity <= 1:
            raise InvalidInput("mmr.diversity", "must be from 0 to 1.")
        if not 1 <= self.candidates <= MAX_CANDIDATES:
            raise InvalidInput("mmr.candidates", f"must be 1 to {MAX_CANDIDATES}.")

    def chosen(self, vectors: Rows, relevance: Floats, count: int) -> list[int]:
        """Positions of `count` items in the order of choice, from their vectors (n, d) and how relevant they are.

        Each is the one with the greatest (1 - diversity) * relevance - diversity * redundancy. Relevance is scaled to
        0..1; redundancy is the greatest cosine similarity to an item chosen before, of which a vector that is not
        finite or all zeros has none. The first is the most relevant; of equals the first wins. Carbonell and Goldstein,
        The Use of MMR (SIGIR 1998).
        """
        norms = row_norms(vectors)
        usable = np.isfinite(norms) & (norms > 0)
        units = np.zeros(vectors.shape)
        units[usable] = vectors[usable] / norms[usable, None]
        gain = (1 - self.diversity) * scaled(relevance)
        redundancy = np.full(len(vectors), -np.inf)
        chosen = [int(np.argmax(relevance))] if len(vectors) else []
        while chosen and len(chosen) < min(count, len(vectors)):
            # Rounded, so that equal vectors are equally redundant.
            redundancy = np.maximum(redundancy, np.round(units @ units[chosen[-1]], 6))
            worth = gain - self.diversity * redundancy
            worth[chosen] = -np.inf
            chosen.append(int(np.argmax(worth)))
        return chosen


def at_most_each(groups: Sequence[Hashable], size: int) -> list[int]:
    """The positions of the first `size` of each group."""
    seen: Counter[Hashable] = Counter()
    kept = []
    for i, group in enumerate(groups):
        seen[group] += 1
        if seen[group] <= size:
            kept.append(i)
    return kept
