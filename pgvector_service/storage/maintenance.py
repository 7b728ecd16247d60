"""Maintenance: all services on a database stand aside while a command works on its tables."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg2
import psycopg2.errors
from psycopg2.extensions import parse_dsn

from pgvector_service.dsn import told
from pgvector_service.errors import DatabaseBusy, DatabaseUnavailable
from pgvector_service.storage import statements

# What libpq, and so each of PostgreSQL's programs, reads from the environment.
VARIABLES = {
    "host": "PGHOST",
    "hostaddr": "PGHOSTADDR",
    "port": "PGPORT",
    "user": "PGUSER",
    "password": "PGPASSWORD",
    "passfile": "PGPASSFILE",
    "dbname": "PGDATABASE",
    "service": "PGSERVICE",
    "options": "PGOPTIONS",
    "channel_binding": "PGCHANNELBINDING",
    "sslmode": "PGSSLMODE",
    "sslrootcert": "PGSSLROOTCERT",
    "sslcert": "PGSSLCERT",
    "sslkey": "PGSSLKEY",
    "gssencmode": "PGGSSENCMODE",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
}
# Every service asks once a second whether there is maintenance, and waits up to 2 s for the answer.
NOTICED_S = 4.0


def libpq_variables(dsn: str) -> dict[str, str]:
    """The environment that leads PostgreSQL's programs to the database at `dsn`."""
    parameters = parse_dsn(dsn)
    return {variable: parameters[name] for name, variable in VARIABLES.items() if parameters.get(name)}


@contextmanager
def maintenance(dsn: str, wait_s: float) -> Iterator[None]:
    """Refuse all transactions of services on this database with 503 until the block ends, also when the process dies.

    Transactions that are under way may end first; DatabaseBusy when they take longer than `wait_s` seconds. The block
    begins when every service knows, so that none holds a lock on the tables.
    """
    try:
        connection = psycopg2.connect(dsn, application_name="pgvector-service maintenance")
    except psycopg2.Error as error:
        raise DatabaseUnavailable(reason=told(error, dsn)) from None
    try:
        connection.autocommit = True
        with connection.cursor() as cur:
            cur.execute(statements.session_limits, {"lock_timeout_ms": max(1, round(wait_s * 1000))})
            try:
                cur.execute(statements.shut_out)
            except psycopg2.errors.LockNotAvailable as error:
                raise DatabaseBusy(
                    f"Requests of the service did not end within {wait_s:g} s, or other maintenance is under way. "
                    "Nothing was done. Try again, or wait longer with --wait."
                ) from error
        time.sleep(NOTICED_S)
        yield
    finally:
        connection.close()
