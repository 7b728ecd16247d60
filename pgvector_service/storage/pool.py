"""psycopg2 connections, shared by threads.

psycopg2's own ThreadedConnectionPool does not wait when it is exhausted, connects and rolls back inside its lock (one
connect into a black hole stops every thread), closes what is returned above `minconn`, and hands out connections that
a restart of the server has cut. Here a waiter has a deadline, connecting happens outside any lock, the first broken
connection takes the idle ones with it, and a server that has stopped answering is hung up on.
"""

import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import psycopg2
import psycopg2.errors
import psycopg2.extras
from psycopg2.extensions import TRANSACTION_STATUS_ACTIVE, TRANSACTION_STATUS_IDLE, cursor
from psycopg2.extensions import connection as Connection

from pgvector_service.dsn import told
from pgvector_service.errors import (
    CollectionExists,
    CollectionNotFound,
    CommitUnknown,
    DatabaseBusy,
    DatabaseUnavailable,
    InvalidInput,
    Maintenance,
    PoolExhausted,
    Unavailable,
    VectorDBError,
)
from pgvector_service.jsons import read_json
from pgvector_service.storage import statements

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 3
# SQLSTATEs of statements that meet a schema in the middle of a change, such as a restore: undefined column, function,
# object and schema, no constraint for ON CONFLICT, and a relation that was dropped under the statement's feet.
CHANGING = ("42703", "42883", "42704", "3F000", "42P10", "XX000")
# A server keeps statement_timeout itself; this much later it is taken for dead, not slow.
STALL_GRACE_S = 5.0


class ConnectionPool:
    """At most `size` connections to `dsn`, opened when they are needed and kept.

    Waiting for one ends after `timeout_s` with PoolExhausted. A connection from which nothing has come for
    `statement_timeout_s` plus a grace of 5 s, while something was asked of it, is shut down, which ends the wait of the
    thread that uses it. `greet`, if it is set, is called with a cursor of every new connection before anybody gets it.
    """

    greet: Callable[[cursor], None] | None = None

    def __init__(self, dsn: str, size: int, timeout_s: float, statement_timeout_s: float) -> None:
        self._dsn = dsn
        self._timeout_s = timeout_s
        self._statement_timeout_ms = max(1, round(statement_timeout_s * 1000))
        self._stall_s = statement_timeout_s + STALL_GRACE_S
        self._slots = threading.BoundedSemaphore(size)
        self._idle: deque[Connection] = deque()
        self._busy: dict[Connection, float] = {}
        self._busy_lock = threading.Lock()
        self._closed = threading.Event()
        self._watchdog = threading.Thread(target=self._watch, name="pool-watchdog", daemon=True)
        self._watchdog.start()

    def close(self) -> None:
        """Close the idle connections; those in use are closed when they are returned."""
        self._closed.set()
        self._discard_idle()
        self._watchdog.join()

    @contextmanager
    def reading(self, first: str = "", **parameters: object) -> Iterator[cursor]:
        """A cursor in a read-only snapshot. The statement `first` travels with its begin, which saves 20 to 80 us.

        Raises the errors of `translated`, and Maintenance while that keeps transactions out.
        """
        with self.connection() as conn, conn.cursor() as cur:
            self._begin(cur, statements.begin_read, first, parameters)
            yield cur
            cur.execute("COMMIT")

    @contextmanager
    def writing(self) -> Iterator[cursor]:
        """A cursor in a transaction that commits at the end of the block, and is undone by any exception.

        Raises what `reading` does, and CommitUnknown when the connection breaks while the write is being committed.
        """
        with self.connection() as conn, conn.cursor() as cur:
            self._begin(cur, statements.begin_write)
            yield cur
            try:
                cur.execute("COMMIT")
            except psycopg2.Error as error:
                if _has_broken(conn, error):
                    raise CommitUnknown(reason=_reason(error)) from error
                raise

    def _begin(self, cur: cursor, begin: str, first: str = "", parameters: Mapping[str, object] | None = None) -> None:
        values = {"statement_timeout_ms": self._statement_timeout_ms, **(parameters or {})}
        try:
            cur.execute(begin + statements.enter + first, values)
        except psycopg2.errors.DivisionByZero as error:
            raise Maintenance from error

    def fetch(self, statement: str, parameters: Mapping[str, object]) -> list[tuple[Any, ...]]:
        """The rows of one quick statement, which sees all that was committed before it."""
        with self.connection() as conn, conn.cursor() as cur:
            cur.execute(statement, parameters)
            return cur.fetchall()

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """A connection in autocommit mode, for this block only."""
        if not self._slots.acquire(timeout=self._timeout_s):
            raise PoolExhausted
        try:
            conn = self._take()
            try:
                yield conn
            except psycopg2.Error as error:
                broken = _has_broken(conn, error)
                if broken:
                    self._close(conn)
                raise translated(error, broken=broken) from error
            finally:
                self._give_back(conn)
        finally:
            self._slots.release()

    def still_alive(self, conn: Connection) -> None:
        """Note that something has come from the server, so that a long COPY is not taken for a dead server."""
        with self._busy_lock:
            self._busy[conn] = time.monotonic()

    def be_patient(self, cur: cursor) -> None:
        """Let the statements of this transaction take as long as they need, until `still_alive` is called again."""
        cur.execute(statements.unbounded)
        with self._busy_lock:
            self._busy[cur.connection] = float("inf")

    def _take(self) -> Connection:
        try:
            conn = self._idle.pop()
        except IndexError:
            conn = self._connect()
        self.still_alive(conn)
        return conn

    def _connect(self) -> Connection:
        try:
            conn = psycopg2.connect(
                self._dsn,
                connect_timeout=CONNECT_TIMEOUT_S,
                application_name="pgvector-service",
                # COPY carries UTF-8 whatever the encoding of the database or the role's preference.
                client_encoding="UTF8",
                keepalives_idle=30,
            )
        except Exception as error:
            # Without a cause, which a traceback would show: whatever it says, the password might be in it.
            raise DatabaseUnavailable(reason=told(error, self._dsn)) from None
        conn.autocommit = True
        psycopg2.extras.register_default_jsonb(conn, loads=read_json)
        self.still_alive(conn)
        if self.greet:
            try:
                with conn.cursor() as cur:
                    self.greet(cur)
            except BaseException as error:
                self._close(conn)
                if isinstance(error, psycopg2.Error):
                    raise DatabaseUnavailable(reason=_reason(error)) from error
                raise
        return conn

    def _close(self, conn: Connection) -> None:
        # First out of the watchdog's sight: the number of a closed socket is soon another one's.
        with self._busy_lock:
            self._busy.pop(conn, None)
        conn.close()

    def _give_back(self, conn: Connection) -> None:
        if not conn.closed and conn.info.transaction_status != TRANSACTION_STATUS_IDLE:
            try:
                with conn.cursor() as cur:
                    cur.execute("ROLLBACK")
            except psycopg2.Error:
                self._close(conn)
        with self._busy_lock:
            self._busy.pop(conn, None)
        if not conn.closed:
            self._idle.append(conn)
        if conn.closed or self._closed.is_set():
            # The others went to the same server, which has probably been restarted.
            self._discard_idle()

    def _discard_idle(self) -> None:
        with suppress(IndexError):
            while True:
                self._idle.pop().close()

    def _watch(self) -> None:
        while not self._closed.wait(1.0):
            with self._busy_lock:
                now = time.monotonic()
                for conn, since in self._busy.items():
                    if conn.info.transaction_status != TRANSACTION_STATUS_ACTIVE and since < now:
                        self._busy[conn] = now  # it is we who are slow: nothing is asked of the server
                stalled = [conn for conn, since in self._busy.items() if since < now - self._stall_s]
                if stalled:
                    log.warning("hanging up %d connections silent for %.0f s", len(stalled), self._stall_s)
                for conn in stalled:
                    self._busy[conn] = float("inf")
                    with suppress(psycopg2.Error, OSError):
                        hang_up(conn)


