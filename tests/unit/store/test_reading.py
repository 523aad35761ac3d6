"""Reading needs no worker and disturbs none; what cannot be read is told with what to do."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from sqlalchemy import delete, exc, func, select

from dispatcher.errors import NotFound, StoreUnusable
from dispatcher.store.postgres import migrate as postgres_migrate
from dispatcher.store.reading import open_reader
from dispatcher.store.schema import facts
from dispatcher.store.sqlite.store import SqliteStore


@pytest.fixture
def path(tmp_path, empty_store):
    path = tmp_path / "a store #1?.db"
    shutil.copy(empty_store, path)
    return path


# Root may write everywhere, so the reader gives that up once it has all its modules.
READ_WITHOUT_RIGHTS = """
import os, sys
from pathlib import Path
from sqlalchemy import text
from dispatcher.errors import StoreUnusable
from dispatcher.store.reading import open_reader
with open_reader(Path(sys.argv[1])):
    pass
if os.geteuid() == 0:
    os.setuid(65534)
try:
    with open_reader(Path(sys.argv[2])) as connection:
        print(connection.execute(text("SELECT count(*) FROM facts")).scalar())
except StoreUnusable as error:
    print(error)
"""


@pytest.fixture
def read_only(empty_store):
    """A store in a folder that everybody may read and nobody write, and what is printed by who reads it."""
    folder = Path(tempfile.mkdtemp())
    store = folder / "store.db"
    shutil.copy(empty_store, store)

    def read():
        for entry in folder.iterdir():
            entry.chmod(0o444)
        folder.chmod(0o555)
        command = [sys.executable, "-c", READ_WITHOUT_RIGHTS, str(empty_store), str(store)]
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=60).stdout.strip()

    yield store, read
    folder.chmod(0o755)
    shutil.rmtree(folder)


def count(connection):
    return connection.execute(select(func.count()).select_from(facts)).scalar()


def test_store_is_read_when_nobody_has_it_open(path):
    SqliteStore.open(path).close()
    with open_reader(path) as connection:
        assert count(connection) == 2


def test_store_is_read_while_a_worker_writes_and_shows_one_moment(path):
    store = SqliteStore.open(path)
    store.connection.execute("INSERT INTO facts VALUES ('a', 'b')")
    with open_reader(path) as connection:
        assert count(connection) == 3
        with store.transaction() as transaction:
            store.connection.execute("INSERT INTO facts VALUES ('c', 'd')")
            transaction.commit()
        assert count(connection) == 3
    with open_reader(path) as connection:
        assert count(connection) == 4
    store.close()


def test_reader_cannot_write(path):
    with pytest.raises(StoreUnusable) as caught, open_reader(path) as connection:
        connection.execute(delete(facts))
    assert isinstance(caught.value.__cause__, exc.DBAPIError)


def test_copy_without_its_log_in_a_folder_that_cannot_be_written_is_read(path, monkeypatch):
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.close()
    connect = sqlite3.connect

    def read_only_folder(name, **options):
        if "immutable" not in name:
            raise sqlite3.OperationalError("unable to open database file")
        return connect(name, **options)

    monkeypatch.setattr(sqlite3, "connect", read_only_folder)
    with open_reader(path) as reader:
        assert count(reader) == 2


def test_store_in_a_folder_that_cannot_be_written_is_read(read_only):
    store, read = read_only
    SqliteStore.open(store).close()
    assert read() == "2"


def test_log_of_a_killed_worker_is_read(path):
    kill_a_writer(path)
    with open_reader(path) as connection:
        assert count(connection) == 3


def test_log_of_a_killed_worker_is_not_passed_over_where_it_cannot_be_read(read_only):
    store, read = read_only
    kill_a_writer(store)
    # As in a backup that has the file and its log, but not the index of the log.
    Path(f"{store}-shm").unlink()
    assert "cannot be read" in read()


def kill_a_writer(path):
    script = (
        "import os, signal, sys; from pathlib import Path; from dispatcher.store.sqlite.store import SqliteStore;"
        "store = SqliteStore.open(Path(sys.argv[1])); store.connection.execute(sys.argv[2]);"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    insert = "INSERT INTO facts VALUES ('a', 'b')"
    subprocess.run([sys.executable, "-c", script, str(path), insert], check=False, timeout=60)


def test_reading_leaves_the_file_as_it_was(path):
    SqliteStore.open(path).close()
    before = path.read_bytes()
    with open_reader(path) as connection:
        count(connection)
    assert path.read_bytes() == before
    SqliteStore.open(path).close()


def test_reading_a_file_brings_no_driver_of_a_server(path):
    script = (
        "import sys; from dispatcher.store.reading import open_reader\n"
        "with open_reader(sys.argv[1]) as connection: connection.exec_driver_sql('SELECT 1')\n"
        "sys.exit('psycopg' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script, f"sqlite:///{path}"], check=False, timeout=60).returncode == 0


def test_damage_is_told(path):
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (size - 4096))
    with pytest.raises(StoreUnusable, match=r"cannot be read|not a store"), open_reader(path) as connection:
        count(connection)


def test_missing_store_is_told_and_not_made(tmp_path):
    with pytest.raises(StoreUnusable, match=f"there is no store at {tmp_path}/none.db") as caught:
        open_reader(tmp_path / "none.db").__enter__()
    assert "`dispatcher run` or `dispatcher publish` makes one" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"no database at all, but long enough to be looked at" * 40, "file is not a database"),
        (b"", "there is no store"),
    ],
)
def test_file_that_is_no_store_is_told(tmp_path, content, said):
    path = tmp_path / "x.db"
    path.write_bytes(content)
    with pytest.raises(StoreUnusable, match=said):
        open_reader(path).__enter__()


def test_folder_is_no_store(tmp_path):
    with pytest.raises(StoreUnusable, match="there is no store"):
        open_reader(tmp_path).__enter__()


@pytest.mark.parametrize(("version", "said"), [("9999", "newer than this version knows"), ("0000", "newer")])
def test_store_of_another_version_is_refused(path, version, said):
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (version,))
    connection.close()
    with pytest.raises(StoreUnusable, match=said):
        open_reader(path).__enter__()


def test_somebody_elses_database_is_refused(tmp_path):
    path = tmp_path / "x.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE t (x)")
    connection.close()
    with pytest.raises(StoreUnusable, match="not a store of the dispatcher"):
        open_reader(path).__enter__()


def test_what_is_no_text_names_nothing(path):
    with pytest.raises(NotFound, match="not valid text"), open_reader(path) as connection:
        connection.execute(select(facts).where(facts.c.name == "\udcff")).all()


# A store in PostgreSQL.


def insert_fact(connection, name):
    connection.execute("INSERT INTO facts (name, value) VALUES (%s, '')", (name,))


def test_database_is_read_while_others_write_and_shows_one_moment(postgres):
    postgres_migrate.upgrade(postgres)
    with psycopg.connect(postgres, autocommit=True) as writer, open_reader(postgres) as connection:
        before = count(connection)
        insert_fact(writer, "a")
        assert count(connection) == before
    with open_reader(postgres) as connection:
        assert count(connection) == before + 1


def test_reader_of_a_database_cannot_write(postgres):
    postgres_migrate.upgrade(postgres)
    with pytest.raises(StoreUnusable, match="read-only transaction"), open_reader(postgres) as connection:
        connection.execute(delete(facts))
    with open_reader(postgres) as connection:
        assert count(connection) == 2


def test_reader_says_who_it_is(postgres):
    postgres_migrate.upgrade(postgres)
    with open_reader(postgres) as connection:
        name = connection.exec_driver_sql("SELECT current_setting('application_name')").scalar()
    assert name == "dispatcher"


def test_database_without_a_store_is_told_and_none_made(postgres):
    with pytest.raises(StoreUnusable, match="there is no store in postgresql://") as caught:
        open_reader(postgres).__enter__()
    assert "`dispatcher run` or `dispatcher publish` makes one" in caught.value.hint
    with psycopg.connect(postgres) as connection:
        assert connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (0,)


@pytest.mark.parametrize(
    ("table", "said"),
    [("alembic_version (version_num text)", "holds another program's tables"), ("t (x int)", "there is no store")],
)
def test_another_programs_database_is_refused(postgres, table, said):
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"CREATE TABLE {table}")
    with pytest.raises(StoreUnusable, match=said):
        open_reader(postgres).__enter__()


@pytest.mark.parametrize(
    ("version", "said"), [("9999", "newer than this version knows"), ("0002", "schema of an earlier version")]
)
def test_database_of_another_version_is_refused(postgres, version, said):
    postgres_migrate.upgrade(postgres)
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("UPDATE alembic_version SET version_num = %s", (version,))
    with pytest.raises(StoreUnusable, match=said):
        open_reader(postgres).__enter__()


def test_user_without_rights_is_told_what_to_do(postgres):
    postgres_migrate.upgrade(postgres)
    # As it is for a user who may connect, and no more.
    url = f"{postgres}{'&' if '?' in postgres else '?'}options=-crole%3Dpg_monitor"
    with pytest.raises(StoreUnusable, match="permission denied") as caught:
        open_reader(url).__enter__()
    assert "GRANT" in caught.value.hint


@pytest.mark.parametrize(
    ("change", "said", "hint"),
    [
        ({"path": "/there_is_none"}, 'database "there_is_none" does not exist', "`createdb` makes it"),
        ({"user": "nobody_here"}, "nobody_here", "Mend "),
        ({"port": 1}, "Connection refused", "Is a server there"),
        ({"host": "there.is.none.invalid"}, "resolve host", "Mend the host"),
        ({"query": "sslmod=require"}, 'invalid URI query parameter: "sslmod"', "Mend the options"),
    ],
)
def test_server_that_cannot_be_reached_is_told_without_the_password(postgres, change, said, hint):
    parts = urlsplit(postgres)
    user, host, port = change.get("user", parts.username), change.get("host", parts.hostname), change.get("port")
    url = (
        f"postgresql://{user}:s3cret@{host}:{port or parts.port or 5432}{change.get('path', parts.path)}"
        f"?{change.get('query', '')}"
    )
    if "path" in change:  # this one gets as far as the server's own password
        url = url.replace("s3cret", parts.password or "s3cret")
    with pytest.raises(StoreUnusable) as caught:
        open_reader(url.rstrip("?")).__enter__()
    assert said in caught.value.message
    assert caught.value.hint.startswith(hint)
    assert f"{user}:***@{host}" in caught.value.message
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("text", ["\udcff", "a\0b"])
def test_what_is_no_text_names_nothing_in_a_database(postgres, text):
    postgres_migrate.upgrade(postgres)
    with pytest.raises(NotFound, match="not valid text"), open_reader(postgres) as connection:
        connection.execute(select(facts).where(facts.c.name == text)).all()


def test_store_in_a_schema_of_its_own_is_read(postgres):
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA survey")
    url = f"{postgres}{'&' if '?' in postgres else '?'}options=-csearch_path%3Dsurvey"
    postgres_migrate.upgrade(url)
    with open_reader(url) as connection:
        assert count(connection) == 2
    with pytest.raises(StoreUnusable, match="there is no store"):
        open_reader(postgres).__enter__()
