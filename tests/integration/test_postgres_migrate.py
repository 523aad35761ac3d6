"""A PostgreSQL store is made and brought forward once, whole or not at all, and nothing of others is touched."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import closing
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
import sqlalchemy
from sqlalchemy import Index, MetaData, PrimaryKeyConstraint, UniqueConstraint

from dispatcher.errors import StoreUnusable
from dispatcher.store.migrate import HEAD, REVISIONS
from dispatcher.store.postgres.migrate import upgrade, version_at
from dispatcher.store.schema import PARTITIONED, SEQUENCES, metadata
from dispatcher.urls import shown
from tests.harness.waiting import wait_until

UPGRADE = """
import json, sys
from dispatcher.store.postgres.migrate import upgrade
done = upgrade(sys.argv[1])
json.dump([done, [name for name in ("alembic", "sqlalchemy") if name in sys.modules]], sys.stdout)
"""


@pytest.fixture
def asking(postgres):
    """A connection to the same database, to look around and to get in the way."""
    with closing(psycopg.connect(postgres, autocommit=True)) as connection:
        yield connection


def upgrading(url: str) -> subprocess.Popen[str]:
    """Migrate in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", UPGRADE, url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ended(process: subprocess.Popen[str]) -> Any:
    """What the process told, once it has ended well."""
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return json.loads(out)


def value(connection, query: str, *values: object) -> Any:
    return connection.execute(query, values).fetchone()[0]


def relations(connection) -> list[str]:
    return [
        name
        for (name,) in connection.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = current_schema()::regnamespace ORDER BY 1"
        )
    ]


def waiting_for_a_lock(connection) -> list[int]:
    """The backends in this database that wait for a lock."""
    return [
        pid
        for (pid,) in connection.execute(
            "SELECT DISTINCT pid FROM pg_stat_activity "
            "WHERE datname = current_database() AND wait_event_type = 'Lock' AND pid <> pg_backend_pid()"
        )
    ]


def within(url: str, schema: str) -> str:
    return f"{url}?options={quote(f'-csearch_path={schema}')}"


def test_store_is_made_in_an_empty_database_and_found_made_the_next_time(postgres, asking):
    assert version_at(postgres) is None
    assert upgrade(postgres) == list(REVISIONS)
    assert version_at(postgres) == HEAD
    facts = dict(asking.execute("SELECT name, value FROM facts").fetchall())
    assert {name: len(text) for name, text in facts.items()} == {"installation": 32, "secret": 64}
    assert upgrade(postgres) == []
    assert dict(asking.execute("SELECT name, value FROM facts").fetchall()) == facts


def test_alembic_is_not_imported_for_a_store_that_is_up_to_date(postgres):
    upgrade(postgres)
    assert ended(upgrading(postgres)) == [[], []]


def test_of_ten_processes_that_start_at_once_one_migrates_and_all_succeed(postgres, asking):
    blocker = psycopg.connect(postgres)
    # Until this is rolled back, nobody can make the table: all have seen an empty database by then.
    blocker.execute("CREATE TABLE alembic_version (x int)")
    processes = [upgrading(postgres) for _ in range(10)]
    wait_until(lambda: len(waiting_for_a_lock(asking)) == 10, "ten processes that wait")
    blocker.close()
    done = [ended(process)[0] for process in processes]
    assert sorted(done, key=len) == [[]] * 9 + [list(REVISIONS)]
    assert value(asking, "SELECT count(*) FROM facts") == 2


def by_ending_its_backend(connection, process: subprocess.Popen[str]) -> None:
    (pid,) = waiting_for_a_lock(connection)
    connection.execute("SELECT pg_terminate_backend(%s)", (pid,))


