"""The tables of the service: schema.sql, and how it gets into a database."""

import hashlib
import logging
from pathlib import Path

from pgvector_service.storage import statements
from pgvector_service.storage.pool import ConnectionPool

log = logging.getLogger(__name__)


def text() -> str:
    """schema.sql: packed into this package in a wheel, at the top of the project in a checkout."""
    package = Path(__file__).parent.parent
    packed = package / "schema.sql"
    return (packed if packed.exists() else package.parent / "schema.sql").read_text("utf-8")


def apply(pool: ConnectionPool) -> None:
    """Run schema.sql unless the database carries its mark; afterwards it does. Several processes may do so at once."""
    sql = text()
    mark = f"pgvector-service {hashlib.sha256(sql.encode()).hexdigest()[:16]}"
    with pool.connection() as conn, conn.cursor() as cur:
        cur.execute(statements.durability)
        for (name,) in cur.fetchall():
            log.warning("the database runs with %s = off: a crash can lose or corrupt data", name)
        cur.execute(statements.schema_mark)
        if cur.fetchone() == (mark,):
            return
    with pool.writing() as cur:
        cur.execute(statements.apply_lock)
        cur.execute(statements.schema_mark)
        if cur.fetchone() != (mark,):
            pool.be_patient(cur)
            cur.execute(statements.warnings_only)
            del cur.connection.notices[:]
            cur.execute(sql)
            for notice in cur.connection.notices:
                log.warning("upgrading the database: %s", notice.partition(":")[2].strip())
            cur.execute(statements.set_schema_mark, {"mark": mark})
