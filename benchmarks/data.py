"""The vectors that the benchmarks work with."""

from pathlib import Path

import numpy as np

from pgvector_service.codec import Rows

WIDTH = 384


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
