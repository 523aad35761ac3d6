"""What the engine reads and writes: rows as the store keeps them, and the runs and events it works on.

Each table's columns are named once, here; the store builds its statements from these tuples.
Times are ISO 8601 text in UTC with microseconds, so that they sort as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple
from urllib.parse import quote, unquote

from dispatcher.events.event import Event
from dispatcher.plugins.context import Contact, Message

if TYPE_CHECKING:
    from dispatcher.rules.plan import Chain

EventState = Literal["new", "matched", "unmatched", "dead"]
RunState = Literal["ready", "running", "waiting", "retrying", "held", "done", "failed", "cancelled"]
StepState = Literal["ready", "started", "done", "failed", "unknown", "skipped"]
# How a run is known inside: its `seq`, and the day by which big tables are partitioned.
RunKey = tuple[int, str]
DeadKind = Literal["delivery", "event", "run"]

EVENT_COLUMNS = (
    "seq", "event_id", "account_key", "conversation_key", "conversation_type", "event_type", "event_data",
    "timestamp", "received_at", "received_on", "source", "subject", "root_id", "parent_id", "hops", "traceparent",
    "extra", "weak", "state", "rulebook_digest", "note",
)  # fmt: skip
EVENT_STATE = EVENT_COLUMNS.index("state")
EVENT_ID_COLUMNS = ("account_key", "event_id", "event_seq", "body_hash", "received_on")
RUN_COLUMNS = (
    "seq", "run_id", "event_seq", "event_id", "account_key", "chain", "chain_digest", "generation", "started_at",
    "received_on", "state", "step", "position", "attempt", "due_at", "lane", "error", "cursor", "step_started_at",
    "resolution", "finished_at",
)  # fmt: skip
RUN_FIXED = 10  # the columns before this index never change after the insert
STEP_COLUMNS = (
    "run_seq", "position", "attempt", "step", "handler", "state", "result", "error", "started_at", "finished_at",
    "received_on",
)  # fmt: skip
CONTACT_COLUMNS = (
    "account_key", "msisdn", "contact_key", "name", "surname", "email_address", "language", "groups",
    "subscription", "extra", "created_at", "updated_at",
)  # fmt: skip
MESSAGE_COLUMNS = (
    "message_id", "account_key", "to_addr", "from_addr", "content", "segments", "encoding", "sender", "state",
    "gateway_id", "error", "event_id", "run_id", "step", "at", "received_on",
)  # fmt: skip
OUTBOX_COLUMNS = (
    "seq", "destination", "body", "message_id", "state", "attempt", "not_before", "lane", "on_unknown", "account_key",
    "event_id", "run_id", "step", "at",
)  # fmt: skip
UNACKED_COLUMNS = ("epoch", "tag", "batch", "origin", "queue", "body_hash", "event_id", "received_on")
DEAD_LETTER_COLUMNS = ("dead_id", "kind", "reason", "detail", "account_key", "event_id", "run_id", "body", "at")

# How many bytes AMQP allows the name of an exchange, a routing key and the id of a message.
LONGEST_NAME = 255

# A run that is due but waits for no call slot is in this lane; others are in the lane of their connection.
OPEN_LANE = ""


@lru_cache(maxsize=1024)
def as_text(moment: datetime) -> str:
    """Render a time as the store keeps it. Cached: most times in a batch are the batch's own."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def as_time(text: str) -> datetime:
    """Read a time as the store keeps it."""
    return datetime.fromisoformat(text)


@dataclass(slots=True)
class StoredEvent:
    """An event with what the store knows of it."""

    seq: int
    event: Event
    received_at: str
    generation: int = 1
    crash_count: int = 0

    @property
    def received_on(self) -> str:
        """The day of receipt, by which big tables are partitioned."""
        return self.received_at[:10]


