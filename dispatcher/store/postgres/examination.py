"""How the server of a PostgreSQL store fares, and who works on it: what `dispatcher doctor` tells. Reads only."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from dispatcher.store.postgres import partitions
from dispatcher.store.postgres.workers import WORKERS, WorkerSeen, workers_seen
from dispatcher.store.schema import metadata

if TYPE_CHECKING:
    from sqlalchemy import Connection

# Dead rows are of no account below so many, or as long as they are fewer than the live ones.
_ALARMING_ROWS: Final = 100_000

_SERVER: Final = """
SELECT current_setting('server_version'), pg_database_size(current_database()),
    current_setting('fsync') = 'on', current_setting('full_page_writes') = 'on',
    current_setting('max_connections')::int
        - current_setting('superuser_reserved_connections')::int AS connections_allowed,
    (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')
"""
# Of others, and as far as this user may see them.
_TRANSACTIONS: Final = """
SELECT coalesce(extract(epoch FROM max(clock_timestamp() - xact_start)), 0)::float,
    coalesce(extract(epoch FROM max(clock_timestamp() - state_change)
        FILTER (WHERE state LIKE 'idle in transaction%%')), 0)::float
FROM pg_stat_activity
WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
"""
_DEAD_ROWS: Final = """
SELECT relname, n_live_tup, n_dead_tup FROM pg_stat_user_tables
WHERE schemaname = current_schema() AND n_dead_tup > %(rows)s AND n_dead_tup > n_live_tup
ORDER BY n_dead_tup DESC
"""
_THERE: Final = """
SELECT relname FROM pg_class WHERE relnamespace = current_schema()::regnamespace AND relname = ANY (%(names)s)
"""


@dataclass(frozen=True, slots=True)
class Server:
    """What the server tells. Times are in seconds, and 0 where there is no such transaction.

    `behind_seconds` says by how much this machine's clock is behind the server's (ahead, if negative).
    """

    version: str
    database_bytes: int
    fsync: bool
    full_page_writes: bool
    connections_allowed: int
    connections_used: int
    oldest_transaction_seconds: float
    idle_in_transaction_seconds: float
    # Tables with far more dead rows than is good: (name, live rows, dead rows).
    dead_rows: tuple[tuple[str, int, int], ...]
    # Partitions of today and tomorrow that are not there.
    missing_partitions: tuple[str, ...]
    workers: tuple[WorkerSeen, ...]
    behind_seconds: float


def examine_server(connection: Connection) -> Server:
    """Ask the server how it fares. Each question is small, whatever the store holds."""

    def rows(statement: str, **given: Any) -> list[Any]:
        return list(connection.exec_driver_sql(statement, given))

    before = datetime.now(UTC)
    ((told,),) = rows("SELECT clock_timestamp()")
    after = datetime.now(UTC)
    now = told.astimezone(UTC)
    version, size, fsync, full_pages, allowed, used = rows(_SERVER)[0]
    oldest, idle = rows(_TRANSACTIONS)[0]
    days = [(now + timedelta(days=ahead)).date().isoformat() for ahead in (0, 1)]
    wanted = [partitions.name_of(table, day) for day in days for table in partitions.TABLES]
    there = {name for (name,) in rows(_THERE, names=wanted)}
    ours = (*metadata.tables, *(f"{table}_p" for table in partitions.TABLES))
    return Server(
        version=version,
        database_bytes=size,
        fsync=fsync,
        full_page_writes=full_pages,
        connections_allowed=allowed,
        connections_used=used,
        oldest_transaction_seconds=oldest,
        idle_in_transaction_seconds=idle,
        dead_rows=tuple(tuple(row) for row in rows(_DEAD_ROWS, rows=_ALARMING_ROWS) if row[0].startswith(ours)),
        missing_partitions=tuple(name for name in wanted if name not in there),
        workers=workers_seen(rows(WORKERS), now),
        # The question took some time; the answer was given in the middle of it, as far as anybody knows.
        behind_seconds=(now - (before + (after - before) / 2)).total_seconds(),
    )
