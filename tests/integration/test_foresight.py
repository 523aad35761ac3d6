"""Plans of a store whose rows nobody has counted yet: in the first minute of its life, and of each day."""

from __future__ import annotations

from contextlib import closing

import psycopg
import pytest

from dispatcher.store.postgres import statements as sql
from dispatcher.store.postgres.foresight import WHOLE
from dispatcher.store.postgres.partitions import TABLES
from dispatcher.store.postgres.store import PostgresStore

EVENTS = """
INSERT INTO events (seq, event_id, account_key, conversation_key, event_type, event_data, timestamp, received_at,
                    received_on, source, root_id, hops, weak, state)
SELECT g, g, 'acc1', 'c', 't', '{}', '', '', to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD'), 's', g, 0, false, 'new'
FROM generate_series(1, 5000) g
"""
CONTACTS = """
INSERT INTO contacts (contact_key, account_key, msisdn, groups, subscription, extra, created_at, updated_at)
SELECT g, 'acc1', g, '', '', '', '', '' FROM generate_series(1, 5000) g
"""


@pytest.fixture
def connection(postgres):
    with closing(PostgresStore.open(postgres)) as store:
        yield store.connection


def plan(connection: psycopg.Connection, statement: str, *values: object) -> str:
    rows = psycopg.ClientCursor(connection).execute(f"EXPLAIN {statement}", values)
    return "\n".join(line for (line,) in rows)


def test_what_foretells_the_rows_leaves_none(connection):
    for table in (*TABLES, *WHOLE):
        assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)


def test_a_day_of_which_nothing_is_known_is_changed_by_its_key(connection):
    connection.execute(EVENTS)
    (day,) = connection.execute("SELECT max(received_on) FROM events").fetchone()
    found = plan(connection, sql.on_day(sql.UPDATE_EVENT_STATES, day), "[]")
    assert "Index Cond: ((seq = c.seq) AND (received_on =" in found
    assert "Seq Scan" not in found


def test_contacts_are_looked_up_one_by_one_however_many_an_account_has(connection):
    connection.execute(CONTACTS)
    for statistics in ("SELECT 1", "ANALYZE contacts"):
        connection.execute(statistics)
        found = plan(connection, sql.CONTACTS, "acc1", [str(number) for number in range(256)])
        assert "Index Cond: ((account_key = (" in found
        assert "AND (msisdn =" in found
        assert "Seq Scan" not in found
