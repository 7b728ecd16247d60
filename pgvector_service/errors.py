"""Every error that the service raises on purpose.

VectorDBError
├── InvalidInput            the request cannot be right, whoever sends it
│   └── DimensionMismatch
├── NotFound
│   ├── CollectionNotFound
│   └── ItemNotFound
├── Conflict
│   └── CollectionExists
├── PayloadTooLarge
└── Unavailable             worth another try
    ├── DatabaseUnavailable
    ├── PoolExhausted
    ├── Overloaded
    ├── DatabaseBusy
    └── CommitUnknown

The message of an error is for the caller: it says what to do next and holds neither SQL nor the caller's data. The
cause (`raise ... from error`) is for the log.
"""

import re


class VectorDBError(Exception):
    """The service could not do this because of a fault of its own; the log has the cause."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or type(self).__doc__)

    @property
    def code(self) -> str:
        """The class name in snake case, stable for programs: `collection_not_found`."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(self).__name__).lower()


class InvalidInput(VectorDBError):
    """The input is not valid."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self._problem = problem

    def of_field(self, field: str) -> "InvalidInput":
        """This error under another name of the field, for a caller who knows it by that."""
        self.args = (f"{field}: {self._problem}",)
        return self


class DimensionMismatch(InvalidInput):
    """The embedding has another width than its collection."""

    def __init__(self, field: str, expected: int, got: int) -> None:
        super().__init__(field, f"expected {expected} numbers, the dimension of the collection, and got {got}.")


class NotFound(VectorDBError):
    """There is no such thing."""


class CollectionNotFound(NotFound):
    """There is no collection of this name. GET /collections lists those that exist."""


class ItemNotFound(NotFound):
    """There is no item with this id in the collection."""


class Conflict(VectorDBError):
    """The request conflicts with what is stored."""


class CollectionExists(Conflict):
    """A collection of this name exists already. Choose another name."""


class PayloadTooLarge(VectorDBError):
    """The request body is too large."""


class Unavailable(VectorDBError):
    """The service cannot answer just now. Try again in a moment."""

    def __init__(self, message: str | None = None, *, undone: bool = False) -> None:
        super().__init__(message)
        # Nothing was committed and the cause has passed: the same work may be run again at once.
        self.undone = undone


class DatabaseUnavailable(Unavailable):
    """The database cannot be reached. Try again in a moment; GET /health tells when it is back."""


class PoolExhausted(Unavailable):
    """All database connections are in use. Try again in a moment, or raise DB_POOL_SIZE."""


class Overloaded(Unavailable):
    """Too many searches are waiting, or this one has waited too long. Try again in a moment, with fewer at once."""


class DatabaseBusy(Unavailable):
    """The database did not finish in time and the request was undone. Try again in a moment."""


class CommitUnknown(Unavailable):
    """The connection broke during the commit: the write is stored in full or not at all. Send it again to be sure."""
