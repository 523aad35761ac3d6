"""The hot statements of the PostgreSQL store, as text, built once from the columns that `engine.records` names.

Many rows that are surely new go in by COPY; what changes or replaces rows goes in as one JSON document a statement,
read by `json_to_recordset`: measured, both cost a quarter of what a statement a row does. Few go in by a statement a
row all the same, as COPY takes round trips of its own, and those share one. Where the day of a row is known it stands
in the text of the statement (`{day}`), so that the planner looks at one partition only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from dispatcher.engine.records import (
    CONTACT_COLUMNS,
    DEAD_LETTER_COLUMNS,
    EVENT_COLUMNS,
    EVENT_ID_COLUMNS,
    MESSAGE_COLUMNS,
    OUTBOX_COLUMNS,
    RUN_COLUMNS,
    RUN_FIXED,
    STEP_COLUMNS,
)

_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_TYPES: Final[Mapping[str, str]] = {
    "seq": "bigint", "run_seq": "bigint", "event_seq": "bigint", "position": "integer", "attempt": "integer",
    "segments": "integer", "lease_token": "bigint",
}  # fmt: skip
# The database's time as the store keeps times.
_NOW = "to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"


def on_day(statement: str, day: str) -> str:
    """Return a statement with the day of its rows written into it."""
    assert _DAY.fullmatch(day), day
    return statement.replace("{day}", day)


def within(statement: str, days: str) -> str:
    """Return a statement with the condition on its days (see `days`) written into it; an empty one means all."""
    return statement.replace("{days}", days)


def _names(columns: Sequence[str], prefix: str = "") -> str:
    return ", ".join(f'{prefix}"{column}"' for column in columns)


class Rows(NamedTuple):
    """How rows that are surely new go into a table: many, and few of them that share a round trip with others."""

    copy: str
    insert: str


def _into(table: str, columns: Sequence[str]) -> Rows:
    return Rows(
        f"COPY {table} ({_names(columns)}) FROM STDIN",
        f"INSERT INTO {table} ({_names(columns)}) VALUES ({', '.join(['%s'] * len(columns))})",  # noqa: S608
    )


def _rows(columns: Sequence[str]) -> str:
    typed = ", ".join(f'"{column}" {_TYPES.get(column, "text")}' for column in columns)
    return f"json_to_recordset(%s::json) AS c({typed})"


def _update(table: str, columns: Sequence[str], key: Sequence[str], *, dated: bool = True) -> str:
    changes = ", ".join(f'"{column}" = c."{column}"' for column in columns)
    same = " AND ".join(f't."{column}" = c."{column}"' for column in key)
    day = " AND t.received_on = '{day}'" if dated else ""
    return f"UPDATE {table} t SET {changes} FROM {_rows([*columns, *key])} WHERE {same}{day}"  # noqa: S608


def _upsert(table: str, columns: Sequence[str], key: Sequence[str], changing: Sequence[str]) -> str:
    changes = ", ".join(f'"{column}" = excluded."{column}"' for column in changing)
    return (
        f"INSERT INTO {table} ({_names(columns)}) SELECT {_names(columns)} FROM {_rows(columns)} "  # noqa: S608
        f"ON CONFLICT ({_names(key)}) DO UPDATE SET {changes}"
    )


def _each(columns: Sequence[str], table: str, key: str) -> str:
    """Return a query for the rows of one account with these keys, each looked up by itself.

    `key = ANY(...)` leaves it to the planner whether to go through all rows of the account, and where there are no
    statistics yet, or the account is one that they do not know, it thinks those few. OFFSET 0 keeps it from that.
    """
    return (
        f"SELECT found.* FROM (SELECT %s::text AS account, unnest(%s::text[]) AS name) AS wanted, LATERAL ("  # noqa: S608
        f"SELECT {_names(columns)} FROM {table} WHERE account_key = wanted.account AND {key} = wanted.name OFFSET 0"
        ") AS found"
    )


# Who writes what workers are to take tells them, so that idle ones need not ask all the time.
LISTEN = "LISTEN dispatcher"
NOTIFY = "NOTIFY dispatcher"

# Leases.
JOIN = (
    f"INSERT INTO workers (name, host, pid, started_at, seen_at) VALUES (%s, %s, %s, {_NOW}, {_NOW}) RETURNING number"  # noqa: S608
)
PROVE = (
    f"UPDATE workers SET seen_at = {_NOW} WHERE number = %s "  # noqa: S608
    "RETURNING pg_current_xact_id()::text, number, NULL::text"
)
TRANSACTION = (
    "SELECT pg_current_xact_id_if_assigned()::text, NULL::bigint, (SELECT stats_reset::text FROM pg_stat_bgwriter)"
)
LEAVE = (
    "WITH left_now AS (DELETE FROM workers WHERE number = %s RETURNING number) "
    "DELETE FROM channels WHERE worker IN (SELECT number FROM left_now)"
)
LAPSE = "UPDATE workers SET seen_at = '' WHERE number = %s"
_AGO = _NOW.replace("clock_timestamp()", "(clock_timestamp() - make_interval(secs => %({})s))")
# Silent for the length of a lease; or for a part of it, with a session that has ended.
_DEAD = f"""
SELECT w.number FROM workers w
WHERE w.number <> %(me)s AND (
    w.number = ANY(%(surely)s) OR (%(settled)s AND (
        w.seen_at < {_AGO.format("lease")}
        OR (w.seen_at < {_AGO.format("grace")} AND NOT EXISTS (
            SELECT 1 FROM pg_locks l
            WHERE l.locktype = 'advisory' AND l.classid = %(sign)s AND l.objid = w.number::oid AND l.objsubid = 2
              AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
        ))
    )) OR w.seen_at = ''
)
"""  # noqa: S608
DEAD = f"{_DEAD} ORDER BY w.number FOR UPDATE SKIP LOCKED"
SILENT = f"SELECT EXISTS ({_DEAD})"
BURY = "DELETE FROM workers WHERE number = ANY(%s)"
# Of the dead, and of those who left the workers without having settled all.
_LEFT = "(lease_token = ANY(%s) OR NOT EXISTS (SELECT 1 FROM workers w WHERE w.number = lease_token))"
TAKE_RUNS = (
    "UPDATE runs SET lease_token = %s WHERE state IN ('running', 'held') AND state = 'running' "  # noqa: S608
    f"AND {_LEFT} RETURNING seq, received_on"
)
FORGET_CHANNELS = "DELETE FROM channels WHERE worker = ANY(%s)"
KEEP_CHANNELS = "DELETE FROM channels WHERE worker = %s AND epoch <> ALL(%s)"

# Writing, in the order of the flush.
INSERT_CHAIN = "INSERT INTO chains (digest, name, text, first_used_at) VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING"
INTO_EVENTS = _into("events", EVENT_COLUMNS)
INTO_EVENT_IDS = _into("event_ids", EVENT_ID_COLUMNS)
EVENT_STATE_COLUMNS = ("state", "rulebook_digest", "conversation_type", "subject", "note")
UPDATE_EVENT_STATES = _update("events", EVENT_STATE_COLUMNS, ("seq",))
RUN_WRITTEN = (*RUN_COLUMNS, "lease_token")
INTO_RUNS = _into("runs", RUN_WRITTEN)
RUN_CHANGING = RUN_WRITTEN[RUN_FIXED:]
UPDATE_RUNS = _update("runs", RUN_CHANGING, ("seq",))
UNBOUND_COLUMNS = ("state", "error", "finished_at")
UPDATE_UNBOUND_RUNS = _update("runs", UNBOUND_COLUMNS, ("seq",)).replace(
    "UPDATE runs t SET ", "UPDATE runs t SET due_at = NULL, lane = '', "
)
INTO_STEPS = _into("steps", STEP_COLUMNS)
UPSERT_STEPS = _upsert(
    "steps",
    STEP_COLUMNS,
    ("run_seq", "position", "attempt", "received_on"),
    ("state", "result", "error", "finished_at"),
)
UPSERT_CONTACTS = _upsert("contacts", CONTACT_COLUMNS, ("account_key", "msisdn"), CONTACT_COLUMNS[3:])
INSERT_OPT_OUT = "INSERT INTO opt_outs (account_key, msisdn, reason, at) VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING"
DELETE_OPT_OUT = "DELETE FROM opt_outs WHERE account_key = %s AND msisdn = %s"
INTO_MESSAGES = _into("messages", MESSAGE_COLUMNS)
UPSERT_MESSAGES = _upsert(
    "messages",
    MESSAGE_COLUMNS,
    ("message_id", "received_on"),
    ("to_addr", "from_addr", "content", "segments", "encoding", "sender", "state", "gateway_id", "error"),
)
UPDATE_MESSAGE_STATES = (
    "UPDATE messages t SET state = coalesce(c.state, t.state), "  # noqa: S608
    "gateway_id = coalesce(c.gateway_id, t.gateway_id), "
    "error = CASE WHEN c.state IS NULL THEN t.error ELSE c.error END "
    f"FROM {_rows(('message_id', 'state', 'gateway_id', 'error'))} "
    "WHERE t.message_id = c.message_id AND t.received_on = '{day}'"
)
OUTBOX_WRITTEN = (*OUTBOX_COLUMNS, "lease_token")
INTO_OUTBOX = _into("outbox", OUTBOX_WRITTEN)
INTO_DEAD_LETTERS = _into("dead_letters", DEAD_LETTER_COLUMNS)
UPSERT_UNACKED = """
INSERT INTO unacked (epoch, tag, batch, origin, queue, body_hash, event_id, received_on)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (epoch, tag) DO UPDATE SET batch = excluded.batch, origin = excluded.origin, queue = excluded.queue,
    body_hash = excluded.body_hash, event_id = excluded.event_id, received_on = excluded.received_on