def _has_broken(conn: Connection, error: psycopg2.Error) -> bool:
    """Whether the connection is of no more use; `closed` may still be 0 when the server has closed it during COPY or
    while idle, and the error is then a bare DatabaseError without SQLSTATE."""
    lost = type(error) is psycopg2.DatabaseError or isinstance(
        error, psycopg2.OperationalError | psycopg2.InterfaceError
    )
    return bool(conn.closed) or (error.pgcode is None and lost)


def _reason(error: psycopg2.Error) -> str:
    """What PostgreSQL says, without the statement; or libpq, of a connection that it has lost."""
    return error.diag.message_primary or str(error).strip().partition("\n")[0]


def hang_up(conn: Connection) -> None:
    """Shut the socket down under libpq. tcp_user_timeout does not help: the kernel of a stopped server acknowledges."""
    with socket.fromfd(conn.fileno(), socket.AF_INET, socket.SOCK_STREAM) as copy:
        copy.shutdown(socket.SHUT_RDWR)


def translated(error: psycopg2.Error, *, broken: bool) -> VectorDBError:
    """The error to raise for one of psycopg2's, by SQLSTATE; `broken` when it has cost the connection."""
    state, reason = error.pgcode or "", _reason(error)
    if broken or state[:3] == "57P" or state[:2] == "08":
        return DatabaseUnavailable(reason=reason, undone=True)
    if state in ("40001", "40P01"):
        return DatabaseBusy(reason=reason, undone=True)
    if state in ("55P03", "57014"):
        return DatabaseBusy(reason=reason)
    if state == "42P01":
        return DatabaseUnavailable(
            "The database has lost the tables of this service. Restart it to make them anew.", reason=reason
        )
    if state in CHANGING:
        return Unavailable("The tables of this service are being changed. Try again in a moment.", reason=reason)
    if state == "25006":
        return Unavailable("The database accepts no writes just now. Try again in a moment.", reason=reason)
    if state[:2] == "53":
        return Unavailable(
            "The database is out of disk, memory or connections. Try again when it has room.", reason=reason
        )
    if state == "23503":
        return CollectionNotFound()
    if state == "23505":
        return CollectionExists()
    if state[:2] in ("22", "54") or state == "23514":
        return InvalidInput("request", "PostgreSQL cannot store one of the values.")
    return VectorDBError(reason=reason)
