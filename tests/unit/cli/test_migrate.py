"""`migrate`: makes a store, leaves a current one alone, refuses what it does not know."""

from __future__ import annotations

import sqlite3
from contextlib import closing

from dispatcher.store.migrate import HEAD


def test_a_store_is_made_once(dispatcher, here):
    said = dispatcher("migrate", "--json")
    assert said.code == 0
    assert said.document == {"store": "sqlite:///store.db", "before": None, "after": HEAD}
    again = dispatcher("migrate")
    assert again.code == 0
    assert "nothing to do" in again.err


def test_a_store_of_a_newer_version_is_refused_and_left_alone(dispatcher, here):
    dispatcher("migrate")
    with closing(sqlite3.connect(here / "store.db")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()
        connection.execute("PRAGMA journal_mode = DELETE")
    before = (here / "store.db").read_bytes()
    said = dispatcher("migrate")
    assert said.code == 3
    assert "9999" in said.err
    assert (here / "store.db").read_bytes() == before


def test_a_database_of_somebody_else_is_refused(dispatcher, here):
    with closing(sqlite3.connect(here / "store.db")) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    assert dispatcher("migrate").code == 3