"""
FORGET_ACKED = "DELETE FROM unacked WHERE epoch = %s AND tag <= %s"
OPEN_CHANNEL = "INSERT INTO channels (epoch, queue, worker) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING"
END_CHANNELS = "DELETE FROM channels WHERE worker = %s AND queue = %s AND epoch <> %s"
DELETE_SUPPRESSION = "DELETE FROM suppressions WHERE number_hash = %s"

# Reading, within the batch's transaction.
LOCK_CONTACTS = "SELECT pg_advisory_xact_lock(k) FROM unnest(%s::bigint[]) k"
TRY_CONTACTS = "SELECT k FROM unnest(%s::bigint[]) k WHERE NOT pg_try_advisory_xact_lock(k)"
# The first half of the key of a queue's advisory lock; the other one is of its name.
QUEUES = 0x64697175
LOCK_QUEUE = "SELECT pg_advisory_xact_lock(%s, hashtext(%s))"
SHARE_QUEUE = "SELECT pg_advisory_xact_lock_shared(%s, hashtext(%s))"
KNOWN_EVENTS = _each(("event_id", "body_hash"), "event_ids", "event_id")
CONTACTS = _each(CONTACT_COLUMNS, "contacts", "msisdn")
CONTACT_NUMBER = "SELECT msisdn FROM contacts WHERE account_key = %s AND contact_key = %s"
OPT_OUTS = _each(("msisdn", "reason"), "opt_outs", "msisdn")
SUPPRESSED_ANY = "SELECT EXISTS (SELECT 1 FROM suppressions)"
SUPPRESSED = "SELECT number_hash FROM suppressions WHERE number_hash = ANY(%s)"
MESSAGE = f"SELECT {_names(MESSAGE_COLUMNS)} FROM messages WHERE message_id = %s AND received_on = '{{day}}'"  # noqa: S608
TEXTED = """
SELECT m.message_id, m.account_key, m.to_addr, m.sender, m.state, m.event_id, i.event_seq, i.received_on FROM messages m
LEFT JOIN event_ids i ON i.account_key = m.account_key AND i.event_id = m.event_id
WHERE m.message_id = ANY(%s) AND m.received_on = '{day}' ORDER BY m.message_id FOR NO KEY UPDATE OF m
"""
CAUSES = (
    "SELECT seq, conversation_key, root_id, hops, traceparent FROM events WHERE seq = ANY(%s) AND received_on = '{day}'"
)
# Of channels that nobody holds open any more; `held` tells that one of a live worker would fit, too.
REPEATED = """
SELECT u.epoch, u.tag, u.batch, u.origin, u.body_hash, u.event_id, c.epoch IS NOT NULL AS held
FROM unacked u LEFT JOIN (channels c JOIN workers w ON w.number = c.worker) ON c.epoch = u.epoch
WHERE u.queue = %s AND u.epoch <> %s AND u.body_hash = %s
ORDER BY held, u.epoch DESC, u.tag LIMIT 1 FOR UPDATE OF u SKIP LOCKED
"""
LEFT = """
SELECT DISTINCT epoch FROM unacked u
WHERE queue = %s AND epoch <> %s AND NOT EXISTS (
    SELECT 1 FROM channels c JOIN workers w ON w.number = c.worker WHERE c.epoch = u.epoch
)
"""
DELETE_UNACKED = "DELETE FROM unacked WHERE epoch = %s AND tag = %s"
# Nothing descends from a root before its day, where that is known.
FAMILIES = """
SELECT k.root_id, f.count, f.stopped
FROM unnest(%s::text[], %s::text[]) AS k(account_key, root_id)
LEFT JOIN event_ids i ON i.account_key = k.account_key AND i.event_id = k.root_id
CROSS JOIN LATERAL (
    SELECT count(*), coalesce(bool_or(e.state = 'dead'), false) AS stopped FROM events e
    WHERE e.root_id = k.root_id AND e.hops > 0 AND e.received_on >= coalesce(i.received_on, '')
) f
"""
BLOCK = "SELECT nextval(%s::regclass) FROM generate_series(1, %s)"

EVENT_READ = (
    "seq", "event_id", "account_key", "conversation_key", "conversation_type", "event_type", "event_data",
    "timestamp", "received_at", "source", "subject", "root_id", "parent_id", "hops", "traceparent", "extra",
    "generation", "crash_count",
)  # fmt: skip
_EVENT = _names(EVENT_READ, "e.")
# Of each day whether it has new events, and runs that are due or wait for a slot. The least of each is the first entry
# of its index; whether there is any at all, the planner would rather find out by reading the day.
DAYS = """
SELECT d, (SELECT min(account_key) FROM events WHERE received_on = d AND state = 'new') IS NOT NULL,
       coalesce((SELECT min(due_at) FROM runs WHERE received_on = d AND lane = '' AND due_at IS NOT NULL) <= %s, false)
       OR (SELECT min(lane) FROM runs WHERE received_on = d AND lane > '' AND due_at IS NOT NULL) IS NOT NULL
