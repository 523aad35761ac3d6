"""The handler: a frozen pydantic model whose fields are the params of a step, with a `run`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import PydanticCustomError, core_schema

from dispatcher.plugins.effects import Effect
from dispatcher.text.numbers import BadNumber, normalise_number

if TYPE_CHECKING:
    from dispatcher.events.event import Event
    from dispatcher.plugins.context import Context
    from dispatcher.plugins.outcomes import Outcome
    from dispatcher.plugins.services import Sender, Service


class AtLoad:
    """Marks a param that is read when the rulebook is loaded and takes no template: `Annotated[str, AtLoad()]`.

    `names` says what the value must name: "sender" or "service".
    """

    def __init__(self, names: str | None = None) -> None:
        self.names = names


class PeoplesText:
    """Marks a param that people will read, such as the text of an SMS: comments that eat its end are reported."""


class _NumberSchema:
    """Reads a phone number into E.164, in the region that the validation context gives as `region`."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.with_info_plain_validator_function(_read_number)

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"type": "string", "format": "msisdn"}


def _read_number(value: Any, info: core_schema.ValidationInfo[Any]) -> str:
    region = info.context["region"] if info.context else None
    try:
        return normalise_number(value, region)
    except BadNumber as bad:
        raise PydanticCustomError("bad_number", "{reason}", {"reason": str(bad)}) from None


# A phone number, normalised to E.164 once and cached. The engine prefetches contacts and opt-outs by it.
Msisdn = Annotated[str, _NumberSchema()]


@dataclass(frozen=True, slots=True)
class Settled:
    """What binding a step to its params settles: the effect, the connection that calls go through, and keys.

    `connection` is "sender:<name>" or "service:<name>"; its concurrency and rate bound the calls.
    `keyed` tells whether repeating a call with the same idempotency key is harmless.
    """

    effect: Effect
    connection: str | None = None
    keyed: bool = False


@dataclass(frozen=True, slots=True)
class Bindings:
    """The senders and services that a rulebook configures, by name, as a step is bound to them."""

    senders: Mapping[str, Sender]
    services: Mapping[str, Service]


class Handler(BaseModel, ABC):
    """What a step names. Subclass it, declare params as fields, set `effect`, write `run`.

    The docstring says what it does, what it emits, and what happens if the same step runs twice.
    `timeout` bounds a CALL unless the step sets its own; exceptions named in `transient` are tried again.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)

    effect: ClassVar[Effect]
    timeout: ClassVar[timedelta] = timedelta(seconds=30)
    transient: ClassVar[tuple[type[Exception], ...]] = ()

    class Result(BaseModel):
        """What `steps.<id>` offers to later steps. A subclass with fields has its names checked at load."""

        model_config = ConfigDict(extra="allow")

    @classmethod
    def settle(cls, params: Mapping[str, Any], bindings: Bindings) -> Settled:
        """Settle effect and connection from the params that are known at load. Override where they depend on them.

        Called once the names that `AtLoad` params give are known to exist; `params` holds the params that the step
        writes, as written.
        """
        return Settled(cls.effect)

    @classmethod
    def check_params(cls, params: Mapping[str, Any], bindings: Bindings) -> Iterable[tuple[str, str]]:
        """Yield (param, what is wrong with it) for mistakes that only all params together show.

        Called at load with the params that the step writes, as written: templates are still text.
        """
        return ()

    def prepare(self, event: Event, context: Context) -> Outcome | None:
        """Look and write in the store before a CALL starts, in the same commit; an outcome ends the step without it."""
        return None

    @abstractmethod
    def run(self, event: Event, context: Context) -> Outcome | Awaitable[Outcome]:
        """Do the work and say how it ended."""

    def conclude(self, event: Event, context: Context, outcome: Outcome) -> Outcome:
        """Write to the store what a CALL brought back, in the same commit as its outcome.

        `outcome` is what the engine has made of the attempt: a timeout or an exception has become an outcome, a
        RetryLater that the retry policy no longer allows a Failed, and an Unknown whatever `on_unknown` says.
        """
        return outcome
