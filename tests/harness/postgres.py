"""A private PostgreSQL: one server in a temporary folder, on loopback only, that tests may break as they like.

It shares nothing with a PostgreSQL that the machine may run: its own port, folder, superuser and password, no
socket file. It ends with the tests. PostgreSQL refuses to run as root; the tests of root start it as another user.

Its speed is a test's: fsync is off. What is committed outlives a killed server, for the system keeps what was written;
it would not outlive a machine that loses its power.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg

from tests.harness.databases import Databases
from tests.harness.rabbit import free_port

SUPERUSER = "tests"
# Text sorts by its code points either way; not every system has the first.
LOCALE = "C.UTF-8" if sys.platform == "linux" else "C"
START_PATIENCE = 60.0
STOP_PATIENCE = 30.0

# Where Debian puts them, one folder a version, off the PATH.
VERSIONED = Path("/usr/lib/postgresql")

HOW_TO_GET_ONE = (
    "there is no PostgreSQL: install one (Debian: apt install postgresql; `make test` does it as root), put initdb and "
    "postgres on the PATH, or name a server on which databases may be made in DISPATCHER_TEST_POSTGRES_URL"
)

CONFIGURATION = """\
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = ''
max_connections = 100
fsync = off
full_page_writes = off
wal_level = minimal
max_wal_senders = 0
lc_messages = 'C'
log_line_prefix = '%m [%p] %d '
"""

# It hears of each server that is started, and of none when there is none; when its input ends, the tests are gone.
WATCH = """\
pid=
while read -r line; do pid=$line; done
if [ -n "$pid" ]; then
    kill -QUIT "$pid"
    tries=0
    while kill -0 "$pid" && [ $tries -lt 100 ]; do sleep 0.1; tries=$((tries + 1)); done
fi
rm -rf "$1"
"""


class NoPostgres(Exception):
    """There is no PostgreSQL that can be started on this machine; says how to get one."""


def programs() -> Path:
    """The folder of initdb and postgres: the one on the PATH, or the newest of Debian's; NoPostgres without any."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    with contextlib.suppress(FileNotFoundError):
        versions = [folder for folder in VERSIONED.iterdir() if folder.name.isdecimal()]
        folders += [folder / "bin" for folder in sorted(versions, key=lambda folder: int(folder.name), reverse=True)]
    for folder in folders:
        if all(os.access(folder / program, os.X_OK) for program in ("initdb", "postgres")):
            return folder
    raise NoPostgres(HOW_TO_GET_ONE)


