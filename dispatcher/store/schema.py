"""The tables, in SQLAlchemy Core: for the cold queries of the command line, and what the revisions must lead to.

The hot statements are in `sqlite.statements` and `postgres.statements`; tests prove that migrating from nothing leads
to exactly these tables on both. Times are ISO 8601 text in UTC, which sorts as it stands; JSON is text. Inside, rows
are known by `seq`; what people and programs see are UUIDs that sort by time.

On PostgreSQL the tables that grow for ever are PARTITIONED by `received_on`, one partition a day (see
`postgres.partitions`). Its one rule for keys there: each unique key of such a table ends in `received_on`, as
PostgreSQL demands, and is otherwise the one that stands here.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Sequence,
    Table,
    UniqueConstraint,
    text,
)
from sqlalchemy import Text as AnyText

metadata = MetaData()

# PostgreSQL sorts and compares text as SQLite does, by its bytes: cheaper than by a language's rules, and no index
# goes wrong when the system's locales change.
Text = AnyText().with_variant(AnyText(collation="C"), "postgresql")
# SQLite numbers rows with INTEGER alone, which holds 64 bits.
Number = BigInteger().with_variant(Integer(), "sqlite")

PARTITIONED = ("events", "runs", "steps", "messages")
_BY_DAY = "RANGE (received_on)"

# PostgreSQL's writers take the numbers of these in blocks, as many of them write at once; the other tables' numbers
# are given by the database, row by row.
SEQUENCES = tuple(
    Sequence(f"{name}_seq", metadata=metadata, increment=64, data_type=BigInteger)
    for name in ("events", "runs", "outbox")
)


def _partial(name: str, *columns: Column[Any], where: ColumnElement[bool], unique: bool = False) -> Index:
    """Make an index of those rows only that meet a condition."""
    return Index(name, *columns, unique=unique, sqlite_where=where, postgresql_where=where)


events = Table(
    "events",
    metadata,
    Column("seq", Number, primary_key=True, autoincrement=False),
    Column("event_id", Text, nullable=False),
    Column("account_key", Text, nullable=False),
    Column("conversation_key", Text, nullable=False),
    Column("conversation_type", Text),
    Column("event_type", Text, nullable=False),
    Column("event_data", Text, nullable=False),
    Column("timestamp", Text, nullable=False),
    Column("received_at", Text, nullable=False),
    Column("received_on", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("subject", Text),
    Column("root_id", Text, nullable=False),
    Column("parent_id", Text),
    Column("hops", Integer, nullable=False),
    Column("traceparent", Text),
    Column("extra", Text),
    Column("weak", Boolean(create_constraint=False), nullable=False),
    Column("state", Text, nullable=False),
    Column("rulebook_digest", Text),
    # Why a condition could not be told, or why the event is dead.
    Column("note", Text),
    # Replaying with --again opens a new generation of runs.
    Column("generation", Integer, nullable=False, server_default=text("1")),
    Column("crash_count", Integer, nullable=False, server_default=text("0")),
    postgresql_partition_by=_BY_DAY,
)
# What is new, by account, so that accounts take turns; rows leave the index when they are matched.
_partial("events_new", events.c.account_key, events.c.seq, where=events.c.state == text("'new'"))
# The loop guard counts the descendants of a root; events from outside stay out of this index.
_partial("events_family", events.c.root_id, where=events.c.hops > text("0"))

event_ids = Table(
    "event_ids",
    metadata,
    Column("account_key", Text, primary_key=True),
    Column("event_id", Text, primary_key=True),
    Column("event_seq", Number, nullable=False),
    Column("body_hash", LargeBinary, nullable=False),
    Column("received_on", Text, nullable=False),
    sqlite_with_rowid=False,
)

chains = Table(
    "chains",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("text", Text, nullable=False),
    Column("first_used_at", Text, nullable=False),
    sqlite_with_rowid=False,
)

runs = Table(
    "runs",
    metadata,
    Column("seq", Number, primary_key=True, autoincrement=False),
    Column("run_id", Text, nullable=False),
    Column("event_seq", Number, nullable=False),
    Column("event_id", Text, nullable=False),
    Column("account_key", Text, nullable=False),
    Column("chain", Text, nullable=False),
    Column("chain_digest", Text, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("started_at", Text, nullable=False),
    Column("received_on", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("step", Text),
    Column("position", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("due_at", Text),
    # Which connection's slots a ready call waits for; empty for everything else.
    Column("lane", Text, nullable=False),
    Column("error", Text),
    Column("cursor", Text),
    Column("step_started_at", Text),
    # How a person settled an unknown outcome: sent or not_sent.
    Column("resolution", Text),
    Column("finished_at", Text),
    # Reserved by the rulebook's grammar (`key:`) and by many workers (leases).
    Column("key", Text),
    Column("owner", Text),
    Column("lease_token", Number),
    UniqueConstraint("event_seq", "chain", "generation", name="runs_once"),
    postgresql_partition_by=_BY_DAY,
)
Index("runs_by_id", runs.c.run_id, unique=True)
_partial("runs_due", runs.c.lane, runs.c.due_at, where=runs.c.due_at.is_not(None))
_partial("runs_due_by_account", runs.c.lane, runs.c.account_key, runs.c.due_at, where=runs.c.due_at.is_not(None))
_partial("runs_retrying", runs.c.due_at, where=runs.c.state == text("'retrying'"))
_partial("runs_open", runs.c.state, where=runs.c.state.in_(("running", "held")))

steps = Table(
    "steps",
    metadata,
    Column("run_seq", Number, primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("step", Text, nullable=False),
    Column("handler", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("result", Text),
    Column("error", Text),
    Column("started_at", Text, nullable=False),
    Column("finished_at", Text),
    Column("received_on", Text, nullable=False),
    sqlite_with_rowid=False,
    postgresql_partition_by=_BY_DAY,
)

outbox = Table(
    "outbox",
    metadata,
    Column("seq", Number, primary_key=True, autoincrement=False),
    Column("destination", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("message_id", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("attempt", Integer, nullable=False, server_default=text("0")),
    Column("not_before", Text, nullable=False),
    Column("owner", Text),
    Column("lease_token", Number),
    Column("event_id", Text),
    Column("run_id", Text),
    Column("at", Text, nullable=False),
    # Whose rate it keeps: a sender's lane, or none.
    Column("lane", Text, nullable=False, server_default=text("''")),
    # What becomes of it when nobody knows whether it was published: hold, resend or fail.
    Column("on_unknown", Text, nullable=False, server_default=text("'resend'")),
    Column("account_key", Text),
    Column("step", Text),
    # Why it was not taken, or why its fate is unknown.
    Column("error", Text),
)
_partial("outbox_due", outbox.c.lane, outbox.c.not_before, where=outbox.c.state == text("'ready'"))
_partial("outbox_held", outbox.c.run_id, where=outbox.c.state == text("'held'"))
# Workers look every few seconds for what a dead one left, however much waits; the one of a file looks when it starts.
_partial("outbox_sending", outbox.c.lease_token, where=outbox.c.state == text("'sending'")).ddl_if(dialect="postgresql")

# Deliveries without an id whose ack the broker may not have got: should it bring one again, it is known by its body
# and by its place among the others.
unacked = Table(
    "unacked",
    metadata,
    Column("epoch", Text, primary_key=True),
    Column("tag", Number, primary_key=True),
    # The first tag of what was taken in, and is acked, with it.
    Column("batch", Number, nullable=False),
    # Where it repeats one of an earlier channel: the earliest channel of which more may follow behind it.
    Column("origin", Text),
    Column("queue", Text, nullable=False),
    Column("body_hash", LargeBinary, nullable=False),
    Column("event_id", Text),
    Column("received_on", Text, nullable=False),
    sqlite_with_rowid=False,
)

# Workers that share a queue look for each delivery that comes again; the one of a file walks along in their order.
Index("unacked_by_body", unacked.c.body_hash).ddl_if(dialect="postgresql")

dead_letters = Table(
    "dead_letters",
    metadata,
    Column("seq", Number, primary_key=True),
    Column("dead_id", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("account_key", Text),
    Column("event_id", Text),
    Column("run_id", Text),
    Column("body", LargeBinary),
    Column("at", Text, nullable=False),
    Column("state", Text, nullable=False, server_default=text("'open'")),
)
Index("dead_letters_by_id", dead_letters.c.dead_id, unique=True)
_partial("dead_letters_open", dead_letters.c.reason, where=dead_letters.c.state == text("'open'"))
Index("dead_letters_by_event", dead_letters.c.event_id)

contacts = Table(
    "contacts",
    metadata,
    Column("seq", Number, primary_key=True),
    Column("contact_key", Text, nullable=False),
    Column("account_key", Text, nullable=False),
    Column("msisdn", Text, nullable=False),
    Column("name", Text),
    Column("surname", Text),
    Column("email_address", Text),
    Column("language", Text),
    Column("groups", Text, nullable=False),
    Column("subscription", Text, nullable=False),
    Column("extra", Text, nullable=False),
    Column("created_at", Text, nullable=False),
    Column("updated_at", Text, nullable=False),
    UniqueConstraint("account_key", "msisdn", name="contacts_one_per_number"),
)
Index("contacts_by_key", contacts.c.contact_key)

opt_outs = Table(
    "opt_outs",
    metadata,
    Column("account_key", Text, primary_key=True),
    Column("msisdn", Text, primary_key=True),
    Column("reason", Text, nullable=False),
    Column("at", Text, nullable=False),
    sqlite_with_rowid=False,
)

messages = Table(
    "messages",
    metadata,
    Column("seq", Number, primary_key=True),
    Column("message_id", Text, nullable=False),
    Column("account_key", Text, nullable=False),
    Column("to_addr", Text, nullable=False),
    Column("from_addr", Text),
    Column("content", Text, nullable=False),
    Column("segments", Integer, nullable=False),
    Column("encoding", Text, nullable=False),
    Column("sender", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("gateway_id", Text),
    Column("error", Text),
    Column("event_id", Text, nullable=False),
    Column("run_id", Text, nullable=False),
    Column("step", Text, nullable=False),
    Column("at", Text, nullable=False),
    Column("received_on", Text, nullable=False),
    postgresql_partition_by=_BY_DAY,
)
Index("messages_by_id", messages.c.message_id, unique=True)

audit = Table(
    "audit",
    metadata,
    Column("seq", Number, primary_key=True),
    Column("at", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("verb", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("detail", Text),
)

# Numbers that were erased, as keyed hashes: a replay must not bring the person back.
suppressions = Table(
    "suppressions",
    metadata,
    Column("number_hash", LargeBinary, primary_key=True),
    Column("at", Text, nullable=False),
    sqlite_with_rowid=False,
)

# Facts about the store itself: `installation` (part of every idempotency key), `secret` (keys the suppressions).
facts = Table(
    "facts",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
    sqlite_with_rowid=False,
)

# The workers that share a store: a row is a worker's hold on what it has under way (`lease_token`), and gone when
# another worker has taken that over. A store in a file has one worker, which needs none.
workers = Table(
    "workers",
    metadata,
    Column("number", Number, Identity(), primary_key=True),
    Column("name", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("started_at", Text, nullable=False),
    Column("seen_at", Text, nullable=False),
)

# The channels on which workers take deliveries now: what was left unacked on any other one comes again.
channels = Table(
    "channels",
    metadata,
    Column("epoch", Text, primary_key=True),
    Column("queue", Text, nullable=False),
    Column("worker", Number, nullable=False),
    sqlite_with_rowid=False,
)
