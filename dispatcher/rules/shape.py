"""The shape of a rulebook: every key that may stand in it, its type and its meaning.

The one truth for checking, for `dispatcher schema` and for the documentation. What names must exist elsewhere
(handlers, senders, steps) is checked when the rulebook is bound. Knows nothing of files and positions.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, WithJsonSchema
from pydantic_core import PydanticCustomError

from dispatcher.text.durations import Duration

# Longer than the name of anything; a name is shown in tables and messages.
_LONGEST_NAME = 200

OnError = Literal["stop", "continue"]
OnUnknown = Literal["hold", "resend", "fail"]
FieldType = Literal["text", "number", "integer", "boolean", "list", "object", "any", "timestamp"]

Text = Annotated[str, StringConstraints(min_length=1)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=_LONGEST_NAME, pattern=r"^[^\x00-\x1f\x7f]*$")]
StepId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=_LONGEST_NAME)]
ExpressionText = Annotated[str, StringConstraints(min_length=1)]


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


_ONE_OR_MORE = WithJsonSchema(
    {"anyOf": [{"type": "string", "minLength": 1}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}
)
# One text, or a list of them; an empty list is a mistake, as it would match nothing.
Texts = Annotated[tuple[Text, ...], BeforeValidator(_listed), Field(min_length=1), _ONE_OR_MORE]


def _known_version(value: int) -> int:
    if value != 1:
        raise PydanticCustomError("unknown_version", "this version of the dispatcher reads rulebooks of version 1")
    return value


Version = Annotated[int, AfterValidator(_known_version), WithJsonSchema({"const": 1})]


def _no_template(texts: tuple[str, ...]) -> tuple[str, ...]:
    if any("{{" in text for text in texts):
        raise PydanticCustomError("template", "a trigger is compared as it stands and is no template; see `when`")
    return texts


Compared = Annotated[Texts, AfterValidator(_no_template)]


class Shape(BaseModel):
    """What all parts of a rulebook have in common: nothing unknown, nothing changed after loading.

    `reserved` are keys that a later version will read; the values of `free` keys are not looked into here.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    reserved: ClassVar[frozenset[str]] = frozenset()
    free: ClassVar[frozenset[str]] = frozenset()


class RetryShape(Shape):
    """How a step that failed in a way that may pass is tried again: exponential backoff with jitter."""

    within: Duration | None = Field(default=None, alias="for", description="How long to keep trying, such as 24h.")
    initial: Duration | None = Field(default=None, description="The first pause; each one doubles it.")
    longest: Duration | None = Field(default=None, alias="max", description="The longest pause.")
    attempts: int | None = Field(default=None, ge=1, le=100_000, description="How many calls in all.")


class AccountShape(Shape):
    """What holds for an account."""

    region: Text | None = Field(default=None, description='Where numbers without "+" are read, such as ZA.')
    timezone: Text | None = Field(default=None, description="The account's time zone, such as Africa/Johannesburg.")


class EventShape(Shape):
    """What is known of an event: names in expressions are checked against it. Events that are not listed still run."""

    conversation_type: Name
    event_type: Name
    subject: ExpressionText | None = Field(default=None, description="Whom it is about, such as data.msisdn.")
    fields: dict[str, FieldType] | None = Field(default=None, description="The fields of event_data and their types.")


class DefaultsShape(Shape):
    """What holds for every step that does not say otherwise, and for accounts without a region."""

    retry: RetryShape | None = None
    region: Text | None = Field(default=None, description='Where numbers without "+" are read, such as ZA.')
    timeout: Duration | None = Field(default=None, description="How long one attempt of a call may take.")
    on_unknown: OnUnknown | None = Field(default=None, description="What to do when nobody can tell if a call worked.")


class TriggerShape(Shape):
    """Which events start a chain; what is absent may be anything."""

    account: Compared | None = Field(default=None, description="The account's key.")
    conversation: Compared | None = Field(default=None, description="The conversation's key.")
    conversation_type: Compared | None = Field(default=None, description="The kind of conversation, such as survey.")
    event_type: Compared | None = Field(default=None, description="What happened, such as survey_completed.")


_LATER_STEPS = frozenset(("wait_for", "wait_until", "for_each"))


