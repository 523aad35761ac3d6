"""What lists show of each kind of row, and how ids and times look in them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

Row = Mapping[str, Any]

_LONGEST_ID: Final = 14
_TAIL_OF_UUID: Final = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}([0-9a-f]{12})|[0-9a-f]{20}([0-9a-f]{12})")


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a list: its title, what stands in it, and whether it may be cut where there is no room.

    One that is `rare` is left out where no row has anything in it.
    """

    title: str
    cell: Callable[[Row], Any]
    flexible: bool = False
    rare: bool = False


def short_id(text: str | None) -> str:
    """Return the end of an id, which tells it from its neighbours and is enough to name it."""
    if text is None:
        return ""
    uuid = _TAIL_OF_UUID.fullmatch(text)
    if uuid is not None:
        return uuid[1] or uuid[2]
    return text if len(text) <= _LONGEST_ID else f"…{text[1 - _LONGEST_ID :]}"


def short_time(text: str | None) -> str:
    """Return a time as lists show it: in UTC, without the year and the fraction."""
    return "" if text is None else text[5:19].replace("T", " ")


def full_time(text: str) -> str:
    """Return a time in UTC, without its fraction."""
    return text[:19].replace("T", " ")


def kind_of(row: Row) -> str:
    """Return the types of an event, as one word."""
    return f"{row['conversation_type'] or '?'}.{row['event_type']}"


EVENTS: Final = (
    Column("RECEIVED, UTC", lambda row: short_time(row["received_at"])),
    Column("EVENT", lambda row: short_id(row["event_id"])),
    Column("ACCOUNT", lambda row: row["account_key"], flexible=True),
    Column("TYPE", kind_of, flexible=True),
    Column("STATE", lambda row: row["state"]),
)
RUNS: Final = (
    Column("STARTED, UTC", lambda row: short_time(row["started_at"])),
    Column("RUN", lambda row: short_id(row["run_id"])),
    Column("CHAIN", lambda row: row["chain"], flexible=True),
    Column("STATE", lambda row: row["state"]),
    Column("STEP", lambda row: row["step"], flexible=True),
    Column("ERROR", lambda row: (row["error"] or "").removeprefix(f"{row['step']}: "), flexible=True),
)
DEAD_LETTERS: Final = (
    Column("AT, UTC", lambda row: short_time(row["at"])),
    Column("DEAD LETTER", lambda row: short_id(row["dead_id"])),
    Column("KIND", lambda row: row["kind"]),
    Column("REASON", lambda row: row["reason"] if row["state"] == "open" else f"{row['reason']} ({row['state']})"),
    Column("DETAIL", lambda row: row["detail"], flexible=True),
)
CONTACTS: Final = (
    Column("NUMBER", lambda row: row["msisdn"]),
    Column("NAME", lambda row: " ".join(filter(None, (row["name"], row["surname"]))), flexible=True),
    Column("LANGUAGE", lambda row: row["language"], flexible=True),
    Column("GROUPS", lambda row: ", ".join(row["groups"]), flexible=True),
    Column("ACCOUNT", lambda row: row["account_key"], flexible=True),
    Column("CONTACT", lambda row: short_id(row["contact_key"])),
)
MESSAGES: Final = (
    Column("AT, UTC", lambda row: short_time(row["at"])),
    Column("MESSAGE", lambda row: short_id(row["message_id"])),
    Column("TO", lambda row: row["to_addr"]),
    Column("STATE", lambda row: row["state"]),
    Column("TEXT", lambda row: row["content"], flexible=True),
    Column("ERROR", lambda row: row["error"], flexible=True, rare=True),
)