def _unprivileged() -> dict[str, Any]:
    """What has a process run as somebody who is not root; nothing when the tests do not run as root either."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            somebody = pwd.getpwnam(name)
            return {"user": somebody.pw_uid, "group": somebody.pw_gid, "extra_groups": []}
    raise NoPostgres("PostgreSQL refuses to run as root, and there is no user postgres or nobody to run it as")


class Server:
    """A private PostgreSQL. Made by `Server()`, up after `start()`, gone after `end()`."""

    def __init__(self) -> None:
        self._programs = programs()
        self._as = _unprivileged()
        self.port = free_port()
        self.password = secrets.token_hex(8)
        self.folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        self._data = self.folder / "data"
        self._give(self.folder)
        self._process: subprocess.Popen[bytes] | None = None
        # A session of its own, or what ends the tests from a terminal ended it first.
        self._watch = subprocess.Popen(
            ["sh", "-c", WATCH, "sh", str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.databases = Databases(self.url())
        self._pid = os.getpid()
        atexit.register(self.end)

    def _prepare(self) -> None:
        password = self.folder / "password"
        password.write_text(self.password + "\n")
        self._give(password)
        made = subprocess.run(
            [
                *(self._programs / "initdb", "--pgdata", self._data, "--username", SUPERUSER, "--pwfile", password),
                *("--auth=scram-sha-256", "--encoding=UTF8", f"--locale={LOCALE}", "--no-sync"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self.folder,
            env=self._environ,
            check=False,
            **self._as,
        )
        if made.returncode:
            raise RuntimeError(f"initdb made no PostgreSQL:\n{made.stdout.decode(errors='replace')}")
        with (self._data / "postgresql.conf").open("a") as configuration:
            configuration.write(CONFIGURATION.format(port=self.port))

    def _give(self, path: Path) -> None:
        if self._as:
            os.chown(path, self._as["user"], self._as["group"])

    @property
    def _environ(self) -> dict[str, str]:
        # No PG* of whoever runs the tests; LC_ALL, because their locale may be one that this machine does not have.
        return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC", "HOME": str(self.folder)}

    # Life and death

    def start(self) -> None:
        """Start the server, on the same port and folder as ever, and wait until it serves."""
        if not self._data.exists():
            self._prepare()
        deadline = time.monotonic() + START_PATIENCE
        while True:
            if not self.alive:
                self._spawn()
            try:
                psycopg.connect(self.url(), connect_timeout=2).close()
            except psycopg.OperationalError:
                # After a kill, one that was just being born may still hold the memory: then the server ends at once.
                still_held = not self.alive and "is still in use" in self.said()
                if time.monotonic() > deadline or not (self.alive or still_held):
                    raise RuntimeError(f"PostgreSQL did not start:\n{self.said()}") from None
                time.sleep(0.02)
            else:
                return

    def _spawn(self) -> None:
        with (self.folder / "postgres.out").open("ab") as output:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", self._data],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environ,
                cwd=self.folder,
                start_new_session=True,
                **self._as,
            )
        self._tell_watch(str(self._process.pid))

    def _tell_watch(self, pid: str) -> None:
        assert self._watch.stdin is not None
        self._watch.stdin.write(f"{pid}\n".encode())
        self._watch.stdin.flush()

    def said(self) -> str:
        """The end of what the server wrote."""
        output = self.folder / "postgres.out"
        return output.read_text(errors="replace")[-3000:] if output.exists() else ""

    @property
    def pid(self) -> int:
        """The number of the server's first process, which may have ended."""
        assert self._process is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the server's first process lives."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """End the server at once and leave it to the next start to repair, as `pg_ctl stop -m immediate` does.

        Its clients are told that it shuts down ("terminating connection due to immediate shutdown").
        """
        if self._process is None:
            return
        if self.alive:
            self._process.send_signal(signal.SIGQUIT)
            try:
                self._process.wait(STOP_PATIENCE)
            except subprocess.TimeoutExpired:
                self.kill()
        self._tell_watch("")

    def kill(self) -> None:
        """SIGKILL to all of its processes, as a crash of the machine would be: nothing is said to anybody."""
        if self._process is None:
            return
        if self.alive:
            # It must give birth to no more of them while they are counted.
            self._process.send_signal(signal.SIGSTOP)
            for process in [*self._children(), self._process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        self._process.wait()
        self._tell_watch("")

    def _children(self) -> list[int]:
        table = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
        pairs = [line.split() for line in table.splitlines()]
        return [int(pid) for pid, parent in pairs if int(parent) == self.pid]

    def restart(self) -> None:
        """Stop and start."""
        self.stop()
        self.start()

    def mend(self) -> None:
        """Undo what a test did to the server as a whole: stopped, killed."""
        if not self.alive:
            self.start()

    def end(self) -> None:
        """End all processes and remove the folder; again is harmless."""
        atexit.unregister(self.end)
        if os.getpid() != self._pid:
            return  # a fork of the tests ends, not the tests
        self.databases.close()
        if self._watch.poll() is None:
            self.stop()
            assert self._watch.stdin is not None
            self._watch.stdin.close()
            self._watch.wait()  # it takes the folder away

    # How to reach it

    def url(self, database: str = "postgres") -> str:
        """A URL of the superuser's."""
        return f"postgresql://{SUPERUSER}:{self.password}@127.0.0.1:{self.port}/{database}"
