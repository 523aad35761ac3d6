"""Stores with a past, one for each size: filled once, then copied for each run or, where copying is dearer, used again.

A run adds what it was given; a store that is used again is so large that this does not count. Whoever uses a store
again has it warmed by a run that is not measured.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import psycopg

from bench import fill_sqlite, job, pgfill
from bench.contestants import SCRIPT
from bench.fill_people import refuse_without_room
from bench.ours import PostgresDatabase, SqliteFile, Store
from bench.processes import Launch, started
from bench.site import Lab

# A smaller store is copied for each run: within a second or a few.
COPIED_BYTES = 600_000_000
FILL_PATIENCE = 300.0
DAYS = 30
# Waiting runs fall due within a day, a week from now.
DUE = (7, 1)
# A single event would tell PostgreSQL's planner that days are all different.
PATTERNS = 100


@dataclass(frozen=True)
class Past:
    """What a store holds before anything is measured: so many events, archived or with a run that waits."""

    count: int
    waiting: bool = False


class Stores(Protocol):
    """Makes filled stores, and gives them out."""

    @property
    def kind(self) -> str:
        """The kind of store, as the results name it."""
        ...

    def fill(self, past: Past) -> bool:
        """Make the store of this past; return whether it will be used again. Raises NoRoom."""
        ...

    def take(self, past: Past) -> AbstractContextManager[Store]:
        """Give out a store with this past, for one run."""
        ...


def environ_of(store: Store, rulebook: Path) -> Mapping[str, str]:
    """Return the settings of processes on a store. Nothing of what is measured is forgotten meanwhile."""
    kept = ("KEEP_DONE_DAYS", "KEEP_SKIPPED_DAYS", "KEEP_FAILED_DAYS", "DEDUPE_DAYS")
    return {
        "DISPATCHER_STORE": store.url,
        "DISPATCHER_RULEBOOK": str(rulebook),
        "DISPATCHER_LOG_FORMAT": "json",
        **{f"DISPATCHER_{name}": "365" for name in kept},
    }


def write_pattern(store: Store, folder: Path, events: int, *, waiting: bool = False) -> None:
    """Have a worker bring events to their end, or to a wait."""
    rulebook, published = folder / "pattern.yaml", folder / "pattern.jsonl"
    text = job.rulebook(job.TO_OUTBOX)
    if waiting:
        text = text.replace("      - handler: send_sms", f"      - wait: {DUE[0]}d\n      - handler: send_sms")
    rulebook.write_text(text)
    # No people of these come again: archived numbers are odd, those of new people too far from the end.
    published.write_bytes(b"".join(job.an_event(9_999_999 - 2 * number) + b"\n" for number in range(events)))
    for arguments in (("publish", str(published)), ("run", "--drain")):
        launch = Launch([str(SCRIPT), *arguments], folder, environ_of(store, rulebook))
        with started(launch, folder / "pattern.out") as running:
            running.wait(FILL_PATIENCE)


class SqliteStores:
    """Files in one folder."""

    kind = "sqlite"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count()
        self._made: dict[Past, Path] = {}

    def fill(self, past: Past) -> bool:
        """Make the file of this past; return whether it will be used again. Raises NoRoom."""
        refuse_without_room(self._folder, past.count, fill_sqlite.BYTES_AN_EVENT, fill_sqlite.EVENTS_A_SECOND)
        folder = self._new_folder()
        path = folder / "store.db"
        if past.count:
            write_pattern(SqliteFile(path), folder, 1, waiting=past.waiting)
            fill_sqlite.fill(path, past.count, DAYS, waiting=past.waiting)
        self._made[past] = path
        return bool(past.count) and path.stat().st_size > COPIED_BYTES

    @contextmanager
    def take(self, past: Past) -> Iterator[Store]:
        """Give out the file, or a copy of it that is gone afterwards; nothing for no past: a worker makes its store."""
        made = self._made[past]
        if made.exists() and made.stat().st_size > COPIED_BYTES:
            yield SqliteFile(made)
            return
        folder = self._new_folder()
        if made.exists():
            shutil.copyfile(made, folder / "store.db")
        try:
            yield SqliteFile(folder / "store.db")
        finally:
            shutil.rmtree(folder)

    def _new_folder(self) -> Path:
        folder = self._folder / f"store-{next(self._numbers)}"
        folder.mkdir()
        return folder


class PostgresStores:
    """Databases of the lab's server."""

    kind = "postgresql"

    def __init__(self, lab: Lab, folder: Path, stack: ExitStack) -> None:
        self._lab, self._folder, self._stack = lab, folder, stack
        self._made: dict[Past, str] = {}

    def fill(self, past: Past) -> bool:
        """Make the database of this past; return whether it will be used again. Raises NoRoom."""
        refuse_without_room(self._folder, past.count, pgfill.BYTES_AN_EVENT, pgfill.EVENTS_A_SECOND)
        databases = self._lab.server.databases
        url = databases.create()
        self._stack.callback(databases.drop, url)
        if past.count:
            write_pattern(PostgresDatabase(url), self._folder, PATTERNS, waiting=past.waiting)
            pgfill.multiply(url, past.count, DAYS, "poll_complete", due=DUE if past.waiting else None)
        self._made[past] = url
        return self._is_large(url)

    @contextmanager
    def take(self, past: Past) -> Iterator[Store]:
        """Give out the database, or a copy of it that is dropped afterwards."""
        made = self._made[past]
        if self._is_large(made):
            yield PostgresDatabase(made)
            return
        copy = self._copy(made)
        try:
            yield PostgresDatabase(copy)
        finally:
            self._lab.server.databases.drop(copy)

    def _is_large(self, url: str) -> bool:
        with psycopg.connect(url) as connection:
            [(size,)] = connection.execute("SELECT pg_database_size(current_database())").fetchall()
        return int(size) > COPIED_BYTES

    def _copy(self, url: str) -> str:
        """Copy block by block through the server's buffers.

        The copy is as warm then as a store that is used again; to copy files would begin with a checkpoint, after which
        each page that any store touches is logged whole.
        """
        databases = self._lab.server.databases
        name = databases.name(url) + f"_{next(self._numbers)}"
        with psycopg.connect(self._lab.server.url(), autocommit=True) as connection:
            by_block = " STRATEGY wal_log" if connection.info.server_version >= 150_000 else ""
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {databases.name(url)}{by_block}")
        return urlsplit(url)._replace(path=f"/{name}").geturl()

    _numbers = itertools.count()
