"""The hot statements of the SQLite store, as text, built once from the columns that `engine.records` names."""

from __future__ import annotations

from collections.abc import Sequence

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


def _names(columns: Sequence[str]) -> str:
    return ", ".join(f'"{column}"' for column in columns)


def _insert(table: str, columns: Sequence[str], verb: str = "INSERT") -> str:
    return f"{verb} INTO {table} ({_names(columns)}) VALUES ({', '.join('?' * len(columns))})"


def _upsert(table: str, columns: Sequence[str], key: Sequence[str], changing: Sequence[str]) -> str:
    changes = ", ".join(f'"{column}" = excluded."{column}"' for column in changing)
    return f"{_insert(table, columns)} ON CONFLICT ({_names(key)}) DO UPDATE SET {changes}"


# Writing, in the order of the flush.
INSERT_CHAIN = _insert("chains", ("digest", "name", "text", "first_used_at"), "INSERT OR IGNORE")
INSERT_EVENT = _insert("events", EVENT_COLUMNS)
INSERT_EVENT_ID = _insert("event_ids", EVENT_ID_COLUMNS)
UPDATE_EVENT_STATE = (
    "UPDATE events SET state = ?, rulebook_digest = ?, conversation_type = ?, subject = ?, note = ? WHERE seq = ?"
)
INSERT_RUN = _insert("runs", RUN_COLUMNS)
_CHANGES = ", ".join(f'"{column}" = ?' for column in RUN_COLUMNS[RUN_FIXED:])
UPDATE_RUN = f"UPDATE runs SET {_CHANGES} WHERE seq = ?"  # noqa: S608
UPDATE_UNBOUND_RUN = "UPDATE runs SET state = ?, error = ?, finished_at = ?, due_at = NULL, lane = '' WHERE seq = ?"
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
DELETE_SUPPRESSION = "DELETE FROM suppressions WHERE number_hash = ?"

# Reading, within the batch's transaction.
KNOWN_EVENT = "SELECT body_hash FROM event_ids WHERE account_key = ? AND event_id = ?"
CONTACT = f"SELECT {_names(CONTACT_COLUMNS)} FROM contacts WHERE account_key = ? AND msisdn = ?"  # noqa: S608
CONTACT_NUMBER = "SELECT msisdn FROM contacts WHERE account_key = ? AND contact_key = ?"
OPT_OUT = "SELECT reason FROM opt_outs WHERE account_key = ? AND msisdn = ?"
SUPPRESSED = "SELECT number_hash FROM suppressions"
MESSAGE = f"SELECT {_names(MESSAGE_COLUMNS)} FROM messages WHERE message_id = ?"  # noqa: S608
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
STEPS_OF_RUN = "SELECT position, step, state, result FROM steps WHERE run_seq = ? ORDER BY position, attempt"
CHAIN_TEXT = "SELECT text FROM chains WHERE digest = ?"

# Crashes.
COUNT_CRASH = "UPDATE events SET crash_count = crash_count + 1 WHERE seq = ? RETURNING crash_count, state"
FORGET_CRASHES = "UPDATE events SET crash_count = 0 WHERE seq = ? AND state <> 'dead'"
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
