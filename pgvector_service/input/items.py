"""Items that can be written as they are: each list checked for itself and against the others."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from pgvector_service.arrays import Rows
from pgvector_service.errors import DimensionMismatch, InvalidInput
from pgvector_service.input.embeddings import checked_matrix, refuse_zeros
from pgvector_service.input.values import check_ids, check_text, checked_json
from pgvector_service.ranking.distances import Metric

# What happens to an item that exists: it is replaced, its batch is refused, or it is left as it is.
Mode = Literal["upsert", "insert", "ignore"]


@dataclass(frozen=True, slots=True)
class Batch:
    """Items that passed the gate: lists as long as `ids`, or None where nothing was given for any of them.

    metadatas are JSON texts; embeddings is a float32 matrix, one row for each of `positions`.
    """

    ids: Sequence[str]
    documents: Sequence[str | None] | None
    metadatas: Sequence[bytes | None] | None
    uris: Sequence[str | None] | None
    media_types: Sequence[str | None] | None
    embeddings: Rows | None
    positions: Sequence[int]

    def check_against(self, dimension: int | None, metric: Metric) -> None:
        """Refuse embeddings that do not fit into a collection."""
        if self.embeddings is None:
            return
        if self.embeddings.shape[1] != dimension:
            raise DimensionMismatch(f"embeddings[{self.positions[0]}]", dimension or 0, self.embeddings.shape[1])
        if metric == "cosine":
            with _at(self.positions):
                refuse_zeros("embeddings", self.embeddings)


def checked_batch(
    ids: Sequence[str],
    documents: Sequence[str | None] | None,
    metadatas: Sequence[Mapping[str, Any] | None] | None,
    embeddings: ArrayLike | Sequence[Any] | None,
    uris: Sequence[str | None] | None = None,
    media_types: Sequence[str | None] | None = None,
    *,
    partial: bool = False,
) -> Batch:
    """The batch, or InvalidInput that names the field and position of the first fault.

    With `partial` embeddings may be None, all or some. Whether they fit into a collection is for `Batch.check_against`.
    """
    check_ids(ids)
    if len(set(ids)) < len(ids):
        seen: set[str] = set()
        for i, id_ in enumerate(ids):
            if id_ in seen:
                raise InvalidInput(f"ids[{i}]", "appears twice in this batch.")
            seen.add(id_)
    count = len(ids)
    if not count:
        raise InvalidInput("ids", "must name at least one item.")
    positions, matrix = _embeddings(embeddings, partial)
    columns: dict[str, Any] = {
        "documents": documents,
        "metadatas": metadatas,
        "uris": uris,
        "media_types": media_types,
    }
    for field, values in {**columns, "embeddings": embeddings}.items():
        if values is not None and len(values) != count:
            raise InvalidInput(field, f"has {len(values)} entries where ids has {count}.")
    for field in ("documents", "uris", "media_types"):
        for i, text in enumerate(columns[field] or ()):
            if text is not None:
                check_text(f"{field}[{i}]", text)
    texts = None
    if metadatas is not None:
        texts = [None if data is None else checked_json(f"metadatas[{i}]", data) for i, data in enumerate(metadatas)]
    return Batch(ids, documents, texts, uris, media_types, matrix, positions)


def _embeddings(embeddings: ArrayLike | Sequence[Any] | None, partial: bool) -> tuple[Sequence[int], Rows | None]:
    """The matrix of the embeddings that are given, and their positions."""
    if not partial or isinstance(embeddings, np.ndarray):
        matrix = checked_matrix("embeddings", embeddings)  # type: ignore[arg-type]
        return range(len(matrix)), matrix
    if embeddings is not None and not isinstance(embeddings, list | tuple):
        raise InvalidInput("embeddings", "must be a list.")
    positions = [i for i, embedding in enumerate(embeddings or ()) if embedding is not None]
    if not positions:
        return (), None
    with _at(positions):
        return positions, checked_matrix("embeddings", [embeddings[i] for i in positions])  # type: ignore[index]


@contextmanager
def _at(positions: Sequence[int]) -> Iterator[None]:
    """Faults of the rows of a matrix, named by the positions that these rows have in the request."""
    try:
        yield
    except InvalidInput as error:
        raise error.of_field(
            re.sub(r"\[(\d+)\]", lambda found: f"[{positions[int(found[1])]}]", error.field, count=1)
        ) from None
