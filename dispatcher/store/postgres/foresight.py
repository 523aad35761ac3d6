"""What the planner is told of a table before it has rows, so that its first plans are the right ones.

PostgreSQL plans a query by statistics of the rows, which it gathers a minute or more after there are some. Until then
it takes every condition for a rare one: `received_on` of a day's partition, which all its rows have, as much as their
number; and each batch reads the day from its beginning. It is not only the first minute of a store, but of each day.

So a new table gets a few rows that are like those to come, is analyzed, and emptied. The statistics stay until there
are better ones; that of an empty table changes nothing.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import psycopg
from psycopg import sql

Runner: TypeAlias = "psycopg.Connection[Any] | psycopg.Cursor[Any]"

_ROWS: Final = 200
_ID: Final = "md5(g::text)"
_ACCOUNT: Final = "'account-' || g % 10"
# Columns by how a row of them looks, `g` being its number. Those that stand nowhere here are NULL; those whose values
# no query compares bear any.
_LIKE: Final[dict[str, dict[str, str]]] = {
    "events": {
        "seq": "g", "event_id": _ID, "account_key": _ACCOUNT, "conversation_key": "g % 10", "event_type": "g % 4",
        "event_data": _ID, "timestamp": "g", "received_at": "g", "received_on": "{day}", "source": "''",
        "root_id": _ID, "hops": "CASE WHEN g % 20 = 0 THEN 1 ELSE 0 END", "weak": "false",
        "state": "CASE WHEN g % 50 = 0 THEN 'new' ELSE 'matched' END",
    },
    "runs": {
        "seq": "g", "run_id": _ID, "event_seq": "g", "event_id": _ID, "account_key": _ACCOUNT, "chain": "g % 4",
        "chain_digest": "g % 4", "generation": "1", "started_at": "g", "received_on": "{day}",
        "state": "CASE WHEN g % 50 = 0 THEN 'waiting' WHEN g % 75 = 0 THEN 'running' ELSE 'done' END",
        "position": "2", "attempt": "0", "due_at": "CASE WHEN g % 50 = 0 THEN {day} || 'T' || g END",
        "lane": "CASE WHEN g % 100 = 0 THEN 'lane' ELSE '' END", "finished_at": "g",
    },
    "steps": {
        "run_seq": "g / 2", "position": "g % 2", "attempt": "0", "step": "g % 2", "handler": "g % 2",
        "state": "'done'", "started_at": "g", "received_on": "{day}",
    },
    "messages": {
        "seq": "g", "message_id": _ID, "account_key": _ACCOUNT, "to_addr": _ID, "content": _ID, "segments": "1",
        "encoding": "''", "sender": "''", "state": "CASE WHEN g % 50 = 0 THEN 'queued' ELSE 'sent' END",
        "event_id": _ID, "run_id": _ID, "step": "g % 2", "at": "g", "received_on": "{day}",
    },
    "contacts": {
        "seq": "g", "contact_key": _ID, "account_key": _ACCOUNT, "msisdn": _ID, "groups": "''", "subscription": "''",
        "extra": "''", "created_at": "g", "updated_at": "g",
    },
    "event_ids": {
        "account_key": _ACCOUNT, "event_id": _ID, "event_seq": "g", "body_hash": "decode(md5(g::text), 'hex')",
        "received_on": "g % 10",
    },
    "opt_outs": {"account_key": _ACCOUNT, "msisdn": _ID, "reason": "''", "at": "g"},
}  # fmt: skip

# Those that have no partitions.
WHOLE: Final = ("contacts", "event_ids", "opt_outs")


def foresee(connection: Runner, table: str, *, name: str | None = None, day: str = "") -> None:
    """Give an empty table the statistics of those that `table` will have; `name` is that of its partition of a day.

    The table must be this transaction's own, or nobody else's yet: it is emptied.
    """
    target, columns = sql.Identifier(name or table), _LIKE[table]
    connection.execute(
        sql.SQL("INSERT INTO {} ({}) SELECT {} FROM generate_series(1, {}) g").format(
            target,
            sql.SQL(", ").join(map(sql.Identifier, columns)),
            sql.SQL(", ").join(sql.SQL(like).format(day=sql.Literal(day)) for like in columns.values()),
            _ROWS,
        )
    )
    connection.execute(sql.SQL("ANALYZE {}").format(target))
    connection.execute(sql.SQL("TRUNCATE {}").format(target))
