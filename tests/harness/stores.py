"""Where a test's store is: a file or a database, migrated and empty, to be opened, opened again and looked into."""

from __future__ import annotations

import re
import shutil
import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg

from dispatcher.store import schema
from dispatcher.testing import FrozenClock
from tests.harness.databases import Databases

# After these, a database is not as it was when its rows are gone.
SPOILS = re.compile(r"(CREATE|ALTER|DROP)\b|(INSERT|UPDATE|DELETE)\b.*\b(facts|alembic_version)\b", re.IGNORECASE)


def in_order(table: str) -> str:
    """A query for all rows of a table, which may have a WHERE behind its name, in the order in which they were made."""
    made = schema.metadata.tables[table.split(maxsplit=1)[0]]
    keys = ["seq"] if "seq" in made.c else [column.name for column in made.primary_key]
    return f"SELECT * FROM {table} ORDER BY {', '.join(keys)}"


def migrated(databases: Databases) -> str:
    """Make a database with a store in it, as old as a frozen clock, for places to be copied from; return its name."""
    from dispatcher.store.postgres import migrate, partitions

    url = databases.create()
    migrate.upgrade(url)
    with psycopg.connect(url, autocommit=True) as connection:
        partitions.ensure(connection, FrozenClock().now().date().isoformat(), ahead=0)
    return databases.name(url)


class SqlitePlace:
    """A file, copied from one that was migrated."""

    kind = "sqlite"

    def __init__(self, folder: Path, migrated: Path) -> None:
        self.path = folder / "store.db"
        shutil.copy(migrated, self.path)
        self.clock = FrozenClock()
        self._store: Any = None

    @property
    def source(self) -> Path:
        """What opens it for reading."""
        return self.path

    @property
    def setting(self) -> str:
        """What DISPATCHER_STORE says to name it."""
        return f"sqlite:///{self.path}"

    def open(self) -> Any:
        """Open the store, which is closed after the test if it is still open then."""
        from dispatcher.store.sqlite.store import SqliteStore

        self._store = SqliteStore.open(self.path)
        return self._store

    def query(self, statement: str, *values: Any) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Execute a statement with a `?` for each value; return names of columns, and rows."""
        cursor = self._store.connection.execute(statement, values)
        return [column[0] for column in cursor.description or ()], cursor.fetchall()

    def seen_by_others(self, statement: str) -> list[tuple[Any, ...]]:
        """Return the rows that a query finds for whoever is not the store."""
        with closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)) as reader:
            return reader.execute(statement).fetchall()

    def refuse_rows(self, table: str, condition: str) -> None:
        """Have the database refuse the rows that are inserted into a table and meet a condition on NEW."""
        self.query(
            f"CREATE TRIGGER refuse BEFORE INSERT ON {table} WHEN {condition} "
            "BEGIN SELECT RAISE(ABORT, 'this row is impossible'); END"
        )

    def forbid_writes(self) -> None:
        """Have the store find that it cannot write any more, as when the disk is full."""
        self.query("PRAGMA query_only = ON")

    def allow_writes(self) -> None:
        """Let the store write again."""
        self.query("PRAGMA query_only = OFF")

    @property
    def in_transaction(self) -> bool:
        """Whether the store has a transaction open."""
        return bool(self._store.connection.in_transaction)

    def close(self) -> None:
        """Let go of the store."""
        if self._store is not None:
            self._store.close()


class PartitionedClock(FrozenClock):
    """A frozen clock that has a store made ready for each day that it comes to, as the database's own days are."""

    def __init__(self, connection: psycopg.Connection) -> None:
        super().__init__()
        self._connection = connection

    def advance(self, by: timedelta) -> None:
        """Move forward."""
        from dispatcher.store.postgres import partitions

        before = self.now().date()
        super().advance(by)
        if self.now().date() != before:
            partitions.ensure(self._connection, self.now().date().isoformat(), ahead=0)


