"""The hot statements of the SQLite store, as text, built once from the columns that `engine.records` names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

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
    UNACKED_COLUMNS,
)


def _names(columns: Sequence[str]) -> str:
    return ", ".join(f'"{column}"' for column in columns)


def _insert(table: str, columns: Sequence[str], verb: str = "INSERT") -> str:
    return f"{verb} INTO {table} ({_names(columns)}) VALUES ({', '.join('?' * len(columns))})"


def _upsert(table: str, columns: Sequence[str], key: Sequence[str], changing: Sequence[str]) -> str:
    changes = ", ".join(f'"{column}" = excluded."{column}"' for column in changing)
    return f"{_insert(table, columns)} ON CONFLICT ({_names(key)}) DO UPDATE SET {changes}"


@dataclass(frozen=True, slots=True)
class Lookup:
    """A query for rows by a key of two texts: for one key, and for `AT_ONCE` of them, each row led by its key.

    A key that is NULL finds nothing, so the last keys of many need no query of their own.
    """

    AT_ONCE: ClassVar = 64

    one: str
    many: str

    @classmethod
    def of(cls, table: str, key: tuple[str, str], columns: Sequence[str]) -> Lookup:
        """Return the query for these columns of a table with this key."""
        wanted = _names((*key, *columns))
        first, second = key
        # The other way round, `(a, b) IN (VALUES ...)`, SQLite scans the table. CROSS JOIN fixes the order.
        return cls(
            f'SELECT {wanted} FROM {table} WHERE "{first}" = ? AND "{second}" = ?',  # noqa: S608
            f"WITH wanted(a, b) AS (VALUES {', '.join(['(?, ?)'] * cls.AT_ONCE)}) "  # noqa: S608
            f'SELECT {wanted} FROM wanted CROSS JOIN {table} ON "{first}" = a AND "{second}" = b',
        )


# Writing, in the order of the flush.
INSERT_CHAIN = _insert("chains", ("digest", "name", "text", "first_used_at"), "INSERT OR IGNORE")
INSERT_EVENT = _insert("events", EVENT_COLUMNS)
INSERT_EVENT_ID = _insert("event_ids", EVENT_ID_COLUMNS)
UPDATE_EVENT_STATE = (
    "UPDATE events SET state = ?, rulebook_digest = ?, conversation_type = ?, subject = ?, note = ? "
    "WHERE seq = ? AND received_on = ?"
)
INSERT_RUN = _insert("runs", RUN_COLUMNS)
_CHANGES = ", ".join(f'"{column}" = ?' for column in RUN_COLUMNS[RUN_FIXED:])
UPDATE_RUN = f"UPDATE runs SET {_CHANGES} WHERE seq = ?"  # noqa: S608
UPDATE_UNBOUND_RUN = (
    "UPDATE runs SET state = ?, error = ?, finished_at = ?, due_at = NULL, lane = '' WHERE seq = ? AND received_on = ?"
)
UPSERT_STEP = _upsert(
    "steps",
    STEP_COLUMNS,
    ("run_seq", "position", "attempt"),
    ("state", "result", "error", "finished_at"),
)
UPSERT_CONTACT = _upsert("contacts", CONTACT_COLUMNS, ("account_key", "msisdn"), CONTACT_COLUMNS[3:])
INSERT_OPT_OUT = _insert("opt_outs", ("account_key", "msisdn", "reason", "at"), "INSERT OR IGNORE")
DELETE_OPT_OUT = "DELETE FROM opt_outs WHERE account_key = ? AND msisdn = ?"
UPSERT_MESSAGE = _upsert(
    "messages",
    MESSAGE_COLUMNS,
    ("message_id",),
    ("to_addr", "from_addr", "content", "segments", "encoding", "sender", "state", "gateway_id", "error"),
)
INSERT_OUTBOX = _insert("outbox", OUTBOX_COLUMNS)
INSERT_DEAD_LETTER = _insert("dead_letters", DEAD_LETTER_COLUMNS)
UPDATE_MESSAGE_STATE = (
    "UPDATE messages SET state = coalesce(?1, state), gateway_id = coalesce(?2, gateway_id), "
    "error = CASE WHEN ?1 IS NULL THEN error ELSE ?3 END WHERE message_id = ?4"
)
INSERT_UNACKED = _insert("unacked", UNACKED_COLUMNS, "INSERT OR REPLACE")
FORGET_PAST = "DELETE FROM unacked WHERE queue = ? AND epoch <> ?"
FORGET_ACKED = "DELETE FROM unacked WHERE epoch = ? AND tag <= ?"
DELETE_SUPPRESSION = "DELETE FROM suppressions WHERE number_hash = ?"

# Reading, within the batch's transaction.
CONTACT_NUMBER = "SELECT msisdn FROM contacts WHERE account_key = ? AND contact_key = ?"
KNOWN_EVENTS = Lookup.of("event_ids", ("account_key", "event_id"), ("body_hash",))
CONTACTS = Lookup.of("contacts", ("account_key", "msisdn"), CONTACT_COLUMNS[2:])
OPT_OUTS = Lookup.of("opt_outs", ("account_key", "msisdn"), ("reason",))
SUPPRESSED = "SELECT number_hash FROM suppressions"
MESSAGE = f"SELECT {_names(MESSAGE_COLUMNS)} FROM messages WHERE message_id = ?"  # noqa: S608
TEXTED = """
SELECT m.account_key, m.to_addr, m.sender, m.state, m.event_id, e.conversation_key, e.root_id, e.hops, e.traceparent
FROM messages m
LEFT JOIN event_ids i ON i.account_key = m.account_key AND i.event_id = m.event_id
LEFT JOIN events e ON e.seq = i.event_seq
WHERE m.message_id = ?
"""
UNACKED = """
SELECT epoch, tag, batch, origin, body_hash, event_id FROM unacked
WHERE queue = ? AND epoch <> ? ORDER BY epoch DESC, tag
"""
FAMILY = "SELECT count(*), coalesce(max(state = 'dead'), 0) FROM events WHERE root_id = ? AND hops > 0"

EVENT_READ = (
    "seq", "event_id", "account_key", "conversation_key", "conversation_type", "event_type", "event_data",
    "timestamp", "received_at", "source", "subject", "root_id", "parent_id", "hops", "traceparent", "extra",
    "generation", "crash_count",
)  # fmt: skip
_EVENT = ", ".join(f"e.{column}" for column in EVENT_READ)

# Accounts that have new events, from behind the one served last: a walk over the index, one probe an account.
ACCOUNTS_WITH_NEW = """
WITH RECURSIVE turn(account) AS (
    SELECT (SELECT min(account_key) FROM events WHERE state = 'new' AND account_key > ?)
    UNION ALL
    SELECT (SELECT min(account_key) FROM events WHERE state = 'new' AND account_key > turn.account)
    FROM turn WHERE turn.account IS NOT NULL
)
SELECT account FROM turn WHERE account IS NOT NULL LIMIT ?
"""
NEW_EVENTS = f"""
SELECT {_EVENT} FROM events e
WHERE e.state = 'new' AND e.account_key = ? AND e.seq > ? AND e.crash_count = 0 ORDER BY e.seq LIMIT ?
"""  # noqa: S608
NEW_EVENT = f"SELECT {_EVENT} FROM events e WHERE e.seq = ? AND e.state = 'new'"  # noqa: S608

ACCOUNTS_WITH_DUE = """
WITH RECURSIVE turn(account) AS (
    SELECT (SELECT min(account_key) FROM runs WHERE due_at IS NOT NULL AND lane = ?1 AND account_key > ?2)
    UNION ALL
    SELECT (SELECT min(account_key) FROM runs WHERE due_at IS NOT NULL AND lane = ?1 AND account_key > turn.account)
    FROM turn WHERE turn.account IS NOT NULL
)
SELECT account FROM turn WHERE account IS NOT NULL LIMIT ?3
"""
DUE = "SELECT seq FROM runs WHERE lane = ? AND due_at <= ? AND due_at IS NOT NULL ORDER BY due_at LIMIT ?"
DUE_OF_ACCOUNT = (
    "SELECT seq FROM runs WHERE lane = ? AND account_key = ? AND due_at <= ? AND due_at IS NOT NULL "
    "ORDER BY due_at LIMIT ?"
)
DUE_OF_EVENT = "SELECT seq FROM runs WHERE event_seq = ? AND due_at <= ?"
NEXT_DUE = "SELECT min(due_at) FROM runs WHERE lane = '' AND due_at IS NOT NULL"
QUEUED_LANES = "SELECT lane, count(*) FROM runs WHERE due_at IS NOT NULL AND lane > '' GROUP BY lane"
# The first condition is that of the index `runs_open`: SQLite uses it only for a query that repeats it.
RUNNING = "SELECT seq FROM runs WHERE state IN ('running', 'held') AND state = 'running'"
RUNNING_OF_EVENT = "SELECT seq FROM runs WHERE event_seq = ? AND state = 'running'"
_RUN = ", ".join(f"r.{column}" for column in RUN_COLUMNS)
RUN_WITH_EVENT = f"SELECT {_RUN}, {_EVENT} FROM runs r JOIN events e ON e.seq = r.event_seq WHERE r.seq = ?"  # noqa: S608
STEPS_OF_RUN = (
    "SELECT position, step, state, result, finished_at FROM steps WHERE run_seq = ? ORDER BY position, attempt"
)
CHAIN_TEXT = "SELECT text FROM chains WHERE digest = ?"

# Crashes.
COUNT_CRASH = "UPDATE events SET crash_count = crash_count + 1 WHERE seq = ? RETURNING crash_count, event_id"
FORGET_CRASHES = "UPDATE events SET crash_count = 0 WHERE seq = ? AND state NOT IN ('new', 'dead')"
PARK_CRASHED_EVENT = "UPDATE events SET state = 'dead', note = ? WHERE seq = ?"
PARK_CRASHED_RUNS = (
    "UPDATE runs SET state = 'failed', error = ?, finished_at = ?, due_at = NULL, lane = '' "
    "WHERE event_seq = ? AND state IN ('ready', 'running', 'waiting', 'retrying')"
)
PARK_CRASHED_LETTER = (
    "INSERT INTO dead_letters (dead_id, kind, reason, detail, account_key, event_id, at) "
    "SELECT ?, 'event', 'crashed', ?, account_key, event_id, ? FROM events WHERE seq = ?"
)
SUSPECTS = "SELECT seq FROM events WHERE state = 'new' AND crash_count > 0"

# The outbox and its relay.
_OUTBOX = _names(OUTBOX_COLUMNS)
# Each lane that has rows to send: a walk over the index, one probe a lane.
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
    f"SELECT {_OUTBOX} FROM outbox WHERE state = 'ready' AND lane = ? AND not_before <= ? "  # noqa: S608
    "ORDER BY not_before, seq LIMIT ?"
)
OUTBOX_NEXT = "SELECT min(not_before) FROM outbox WHERE state = 'ready' AND lane = ?"
OUTBOX_SENDING = f"SELECT {_OUTBOX} FROM outbox WHERE state = 'sending'"  # noqa: S608
CLAIM_OUTBOX = "UPDATE outbox SET state = 'sending' WHERE seq = ?"
DELETE_OUTBOX = "DELETE FROM outbox WHERE seq = ?"
PUT_OFF_OUTBOX = "UPDATE outbox SET state = 'ready', attempt = ?, not_before = ?, error = ? WHERE seq = ?"
HOLD_OUTBOX = "UPDATE outbox SET state = 'held', error = ? WHERE seq = ?"
# A transport may report on a text before its confirm was recorded.
TEXT_SENT = "UPDATE messages SET state = 'sent', error = NULL WHERE message_id = ? AND state = 'queued'"
TEXT_OTHERWISE = "UPDATE messages SET state = ?, error = ? WHERE message_id = ? AND state = 'queued'"
# Whom a text is for, and why that person asked for no more.
TEXT_OPTED_OUT = (
    "SELECT o.reason FROM messages m JOIN opt_outs o ON o.account_key = m.account_key AND o.msisdn = m.to_addr "
    "WHERE m.message_id = ?"
)
TEXT_STATE = "SELECT state FROM messages WHERE message_id = ?"
HOLD_DONE_RUN = "UPDATE runs SET state = 'held', error = ? WHERE run_id = ? AND state = 'done'"
# A run that comes to its end while a text of it is held is held too.
HOLD_ENDING_RUN = """
UPDATE runs SET state = 'held', error = (
    SELECT o.step || ': unknown: ' || coalesce(o.error, '') FROM outbox o
    WHERE o.state = 'held' AND o.run_id = runs.run_id
) WHERE seq = ? AND EXISTS (SELECT 1 FROM outbox o WHERE o.state = 'held' AND o.run_id = runs.run_id)
"""
# What a report on a held text settles: it was published.
DELETE_HELD = "DELETE FROM outbox WHERE state = 'held' AND message_id = ? RETURNING run_id, step"
HELD_OF_RUN = "SELECT step FROM outbox WHERE state = 'held' AND run_id = ?"
RELEASE_RUN = (
    "UPDATE runs SET state = 'done', error = NULL WHERE run_id = ? AND state = 'held' AND finished_at IS NOT NULL"
)
CLOSE_UNKNOWN_LETTERS = (
    "UPDATE dead_letters SET state = 'replayed' WHERE run_id = ?1 AND reason = 'unknown' AND state = 'open' "
    "AND substr(detail, 1, length(?2)) = ?2"
)
