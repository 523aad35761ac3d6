"""A private RabbitMQ: one node in a temporary folder, on loopback only, that tests may break as they like.

It shares nothing with a RabbitMQ that the machine may run: its own node name, ports, cookie, epmd and folders. Its
processes are children of the tests and end with them.
"""

from __future__ import annotations

import atexit
import json
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
from typing import Any
from urllib.parse import quote

from tests.harness.control import Control, EvaluationFailed

NODE = "rabbit@localhost"
ADMINISTRATOR = "administrator"
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

# What the application's defaults are, to go back to.
CONSUMER_TIMEOUT_MS = 1_800_000
CHANNEL_TICK_MS = 60_000


class NoRabbit(Exception):
    """There is no RabbitMQ on this machine; says how to get one."""


class NoSuchQueue(LookupError):
    """The broker knows no queue of that name."""


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


class Node:
    """A private RabbitMQ node. Made by `Node()`, up after `start()`, gone after `end()`."""

    def __init__(self) -> None:
        self.programs = programs()
        self.folder = Path(tempfile.mkdtemp(prefix="rabbitmq-"))
        self.port = free_port()
        self.password = secrets.token_hex(8)
        self._process: subprocess.Popen[bytes] | None = None
        self._epmd: subprocess.Popen[bytes] | None = None
        self._control: Control | None = None
        self._environ = self._prepare(epmd_port=free_port(), distribution_port=free_port())
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

    def said(self) -> str:
        """The end of what the node wrote: its output and its log."""
        files = [self.folder / "rabbitmq-server.out", *sorted((self.folder / "log").glob("*.log"))]
        return "\n".join(file.read_text(errors="replace")[-3000:] for file in files if file.exists())

    @property
    def alive(self) -> bool:
        """Whether the process lives; its application may be stopped."""
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """SIGKILL, as a crash would: nothing is said to anybody."""
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

    def mend(self) -> None:
        """Undo whatever a test did to the node as a whole: dead, stopped, alarmed, connected, hasty."""
        if not self.alive:
            self.start()
        elif self.eval("rabbit:is_running()") != "true":
            self.start_app()
        self.eval(
            "[rabbit_alarm:clear_alarm({resource_limit, R, node()}) || R <- [memory, disk]],"
            f"application:set_env(rabbit, consumer_timeout, {CONSUMER_TIMEOUT_MS}),"
            f"application:set_env(rabbit, channel_tick_interval, {CHANNEL_TICK_MS})"
        )
        self.close_all_connections("the test is over")

    # Questions and orders

    def eval(self, expressions: str) -> str:
        """Evaluate Erlang on the node, in milliseconds: see Control.eval."""
        if self._control is None:
            raise EvaluationFailed("the node was not started")
        return self._control.eval(expressions)

    def json(self, expressions: str) -> Any:
        """Evaluate Erlang on the node and read its value as JSON."""
        return json.loads(self.eval(f"iolist_to_binary(rabbit_json:encode(begin {expressions} end))"))

    def url(self, vhost: str = "/", *, user: str = ADMINISTRATOR, password: str | None = None) -> str:
        """An AMQP URL, by default the administrator's, who may do anything in every vhost that `add_vhost` made."""
        return f"amqp://{user}:{password or self.password}@127.0.0.1:{self.port}/{quote(vhost, safe='')}"

    def add_vhost(self, vhost: str) -> None:
        """Make a vhost in which the administrator may do anything."""
        self.eval(f"rabbit_vhost:add({_binary(vhost)}, <<>>)")
        self.set_permissions(ADMINISTRATOR, vhost)

    def delete_vhost(self, vhost: str) -> None:
        """Delete a vhost and all that is in it; its connections are closed."""
        self.eval(f"rabbit_vhost:delete({_binary(vhost)}, <<>>)")

    def add_user(self, user: str, password: str) -> None:
        """Make a user, who may do nothing yet."""
        self.eval(f"rabbit_auth_backend_internal:add_user({_binary(user)}, {_binary(password)}, <<>>)")

    def change_password(self, user: str, password: str) -> None:
        """Change a password; open connections stay open."""
        self.eval(f"rabbit_auth_backend_internal:change_password({_binary(user)}, {_binary(password)}, <<>>)")

    def delete_user(self, user: str) -> None:
        """Delete a user."""
        self.eval(f"rabbit_auth_backend_internal:delete_user({_binary(user)}, <<>>)")

    def set_permissions(
        self, user: str, vhost: str, configure: str = ".*", write: str = ".*", read: str = ".*"
    ) -> None:
        """Say what a user may do in a vhost; an open channel may go by the old ones for what it did just before."""
        arguments = ", ".join(_binary(text) for text in (user, vhost, configure, write, read, ""))
        self.eval(f"rabbit_auth_backend_internal:set_permissions({arguments})")

    def clear_permissions(self, user: str, vhost: str) -> None:
        """Shut a user out of a vhost: a new connection is refused, an open one fails at its next command."""
        self.eval(f"rabbit_auth_backend_internal:clear_permissions({_binary(user)}, {_binary(vhost)}, <<>>)")

    def close_all_connections(self, reason: str = "closed by a test") -> int:
        """Close every connection as an operator would (320 CONNECTION_FORCED); how many there were."""
        return int(
            self.eval(
                "length([rabbit_networking:close_connection(P, "
                f"{json.dumps(reason)}) || P <- rabbit_networking:connections()])"
            )
        )

    def set_memory_alarm(self) -> None:
        """Block publishing connections, as a broker does that has too little memory."""
        self.eval("rabbit_alarm:set_alarm({{resource_limit, memory, node()}, []})")

    def clear_memory_alarm(self) -> None:
        """Unblock them."""
        self.eval("rabbit_alarm:clear_alarm({resource_limit, memory, node()})")

    def set_disk_alarm(self) -> None:
        """Block publishing connections, as a broker does whose disk is full."""
        self.eval("rabbit_alarm:set_alarm({{resource_limit, disk, node()}, []})")

    def clear_disk_alarm(self) -> None:
        """Unblock them."""
        self.eval("rabbit_alarm:clear_alarm({resource_limit, disk, node()})")

    def set_consumer_timeout(self, milliseconds: int) -> None:
        """Have channels opened from now on closed when a delivery is unacknowledged for so long."""
        self.eval(
            f"application:set_env(rabbit, consumer_timeout, {milliseconds}),"
            f"application:set_env(rabbit, channel_tick_interval, {max(50, milliseconds // 4)})"
        )

    def queue_depth(self, vhost: str, queue: str) -> tuple[int, int]:
        """How many messages are ready and how many unacknowledged, this instant; NoSuchQueue when there is no queue."""
        # A quorum queue's own figures are as old as its last tick, up to 5 s; its state machine knows.
        ready, unacked = self._about_queue(
            vhost,
            queue,
            """case amqqueue:get_type(Q) of
                rabbit_quorum_queue ->
                    {ok, {_, O}, _} = ra:leader_query(amqqueue:get_pid(Q), fun rabbit_fifo:overview/1),
                    Ready = maps:get(num_ready_messages, O),
                    [Ready, maps:get(num_messages, O) - Ready];
                _ ->
                    [N || {_, N} <- rabbit_amqqueue:info(Q, [messages_ready, messages_unacknowledged])]
            end""",
        )
        return ready, unacked

    def queue_arguments(self, vhost: str, queue: str) -> dict[str, Any]:
        """What the queue was declared with, its type among them; NoSuchQueue when there is no queue."""
        arguments: dict[str, Any] = self._about_queue(
            vhost, queue, "maps:from_list([{K, V} || {K, _, V} <- amqqueue:get_arguments(Q)])"
        )
        return arguments

    def _about_queue(self, vhost: str, queue: str, expression: str) -> Any:
        answer = self.json(
            f"case rabbit_amqqueue:lookup(rabbit_misc:r({_binary(vhost)}, queue, {_binary(queue)})) of "
            f"{{ok, Q}} -> [{expression}]; _ -> [] end"
        )
        if not answer:
            raise NoSuchQueue(f"{queue} in {vhost}")
        return answer[0]

    def queues(self, vhost: str) -> list[str]:
        """The names of a vhost's queues."""
        names: list[str] = self.json(
            f"[element(4, amqqueue:get_name(Q)) || Q <- rabbit_amqqueue:list({_binary(vhost)})]"
        )
        return sorted(names)

    def consumers(self, vhost: str) -> list[dict[str, Any]]:
        """Who consumes in a vhost: dictionaries of queue, tag, prefetch and active."""
        consumers: list[dict[str, Any]] = self.json(
            "Get = fun(K, L) -> proplists:get_value(K, L, null) end,"
            "[#{queue => element(4, Get(queue_name, C)), tag => Get(consumer_tag, C),"
            " prefetch => Get(prefetch_count, C), active => Get(active, C)}"
            f" || C <- rabbit_amqqueue:consumers_all({_binary(vhost)})]"
        )
        return consumers

    def connections(self, vhost: str | None = None) -> list[dict[str, Any]]:
        """Who is connected: dictionaries of name, user, vhost and state (running, blocked, blocking, ...)."""
        connections: list[dict[str, Any]] = self.json(
            "Keys = [name, user, vhost, state],"
            "lists:append([try [maps:from_list(rabbit_reader:info(P, Keys))] catch _:_ -> [] end"
            " || P <- rabbit_networking:connections()])"
        )
        return [each for each in connections if vhost in (None, each["vhost"])]


def _binary(text: str) -> str:
    return f"<<{json.dumps(text, ensure_ascii=False)}/utf8>>"


def _end_group(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