class HandlerStep(Shape):
    """One use of a handler."""

    reserved: ClassVar[frozenset[str]] = _LATER_STEPS
    free: ClassVar[frozenset[str]] = frozenset(("with",))

    id: StepId | None = Field(default=None, description="The name for `steps.<id>`; left out, the handler's name.")
    handler: Text = Field(description="The name of an installed handler.")
    with_: dict[str, Any] | None = Field(default=None, alias="with", description="The params of the handler.")
    when: ExpressionText | None = Field(default=None, description="The step is skipped unless this holds.")
    retry: RetryShape | None = Field(default=None, description="What differs from `defaults.retry`.")
    timeout: Duration | None = Field(default=None, description="How long one attempt of a call may take.")
    on_error: OnError = Field(default="stop", description="Whether the chain goes on when the step has failed.")
    on_unknown: OnUnknown | None = Field(default=None, description="What to do when nobody can tell if a call worked.")


class WaitStep(Shape):
    """A pause; it survives restarts."""

    reserved: ClassVar[frozenset[str]] = _LATER_STEPS

    id: StepId | None = Field(default=None, description="The name for `steps.<id>`.")
    wait: Duration = Field(description="How long, such as 1d.")
    when: ExpressionText | None = Field(default=None, description="The step is skipped unless this holds.")


class StopStep(Shape):
    """The end of the run, as done, if the expression holds."""

    reserved: ClassVar[frozenset[str]] = _LATER_STEPS

    id: StepId | None = Field(default=None, description="The name for `steps.<id>`.")
    stop: ExpressionText = Field(description="The run ends here when this holds.")
    when: ExpressionText | None = Field(default=None, description="The step is skipped unless this holds.")


StepShape = HandlerStep | WaitStep | StopStep


class ChainHead(Shape):
    """A chain whose steps are not looked into: its trigger, its condition, what people call it."""

    reserved: ClassVar[frozenset[str]] = frozenset(("key", "mode", "once", "cancel_on"))
    free: ClassVar[frozenset[str]] = frozenset(("steps",))

    name: Name = Field(description="What the chain is called; no other chain may be called so.")
    description: str | None = Field(default=None, description="What it is for.")
    on: TriggerShape = Field(default_factory=TriggerShape, description="Which events start it; left out, all.")
    when: ExpressionText | None = Field(default=None, description="The chain runs only if this holds.")
    default: bool = Field(default=False, description="Runs only when no ordinary chain in its scope matched.")
    steps: list[Any] = Field(min_length=1, description="What is done, in this order.")


class ChainShape(ChainHead):
    """A trigger, a condition and an ordered list of steps."""

    steps: list[StepShape] = Field(min_length=1, description="What is done, in this order.")


class ConnectionShape(Shape):
    """A sender or a service: its type, and the settings of that type."""

    model_config = ConfigDict(extra="allow")

    type: Text = Field(description="The name of an installed sender or service.")


class FragmentShape(Shape):
    """An included file of a rulebook; it may leave out `version`."""

    free: ClassVar[frozenset[str]] = frozenset(("vars", "senders", "services", "chains"))

    version: Version | None = Field(default=None, description="The version of this format.")
    account: Text | None = Field(default=None, description="The account that every chain of this file belongs to.")
    include: Texts | None = Field(default=None, description="Further files; patterns such as accounts/*.yaml.")
    accounts: dict[str, AccountShape] = Field(default_factory=dict, description="What holds for an account, by key.")
    vars: dict[str, Any] = Field(default_factory=dict, description="Constants for expressions, such as texts.")
    conversations: dict[str, Name] = Field(
        default_factory=dict, description="The type of a conversation, by its key, for events that carry no type."
    )
    events: list[EventShape] = Field(default_factory=list, description="What is known of the events.")
    senders: dict[str, ConnectionShape] = Field(default_factory=dict, description="What delivers texts, by name.")
    services: dict[str, ConnectionShape] = Field(default_factory=dict, description="Other connections, by name.")
    defaults: DefaultsShape = Field(default_factory=DefaultsShape, description="What holds unless said otherwise.")
    chains: list[ChainShape] = Field(default_factory=list, description="What happens when.")


class RulebookShape(FragmentShape):
    """A rulebook: which chains run for which events, and what they need."""

    version: Version = Field(description="The version of this format.")


# What holds where neither the step nor `defaults` says anything.
RETRY_WITHIN = timedelta(hours=24)
RETRY_INITIAL = timedelta(seconds=2)
RETRY_LONGEST = timedelta(minutes=10)
