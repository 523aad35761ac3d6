"""A private RabbitMQ: one node in a temporary folder, on loopback only, that tests may break as they like.

It shares nothing with a RabbitMQ that the machine may run: its own node name, ports, cookie, epmd and folders. Its
processes are children of the tests and end with them.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from urllib.parse import quote

from tests.harness.administration import ADMINISTRATOR, Administration
from tests.harness.control import Control, EvaluationFailed
from tests.harness.waiting import wait_until

NODE = "rabbit@localhost"
START_PATIENCE = 60.0

# Debian's /usr/sbin/rabbitmq-server changes the user or refuses; the script that it wraps works as anybody.
UNWRAPPED = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")

HOW_TO_GET_ONE = (
    "there is no RabbitMQ: install one (Debian: apt install rabbitmq-server; `make test` does it as root), put "
    "rabbitmq-server, erl and epmd on the PATH, or name a server's test vhost in DISPATCHER_TEST_AMQP_URL"
)

CONFIGURATION = """\
listeners.tcp.1 = 127.0.0.1:{port}
default_user = {administrator}
default_pass = {password}
# The machine's disk may be nearly full, and that is no concern of the tests; alarms are set by hand.
disk_free_limit.absolute = 1MB
log.console = false
log.file.level = info
"""


class NoRabbit(Exception):
    """There is no RabbitMQ on this machine; says how to get one."""


def programs() -> dict[str, str]:
    """Where rabbitmq-server, erl and epmd are; NoRabbit when one is missing."""
    server = str(UNWRAPPED) if UNWRAPPED.exists() else shutil.which("rabbitmq-server")
    found = {"rabbitmq-server": server, "erl": shutil.which("erl"), "epmd": shutil.which("epmd")}
    if missing := [name for name, path in found.items() if path is None]:
        raise NoRabbit(f"{HOW_TO_GET_ONE} (missing: {', '.join(missing)})")
    return {name: path for name, path in found.items() if path is not None}


def free_port() -> int:
    """A port of loopback that nobody listens on.

    From below the range that the system hands out to clients: there, a client that keeps trying a closed port may be
    given that very port and be connected to itself, and a port might be taken while the broker is down.
    """
    while True:
        port = random.randrange(10_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


class Node(Administration):
    """A private RabbitMQ node. Made by `Node()`, up after `start()`, gone after `end()`."""

    def __init__(self) -> None:
        self.programs = programs()
        self.folder = Path(tempfile.mkdtemp(prefix="rabbitmq-"))
        self.port = free_port()
        self.password = secrets.token_hex(8)
        self._process: subprocess.Popen[bytes] | None = None
        self._epmd: subprocess.Popen[bytes] | None = None
        self._control: Control | None = None
        self._environ = self._prepare(epmd_port=free_port(), distribution_port=free_port()) | self._leave_out_plugins()
        self._pid = os.getpid()
        atexit.register(self.end)

    def _prepare(self, *, epmd_port: int, distribution_port: int) -> dict[str, str]:
        folder = self.folder
        cookie = folder / ".erlang.cookie"
        cookie.write_text(secrets.token_hex(16))
        cookie.chmod(0o400)
        (folder / "environment.conf").touch()
        (folder / "enabled_plugins").write_text("[].\n")
        (folder / "rabbitmq.conf").write_text(
            CONFIGURATION.format(port=self.port, administrator=ADMINISTRATOR, password=self.password)
        )
        # The node gets its name here and not from its own boot code, which would start a second Erlang to find epmd.
        erlang = (
            f"-sname {NODE} -start_epmd false -kernel inet_dist_use_interface {{127,0,0,1}} "
            f"inet_dist_listen_min {distribution_port} inet_dist_listen_max {distribution_port}"
        )
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": "C.UTF-8",
            "HOME": str(folder),
            "ERL_EPMD_PORT": str(epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": NODE,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(distribution_port),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "environment.conf"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(folder / "generated"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": erlang,
            # Has the script become the Erlang machine, so that its process id is the one to kill.
            "RUNNING_UNDER_SYSTEMD": "true",
        }

    def _leave_out_plugins(self) -> dict[str, str]:
        """Show the node a RabbitMQ without optional plugins: it reads them all, which is half of its time to start."""
        server = Path(self.programs["rabbitmq-server"]).resolve()
        home = server.parent.parent
        if not (home / "plugins").is_dir():
            return {}  # an unusual installation: slower, and as good
        slim = self.folder / "server"
        (slim / "plugins").mkdir(parents=True)
        for part in home.iterdir():
            if part.is_dir() and part.name != "plugins":
                (slim / part.name).symlink_to(part)
        for library in (home / "plugins").iterdir():
            if library.name.startswith("rabbitmq_prelaunch") or not library.name.startswith("rabbitmq_"):
                (slim / "plugins" / library.name).symlink_to(library)
        scripts = slim / server.parent.name
        self.programs["rabbitmq-server"] = str(scripts / server.name)
        return {"RABBITMQ_SCRIPTS_DIR": str(scripts)}

    # Life and death

    def start(self) -> None:
        """Start the node, on the same ports and folder as ever, and wait until it serves."""
        if self._epmd is None:
            self._epmd = self._spawn("epmd", "-port", self._environ["ERL_EPMD_PORT"], "-address", "127.0.0.1")
            self._control = Control(
                erl=self.programs["erl"],
                node=NODE,
                environ=self._environ,
                folder=self.folder,
                epmd_pid=self._epmd.pid,
            )
        if not self.alive:
            self._process = self._spawn("rabbitmq-server")
        self._await_listener()
        self.eval("rabbit:await_startup()")
        self._await_boot()

    def _spawn(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{program}.out").open("ab") as output:
            return subprocess.Popen(
                [self.programs[program], *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environ,
                cwd=self.folder,
                start_new_session=True,
            )

    def _await_listener(self) -> None:
        deadline = time.monotonic() + START_PATIENCE
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                if not self.alive or time.monotonic() > deadline:
                    raise RuntimeError(f"RabbitMQ did not start:\n{self.said()}") from None
                time.sleep(0.02)
            else:
                return

    def _await_boot(self) -> None:
        # While it is marked as booting, which outlasts the start a little, an order to start again would be ignored.
        wait_until(lambda: self.eval("whereis(rabbit_boot)") == "undefined", "the end of RabbitMQ's boot")

    def said(self) -> str:
        """The end of what the node wrote: its output and its log."""
        files = [self.folder / "rabbitmq-server.out", *sorted((self.folder / "log").glob("*.log"))]
        return "\n".join(file.read_text(errors="replace")[-3000:] for file in files if file.exists())

    @property
    def alive(self) -> bool:
        """Whether the process lives; its application may be stopped."""
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """SIGKILL, as a crash would: nothing is said to anybody.

        What the node knows of its queues is on disk first. RabbitMQ writes the names of quorum queues half a second
        late, and one that was declared just before a crash never gets a leader again (seen with 3.10): a fault of its
        own, which a test that declares and kills at once would meet each time.
        """
        with contextlib.suppress(EvaluationFailed):
            self.eval("[dets:sync(T) || T <- dets:all()], catch mnesia:sync_log()")
        if self._process is not None:
            _end_group(self._process)

    def restart(self) -> None:
        """Kill and start."""
        self.kill()
        self.start()

    def end(self) -> None:
        """End all processes and remove the folder; again is harmless."""
        atexit.unregister(self.end)
        if os.getpid() != self._pid:
            return  # a fork of the tests ends, not the tests
        if self._control is not None:
            self._control.end()
        for process in (self._process, self._epmd):
            if process is not None:
                _end_group(process)
        shutil.rmtree(self.folder, ignore_errors=True)

    def stop_app(self) -> None:
        """Stop the broker in good order, as `rabbitmqctl stop_app` does; its node stays."""
        self.eval("rabbit:stop()")

    def start_app(self) -> None:
        """Start the broker again after `stop_app`, and wait until it serves."""
        self.eval("rabbit:start()")
        self._await_listener()
        self._await_boot()

    def mend(self) -> None:
        """Undo whatever a test did to the node as a whole: dead, stopped, alarmed, connected, hasty."""
        if not self.alive:
            self.start()
        elif self.eval("rabbit:is_running()") != "true":
            self.start_app()
        self.reset()
        self.close_all_connections("the test is over")

    # How to reach it

    def eval(self, expressions: str) -> str:
        """Evaluate Erlang on the node, in milliseconds: see Control.eval."""
        if self._control is None:
            raise EvaluationFailed("the node was not started")
        return self._control.eval(expressions)

    def url(self, vhost: str = "/", *, user: str = ADMINISTRATOR, password: str | None = None) -> str:
        """An AMQP URL, by default the administrator's, who may do anything in every vhost that `add_vhost` made."""
        return f"amqp://{user}:{password or self.password}@127.0.0.1:{self.port}/{quote(vhost, safe='')}"


def _end_group(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