class PostgresPlace:
    """A database, copied from one that was migrated, and emptied for each test that may have it again."""

    kind = "postgres"

    def __init__(self, databases: Databases, template: str) -> None:
        self._databases = databases
        self.url = databases.create(template)
        # Beside the store's own: what a test looks at is what others see, and it waits for nobody for long.
        self.connection = psycopg.connect(self.url, autocommit=True, options="-c lock_timeout=5s")
        sequences = [name for (name,) in self.connection.execute("SELECT sequencename FROM pg_sequences")]
        tables = [table.name for table in schema.metadata.sorted_tables if table.name != "facts"]
        self._empty = "; ".join(
            [
                "DROP FUNCTION IF EXISTS refuse() CASCADE",
                *(f"DELETE FROM {table}" for table in tables),
                *(f"SELECT setval('{name}', 1, false)" for name in sequences),
            ]
        )
        self._made_with = self._partitions()
        self._spoiled = False
        self._store: Any = None
        self._left: Any = None
        self.clock: FrozenClock = PartitionedClock(self.connection)

    @property
    def source(self) -> str:
        """What opens it for reading."""
        return self.url

    @property
    def setting(self) -> str:
        """What DISPATCHER_STORE says to name it."""
        return self.url

    def again(self) -> PostgresPlace | None:
        """Make it ready for another test; None when that cannot be done, and it is gone."""
        if self._spoiled:
            self.drop()
            return None
        try:
            self.connection.execute(self._empty)
        except psycopg.OperationalError:
            self.drop()  # a test has restarted the server since
            return None
        there = self._partitions()
        if made := there - self._made_with:
            self.connection.execute(f"DROP TABLE {', '.join(made)}")
        if self._made_with - there:
            self._ensure_days()  # retention has dropped some
        self.clock = PartitionedClock(self.connection)
        return self

    def _partitions(self) -> set[str]:
        found = self.connection.execute("SELECT relname FROM pg_class WHERE relkind = 'r' AND relispartition")
        return {name for (name,) in found}

    def _ensure_days(self) -> None:
        from dispatcher.store.postgres import partitions

        partitions.ensure(self.connection, FrozenClock().now().date().isoformat(), ahead=0)

    def open(self) -> Any:
        """Open the store, by the connection of the test before if that is left: a new one takes longer than a test."""
        from dispatcher.store.postgres.store import PostgresStore

        session, self._left = self._left, None
        self._store = PostgresStore.open(self.url) if session is None else PostgresStore(session, lease_seconds=60.0)
        return self._store

    def query(self, statement: str, *values: Any) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Execute a statement with a `?` for each value; return names of columns, and rows."""
        self._spoiled = self._spoiled or bool(SPOILS.match(statement))
        ours = statement.replace("%", "%%").replace("?", "%s") if values else statement
        cursor = self.connection.execute(ours, values or None)
        return ([column.name for column in cursor.description], cursor.fetchall()) if cursor.description else ([], [])

    def seen_by_others(self, statement: str) -> list[tuple[Any, ...]]:
        """Return the rows that a query finds for whoever is not the store."""
        return self.query(statement)[1]

    def refuse_rows(self, table: str, condition: str) -> None:
        """Have the database refuse the rows that are inserted into a table and meet a condition on NEW."""
        self.connection.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION "
            "'this row is impossible' USING ERRCODE = 'check_violation', CONSTRAINT = 'a_test'; END $$"
        )
        self.connection.execute(
            f"CREATE TRIGGER refuse BEFORE INSERT ON {table} FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION refuse()"
        )

    def forbid_writes(self) -> None:
        """Have the store find that it cannot write any more, as when the server is a standby now."""
        self._store.connection.execute("SET default_transaction_read_only = on")

    def allow_writes(self) -> None:
        """Let the store write again."""
        self._store.connection.execute("SET default_transaction_read_only = off")

    @property
    def in_transaction(self) -> bool:
        """Whether the store has a transaction open."""
        return bool(self._store.connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE)

    def close(self) -> None:
        """Let go of the store."""
        if self._store is not None:
            self._store.close()
            self._store = None

    def leave(self) -> None:
        """Let go of the store, and leave its connection to the next test if it has one."""
        store, self._store = self._store, None
        if store is None:
            return
        session = store.session
        if session._connection is None or session._connection.closed:
            return
        session.rollback()
        session.connection.execute("SELECT pg_advisory_unlock_all()")
        session.connection.execute("SET default_transaction_read_only = off")
        session.prepare.clear()
        session.patience = None
        self._left = session

    def drop(self) -> None:
        """Take the database away."""
        if self._left is not None:
            self._left.close()
        self.connection.close()
        self._databases.drop(self.url)
