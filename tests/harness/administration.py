"""What an operator may do to a broker and ask of it, each in a few milliseconds, by having its node evaluate Erlang.

The functions called are those behind rabbitmqctl, the same in RabbitMQ 3.8 to 4.x.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from typing import Any

ADMINISTRATOR = "administrator"

# What the application's defaults are, to go back to.
CONSUMER_TIMEOUT_MS = 1_800_000
CHANNEL_TICK_MS = 60_000


class NoSuchQueue(LookupError):
    """The broker knows no queue of that name."""


class Administration(ABC):
    """Orders and questions to a node; `eval` is the node's."""

    @abstractmethod
    def eval(self, expressions: str) -> str:
        """Evaluate Erlang on the node: see Control.eval."""

    def json(self, expressions: str) -> Any:
        """Evaluate Erlang on the node and read its value as JSON."""
        return json.loads(self.eval(f"iolist_to_binary(rabbit_json:encode(begin {expressions} end))"))

    def add_vhost(self, vhost: str) -> None:
        """Make a vhost in which the administrator may do anything, on a broker whose dead lettering works."""
        self._revive_dead_lettering()
        self.eval(f"rabbit_vhost:add({_binary(vhost)}, <<>>)")
        self.set_permissions(ADMINISTRATOR, vhost)

    def delete_vhost(self, vhost: str) -> None:
        """Delete a vhost and all that is in it; its connections are closed."""
        self.await_dead_lettering(vhost)
        self.eval(f"rabbit_vhost:delete({_binary(vhost)}, <<>>)")

    # A queue with the strategy at-least-once has a process that reads what died, begun when the queue has a leader.
    # When the queue is deleted before that process has made itself known, it fails twice, and RabbitMQ 3.10 gives up
    # the supervisor of all such processes for good: from then on each of these queues ends as soon as it has a leader,
    # and who declares or consumes it is answered 541 INTERNAL_ERROR (rabbitmq-server issue 16652).

    def await_dead_lettering(self, vhost: str) -> None:
        """Wait, for a second a queue at the most, until the queues of a vhost may be deleted."""
        # The query is answered by a leader that has begun the process, sys:get_state by a process that is known.
        self.eval(
            "[catch ra:consistent_query(amqqueue:get_pid(Q), fun(_) -> ok end, 1000)"
            f" || Q <- rabbit_amqqueue:list({_binary(vhost)}), amqqueue:get_type(Q) =:= rabbit_quorum_queue],"
            "Children = try supervisor:which_children(rabbit_fifo_dlx_sup) catch exit:_ -> [] end,"
            "[catch sys:get_state(P, 1000) || {_, P, _, _} <- Children, is_pid(P)]"
        )

    def _revive_dead_lettering(self) -> None:
        self.eval(
            "whereis(rabbit_fifo_dlx_sup) =:= undefined andalso"
            " supervisor:restart_child(rabbit_sup, rabbit_fifo_dlx_sup)"
        )

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
        """Close every connection as an operator would (320 CONNECTION_FORCED); how many there were.

        One that ends by itself while it is being closed exits with `normal` or `noproc`, and is closed too.
        """
        return int(
            self.eval(
                "length([try rabbit_networking:close_connection(P, "
                f"{json.dumps(reason)}) catch exit:{{normal, _}} -> gone; exit:{{noproc, _}} -> gone end "
                "|| P <- rabbit_networking:connections()])"
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

    def reset(self) -> None:
        """Set back what concerns the whole node: no alarm, and the broker's own patience with consumers."""
        self.eval(
            "[rabbit_alarm:clear_alarm({resource_limit, R, node()}) || R <- [memory, disk]],"
            f"application:set_env(rabbit, consumer_timeout, {CONSUMER_TIMEOUT_MS}),"
            f"application:set_env(rabbit, channel_tick_interval, {CHANNEL_TICK_MS})"
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