FROM unnest(%s::text[]) d
"""
ACCOUNTS_WITH_NEW = """
WITH RECURSIVE turn(account) AS (
    SELECT (SELECT min(account_key) FROM events WHERE state = 'new' AND account_key > %(last)s{days})
    UNION ALL
    SELECT (SELECT min(account_key) FROM events WHERE state = 'new' AND account_key > turn.account{days})
    FROM turn WHERE turn.account IS NOT NULL
)
SELECT account FROM turn WHERE account IS NOT NULL LIMIT %(most)s
"""
NEW_EVENTS = f"""
SELECT {_EVENT} FROM events e
WHERE e.state = 'new' AND e.account_key = %s AND e.seq > %s AND e.crash_count = 0{{days}}
ORDER BY e.seq LIMIT %s FOR UPDATE SKIP LOCKED
"""  # noqa: S608
NEW_EVENT = f"SELECT {_EVENT} FROM events e WHERE e.seq = %s AND e.state = 'new' FOR UPDATE SKIP LOCKED"  # noqa: S608
STILL_NEW = (
    "SELECT seq FROM events WHERE seq = ANY(%s) AND received_on = '{day}' AND state = 'new' FOR UPDATE SKIP LOCKED"
)
ACCOUNTS_WITH_DUE = """
WITH RECURSIVE turn(account) AS (
    SELECT (SELECT min(account_key) FROM runs
            WHERE due_at IS NOT NULL AND lane = %(lane)s AND account_key > %(last)s{days})
    UNION ALL
    SELECT (SELECT min(account_key) FROM runs
            WHERE due_at IS NOT NULL AND lane = %(lane)s AND account_key > turn.account{days})
    FROM turn WHERE turn.account IS NOT NULL
)
SELECT account FROM turn WHERE account IS NOT NULL LIMIT %(most)s
"""
DUE = (
    "SELECT seq, received_on FROM runs WHERE lane = %s AND due_at <= %s AND due_at IS NOT NULL{days} "
    "ORDER BY due_at LIMIT %s FOR UPDATE SKIP LOCKED"
)
DUE_OF_ACCOUNT = (
    "SELECT seq, received_on FROM runs "
    "WHERE lane = %s AND account_key = %s AND due_at <= %s AND due_at IS NOT NULL{days} "
    "ORDER BY due_at LIMIT %s FOR UPDATE SKIP LOCKED"
)
DUE_OF_EVENT = "SELECT seq, received_on FROM runs WHERE event_seq = %s AND due_at <= %s FOR UPDATE SKIP LOCKED"
NEXT_DUE = "SELECT min(due_at) FROM runs WHERE lane = '' AND due_at IS NOT NULL"
QUEUED_LANES = "SELECT lane, count(*) FROM runs WHERE due_at IS NOT NULL AND lane > ''{days} GROUP BY lane"
# The first condition is that of the index `runs_open`.
RUNNING = (
    "SELECT seq, received_on FROM runs WHERE state IN ('running', 'held') AND state = 'running' "
    "AND lease_token IS NOT DISTINCT FROM %s FOR UPDATE SKIP LOCKED"
)
RUNNING_OF_EVENT = (
    "SELECT seq, received_on FROM runs WHERE event_seq = %s AND state = 'running' "
    "AND lease_token IS NOT DISTINCT FROM %s FOR UPDATE SKIP LOCKED"
)
_RUN = _names(RUN_COLUMNS, "r.")
RUNS_WITH_EVENTS = f"""
SELECT {_RUN}, {_EVENT} FROM runs r JOIN events e ON e.seq = r.event_seq
WHERE r.received_on = '{{day}}' AND e.received_on = '{{day}}' AND r.seq = ANY(%s)
ORDER BY r.seq FOR NO KEY UPDATE OF r
"""  # noqa: S608
STEPS_OF_RUNS = (
    "SELECT run_seq, position, step, state, result, finished_at FROM steps "
    "WHERE received_on = '{day}' AND run_seq = ANY(%s) ORDER BY run_seq, position, attempt"
)
CHAIN_TEXT = "SELECT text FROM chains WHERE digest = %s"

# Crashes.
COUNT_CRASH = "UPDATE events SET crash_count = crash_count + 1 WHERE seq = %s RETURNING crash_count, event_id"
# Not of one that another worker runs alone at this moment.
FORGET_CRASHES = (
    "UPDATE events SET crash_count = 0 WHERE seq IN "
    "(SELECT seq FROM events WHERE seq = %s AND state NOT IN ('new', 'dead') FOR UPDATE SKIP LOCKED)"
)
PARK_CRASHED_EVENT = "UPDATE events SET state = 'dead', note = %s WHERE seq = %s"
PARK_CRASHED_RUNS = (
    "UPDATE runs SET state = 'failed', error = %s, finished_at = %s, due_at = NULL, lane = '', lease_token = NULL "
    "WHERE event_seq = %s AND state IN ('ready', 'running', 'waiting', 'retrying')"
)
PARK_CRASHED_LETTER = (
    "INSERT INTO dead_letters (dead_id, kind, reason, detail, account_key, event_id, at) "
    "SELECT %s, 'event', 'crashed', %s, account_key, event_id, %s FROM events WHERE seq = %s"
)
SUSPECTS = "SELECT seq FROM events WHERE state = 'new' AND crash_count > 0"

# The outbox and its relay.
_OUTBOX = _names(OUTBOX_COLUMNS)
OUTBOX_LANES = """
WITH RECURSIVE lanes(lane) AS (
    SELECT (SELECT min(lane) FROM outbox WHERE state = 'ready')
    UNION ALL
    SELECT (SELECT min(lane) FROM outbox WHERE state = 'ready' AND lane > lanes.lane) FROM lanes
    WHERE lanes.lane IS NOT NULL
)
SELECT lane FROM lanes WHERE lane IS NOT NULL
"""
OUTBOX_DUE = (
    f"SELECT {_OUTBOX} FROM outbox WHERE state = 'ready' AND lane = %s AND not_before <= %s "  # noqa: S608
    "ORDER BY not_before, seq LIMIT %s FOR UPDATE SKIP LOCKED"
)
OUTBOX_NEXT = "SELECT min(not_before) FROM outbox WHERE state = 'ready' AND lane = %s"
TAKE_SENDING = f"UPDATE outbox SET lease_token = %s WHERE state = 'sending' AND {_LEFT} RETURNING {_OUTBOX}"  # noqa: S608
SENDING = f"SELECT {_OUTBOX} FROM outbox WHERE state = 'sending' AND lease_token IS NOT DISTINCT FROM %s"  # noqa: S608
CLAIM_OUTBOX = "UPDATE outbox SET state = 'sending', lease_token = %s WHERE seq = ANY(%s)"
DELETE_OUTBOX = "DELETE FROM outbox WHERE seq = ANY(%s) RETURNING seq"
PUT_OFF_OUTBOX = (
    "UPDATE outbox SET state = 'ready', attempt = %s, not_before = %s, error = %s, lease_token = NULL WHERE seq = %s"
)
HOLD_OUTBOX = "UPDATE outbox SET state = 'held', error = %s, lease_token = NULL WHERE seq = %s RETURNING seq"
TEXTS_SENT = (
    "UPDATE messages SET state = 'sent', error = NULL "
    "WHERE message_id = ANY(%s) AND state = 'queued' AND received_on = '{day}'"
)
TEXT_OTHERWISE = (
    "UPDATE messages SET state = %s, error = %s WHERE message_id = %s AND state = 'queued' AND received_on = '{day}'"
)
TEXTS_OPTED_OUT = (
    "SELECT m.message_id, o.reason FROM messages m "
    "JOIN opt_outs o ON o.account_key = m.account_key AND o.msisdn = m.to_addr "
    "WHERE m.message_id = ANY(%s) AND m.received_on = '{day}'"
)
TEXTS_REPORTED = (
    "SELECT message_id FROM messages WHERE message_id = ANY(%s) AND received_on = '{day}' "
    "AND state NOT IN ('queued', 'held')"
)
HOLD_DONE_RUN = "UPDATE runs SET state = 'held', error = %s WHERE run_id = %s AND state = 'done'"
HELD_RUNS = "SELECT run_id, step, error FROM outbox WHERE state = 'held' AND run_id = ANY(%s)"
RUNS_OF_HELD = "SELECT DISTINCT run_id FROM outbox WHERE state = 'held' AND message_id = ANY(%s)"
LOCK_RUNS = "SELECT seq FROM runs WHERE run_id = ANY(%s) ORDER BY seq FOR NO KEY UPDATE"
DELETE_HELD = "DELETE FROM outbox WHERE state = 'held' AND message_id = ANY(%s) RETURNING run_id, step"
HELD_OF_RUN = "SELECT step FROM outbox WHERE state = 'held' AND run_id = %s"
RELEASE_RUN = (
    "UPDATE runs SET state = 'done', error = NULL WHERE run_id = %s AND state = 'held' AND finished_at IS NOT NULL"
)
CLOSE_UNKNOWN_LETTERS = (
    "UPDATE dead_letters SET state = 'replayed' WHERE run_id = %s AND reason = 'unknown' AND state = 'open' "
    "AND starts_with(detail, %s)"
)
INSERT_DEAD_LETTER = (
    f"INSERT INTO dead_letters ({_names(DEAD_LETTER_COLUMNS)}) "  # noqa: S608
    f"VALUES ({', '.join(['%s'] * len(DEAD_LETTER_COLUMNS))})"
)
