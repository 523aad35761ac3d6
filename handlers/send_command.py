"""`send_command`: tell a Vumi worker to do something, as a VumiApiCommand."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, Field, field_validator

from dispatcher import (
    AtLoad,
    BadNumber,
    Bindings,
    Context,
    Done,
    Effect,
    Event,
    Failed,
    Handler,
    Outcome,
    Publish,
    normalise_number,
)

# The commands that Vumi Go's workers know, and the keyword arguments that each cannot do without. A worker that gets
# a command it cannot call stops consuming, so none goes out that would do that.
_CONVERSATION = ("user_account_key", "conversation_key")
_REQUIRED: dict[str, tuple[str, ...]] = {
    "start": ("user_account_key",),
    "stop": ("user_account_key",),
    "send_message": (*_CONVERSATION, "command_data"),
    "bulk_send": (*_CONVERSATION, "batch_id", "msg_options", "content", "delivery_class", "dedupe"),
    "send_survey": (*_CONVERSATION, "batch_id", "msg_options", "delivery_class"),
    "send_jsbox": (*_CONVERSATION, "batch_id"),
    "collect_metrics": _CONVERSATION,
}


class SendCommand(Handler):
    """Publish a VumiApiCommand, which Vumi's command dispatcher hands to the worker that it names.

    For the commands that Vumi Go's workers know, `user_account_key` and `conversation_key` are those of the event
    unless `kwargs` gives them, and `send_message` gets the `msg_options` that workers insist on. A `send_message` to
    a number that is opted out is skipped: the worker would not check.

    Emits nothing; publishes one command.

    Run twice = the same command: it goes into the outbox in the same transaction as the journal, under a
    `command_id` derived from the step's idempotency key. A crash of the relay may publish it twice under that id.
    """

    effect = Effect.TRANSACTION

    worker_name: str = Field(min_length=1, description="The worker's name, in lower case.")
    command: str = Field(min_length=1, description="The command, such as `send_message`.")
    args: tuple[Any, ...] = Field(default=(), description="Positional arguments.")
    kwargs: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments.")
    exchange: Annotated[str, AtLoad()] = Field(default="vumi", description="The exchange to publish to.")
    routing_key: Annotated[str, AtLoad()] = Field(default="vumi.api", description="The routing key to publish with.")

    @field_validator("worker_name")
    @classmethod
    def _is_a_routing_key(cls, value: str) -> str:
        # Vumi's publishers refuse any other routing key than one in lower case.
        if value != value.lower():
            raise ValueError("a worker's name is written in lower case")
        return value

    class Result(BaseModel):
        """What was published."""

        command_id: str
        worker_name: str
        command: str

    @classmethod
    def check_params(cls, params: Mapping[str, Any], bindings: Bindings) -> Iterable[tuple[str, str]]:
        """Refuse what would stop the worker that gets it."""
        kwargs = params.get("kwargs") or {}
        if isinstance(kwargs, Mapping) and not params.get("args"):
            for problem in _problems(params.get("command"), kwargs, missing_too=True):
                yield "kwargs", problem

    def run(self, event: Event, context: Context) -> Outcome:
        """Complete the command and hand it to the outbox."""
        kwargs = self._completed(event)
        for problem in _problems(self.command, kwargs, missing_too=not self.args):
            return Failed(problem)
        if self.command == "send_message" and not self.args and not isinstance(kwargs["command_data"], Mapping):
            return Failed("command_data is not an object")
        opted_out = self._opted_out(kwargs, context)
        if opted_out is not None:
            return Done(skipped=f"opted out: {opted_out}")
        command_id = hashlib.blake2b(context.idempotency_key.encode(), digest_size=16).hexdigest()
        body = {
            "command_id": command_id,
            "worker_name": self.worker_name,
            "command": self.command,
            "args": list(self.args),
            "kwargs": kwargs,
        }
        return Done(
            {"command_id": command_id, "worker_name": self.worker_name, "command": self.command},
            publishes=[Publish(exchange=self.exchange, routing_key=self.routing_key, body=body)],
        )

    def _completed(self, event: Event) -> dict[str, Any]:
        kwargs = dict(self.kwargs)
        if self.command not in _REQUIRED or self.args:
            return kwargs
        kwargs.setdefault("user_account_key", event.account_key)
        # A router is started and stopped by its own key.
        if "router_key" not in kwargs:
            kwargs.setdefault("conversation_key", event.conversation_key)
        data = kwargs.get("command_data")
        if self.command == "send_message" and isinstance(data, Mapping):
            kwargs["command_data"] = {"msg_options": {}, **data}
        return kwargs

    def _opted_out(self, kwargs: Mapping[str, Any], context: Context) -> str | None:
        data = kwargs.get("command_data")
        if self.command != "send_message" or not isinstance(data, Mapping):
            return None
        try:
            number = normalise_number(data.get("to_addr"), context.region)
        except BadNumber:
            return None  # an address of another kind, which nobody can have opted out
        return context.opt_outs.reason(number)


def _problems(command: Any, kwargs: Mapping[str, Any], *, missing_too: bool) -> Iterator[str]:
    if command not in _REQUIRED:
        return
    if "account_key" in kwargs:
        yield f"{command} takes user_account_key, not account_key"
    if "command_id" in kwargs:
        yield "command_id is derived from the step and cannot be given"
    if missing_too:
        for name in _REQUIRED[command]:
            if name not in kwargs and name not in _CONVERSATION:
                yield f"{command} needs {name}"
    data = kwargs.get("command_data")
    if command == "send_message" and isinstance(data, Mapping):
        for name in ("to_addr", "content"):
            if name not in data:
                yield f"send_message needs {name} in command_data"
