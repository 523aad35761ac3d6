"""`send_command`: tell a Vumi worker to do something, as a VumiApiCommand."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

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
    Settled,
    VumiService,
    normalise_number,
)

# The commands that Vumi Go's workers know (vumi-go, `go.vumitools.app_worker` and `go.apps`, read in source): what each
# takes, in the order of positional arguments, and whether it puts up with more. All must be there. A worker that gets
# a command it cannot call stops consuming, so none goes out that would do that.
_CONVERSATION = ("user_account_key", "conversation_key")
_ROUTER = ("user_account_key", "router_key")


class _Command(NamedTuple):
    takes: tuple[str, ...]
    more: bool = False


_COMMANDS = {
    "start": _Command(_CONVERSATION),
    "stop": _Command(_CONVERSATION),
    "send_message": _Command((*_CONVERSATION, "command_data"), more=True),
    "bulk_send": _Command(
        (*_CONVERSATION, "batch_id", "msg_options", "content", "dedupe", "delivery_class"), more=True
    ),
    "send_survey": _Command((*_CONVERSATION, "batch_id", "msg_options", "delivery_class"), more=True),
    "send_jsbox": _Command((*_CONVERSATION, "batch_id")),
    "collect_metrics": _Command(("conversation_key", "user_account_key")),
}
# A router is started and stopped by its own key.
_OF_ROUTERS = frozenset(("start", "stop"))
_NAMELESS_ROUTER = "a router's worker cannot be told from the event; give worker_name, such as keyword_router"

# Where commands go, and to whom, unless the rulebook says otherwise.
_VUMI_GO = VumiService()


class SendCommand(Handler):
    """Publish a VumiApiCommand, which Vumi's command dispatcher hands to the worker that it names.

    The worker is `worker_name`; left out, the one that `service` names for the type of the event's conversation, else
    `<conversation_type>_application`. For the commands that Vumi Go's workers know, `user_account_key` and
    `conversation_key` are those of the event unless given, and `send_message` gets the `msg_options` that workers
    insist on. A `send_message` to a number that is opted out is skipped: the worker would not check.

    Emits nothing; publishes one command.

    Run twice = the same command: it goes into the outbox in the same transaction as the journal, under a
    `command_id` derived from the step's idempotency key. Workers do not look at that id, save for `bulk_send`, which
    resumes by it: so a command of which nobody can tell whether the broker took it follows `on_unknown`.
    """

    effect = Effect.TRANSACTION

    service: Annotated[str | None, AtLoad(names="service")] = Field(
        default=None, description="The service of the type `vumi` that tells exchange, routing key and workers."
    )
    worker_name: str | None = Field(
        default=None,
        min_length=1,
        description="The worker's name, in lower case; left out, that of the event's conversation type.",
    )
    command: str = Field(min_length=1, description="The command, such as `send_message`.")
    args: tuple[Any, ...] = Field(default=(), description="Positional arguments.")
    kwargs: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments.")
    exchange: Annotated[str | None, AtLoad()] = Field(
        default=None, description="The exchange to publish to; left out, the service's, else `vumi`."
    )
    routing_key: Annotated[str | None, AtLoad()] = Field(
        default=None, description="The routing key to publish with; left out, the service's, else `vumi.api`."
    )

    @field_validator("worker_name")
    @classmethod
    def _is_a_routing_key(cls, value: str | None) -> str | None:
        # Vumi's publishers refuse any other routing key than one in lower case.
        if value is not None and value != value.lower():
            raise ValueError("a worker's name is written in lower case")
        return value

    class Result(BaseModel):
        """What was published."""

        command_id: str
        worker_name: str
        command: str

    @classmethod
    def settle(cls, params: Mapping[str, Any], bindings: Bindings) -> Settled:
        """Go out under the limits of the service, where one is named."""
        name = params.get("service")
        return Settled(cls.effect, connection=f"service:{name}" if name else None)

    @classmethod
    def check_params(cls, params: Mapping[str, Any], bindings: Bindings) -> Iterable[tuple[str, str]]:
        """Refuse what would stop the worker that gets it."""
        service = params.get("service")
        if service and not isinstance(bindings.services.get(service), VumiService):
            yield "service", "a service of the type `vumi` is needed here"
        kwargs = params.get("kwargs") or {}
        if not isinstance(kwargs, Mapping):
            return
        if not params.get("args"):
            for problem in _mistakes(params.get("command"), kwargs):
                yield "kwargs", problem
        if "router_key" in kwargs and params.get("worker_name") is None:
            yield "worker_name", _NAMELESS_ROUTER

    def run(self, event: Event, context: Context) -> Outcome:
        """Complete the command and hand it to the outbox."""
        service = _VUMI_GO if self.service is None else context.service(self.service)
        if not isinstance(service, VumiService):
            return Failed(f"service {self.service!r} is not of the type `vumi` any more; give another one")
        worker_name = self.worker_name or self._worker_for(event, service)
        if isinstance(worker_name, Failed):
            return worker_name
        args, kwargs = self._completed(event)
        for problem in _mismatches(self.command, args, kwargs):
            return Failed(problem)
        if self.command == "send_message":
            command_data = kwargs["command_data"] if "command_data" in kwargs else args[-1]
            if not isinstance(command_data, Mapping):
                return Failed("command_data is not an object")
            opted_out = self._opted_out(command_data, context)
            if opted_out is not None:
                return Done(skipped=f"opted out: {opted_out}")
        command_id = hashlib.blake2b(context.idempotency_key.encode(), digest_size=16).hexdigest()
        body = {
            "command_id": command_id,
            "worker_name": worker_name,
            "command": self.command,
            "args": args,
            "kwargs": kwargs,
        }
        exchange = service.exchange if self.exchange is None else self.exchange
        routing_key = service.routing_key if self.routing_key is None else self.routing_key
        return Done(
            {"command_id": command_id, "worker_name": worker_name, "command": self.command},
            publishes=[Publish(exchange, routing_key, body, message_id=command_id)],
        )

    def _worker_for(self, event: Event, service: VumiService) -> str | Failed:
        """Return the worker that serves the event's conversation, or why none can be told."""
        if "router_key" in self.kwargs:
            return Failed(_NAMELESS_ROUTER)
        if event.conversation_type is None:
            return Failed(
                "the event has no conversation type to tell the worker by; give worker_name, "
                "or list the conversation under `conversations:`"
            )
        name = service.worker_name(event.conversation_type)
        if name != name.lower():
            return Failed(
                f"{name!r} cannot be a worker's name, which is in lower case; "
                "give worker_name, or list the type in the service's worker_names"
            )
        return name

    def _completed(self, event: Event) -> tuple[list[Any], dict[str, Any]]:
        """Return args and kwargs with what Vumi Go's workers want beside what the step gives."""
        args, kwargs = list(self.args), dict(self.kwargs)
        takes = _takes(self.command, kwargs)
        if takes is None:
            return args, kwargs
        own = {"user_account_key": event.account_key, "conversation_key": event.conversation_key}
        for name in takes[len(args) :]:
            if name in own:
                kwargs.setdefault(name, own[name])
        if self.command == "send_message":
            at = takes.index("command_data")
            if len(args) > at:
                args[at] = _with_options(args[at])
            elif "command_data" in kwargs:
                kwargs["command_data"] = _with_options(kwargs["command_data"])
        return args, kwargs

    def _opted_out(self, command_data: Mapping[str, Any], context: Context) -> str | None:
        try:
            number = normalise_number(command_data["to_addr"], context.region)
        except BadNumber:
            return None  # an address of another kind, which nobody can have opted out
        return context.opt_outs.reason(number)


