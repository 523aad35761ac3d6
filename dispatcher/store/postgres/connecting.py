"""Connections to a PostgreSQL store, and what its errors mean to whoever operates it. No password is ever repeated."""

from __future__ import annotations

import re
from typing import Any, Final

import psycopg
from psycopg import conninfo

from dispatcher import urls
from dispatcher.errors import StoreUnusable

APPLICATION: Final = "dispatcher"
# Where the URL does not say: how long the server may take to let somebody in, in seconds, and after how long a machine
# that fell silent is given up.
_DEFAULTS: Final = {
    "application_name": APPLICATION,
    "connect_timeout": 10,
    "keepalives_idle": 5,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}

_CREDENTIALS: Final = "Mend user or password: in the URL, or in the file that DISPATCHER_STORE_PASSWORD_FILE names."
_TLS: Final = "See sslmode, sslrootcert and sslcert in PostgreSQL's manual; they are options of the URL."
_GRANTS: Final = "Have its owner GRANT the rights to this user, or use the user that made the store."
# What errors say, in their order, and what to do about it; the first that is found counts. By their text, since the
# driver has no code for what the server says before it lets somebody in.
_SAID: Final = (
    (r'database "[^"]*" does not exist', "`createdb` makes it; the tables in it are made by the dispatcher."),
    (r"password authentication failed|no password supplied|empty password", _CREDENTIALS),
    (r'relation "[^"]*" does not exist', "`dispatcher migrate` makes what is missing."),
    (r'role "[^"]*" does not exist', "Mend the user in the URL: postgresql://USER:PASSWORD@HOST/DATABASE."),
    (r"no pg_hba\.conf entry|pg_hba\.conf rejects", "The server's pg_hba.conf must let this user in from here."),
    (r"too many clients|remaining connection slots|too many connections",
     "All connections of the server are in use: raise max_connections, or start fewer workers."),
    (r"starting up|shutting down|in recovery mode|not yet accepting", "It is used again as soon as it answers."),
    (r"read-only transaction|in recovery|hot standby", "This is a standby: name the server that takes writes."),
    (r"invalid sslmode|SSL|certificate", _TLS),
    (r"resolve host|translate host name", "Mend the host in the URL, or the name service of this machine."),
    (r"permission denied", _GRANTS),
    (r"statement timeout", "Ask for less at once: narrow the list by --since, or take a smaller --limit."),
    (r"out of shared memory",
     "Raise max_locks_per_transaction of the server, to 256 say: each day of a table and each of its indexes is one."),
    (r"lock timeout", "A migration or the removal of old days is under way: try again."),
)  # fmt: skip
_OTHERWISE: Final = "Is a server there, and does it take connections from here?"


def connect(url: str, **options: Any) -> psycopg.Connection[tuple[Any, ...]]:
    """Open a connection by a URL with its password in it; `options` are those of psycopg.

    Raises StoreUnusable where there is no such server or database, or where it lets us not in.
    """
    try:
        given = conninfo.conninfo_to_dict(url)
        # Without prepared statements, so that a pooler may stand between.
        return psycopg.connect(**{**_DEFAULTS, "prepare_threshold": None, **given, **options})
    except psycopg.Error as error:
        raise unusable(url, error) from error


def unusable(url: str, error: BaseException) -> StoreUnusable:
    """Return an error of the driver as one that says which store, why, and what to do next."""
    said = said_by(error)
    hint = next((hint for pattern, hint in _SAID if re.search(pattern, said)), _OTHERWISE)
    if isinstance(error, psycopg.ProgrammingError) and error.sqlstate is None:
        hint = "Mend the options of its URL: they are those of PostgreSQL's own connection URLs."
    return StoreUnusable(f"the store {urls.shown(url)} cannot be used: {said}.", hint=hint)


def said_by(error: BaseException) -> str:
    """Return what an error of the driver says, on one line, without the words that the driver puts before it."""
    text = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    line = " ".join((text or str(error) or type(error).__name__).split())
    line = re.sub(r"^connection (?:failed|is bad): ", "", line)
    line = re.sub(r" Is the server running .*$", "", line)
    return re.sub(r"failed: (?:FATAL|ERROR): ", "failed: ", line).rstrip(".")
