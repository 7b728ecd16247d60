"""Connection strings of libpq: checked before anybody connects, and kept out of what is told."""

import re
from urllib.parse import quote

import psycopg2
from psycopg2.extensions import parse_dsn

_WRONG = (
    "must be like postgresql://user:password@host:5432/database, the password percent-encoded (@ is %40, % is %25), "
    "with a port and options that PostgreSQL knows"
)
_SECRETS = ("password", "sslpassword", "oauth_client_secret")
# libpq looks at these only when there is a connection over TCP.
_NUMBERS = re.compile(r"connect_timeout|tcp_user_timeout|keepalives\w*")
# No host, and no socket can ever be in it.
_NOWHERE = "/dev/null"


def fault(dsn: str) -> str | None:
    """What is wrong with a connection string, naming no part of it since any may be a password; None if nothing is."""
    if dsn.startswith(("postgresql://", "postgres://")):
        place, _, path = dsn.partition("://")[2].partition("/")
        if place.count("@") > 1 or "@" in path.partition("?")[0]:
            return _WRONG  # libpq takes the end of such a password for the name of a host, and shows it
    try:
        options = parse_dsn(dsn)
    except psycopg2.Error:
        return _WRONG
    if any(_NUMBERS.fullmatch(name) and not _is_number(value) for name, value in options.items()):
        return _WRONG
    # Values are judged by PQconnect alone, and before it looks for the host.
    places = options.get("hostaddr") or options.get("host") or options.get("port") or ""
    options.update(host=",".join([_NOWHERE] * (1 + places.count(","))), hostaddr="", port=options.get("port", ""))
    if options.get("gssencmode") == "require":
        options["gssencmode"] = "prefer"  # required, it is refused for sockets
    try:
        psycopg2.connect(**options).close()
    except psycopg2.Error as error:
        return None if _NOWHERE in str(error) else _WRONG
    return None


def told(error: Exception, dsn: str) -> str:
    """What libpq or PostgreSQL say of a failed connection, in one line and without the passwords in `dsn`."""
    text = " ".join(str(error).split())
    passwords = [value for name, value in parse_dsn(dsn).items() if name in _SECRETS and value]
    for secret in [dsn, *(quote(password, safe="") for password in passwords), *passwords]:
        text = text.replace(secret, "***") if secret else text
    return text


def _is_number(value: str) -> bool:
    return re.fullmatch(r"\s*[+-]?\d+\s*", value) is not None