def by_killing_the_process(connection, process: subprocess.Popen[str]) -> None:
    os.kill(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("ending", [by_ending_its_backend, by_killing_the_process])
def test_migration_that_dies_half_way_leaves_nothing_and_the_next_one_succeeds(postgres, asking, ending):
    blocker = psycopg.connect(postgres)
    blocker.execute("CREATE TABLE workers (x int)")  # among the last that the migration makes
    process = upgrading(postgres)
    wait_until(lambda: waiting_for_a_lock(asking), "a migration that has come to this table")
    ending(asking, process)
    process.communicate(timeout=60)
    assert process.returncode != 0
    blocker.close()
    wait_until(
        lambda: value(asking, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()") == 1,
        "the end of what the killed process had begun",
    )
    assert relations(asking) == []
    assert upgrade(postgres) == list(REVISIONS)


def test_a_store_of_a_newer_version_is_refused_and_not_touched(postgres, asking):
    upgrade(postgres)
    asking.execute("UPDATE alembic_version SET version_num = '9999'")
    asking.execute("DROP TABLE runs_p" + value(asking, "SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD')"))
    before = relations(asking)
    with pytest.raises(StoreUnusable, match="newer than this version"):
        upgrade(postgres)
    assert relations(asking) == before


@pytest.mark.parametrize(
    "theirs",
    [
        "CREATE TABLE bookmarks (url text)",
        "CREATE TABLE alembic_version (version_num varchar(32)); INSERT INTO alembic_version VALUES ('4d5e6f')",
        "CREATE VIEW people AS SELECT 1 AS one",
    ],
)
def test_schema_of_another_program_is_refused_with_a_way_to_live_beside_it(postgres, asking, theirs):
    asking.execute(theirs)
    before = relations(asking)
    for refused in (upgrade, version_at):
        with pytest.raises(StoreUnusable, match="another program's tables in its schema public") as raised:
            refused(postgres)
        assert "?options=-csearch_path%3Ddispatcher" in str(raised.value.hint)
    assert relations(asking) == before
    asking.execute("CREATE SCHEMA apart")
    assert upgrade(within(postgres, "apart")) == list(REVISIONS)
    assert version_at(within(postgres, "apart")) == HEAD
    assert relations(asking) == before


def test_two_stores_live_in_two_schemas_of_a_database(postgres, asking):
    asking.execute("CREATE SCHEMA one; CREATE SCHEMA two")
    assert upgrade(within(postgres, "one")) == list(REVISIONS)
    # The first schema counts, even where a later one has a store.
    assert version_at(within(postgres, "two,one")) is None
    assert upgrade(within(postgres, "two,one")) == list(REVISIONS)
    assert value(asking, "SELECT one.value <> two.value FROM one.facts one JOIN two.facts two USING (name) LIMIT 1")
    assert relations(asking) == []


def test_schema_that_is_not_there_is_named(postgres):
    with pytest.raises(StoreUnusable, match=r"search_path names, nowhere\.") as raised:
        upgrade(within(postgres, "nowhere"))
    assert "CREATE SCHEMA" in str(raised.value.hint)


def test_missing_right_to_make_tables_is_named(postgres, asking):
    role = f"guest_{os.getpid()}"
    asking.execute("REVOKE CREATE ON SCHEMA public FROM public")
    asking.execute(f"CREATE ROLE {role}")
    try:
        url = f"{postgres}?options={quote(f'-crole={role}')}"
        with pytest.raises(
            StoreUnusable, match=f"the user {role} may not create tables in the schema public"
        ) as raised:
            upgrade(url)
        assert f"GRANT CREATE ON SCHEMA public TO {role}" in str(raised.value.hint)
        assert relations(asking) == []
    finally:
        asking.execute(f"DROP ROLE {role}")


def test_database_that_cannot_hold_every_text_is_refused(postgres, asking):
    name = f"{asking.info.dbname}_latin"
    asking.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
    try:
        with pytest.raises(StoreUnusable, match="encoded in LATIN1"):
            upgrade(postgres.replace(asking.info.dbname, name))
    finally:
        asking.execute(f"DROP DATABASE {name}")


def test_no_password_is_shown_of_a_server_that_is_not_there(postgres):
    with pytest.raises(StoreUnusable, match="refused") as raised:
        upgrade("postgresql://somebody:sesame@127.0.0.1:1/store")
    assert "sesame" not in str(raised.value)


def test_verb_says_from_which_schema_to_which_without_the_password(postgres):
    def migrate(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "dispatcher", "migrate", "--store", postgres, *options]
        said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert said.returncode == 0, said.stderr
        return said

    assert json.loads(migrate("--json").stdout) == {"store": shown(postgres), "before": None, "after": HEAD}
    assert json.loads(migrate("--json").stdout) == {"store": shown(postgres), "before": HEAD, "after": HEAD}
    assert f"{shown(postgres)} has schema {HEAD}" in migrate().stderr


def test_verb_ends_with_3_for_a_database_of_another_program(postgres, asking):
    asking.execute("CREATE TABLE bookmarks (url text)")
    command = [sys.executable, "-m", "dispatcher", "migrate", "--store", postgres]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert said.returncode == 3
    assert "another program's tables" in said.stderr


def as_postgresql_has_them() -> MetaData:
    """The tables of the schema, with keys as PostgreSQL demands them of partitioned tables: they end in the day."""
    copies = MetaData()
    for table in metadata.sorted_tables:
        copy = table.to_metadata(copies)
        if table.name not in PARTITIONED:
            continue
        day = copy.c.received_on
        if "seq" in copy.c and copy.c.seq.autoincrement is not False:
            copy.c.seq.autoincrement = True
        keys = [*copy.primary_key.columns, day]
        day.primary_key = True
        copy.append_constraint(PrimaryKeyConstraint(*keys))
        for constraint in [found for found in copy.constraints if isinstance(found, UniqueConstraint)]:
            copy.constraints.remove(constraint)
            copy.append_constraint(UniqueConstraint(*constraint.columns, day, name=constraint.name))
        for index in [found for found in copy.indexes if found.unique]:
            copy.indexes.remove(index)
            Index(index.name, *index.columns, day, unique=True)
    return copies


def described(connection, schema: str) -> dict[str, list[tuple[Any, ...]]]:
    """All that PostgreSQL knows of the tables in a schema, without the schema's name."""
    queries = {
        "columns": """
            SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity::text,
                   (SELECT collname FROM pg_collation WHERE oid = a.attcollation),
                   pg_get_expr(d.adbin, d.adrelid)
            FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
            LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
            WHERE c.relnamespace = %s::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
              AND a.attnum > 0
        """,
        "indexes": """
            SELECT c.relname, pg_get_indexdef(i.indexrelid) FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
            WHERE c.relnamespace = %s::regnamespace AND NOT c.relispartition
        """,
        "constraints": """
            SELECT c.relname, o.conname, pg_get_constraintdef(o.oid)
            FROM pg_constraint o JOIN pg_class c ON c.oid = o.conrelid
            WHERE c.relnamespace = %s::regnamespace AND NOT c.relispartition
        """,
        "partitions": """
            SELECT c.relname, pg_get_partkeydef(c.oid) FROM pg_class c
            WHERE c.relnamespace = %s::regnamespace AND c.relkind = 'p'
        """,
        "sequences": """
            SELECT sequencename, data_type::text, start_value, increment_by, cache_size FROM pg_sequences
            WHERE schemaname = %s
        """,
    }
    return {
        kind: sorted(
            (
                tuple(re.sub(rf"\b{schema}\.", "", part) if isinstance(part, str) else part for part in row)
                for row in connection.execute(query, (schema,))
                if row[0] != "alembic_version"
            ),
            key=repr,
        )
        for kind, query in queries.items()
    }


def test_migrating_from_nothing_leads_to_the_schema(postgres, asking):
    upgrade(postgres)
    asking.execute("CREATE SCHEMA wanted")
    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(within(postgres, "wanted"))
    )
    with engine.begin() as connection:
        as_postgresql_has_them().create_all(connection)
        for sequence in SEQUENCES:
            sequence.create(connection)
    engine.dispose()
    found, wanted = described(asking, "public"), described(asking, "wanted")
    for kind, rows in wanted.items():
        assert rows, kind
        assert found[kind] == rows