@dataclass(slots=True)
class Run:
    """One chain for one event, and where it stands. The engine changes it; the store writes what it became."""

    seq: int
    run_id: str
    stored: StoredEvent
    chain: Chain
    generation: int
    started_at: str
    state: RunState = "ready"
    position: int = 0
    attempt: int = 1
    due_at: str | None = None
    lane: str = OPEN_LANE
    error: str | None = None
    cursor: Any = None
    step_started_at: str | None = None
    resolution: str | None = None
    finished_at: str | None = None
    # When the run came to the step that it stands at; no attempt changes that.
    arrived_at: str = ""
    # Whether the run began in this batch: no step of it has left anything in the store yet.
    begun_here: bool = False
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    scope: dict[str, Any] = field(default_factory=dict)

    @property
    def step_name(self) -> str | None:
        """The id of the step that the run stands at, None behind the last."""
        steps = self.chain.steps
        return steps[self.position].id if self.position < len(steps) else None


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run as stored, with its event and the journal of its steps, before it is bound to a chain."""

    values: Mapping[str, Any]
    stored: StoredEvent
    steps: tuple[Mapping[str, Any], ...]


@dataclass(slots=True)
class OutboxRow:
    """Something that is yet to be handed to a broker; the fields are OUTBOX_COLUMNS, in their order.

    It is `ready`, `sending` (handed to the publisher, with no confirm on record) or `held` (nobody knows whether it
    was published, and a person is to say). `lane` names the connection whose rate it keeps, `on_unknown` what becomes
    of it when its fate is unknown.
    """

    seq: int
    destination: str
    body: str
    message_id: str
    state: Literal["ready", "sending", "held"]
    attempt: int
    not_before: str
    lane: str
    on_unknown: Literal["hold", "resend", "fail"]
    account_key: str
    event_id: str
    run_id: str
    step: str
    at: str

    @property
    def address(self) -> tuple[str, str]:
        """The exchange and the routing key that `destination` names."""
        return _address_of(self.destination)

    @property
    def is_text(self) -> bool:
        """Whether this is a text to a person, with a row in `messages` under the same id."""
        return self.lane.startswith("sender:")


# Where emitted events go when they are published: a topic exchange, keyed <conversation_type>.<event_type>.
EVENT_EXCHANGE: Final = "vumi.events"


@lru_cache(maxsize=256)
def destination_of(exchange: str, routing_key: str) -> str:
    """Name an exchange and a routing key in one text, such as `amqp:vumi/sms.outbound`."""
    return f"amqp:{quote(exchange, safe='')}/{routing_key}"


@lru_cache(maxsize=256)
def _address_of(destination: str) -> tuple[str, str]:
    exchange, _, routing_key = destination.removeprefix("amqp:").partition("/")
    return unquote(exchange), routing_key


class Remembered(NamedTuple):
    """A delivery without an id whose ack the broker may not have got."""

    epoch: str
    tag: int
    batch: int
    origin: str | None
    body_hash: bytes
    event_id: str | None


@dataclass(frozen=True, slots=True)
class Texted:
    """A text that went out, as far as a transport's report on it needs to know: with the event that caused it."""

    account_key: str
    to_addr: str
    sender: str
    state: str
    event_id: str
    conversation_key: str | None
    root_id: str | None
    hops: int
    traceparent: str | None


@dataclass(slots=True)
class Changes:
    """What one batch writes: rows by table. The store flushes them in one fixed order of tables and keys."""

    events: dict[int, list[Any]] = field(default_factory=dict)
    event_ids: list[tuple[Any, ...]] = field(default_factory=list)
    # (state, rulebook_digest, conversation_type, subject, note, seq, received_on)
    event_states: list[tuple[Any, ...]] = field(default_factory=list)
    chains: dict[str, Chain] = field(default_factory=dict)
    new_runs: list[Run] = field(default_factory=list)
    changed_runs: dict[int, Run] = field(default_factory=dict)
    # (state, error, finished_at, seq, received_on) of runs whose chain can no longer be bound
    unbound_runs: list[tuple[Any, ...]] = field(default_factory=list)
    steps: list[tuple[Any, ...]] = field(default_factory=list)
    contacts: dict[tuple[str, str], Contact] = field(default_factory=dict)
    opt_outs: dict[tuple[str, str], tuple[str, str] | None] = field(default_factory=dict)
    messages: dict[str, tuple[Message, str, str, str]] = field(default_factory=dict)
    # (state, gateway_id, error, message_id) of texts that a transport reported on; a state of None changes nothing
    message_states: list[tuple[str | None, str | None, str | None, str]] = field(default_factory=list)
    outbox: list[OutboxRow] = field(default_factory=list)
    # Deliveries without an id that the broker may bring again; up to which tag it brings nothing of an earlier epoch
    # again; and (queue, epoch) where it brings nothing of all other epochs.
    unacked: list[tuple[Any, ...]] = field(default_factory=list)
    acked: dict[str, int] = field(default_factory=dict)
    unacked_past: list[tuple[str, str]] = field(default_factory=list)
    dead_letters: list[tuple[Any, ...]] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to write."""
        return not (
            self.events
            or self.event_states
            or self.new_runs
            or self.changed_runs
            or self.unbound_runs
            or self.dead_letters
        )
