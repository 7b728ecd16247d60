"""What every operation stands on: connections, transactions that are run again, snapshots, and what memory holds."""

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import psycopg2.errors
from psycopg2.extensions import cursor

from pgvector_service.arrays import Keys, Rows
from pgvector_service.errors import (
    CollectionNotFound,
    DatabaseBusy,
    DatabaseUnavailable,
    InvalidInput,
    Maintenance,
    Unavailable,
)
from pgvector_service.input.filters import Filter
from pgvector_service.input.values import check_name
from pgvector_service.memory.cache import Cache, Loading, Superseded
from pgvector_service.memory.loading import Collection
from pgvector_service.memory.upkeep import Upkeep
from pgvector_service.ranking.blas import limit_threads
from pgvector_service.storage import schema, statements
from pgvector_service.storage.codec import RowReader
from pgvector_service.storage.pool import ConnectionPool

TRIES = 5
GREETING_TIMEOUT_MS = 2_000
# What regular expressions may take: some need exponential time, for one who means harm.
REGEX_TIMEOUT_S = 5.0


class Store:
    """The database at `dsn` and what memory holds of it; safe to share between threads."""

    def __init__(
        self,
        dsn: str,
        pool_size: int,
        pool_timeout_s: float,
        statement_timeout_s: float,
        cache_max_bytes: int,
        recall_target: float,
        threads: int,
        when_closed: Callable[[], object],
    ) -> None:
        self._dsn = dsn
        self._pool_size = pool_size
        self._pool_timeout_s = pool_timeout_s
        self.statement_timeout_s = statement_timeout_s
        self._recall_target = recall_target
        self._threads = threads
        self._when_closed = when_closed
        limit_threads(threads)
        self.cache = Cache(cache_max_bytes, self.still_alive, self._changed)
        self._incarnation: str | None = None
        self._maintenance = False
        self._pool: ConnectionPool | None = None
        self._upkeep: Upkeep | None = None

    def open(self) -> None:
        """Connect, and bring the tables to the state of schema.sql. Several processes may do so at once."""
        pool = ConnectionPool(self._dsn, self._pool_size, self._pool_timeout_s, self.statement_timeout_s)
        try:
            schema.apply(pool)
            pool.greet = self._greet
            # The connection that has applied the schema is there already and is not greeted by the pool.
            with pool.connection() as conn, conn.cursor() as cur:
                self._greet(cur)
        except BaseException:
            pool.close()
            raise
        self._upkeep = Upkeep(self.cache, self._recall_target, self._threads)
        self._pool = pool

    def close(self) -> None:
        """Close all connections. The store may be opened again."""
        pool, self._pool = self._pool, None
        if pool:
            pool.close()
        if self._upkeep:
            self._upkeep.stop()

    @property
    def pool(self) -> ConnectionPool:
        """The connections; raises Maintenance during one. `when_closed` opens a closed store, or raises."""
        if self._pool is None:
            self._when_closed()
        pool = self._pool
        if pool is None:
            raise DatabaseUnavailable
        if self._maintenance:
            raise Maintenance
        return pool

    def heed(self, maintenance: bool) -> None:
        """Keep away from the database while it is maintained; afterwards its tables may be others, and older ones."""
        if self._maintenance and not maintenance and self._pool:
            schema.apply(self._pool)
            self.cache.forget_all()
        self._maintenance = maintenance

    @contextmanager
    def snapshot(self, name: str) -> Iterator[tuple[cursor, Collection, float]]:
        """A cursor in a read-only snapshot, the collection in it, and a time before it was taken."""
        check_name("collection_name", name)
        since = time.monotonic()
        with self.pool.reading(statements.collection, name=name) as cur:
            row = cur.fetchone()
            if row is None:
                self.cache.forget(name)
                raise CollectionNotFound
            yield cur, Collection(*row), since

    @contextmanager
    def filtering(self, cur: cursor, filter: Filter | None) -> Iterator[None]:
        """Statements with this filter: a regular expression that is wrong or too slow is the caller's fault."""
        if filter is None or not filter.patterns:
            yield
            return
        seconds = min(REGEX_TIMEOUT_S, self.statement_timeout_s)
        cur.execute(statements.limited, {"statement_timeout": round(seconds * 1000)})
        for place, pattern in filter.patterns:
            with _blamed(place, seconds):
                cur.execute(statements.try_pattern, {"pattern": pattern})
        with _blamed(filter.patterns[0][0], seconds):
            yield
        cur.execute(statements.limited, {"statement_timeout": round(self.statement_timeout_s * 1000)})

    def outdated(self, name: str) -> Superseded:
        """To be raised when rows have been deleted past the triggers: memory is wrong and is to be read anew."""
        self.cache.forget(name)
        return Superseded()

    def items(self, cur: cursor, keys: Iterable[int]) -> dict[int, tuple[Any, ...]]:
        """The rows with these keys, as `columns` takes them; without those that do not exist."""
        cur.execute(statements.items_by_key, {"keys": as_array(keys)})
        return {row[0]: row for row in cur.fetchall()}

    def embeddings(self, cur: cursor, collection: Collection, keys: Sequence[int]) -> dict[int, Rows | None]:
        """The embeddings of the rows with these keys; None for what is no list of numbers."""
        found: dict[int, Rows | None] = {}

        def take(keys: Keys, rows: Rows) -> None:
            found.update(zip(keys.tolist(), rows, strict=True))

        if keys:
            reader = RowReader(collection.dimension or 1, take, found.__setitem__)
            cur.copy_expert(cur.mogrify(statements.copy_keys, {"keys": list(keys)}), reader)
            reader.close()
        return found

    def still_alive(self, cur: cursor) -> None:
        """Note that something has come from the server."""
        if self._pool:
            self._pool.still_alive(cur.connection)

    def _changed(self, name: str) -> None:
        if self._upkeep:
            self._upkeep.look_after(name)

    def _greet(self, cur: cursor) -> None:
        """Find out on a new connection whether the database has been through a crash, which cuts all older ones."""
        cur.execute(statements.one_statement + statements.incarnation, {"statement_timeout_ms": GREETING_TIMEOUT_MS})
        found = cur.fetchall()
        if not found:
            with suppress(psycopg2.errors.ReadOnlySqlTransaction):
                cur.execute(
                    statements.one_statement + statements.name_incarnation,
                    {"statement_timeout_ms": GREETING_TIMEOUT_MS},
                )
                cur.execute(statements.incarnation)
                found = cur.fetchall()
        incarnation = found[0][0] if found else None
        if incarnation is None or incarnation != self._incarnation:
            self._incarnation = incarnation
            self.cache.forget_all()


