"""RabbitMQ: what the relay needs to know of an outbox row, and deliveries that a broker may bring again.

For SQLite alone: there was no store on PostgreSQL before revision 0003, which makes it whole.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add columns to the outbox, and the table of unacknowledged deliveries."""
    if op.get_bind().dialect.name != "sqlite":
        return
    op.add_column("outbox", sa.Column("lane", sa.Text(), nullable=False, server_default=sa.text("''")))
    op.add_column("outbox", sa.Column("on_unknown", sa.Text(), nullable=False, server_default=sa.text("'resend'")))
    op.add_column("outbox", sa.Column("account_key", sa.Text(), nullable=True))
    op.add_column("outbox", sa.Column("step", sa.Text(), nullable=True))
    op.add_column("outbox", sa.Column("error", sa.Text(), nullable=True))
    op.drop_index("outbox_ready", table_name="outbox")
    op.create_index("outbox_due", "outbox", ["lane", "not_before"], sqlite_where=sa.text("state = 'ready'"))
    op.create_index("outbox_held", "outbox", ["run_id"], sqlite_where=sa.text("state = 'held'"))
    # What the metrics count at each scrape.
    op.create_index("runs_retrying", "runs", ["due_at"], sqlite_where=sa.text("state = 'retrying'"))
    op.create_index("dead_letters_open", "dead_letters", ["reason"], sqlite_where=sa.text("state = 'open'"))
    op.create_table(
        "unacked",
        sa.Column("epoch", sa.Text(), nullable=False),
        sa.Column("tag", sa.Integer(), nullable=False),
        sa.Column("batch", sa.Integer(), nullable=False),
        sa.Column("origin", sa.Text(), nullable=True),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("body_hash", sa.LargeBinary(), nullable=False),
        sa.Column("event_id", sa.Text(), nullable=True),
        sa.Column("received_on", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("epoch", "tag"),
        sqlite_with_rowid=False,
    )
