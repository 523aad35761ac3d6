"""The private PostgreSQL keeps what it promises, so that a red test elsewhere speaks of the dispatcher."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from tests.harness import external
from tests.harness import postgres as harness
from tests.harness.databases import Databases
from tests.harness.waiting import wait_until

ROOT = Path(__file__).parents[2]


def ask(url, statement):
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


def test_a_database_of_ones_own_is_empty_and_speaks_unicode(postgres):
    ask(postgres, "CREATE TABLE names (name TEXT)")
    ask(postgres, "INSERT INTO names VALUES ('Þórr \U0001f528')")

    assert ask(postgres, "SELECT name FROM names") == [("Þórr \U0001f528",)]
    assert ask(postgres, "SELECT count(*) FROM pg_tables WHERE schemaname = current_schema()") == [(1,)]


def test_its_user_may_make_schemas_and_roles(postgres):
    ask(postgres, "CREATE SCHEMA other")
    ask(postgres, f"CREATE ROLE {Databases.name(postgres)} NOLOGIN")
    ask(postgres, f"DROP ROLE {Databases.name(postgres)}")


def test_two_databases_share_nothing(postgres, postgres_databases):
    other = postgres_databases.create()
    ask(postgres, "CREATE TABLE here ()")

    assert ask(other, "SELECT to_regclass('here')") == [(None,)]
    postgres_databases.drop(other)


def test_a_copied_database_has_what_its_original_had_and_goes_its_own_way(postgres, postgres_databases):
    ask(postgres, "CREATE TABLE numbers AS SELECT 1 AS number")

    copy = postgres_databases.create(template=Databases.name(postgres))
    ask(copy, "INSERT INTO numbers VALUES (2)")

    assert ask(copy, "SELECT number FROM numbers ORDER BY 1") == [(1,), (2,)]
    assert ask(postgres, "SELECT number FROM numbers") == [(1,)]
    postgres_databases.drop(copy)


def test_a_database_is_dropped_under_whoever_is_connected(postgres_databases):
    url = postgres_databases.create()
    with psycopg.connect(url) as connection:
        postgres_databases.drop(url)

        with pytest.raises(psycopg.OperationalError, match="terminating connection"):
            connection.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(url)


def test_only_tests_databases_are_dropped(postgres_databases):
    with pytest.raises(AssertionError, match="no test's"):
        postgres_databases.drop("postgresql://127.0.0.1/postgres")


@pytest.mark.parametrize("blow", ["stop", "kill"])
def test_a_server_that_was_ended_keeps_what_was_committed_and_nothing_else(postgres_server, postgres, blow):
    with psycopg.connect(postgres) as connection:
        connection.execute("CREATE TABLE numbers AS SELECT 1 AS number")
        connection.commit()
        connection.execute("INSERT INTO numbers VALUES (2)")

        getattr(postgres_server, blow)()

        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    assert not postgres_server.alive
    with pytest.raises(psycopg.OperationalError, match="refused"):
        psycopg.connect(postgres)
    postgres_server.start()
    assert ask(postgres, "SELECT number FROM numbers") == [(1,)]


def test_a_killed_server_leaves_no_process(postgres_server, postgres):
    with psycopg.connect(postgres) as connection:
        session = connection.info.backend_pid
        processes = [postgres_server.pid, session, *postgres_server._children()]

        postgres_server.kill()

        for process in processes:
            wait_until(lambda process=process: not is_running(process), f"the end of process {process}")


def test_a_restarted_server_makes_and_drops_databases(postgres_server, postgres_databases):
    url = postgres_databases.create()
    postgres_server.restart()

    assert ask(url, "SELECT 1") == [(1,)]
    postgres_databases.drop(url)


def test_a_server_that_a_test_ended_is_mended(postgres_server):
    postgres_server.stop()
    postgres_server.mend()
    assert ask(postgres_server.url(), "SELECT 1") == [(1,)]

    postgres_server.kill()
    postgres_server.mend()
    assert ask(postgres_server.url(), "SELECT 1") == [(1,)]


def test_a_wrong_password_is_refused(postgres_server):
    url = postgres_server.url().replace(postgres_server.password, "wrong")

    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(url)


def test_the_server_listens_on_loopback_and_nowhere_else(postgres_server):
    listens = "SELECT current_setting('listen_addresses'), current_setting('unix_socket_directories')"

    assert ask(postgres_server.url(), listens) == [("127.0.0.1", "")]
    assert urlsplit(postgres_server.url()).hostname == "127.0.0.1"


def test_the_newest_version_is_taken_when_the_path_has_none(tmp_path, monkeypatch):
    for version in ("9.6", "13", "9", "16"):
        folder = tmp_path / version / "bin"
        folder.mkdir(parents=True)
        for program in ("initdb", "postgres") if version != "16" else ("initdb",):
            (folder / program).touch(0o755)
    monkeypatch.setattr(harness, "VERSIONED", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))

    assert harness.programs() == tmp_path / "13" / "bin"


def test_no_postgres_at_all_says_how_to_get_one(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "VERSIONED", tmp_path / "none")
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(
        harness.NoPostgres, match=re.escape("apt install postgresql") + f".*{external.POSTGRES_VARIABLE}"
    ):
        harness.Server()


SUICIDE = """
import os
from tests.harness.postgres import Server
server = Server()
server.start()
if {restarted}:
    server.kill()
    server.start()
print(server.pid, server.folder, flush=True)
os.kill(os.getpid(), 9)
"""


@pytest.mark.usefixtures("postgres_server")
@pytest.mark.parametrize("restarted", [False, True], ids=["started", "restarted"])
def test_a_server_ends_with_the_tests_even_when_they_are_killed(restarted):
    killed = subprocess.run(
        [sys.executable, "-c", SUICIDE.format(restarted=restarted)],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()

    process, folder = killed.stdout.decode().split()
    wait_until(lambda: not is_running(int(process)), f"the end of process {process}")
    wait_until(lambda: not Path(folder).exists(), f"the end of {folder}")


def is_running(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{process}/stat")
    # Where nobody reaps orphans, a process that has ended stays in the table.
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"
