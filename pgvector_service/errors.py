"""Every error that the service raises on purpose.

VectorDBError
├── InvalidInput            the request cannot be right, whoever sends it
│   └── DimensionMismatch
├── NotFound
│   ├── CollectionNotFound
│   └── ItemNotFound
├── Conflict
│   ├── CollectionExists
│   ├── ItemsExist
│   └── VersionMismatch
├── PayloadTooLarge
├── UnsupportedEncoding
└── Unavailable             worth another try
    ├── Maintenance
    ├── DatabaseUnavailable
    ├── PoolExhausted
    ├── Overloaded
    ├── DatabaseBusy
    └── CommitUnknown

The message of an error is for the caller: it says what to do next and holds neither SQL nor documents. Its `reason`,
PostgreSQL's own words if there are any, is for the log and for Python: str() shows it, HTTP does not. The cause
(`raise ... from error`) is for the log alone.
"""

import re
from collections.abc import Sequence


class VectorDBError(Exception):
    """The service could not do this because of a fault of its own; the log has the cause."""

    def __init__(self, message: str | None = None, *, reason: str = "") -> None:
        super().__init__(message or type(self).__doc__)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.message} ({self.reason})" if self.reason else self.message

    @property
    def message(self) -> str:
        """What may be told to anybody."""
        return str(self.args[0])

    @property
    def code(self) -> str:
        """The class name in snake case, stable for programs: `collection_not_found`."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(self).__name__).lower()


class InvalidInput(VectorDBError):
    """The input is not valid."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self._problem = problem

    def of_field(self, field: str) -> "InvalidInput":
        """This error under another name of the field, for a caller who knows it by that."""
        self.args = (f"{field}: {self._problem}",)
        self.field = field
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


class ItemsExist(Conflict):
    """Items with these ids exist already, and nothing was written. Use mode upsert or ignore, or other ids."""

    SHOWN = 10
    SHOWN_CHARACTERS = 80

    def __init__(self, ids: Sequence[str]) -> None:
        shown = ", ".join(ascii(id_[: self.SHOWN_CHARACTERS]) for id_ in ids[: self.SHOWN])
        more = f" and {len(ids) - self.SHOWN} more" if len(ids) > self.SHOWN else ""
        super().__init__(f"{self.__doc__} They are {shown}{more}.")


class VersionMismatch(Conflict):
    """The collection has changed since the version that you named, and nothing was written. Read it again."""

    def __init__(self, expected: int, found: int) -> None:
        super().__init__(f"{self.__doc__} if_version is {expected}, and the collection is at {found}.")


class PayloadTooLarge(VectorDBError):
    """The request body is too large."""


class UnsupportedEncoding(VectorDBError):
    """The request body is compressed in another way than gzip or zstd. Send one of these, or no Content-Encoding."""


class Unavailable(VectorDBError):
    """The service cannot answer just now. Try again in a moment."""

    def __init__(self, message: str | None = None, *, reason: str = "", undone: bool = False) -> None:
        super().__init__(message, reason=reason)
        # Nothing was committed and the cause has passed: the same work may be run again at once.
        self.undone = undone


class Maintenance(Unavailable):
    """The database is being maintained. Nothing was changed; try again in some seconds."""


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