def _takes(command: Any, kwargs: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the names of what a command takes; None for one that Vumi Go's workers do not know."""
    if command not in _COMMANDS:
        return None
    return _ROUTER if command in _OF_ROUTERS and "router_key" in kwargs else _COMMANDS[command].takes


def _with_options(command_data: Any) -> Any:
    return {"msg_options": {}, **command_data} if isinstance(command_data, Mapping) else command_data


def _mistakes(command: Any, kwargs: Mapping[str, Any]) -> Iterator[str]:
    """Say what is wrong, or missing from the kwargs, if there are no args; account and conversation are filled in."""
    takes = _takes(command, kwargs)
    if takes is None:
        return
    if "account_key" in kwargs:
        yield f"{command} takes user_account_key, not account_key"
    if "command_id" in kwargs:
        yield "command_id is derived from the step and cannot be given"
    for name in takes:
        if name not in kwargs and name not in _CONVERSATION:
            yield f"{command} needs {name}"
    data = kwargs.get("command_data")
    if command == "send_message" and isinstance(data, Mapping):
        for name in ("to_addr", "content"):
            if name not in data:
                yield f"send_message needs {name} in command_data"


def _mismatches(command: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[str]:
    """Say what keeps a command, as it is about to go out, from fitting what the worker would call with it."""
    takes = _takes(command, kwargs)
    if takes is None:
        return
    if len(args) > len(takes):
        yield f"{command} takes {len(takes)} args at most: {', '.join(takes)}"
        return
    by_place = dict(zip(takes, args, strict=False))
    for name in by_place:
        if name in kwargs:
            yield f"{name} is given twice, in args and in kwargs"
    yield from _mistakes(command, {**by_place, **kwargs})
    if not _COMMANDS[command].more:
        for name in kwargs:
            if name not in takes:
                yield f"{command} takes no {name}, and a worker that gets one stops; it takes {', '.join(takes)}"
