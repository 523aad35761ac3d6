"""Rows of a store with a past: copies of what a worker wrote for one event, by the million, made within the server."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import psycopg

from bench.fill_people import PEOPLE, SCATTER
from dispatcher.store.postgres import partitions

PARTITIONED = ("events", "runs", "steps", "messages")
_DAY = "'{day}'"
_AT = "'{day}T' || to_char(time '00:00' + interval '86400 seconds' * (g - {first}) / {count}, 'HH24:MI:SS.US') || 'Z'"
_MS = "(extract(epoch FROM ('{day} 00:00+00')::timestamptz) * 1000)::bigint + (g - {first}) * 86400000 / {count}"
_RANDOM = "md5('{kind}' || g)"
_PERSON = f"'+2782' || lpad((g * {SCATTER} % {PEOPLE} * 2 + 1)::text, 7, '0')"


def _random(kind: str) -> str:
    return f"md5('{kind}' || g)::uuid::text"


def _by_time(kind: str) -> str:
    digits = _RANDOM.format(kind=kind)
    ms = f"lpad(to_hex({_MS}), 12, '0')"
    return (
        f"substr({ms}, 1, 8) || '-' || substr({ms}, 9) || '-7' || substr({digits}, 1, 3) || '-8' || "
        f"substr({digits}, 4, 3) || '-' || substr({digits}, 7, 12)"
    )


# What is each row's own; the rest is as in the row that is copied.
_OWN = {
    "events": {"seq": "g", "event_id": _random("e"), "root_id": _random("e"), "received_at": _AT, "received_on": _DAY},
    "event_ids": {"event_id": _random("e"), "event_seq": "g", "received_on": _DAY},
    "runs": {
        "seq": "g", "run_id": _by_time("r"), "event_seq": "g", "event_id": _random("e"), "received_on": _DAY,
        "started_at": _AT,
    },
    "steps": {"run_seq": "g", "received_on": _DAY, "started_at": _AT},
    "messages": {
        "seq": "g", "message_id": _by_time("m"), "to_addr": _PERSON,
        "event_id": _random("e"), "run_id": _by_time("r"), "at": _AT, "received_on": _DAY,
    },
    "contacts": {
        "seq": "g", "contact_key": _RANDOM.format(kind="c"), "msisdn": _PERSON, "created_at": _AT, "updated_at": _AT,
    },
}  # fmt: skip
_DUE = (
    "to_char(now() AT TIME ZONE 'UTC' + interval '{after} days' "
    "+ interval '{over} days' * ((g * 7919) % {count} + 1) / {count}, {form})"
)
_DUE_FORM = '\'YYYY-MM-DD"T"HH24:MI:SS.US"Z"\''
FIRST = 1_000_000
# Measured: what a filled store takes with its indexes, and how fast it is filled.
BYTES_AN_EVENT = 3700
EVENTS_A_SECOND = 10_000


def multiply(
    url: str, count: int, days: int, event_type: str, *, due: tuple[int, int] | None, last: date | None = None
) -> None:
    """Copy the newest event of a type; with `due`, its run waits: for so many days, and the copies over so many more.

    People have a contact each; they come back after five million events.
    """
    last = last or datetime.now(UTC).date()
    first_day = last - timedelta(days=days - 1)
    with psycopg.connect(url, autocommit=True) as connection:
        partitions.ensure(connection, (first_day + timedelta(days=1)).isoformat(), ahead=days)
        pattern = connection.execute(
            "SELECT seq, received_on FROM events WHERE event_type = %s ORDER BY seq DESC LIMIT 1", (event_type,)
        ).fetchone()
        assert pattern is not None
        (run,) = connection.execute(
            "SELECT seq, run_id FROM runs WHERE event_seq = %s AND received_on = %s", pattern
        ).fetchall()
        (begun,) = connection.execute(f"SELECT coalesce(max(seq), 0) FROM events WHERE seq >= {FIRST}").fetchall()
        start = max(FIRST, begun[0] + 1)
        conditions = {
            "events": f"seq = {pattern[0]}", "event_ids": f"event_seq = {pattern[0]}", "runs": f"seq = {run[0]}",
            "steps": f"run_seq = {run[0]}", "messages": f"run_id = '{run[1]}'",
            "contacts": "seq = (SELECT max(seq) FROM contacts)",
        }  # fmt: skip
        # Kept apart: in a transaction that empties the partition they would be gone.
        for table, condition in conditions.items():
            connection.execute(f"CREATE TEMP TABLE like_{table} AS SELECT * FROM {table} WHERE {condition}")
        for number in range(days):
            lower, upper = (start + count * edge // days for edge in (number, number + 1))
            day = first_day + timedelta(days=number)
            with connection.transaction():
                for table in conditions:
                    _multiply(connection, table, day, lower, upper - lower, due=due)
        for name in ("events_seq", "runs_seq"):  # what comes next is younger
            connection.execute("SELECT setval(%s, %s)", (name, start + count + 64))
        for table in ("messages", "contacts"):
            named = f"pg_get_serial_sequence('{table}', 'seq')"
            connection.execute(f"SELECT setval({named}, {start + count + 64})")
        # What autovacuum would come to do while things are measured.
        connection.execute("VACUUM (ANALYZE)")
        connection.execute("CHECKPOINT")


def _multiply(
    connection: psycopg.Connection, table: str, day: date, first: int, count: int, *, due: tuple[int, int] | None
) -> None:
    own = dict(_OWN[table])
    if due and table == "runs":
        own["due_at"] = _DUE.format(count=count, form=_DUE_FORM, after=due[0], over=due[1])
    target = table
    if table in PARTITIONED:
        target = partitions.name_of(table, day.isoformat())
        if not connection.execute(f"SELECT EXISTS (SELECT 1 FROM {target})").fetchone()[0]:  # type: ignore[index]
            connection.execute(f"TRUNCATE {target}")  # what is written to it now needs no log, with wal_level minimal
    columns = [row[0] for row in connection.execute(
        f"SELECT attname FROM pg_attribute WHERE attrelid = 'like_{table}'::regclass AND attnum > 0 ORDER BY attnum"
    )]  # fmt: skip
    values = ", ".join(
        own[column].format(day=day.isoformat(), first=first, count=count) if column in own else f'p."{column}"'
        for column in columns
    )
    named = ", ".join(f'"{column}"' for column in columns)
    connection.execute(
        f"INSERT INTO {target} ({named}) SELECT {values} FROM generate_series({first}::bigint, {first + count - 1}) g, "
        f"like_{table} p" + (" ON CONFLICT DO NOTHING" if table == "contacts" else "")
    )
