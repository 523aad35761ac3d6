"""PostgreSQL: the whole schema, at once; the tables by which workers share a store, on both."""

from __future__ import annotations

import re

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# TEXT here is TEXT COLLATE "C": compared byte by byte, as SQLite does.
#
# Rows of the outbox and of `unacked` live for a moment: what is dead is cleared away as soon as it is many, not once it
# is a fifth of a backlog, or who looks for what is due next would walk over it. Contacts change in place, where the
# page has room for it, since no index holds what changes. How partitions are kept: see `postgres.partitions`.
_POSTGRESQL = """
CREATE SEQUENCE events_seq AS BIGINT INCREMENT BY 64;
CREATE SEQUENCE runs_seq AS BIGINT INCREMENT BY 64;
CREATE SEQUENCE outbox_seq AS BIGINT INCREMENT BY 64;
CREATE TABLE audit (
    seq BIGSERIAL, at TEXT NOT NULL, actor TEXT NOT NULL, verb TEXT NOT NULL, target TEXT NOT NULL, detail TEXT,
    PRIMARY KEY (seq)
);
CREATE TABLE chains (
    digest TEXT NOT NULL, name TEXT NOT NULL, text TEXT NOT NULL, first_used_at TEXT NOT NULL,
    PRIMARY KEY (digest)
);
CREATE TABLE channels (
    epoch TEXT NOT NULL, queue TEXT NOT NULL, worker BIGINT NOT NULL,
    PRIMARY KEY (epoch)
);
CREATE TABLE contacts (
    seq BIGSERIAL, contact_key TEXT NOT NULL, account_key TEXT NOT NULL, msisdn TEXT NOT NULL, name TEXT,
    surname TEXT, email_address TEXT, language TEXT, groups TEXT NOT NULL, subscription TEXT NOT NULL,
    extra TEXT NOT NULL, created_at TEXT NOT NULL, updated_at TEXT NOT NULL,
    PRIMARY KEY (seq),
    CONSTRAINT contacts_one_per_number UNIQUE (account_key, msisdn)
);
CREATE INDEX contacts_by_key ON contacts (contact_key);
CREATE TABLE dead_letters (
    seq BIGSERIAL, dead_id TEXT NOT NULL, kind TEXT NOT NULL, reason TEXT NOT NULL, detail TEXT NOT NULL,
    account_key TEXT, event_id TEXT, run_id TEXT, body BYTEA, at TEXT NOT NULL,
    state TEXT DEFAULT 'open' NOT NULL,
    PRIMARY KEY (seq)
);
CREATE INDEX dead_letters_by_event ON dead_letters (event_id);
CREATE UNIQUE INDEX dead_letters_by_id ON dead_letters (dead_id);
CREATE INDEX dead_letters_open ON dead_letters (reason) WHERE state = 'open';
CREATE TABLE event_ids (
    account_key TEXT NOT NULL, event_id TEXT NOT NULL, event_seq BIGINT NOT NULL, body_hash BYTEA NOT NULL,
    received_on TEXT NOT NULL,
    PRIMARY KEY (account_key, event_id)
);
CREATE TABLE events (
    seq BIGINT NOT NULL, event_id TEXT NOT NULL, account_key TEXT NOT NULL, conversation_key TEXT NOT NULL,
    conversation_type TEXT, event_type TEXT NOT NULL, event_data TEXT NOT NULL, timestamp TEXT NOT NULL,
    received_at TEXT NOT NULL, received_on TEXT NOT NULL, source TEXT NOT NULL, subject TEXT,
    root_id TEXT NOT NULL, parent_id TEXT, hops INTEGER NOT NULL, traceparent TEXT, extra TEXT,
    weak BOOLEAN NOT NULL, state TEXT NOT NULL, rulebook_digest TEXT, note TEXT,
    generation INTEGER DEFAULT 1 NOT NULL, crash_count INTEGER DEFAULT 0 NOT NULL,
    PRIMARY KEY (seq, received_on)
) PARTITION BY RANGE (received_on);
CREATE INDEX events_family ON events (root_id) WHERE hops > 0;
CREATE INDEX events_new ON events (account_key, seq) WHERE state = 'new';
CREATE TABLE facts (
    name TEXT NOT NULL, value TEXT NOT NULL,
    PRIMARY KEY (name)
);
CREATE TABLE messages (
    seq BIGSERIAL, message_id TEXT NOT NULL, account_key TEXT NOT NULL, to_addr TEXT NOT NULL, from_addr TEXT,
    content TEXT NOT NULL, segments INTEGER NOT NULL, encoding TEXT NOT NULL, sender TEXT NOT NULL,
    state TEXT NOT NULL, gateway_id TEXT, error TEXT, event_id TEXT NOT NULL, run_id TEXT NOT NULL,
    step TEXT NOT NULL, at TEXT NOT NULL, received_on TEXT NOT NULL,
    PRIMARY KEY (seq, received_on)
) PARTITION BY RANGE (received_on);
CREATE UNIQUE INDEX messages_by_id ON messages (message_id, received_on);
CREATE TABLE opt_outs (
    account_key TEXT NOT NULL, msisdn TEXT NOT NULL, reason TEXT NOT NULL, at TEXT NOT NULL,
    PRIMARY KEY (account_key, msisdn)
);
CREATE TABLE outbox (
    seq BIGINT NOT NULL, destination TEXT NOT NULL, body TEXT NOT NULL, message_id TEXT NOT NULL,
    state TEXT NOT NULL, attempt INTEGER DEFAULT 0 NOT NULL, not_before TEXT NOT NULL, owner TEXT,
    lease_token BIGINT, event_id TEXT, run_id TEXT, at TEXT NOT NULL, lane TEXT DEFAULT '' NOT NULL,
    on_unknown TEXT DEFAULT 'resend' NOT NULL, account_key TEXT, step TEXT, error TEXT,
    PRIMARY KEY (seq)
);
CREATE INDEX outbox_due ON outbox (lane, not_before) WHERE state = 'ready';
CREATE INDEX outbox_held ON outbox (run_id) WHERE state = 'held';
CREATE INDEX outbox_sending ON outbox (lease_token) WHERE state = 'sending';
CREATE TABLE runs (
    seq BIGINT NOT NULL, run_id TEXT NOT NULL, event_seq BIGINT NOT NULL, event_id TEXT NOT NULL,
    account_key TEXT NOT NULL, chain TEXT NOT NULL, chain_digest TEXT NOT NULL, generation INTEGER NOT NULL,
    started_at TEXT NOT NULL, received_on TEXT NOT NULL, state TEXT NOT NULL, step TEXT,
    position INTEGER NOT NULL, attempt INTEGER NOT NULL, due_at TEXT, lane TEXT NOT NULL, error TEXT,
    cursor TEXT, step_started_at TEXT, resolution TEXT, finished_at TEXT, key TEXT, owner TEXT,
    lease_token BIGINT,
    PRIMARY KEY (seq, received_on),
    CONSTRAINT runs_once UNIQUE (event_seq, chain, generation, received_on)
) PARTITION BY RANGE (received_on);
CREATE UNIQUE INDEX runs_by_id ON runs (run_id, received_on);
CREATE INDEX runs_due ON runs (lane, due_at) WHERE due_at IS NOT NULL;
CREATE INDEX runs_due_by_account ON runs (lane, account_key, due_at) WHERE due_at IS NOT NULL;
CREATE INDEX runs_open ON runs (state) WHERE state IN ('running', 'held');
CREATE INDEX runs_retrying ON runs (due_at) WHERE state = 'retrying';
CREATE TABLE steps (
    run_seq BIGINT NOT NULL, position INTEGER NOT NULL, attempt INTEGER NOT NULL, step TEXT NOT NULL,
    handler TEXT NOT NULL, state TEXT NOT NULL, result TEXT, error TEXT, started_at TEXT NOT NULL,
    finished_at TEXT, received_on TEXT NOT NULL,
    PRIMARY KEY (run_seq, position, attempt, received_on)
) PARTITION BY RANGE (received_on);
CREATE TABLE suppressions (
    number_hash BYTEA NOT NULL, at TEXT NOT NULL,
    PRIMARY KEY (number_hash)
);
CREATE TABLE unacked (
    epoch TEXT NOT NULL, tag BIGINT NOT NULL, batch BIGINT NOT NULL, origin TEXT, queue TEXT NOT NULL,
    body_hash BYTEA NOT NULL, event_id TEXT, received_on TEXT NOT NULL,
    PRIMARY KEY (epoch, tag)
);
CREATE INDEX unacked_by_body ON unacked (body_hash);
CREATE TABLE workers (
    number BIGINT GENERATED BY DEFAULT AS IDENTITY, name TEXT NOT NULL, host TEXT NOT NULL,
    pid INTEGER NOT NULL, started_at TEXT NOT NULL, seen_at TEXT NOT NULL,
    PRIMARY KEY (number)
);
ALTER TABLE outbox SET (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000);
ALTER TABLE unacked SET (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000);
ALTER TABLE contacts SET (fillfactor = 80);
"""


def upgrade() -> None:
    """Make everything on PostgreSQL, where no store was before; add two tables on SQLite."""
    if op.get_bind().dialect.name == "postgresql":
        for statement in re.sub(r"\bTEXT\b", 'TEXT COLLATE "C"', _POSTGRESQL).split(";\n"):
            if statement.strip():
                op.execute(statement)
        return
    op.create_table(
        "workers",
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.Text(), nullable=False),
        sa.Column("seen_at", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("number"),
    )
    op.create_table(
        "channels",
        sa.Column("epoch", sa.Text(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("worker", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("epoch"),
        sqlite_with_rowid=False,
    )
