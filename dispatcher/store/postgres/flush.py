"""What a batch writes, in one order of tables and, where rows are shared, of keys, so that workers seldom deadlock.

Deliveries, runs and steps belong to the batch that took them. What workers share is written in the order of its keys:
ids of events, contacts (which the batch has locked already), opt-outs, messages. What is left: a worker that records a
confirm of one text and a report on another, beside one that does it the other way round. PostgreSQL ends one of the
two after a second, and its batch is tried again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg import errors
from pydantic_core import to_json

from dispatcher import failpoints
from dispatcher.engine.records import CONTACT_COLUMNS, MESSAGE_COLUMNS, OUTBOX_COLUMNS, STEP_COLUMNS, Changes, Run
from dispatcher.errors import Contended, RowsRefused
from dispatcher.events.identity import day_of
from dispatcher.store import rows
from dispatcher.store.postgres import statements as sql
from dispatcher.store.postgres.outbox import settle_held

if TYPE_CHECKING:
    from dispatcher.store.postgres.store import PostgresStore
    from dispatcher.store.postgres.transaction import PostgresTransaction

_outbox_columns = attrgetter(*OUTBOX_COLUMNS)
# Up to so many events, runs, texts and dead letters go in by a statement for each.
_FEW: Final = 24
_STEP_KEY: Final = slice(0, 3)  # run_seq, position, attempt
_FIRST_OF_STEP: Final = 5  # the columns before this index are those of the first row written of an attempt


def flush(transaction: PostgresTransaction, store: PostgresStore, changes: Changes) -> None:
    """Write what a batch has changed. Raises RowsRefused, Contended."""
    failpoints.reach("batch.before_flush")
    try:
        _Flush(transaction, store).run(changes)
    except errors.UniqueViolation as error:
        if error.diag.table_name == "event_ids":
            raise Contended("another worker has just stored an event with the same id.") from error
        raise _refused(error) from error
    except errors.CheckViolation as error:
        if error.diag.constraint_name is None:
            # No partition for its day: midnight has passed, or it is very old.
            store.ensure_partitions()
        raise _refused(error) from error
    except errors.InvalidSqlStatementName:
        raise  # no row's fault: the connection is of no use
    except (psycopg.DataError, psycopg.IntegrityError, psycopg.ProgrammingError) as error:
        raise _refused(error) from error
    except (ValueError, OverflowError) as error:  # of the driver: text that is none, numbers beyond 64 bits
        raise _refused(error) from error


def _refused(error: Exception) -> RowsRefused:
    return RowsRefused(f"the store refused a row of the batch: {' '.join(str(error).split())}")


class _Flush:
    def __init__(self, transaction: PostgresTransaction, store: PostgresStore) -> None:
        self._transaction = transaction
        self._connection = transaction.connection
        self._cursor = transaction.connection.cursor()
        self._store = store
        self._worker = store.lease.number
        self._few = False

    def run(self, changes: Changes) -> None:
        """Write it all; few rows in one round trip, which is what a small batch waits for. COPY cannot share one."""
        new = (changes.events, changes.new_runs, changes.messages, changes.dead_letters)
        self._few = sum(map(len, new)) <= _FEW
        if not self._few:
            self._write(changes)
            return
        with self._transaction.together():
            self._write(changes)
            self._transaction.ask_for_proof()

    def _write(self, changes: Changes) -> None:
        execute = self._connection.execute
        chains = [chain for digest, chain in sorted(changes.chains.items()) if digest not in self._store.known_chains]
        if chains:
            first_used = changes.new_runs[0].started_at if changes.new_runs else ""
            for chain in chains:
                execute(sql.INSERT_CHAIN, (chain.digest, chain.name, chain.text, first_used))
        self._add(sql.INTO_EVENTS, changes.events.values())
        self._add(sql.INTO_EVENT_IDS, sorted(changes.event_ids))
        self._by_day(
            sql.UPDATE_EVENT_STATES, (*sql.EVENT_STATE_COLUMNS, "seq"),
            ((row[-1], row[:-1]) for row in sorted(changes.event_states, key=_seq_of)),
        )  # fmt: skip
        self._add(sql.INTO_RUNS, (rows.fixed_columns(run) + self._changing(run) for run in changes.new_runs))
        if changes.changed_runs:
            self._change_runs(changes.changed_runs)
        self._by_day(
            sql.UPDATE_UNBOUND_RUNS, (*sql.UNBOUND_COLUMNS, "seq"),
            ((row[-1], row[:-1]) for row in sorted(changes.unbound_runs, key=_seq_of)),
        )  # fmt: skip
        self._write_steps(changes)
        self._upsert(
            sql.UPSERT_CONTACTS,
            (rows.contact_row(changes.contacts[key]) for key in sorted(changes.contacts)),
            CONTACT_COLUMNS,
        )
        self._write_opt_outs(changes.opt_outs)
        self._write_messages(changes)
        self._move_messages(changes.message_states)
        self._add(
            sql.INTO_OUTBOX,
            ((*_outbox_columns(row), self._worker if row.state == "sending" else None) for row in changes.outbox),
        )
        for epoch, tag in sorted(changes.acked.items()):
            execute(sql.FORGET_ACKED, (epoch, tag))
        self._remember(changes.unacked)
        self._add(sql.INTO_DEAD_LETTERS, changes.dead_letters)

    def _changing(self, run: Run) -> tuple[Any, ...]:
        return (*rows.changing_columns(run), self._worker if run.state == "running" else None)

    def _change_runs(self, changed: Mapping[int, Run]) -> None:
        self._by_day(
            sql.UPDATE_RUNS,
            (*sql.RUN_CHANGING, "seq"),
            ((run.stored.received_on, (*self._changing(run), seq)) for seq, run in sorted(changed.items())),
        )
        done = {run.run_id: run for run in changed.values() if run.state == "done"}
        if not done:
            return
        # A run that comes to its end while a text of it is held is held too.
        held = self._connection.execute(sql.HELD_RUNS, (list(done),)).fetchall()
        for run_id, step, error in held:
            why = f"{step}: unknown: {error or ''}"
            self._connection.execute(sql.HOLD_DONE_RUN, (why, run_id))

    def _write_steps(self, changes: Changes) -> None:
        # An attempt may have several rows in one batch: as it began, and as it ended.
        merged: dict[Any, tuple[Any, ...]] = {}
        for row in changes.steps:
            key = row[_STEP_KEY]
            first = merged.get(key)
            merged[key] = row if first is None else (*first[:_FIRST_OF_STEP], *row[5:8], first[8], *row[9:])
        if not merged:
            return
        new = {run.seq for run in changes.new_runs}
        self._add(sql.INTO_STEPS, (row for row in merged.values() if row[0] in new))
        self._upsert(sql.UPSERT_STEPS, [merged[key] for key in sorted(merged) if key[0] not in new], STEP_COLUMNS)

    def _write_opt_outs(self, opt_outs: Mapping[tuple[str, str], tuple[str, str] | None]) -> None:
        for key, entry in sorted(opt_outs.items()):
            if entry is None:
                self._connection.execute(sql.DELETE_OPT_OUT, key)
                self._connection.execute(sql.DELETE_SUPPRESSION, (self._transaction.hash_of(key),))
            else:
                self._connection.execute(sql.INSERT_OPT_OUT, (*key, *entry))

    def _write_messages(self, changes: Changes) -> None:
        if not changes.messages:
            return
        new = {run.run_id for run in changes.new_runs}
        fresh: list[tuple[Any, ...]] = []
        known: list[tuple[Any, ...]] = []
        for message_id in sorted(changes.messages):
            entry = changes.messages[message_id]
            row = rows.message_row(entry)
            # The day in its id rather than that of the writing: whoever knows the id knows the partition.
            row = (*row[:-1], day_of(message_id) or row[-1])
            (fresh if entry[2] in new else known).append(row)
        self._add(sql.INTO_MESSAGES, fresh)
        self._upsert(sql.UPSERT_MESSAGES, known, MESSAGE_COLUMNS)

    def _move_messages(self, states: Sequence[tuple[str | None, str | None, str | None, str]]) -> None:
        """Record what transports reported: all of it on one text comes to one change."""
        merged: dict[str, tuple[str | None, str | None, str | None]] = {}
        for state, gateway_id, error, message_id in states:
            earlier = merged.get(message_id, (None, None, None))
            merged[message_id] = (
                state or earlier[0],
                gateway_id or earlier[1],
                error if state is not None else earlier[2],
            )
        if not merged:
            return
        settle_held(self._connection, sorted(merged))
        self._by_day(
            sql.UPDATE_MESSAGE_STATES,
            ("message_id", "state", "gateway_id", "error"),
            ((day, (message_id, *merged[message_id])) for message_id in sorted(merged) if (day := day_of(message_id))),
        )

    def _remember(self, unacked: Sequence[tuple[Any, ...]]) -> None:
        for epoch, queue in {(row[0], row[4]) for row in unacked} - self._store.open_channels:
            if self._worker is not None:
                self._connection.execute(sql.END_CHANNELS, (self._worker, queue, epoch))
                self._connection.execute(sql.OPEN_CHANNEL, (epoch, queue, self._worker))
        if unacked:
            self._cursor.executemany(sql.UPSERT_UNACKED, unacked)

    # How rows go in.

    def _add(self, into: sql.Rows, new: Iterable[Sequence[Any]]) -> None:
        new = list(new)
        if not new:
            return
        if self._few:
            self._cursor.executemany(into.insert, new)
            return
        with self._cursor.copy(into.copy) as copy:
            for row in new:
                copy.write_row(row)

    def _upsert(self, statement: str, changed: Iterable[Sequence[Any]], columns: Sequence[str]) -> None:
        documents = [dict(zip(columns, row, strict=True)) for row in changed]
        if documents:
            self._connection.execute(statement, (to_json(documents).decode(),))

    def _by_day(self, statement: str, columns: Sequence[str], dated: Iterable[tuple[str, Sequence[Any]]]) -> None:
        days: dict[str, list[Sequence[Any]]] = defaultdict(list)
        for day, row in dated:
            days[day].append(row)
        for day, changed in sorted(days.items()):
            self._upsert(sql.on_day(statement, day), changed, columns)


def _seq_of(row: Sequence[Any]) -> Any:
    return row[-2]
