"""Lines of an export, or alike, as items: stored a batch at a time; what is wrong with a line is said by its number."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import orjson

from pgvector_service.errors import CollectionNotFound, InvalidInput, ItemsExist, Unavailable, VectorDBError
from pgvector_service.input.items import Mode, checked_batch

# One transaction: so many lines, or fewer that hold so many bytes.
BATCH_LINES, BATCH_BYTES = 1_000, 16 * 2**20
# Wrong lines that the answer describes; it counts all.
SHOWN_ERRORS = 100
# The fields of a line, as VectorDB.export_collection gives them, and the lists that they go to.
LISTS = {
    "id": "ids",
    "document": "documents",
    "metadata": "metadatas",
    "embedding": "embeddings",
    "uri": "uris",
    "media_type": "media_types",
}

Line = tuple[int, dict[str, Any]]


class Target(Protocol):
    """What an import needs of a VectorDB."""

    @property
    def add_with_embeddings(self) -> Callable[..., dict[str, Any]]:
        """Store a batch."""

    @property
    def get_collection(self) -> Callable[[str], dict[str, Any]]:
        """Describe the collection."""

    @property
    def get_items(self) -> Callable[..., dict[str, Any]]:
        """Find items by id."""


class Import:
    """An import into one collection; `run` once, then read `answer`."""

    def __init__(self, target: Target, name: str, mode: Mode) -> None:
        self._target, self._name, self._mode = target, name, mode
        self._errors: list[dict[str, Any]] = []
        self._counts = {"lines": 0, "added": 0, "updated": 0, "ignored": 0, "failed": 0}
        self._version: int | None = None

    @property
    def answer(self) -> dict[str, Any]:
        """collection_name, the counts lines, added, updated, ignored and failed, errors by line, version."""
        return {"collection_name": self._name, **self._counts, "errors": self._errors, "version": self._version}

    def run(self, lines: Iterable[bytes]) -> None:
        """Store all lines, the good ones of each batch in one transaction.

        Raises what VectorDB.add_with_embeddings does, but for faults of single lines; the message of an Unavailable
        error says how many lines are stored.
        """
        for batch in self._batches(lines):
            try:
                self._store(batch)
            except Unavailable as error:
                stored = batch[0][0] - 1
                told = f"The lines up to {stored} are done; send the rest again." if stored else "No line is stored."
                raise type(error)(f"{error.message} {told}", reason=error.reason) from error

    def _batches(self, lines: Iterable[bytes]) -> Iterator[list[Line]]:
        """The items of a batch at a time, no id twice in one, so that the last line with an id wins."""
        batch: dict[str, Line] = {}
        size = 0
        for number, line in enumerate(lines, start=1):
            self._counts["lines"] = number
            if not line.strip():
                continue
            try:
                item = _parsed(line)
            except InvalidInput as error:
                self._fail(number, error)
                continue
            if item["id"] in batch or len(batch) == BATCH_LINES or size + len(line) > BATCH_BYTES:
                if batch:
                    yield list(batch.values())
                batch, size = {}, 0
            batch[item["id"]] = number, item
            size += len(line)
        if batch:
            yield list(batch.values())

    def _store(self, batch: Sequence[Line]) -> None:
        try:
            self._add(batch)
        except (InvalidInput, ItemsExist):
            good = self._good(batch)
            if good:
                self._add(good)

    def _add(self, batch: Sequence[Line]) -> None:
        columns = {column: [item.get(field) for _, item in batch] for field, column in LISTS.items()}
        written = self._target.add_with_embeddings(self._name, mode=self._mode, **columns)
        for count in ("added", "updated", "ignored"):
            self._counts[count] += written.get(count, 0)
        self._version = written["version"]

    def _good(self, batch: Sequence[Line]) -> list[Line]:
        """The lines that can be stored, each looked at for itself; what is wrong with the others is noted."""
        try:
            collection: Mapping[str, Any] = self._target.get_collection(self._name)
        except CollectionNotFound:
            collection = {"dimension": None, "metric": "cosine"}
        dimension, existing = collection["dimension"], set()
        if self._mode == "insert" and dimension is not None:
            ids = [item["id"] for _, item in batch if isinstance(item["id"], str)]
            existing = set(self._target.get_items(self._name, ids, include=())["ids"])
        good = []
        for number, item in batch:
            try:
                if item["id"] in existing:
                    raise InvalidInput("id", "exists already, and mode is insert.")
                fields: dict[str, Any] = {column: [item.get(field)] for field, column in LISTS.items()}
                one = checked_batch(**fields)
                width = one.embeddings.shape[1] if one.embeddings is not None else None
                one.check_against(dimension or width, collection["metric"])
                dimension = dimension or width
                good.append((number, item))
            except InvalidInput as error:
                self._fail(number, error)
        return good

    def _fail(self, number: int, error: VectorDBError) -> None:
        self._counts["failed"] += 1
        if len(self._errors) < SHOWN_ERRORS:
            detail = str(error)
            for field, column in LISTS.items():
                detail = detail.replace(f"{column}[0]", field)
            self._errors.append({"line": number, "detail": detail})


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        item = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise InvalidInput("line", f"is not valid JSON at character {error.pos}.") from None
    if not isinstance(item, dict):
        raise InvalidInput("line", "must be a JSON object.")
    if not item.keys() <= LISTS.keys():
        raise InvalidInput("line", f"has a field that is none of {', '.join(LISTS)}.")
    if not isinstance(item.get("id"), str):
        raise InvalidInput("id", "must be a string.")
    return item
