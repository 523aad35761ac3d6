"""Erase a person: the contact, and every trace of the number in events, results, texts and dead letters.

What the law asks for (POPIA s24 and s14(4)-(5), GDPR art. 17) is that the person cannot be reconstructed, so what is
left behind is overwritten too: the file is vacuumed and its log truncated. A keyed hash of the number is kept: it counts
as an opt-out, as the opt-out that the person may have had is erased with the rest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, func, insert, or_, select, update

from dispatcher.engine.records import as_text
from dispatcher.store.lookup import find_contact
from dispatcher.store.schema import (
    audit,
    contacts,
    dead_letters,
    events,
    messages,
    opt_outs,
    outbox,
    runs,
    steps,
    suppressions,
)
from dispatcher.store.sqlite import SqliteStore
from dispatcher.store.suppressions import number_hash

_ERASED = "[erased]"


def erase_contact(store: SqliteStore, text: str, account: str | None, *, actor: str, now: datetime) -> dict[str, Any]:
    """Erase the contact that `text` names (a number in any spelling, or a key). Raises NotFound, NotPossible."""
    secret = store.facts["secret"]

    def change(connection: Connection) -> tuple[str, bytes, int]:
        account_key, msisdn = find_contact(connection, text, account)
        at = as_text(now)
        digest = number_hash(secret, account_key, msisdn)
        connection.execute(delete(suppressions).where(suppressions.c.number_hash == digest))
        connection.execute(insert(suppressions).values(number_hash=digest, at=at))
        count = _erase(connection, account_key, msisdn)
        # The hash, not the number: the audit must not bring back what was erased.
        connection.execute(
            insert(audit).values(at=at, actor=actor, verb="contacts.erase", target=digest.hex()[:16], detail=None)
        )
        return account_key, digest, count

    account_key, digest, count = store.administer(change)
    store.suppressed.add(digest)
    store.connection.execute("VACUUM")
    store.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    message = f"the contact of account {account_key} is erased, with {count} rows that named the number"
    return {"changed": count, "ids": [], "message": message}


def _erase(connection: Connection, account_key: str, msisdn: str) -> int:
    """Remove or blank every row of the account that names the number; return how many."""
    pattern = _spellings(msisdn)
    count = 0
    for table in (contacts, opt_outs):
        mine = (table.c.account_key == account_key, table.c.msisdn == msisdn)
        count += connection.execute(delete(table).where(*mine)).rowcount
    count += connection.execute(
        update(messages)
        .where(messages.c.account_key == account_key, messages.c.to_addr == msisdn)
        .values(to_addr=_ERASED, content=_ERASED, error=None)
    ).rowcount
    tail = msisdn[-6:]
    named = select(events.c.seq, events.c.event_id, events.c.event_data, events.c.extra, events.c.subject).where(
        events.c.account_key == account_key,
        or_(*(func.instr(column, tail) > 0 for column in (events.c.event_data, events.c.extra, events.c.subject))),
    )
    # Spaces and dashes may stand anywhere in a number, so rows are also found by what the engine made of them.
    touched = {row.seq: row for row in connection.execute(named)}
    by_result = (
        select(runs.c.event_seq)
        .join(steps, steps.c.run_seq == runs.c.seq)
        .where(runs.c.account_key == account_key, func.instr(steps.c.result, msisdn) > 0)
    )
    for (seq,) in connection.execute(by_result.distinct()).all():
        if seq not in touched:
            row = connection.execute(
                select(events.c.seq, events.c.event_id, events.c.event_data, events.c.extra, events.c.subject).where(
                    events.c.seq == seq
                )
            ).one()
            touched[seq] = row
    for seq, row in touched.items():
        count += _blank_event(connection, seq, row, pattern)
    return count + _blank_letters(connection, account_key, pattern, [row.event_id for row in touched.values()])


def _blank_event(connection: Connection, seq: int, row: Any, pattern: re.Pattern[str]) -> int:
    """Blank one event's payload and what its runs left, where the number is named."""
    whole = " ".join(str(part or "") for part in (row.event_data, row.extra, row.subject))
    run_rows = connection.execute(select(runs.c.seq, runs.c.run_id).where(runs.c.event_seq == seq)).all()
    run_seqs, run_ids = [run.seq for run in run_rows], [run.run_id for run in run_rows]
    results = connection.execute(select(steps.c.result, steps.c.error).where(steps.c.run_seq.in_(run_seqs))).all()
    if not pattern.search(whole) and not any(pattern.search(f"{result} {error}") for result, error in results):
        return 0
    # The whole payload: beside the number stand the name and the answers of the same person.
    connection.execute(
        update(events)
        .where(events.c.seq == seq)
        .values(event_data=json.dumps({"erased": True}), extra=None, subject=None, note=None)
    )
    connection.execute(update(steps).where(steps.c.run_seq.in_(run_seqs)).values(result=None, error=None))
    connection.execute(update(runs).where(runs.c.seq.in_(run_seqs)).values(error=None, cursor=None))
    open_states = ("ready", "running", "waiting", "retrying", "held")
    connection.execute(
        update(runs)
        .where(runs.c.seq.in_(run_seqs), runs.c.state.in_(open_states))
        .values(state="cancelled", due_at=None, lane="", error="cancelled: the person was erased")
    )
    connection.execute(delete(outbox).where(outbox.c.run_id.in_(run_ids)))
    return 1


def _blank_letters(connection: Connection, account_key: str, pattern: re.Pattern[str], event_ids: Iterable[str]) -> int:
    """Blank the dead letters that belong to these events, or whose body names the number."""
    known = set(event_ids)
    count = 0
    statement = select(dead_letters.c.seq, dead_letters.c.event_id, dead_letters.c.body, dead_letters.c.detail).where(
        or_(dead_letters.c.account_key == account_key, dead_letters.c.account_key.is_(None))
    )
    for row in connection.execute(statement).all():
        said = (row.body or b"").decode("utf-8", "replace") + " " + row.detail
        if row.event_id in known or pattern.search(said):
            connection.execute(
                update(dead_letters)
                .where(dead_letters.c.seq == row.seq)
                .values(body=None, detail=_ERASED, state="discarded")
            )
            count += 1
    return count


def _spellings(msisdn: str) -> re.Pattern[str]:
    """Match the number's national part in any spelling: with or without "+", country code, spaces and dashes."""
    # The last nine digits tell a person of every numbering plan in use; what stands between them does not matter.
    return re.compile(r"[\s().\-/\u00a0]*".join(msisdn[1:][-9:]))
