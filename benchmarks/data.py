"""What the benchmarks work with: vectors, and the texts and metadata that go with them."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from pgvector_service.arrays import Rows

WIDTH = 384
SENTENCES = Path(__file__).parent.parent / "examples" / "sentences.json"
# As long as the title of a paper.
TEXT_WORDS = 10


def vectors(count: int, queries: int, file: Path | None = None) -> tuple[Rows, Rows]:
    """`count` rows and `queries` queries of width 384, float32, always the same.

    From an .npz file with int8 `vectors`, their `scale` and float32 `queries`, grown to `count` with a little noise; or
    else from 200 seeded clusters.
    """
    rng = np.random.default_rng(0)
    if file:
        with np.load(file) as data:
            base = data["vectors"].astype(np.float32) * np.reshape(data["scale"], (-1, 1)).astype(np.float32)
            asked = np.resize(data["queries"].astype(np.float32), (queries, base.shape[1]))
        noise = rng.standard_normal((max(0, count - len(base)), base.shape[1]), np.float32) * np.float32(0.01)
        grown = np.concatenate([base[:count], np.resize(base, noise.shape) + noise])
        return grown, asked
    centers = rng.standard_normal((200, WIDTH), np.float32)

    def drawn(number: int) -> Rows:
        rows = centers[rng.integers(0, len(centers), number)] + rng.standard_normal((number, WIDTH), np.float32)
        unit: Rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return unit

    return drawn(count), drawn(queries)


@cache
def words() -> list[str]:
    """Some 1,200 English words, always in the same order."""
    texts = " ".join(sentence["text"] for sentence in json.loads(SENTENCES.read_bytes())["sentences"])
    found = sorted(set(re.findall(r"[a-z]{3,}", texts.lower())))
    return [found[i] for i in np.random.default_rng(0).permutation(len(found))]


def documents(numbers: range) -> list[str]:
    """A text for each item of a batch; few of its words are frequent, as in any language (Zipf)."""
    vocabulary = words()
    drawn = np.random.default_rng(numbers.start).zipf(1.3, (len(numbers), TEXT_WORDS)) % len(vocabulary)
    return [" ".join(vocabulary[i] for i in row) for row in drawn.tolist()]


def metadatas(numbers: range) -> list[dict[str, Any]]:
    """Metadata for each item: `half` is 0 or 1, `cent` one of a hundred numbers."""
    return [{"source": "arxiv", "year": 2000 + i % 25, "half": i % 2, "cent": i % 100} for i in numbers]