@contextmanager
def _blamed(place: str, seconds: float) -> Iterator[None]:
    """What goes wrong here, or takes longer than allowed, is due to the regular expression at this place."""
    try:
        yield
    except psycopg2.errors.InvalidRegularExpression as error:
        raise InvalidInput(place, f"PostgreSQL says: {error.diag.message_primary}.") from error
    except psycopg2.errors.QueryCanceled as error:
        problem = f"the request takes more than {seconds:g} s with it; make it simpler, or use $contains or $matches."
        raise InvalidInput(place, problem) from error


class HasStore(Protocol):
    """An object whose methods can be run again."""

    @property
    def _store(self) -> Store: ...


S = TypeVar("S", bound=HasStore)
P = ParamSpec("P")
T = TypeVar("T")


def retried(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """Run a method again, in a new transaction, when the cause that undid it has passed."""

    @wraps(method)
    def run(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        tries = TRIES
        deadline = time.monotonic() + self._store.statement_timeout_s
        while True:
            try:
                return method(self, *args, **kwargs)
            except Superseded:
                pass
            except Loading as loading:
                if not loading.done.acquire(timeout=max(0.0, deadline - time.monotonic())):
                    raise DatabaseBusy("The collection is being read into memory. Try again later.") from None
                loading.done.release()
            except Unavailable as error:
                tries -= 1
                if not error.undone or not tries:
                    raise
                time.sleep(random.uniform(0, 0.05) * (TRIES - tries))
            if time.monotonic() > deadline:
                raise DatabaseBusy

    return run


def as_array(keys: Iterable[int]) -> str:
    """The keys as the text of a PostgreSQL array, in order, so that rows that lie together are read together."""
    return "{" + ",".join(map(str, sorted(keys))) + "}"


def only_value(cur: cursor) -> Any:
    """The value of a statement that gives just one."""
    (value,) = cur.fetchall()[0]
    return value
