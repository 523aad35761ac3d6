"""Erasure in a shared store: the server sorts out the rows that may name a person, and this process looks at those.

Workers go on meanwhile. So the search, which may take long, locks nothing; what it found is then changed; and what came
lately is searched again, until nothing is found. With their events erased and their contact held, nothing more of the
person comes from what was there before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import (
    Boolean,
    Column,
    ColumnElement,
    Connection,
    LargeBinary,
    MetaData,
    Row,
    Table,
    and_,
    bindparam,
    delete,
    func,
    insert,
    or_,
    select,
    true,
    tuple_,
    update,
)

from dispatcher.engine.records import as_text
from dispatcher.errors import DispatcherError
from dispatcher.store.mentions import Mentions
from dispatcher.store.naming import BY_TABLE, NAMING, Naming, Person, Search, scope
from dispatcher.store.postgres import partitions
from dispatcher.store.postgres.store import PostgresStore
from dispatcher.store.schema import PARTITIONED
from dispatcher.text.numbers import split_number

_AT_ONCE: Final = 500
# Bodies are of up to a megabyte.
_BODIES_AT_ONCE: Final = 20
# No batch takes so long.
_LATELY: Final = timedelta(hours=1)
# More rounds than events can follow one another in a few seconds.
_MOST_ROUNDS: Final = 20
# Longer than a batch of a worker takes: what was searched for is not to be searched for again because of one.
_PATIENCE: Final = "60s"

# Whether somebody still sees the rows as they were before a transaction.
_IS_READ: Final = """
SELECT EXISTS (
    SELECT 1 FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'
    AND datname = current_database() AND backend_xmin IS NOT NULL AND age(backend_xmin) >= age(%s::xid)
)
"""
_REMAINS: Final = (
    "free space in the server's files, its log (WAL) and copies of it (replicas, backups) hold traces until they are "
    "overwritten or expire"
)


class PostgresEraser:
    """Finds a person by looking at the rows that may name them."""

    remains = _REMAINS

    def __init__(self, store: PostgresStore) -> None:
        self._store = store
        self._xid: str | None = None

    def searches(self, connection: Connection, person: Person, mentions: Mentions, now: datetime) -> Iterator[Search]:
        """Yield what was there, and then what came meanwhile, for as long as something did."""
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{_PATIENCE}'")
        search = _PostgresSearch(self._store, connection, person, mentions)
        search.look(None)
        self._xid = str(connection.exec_driver_sql("SELECT pg_current_xact_id()::xid").scalar_one())
        yield search
        for _ in range(_MOST_ROUNDS):
            if not search.look(now - _LATELY):
                return
            yield search

    def forget(self) -> None:
        """Forget nothing: what was found is gone with the transaction."""

    def overwrite(self) -> Sequence[tuple[str, str]]:
        """Clear what was erased away from the tables; return where it is left all the same, and why."""
        try:
            with self._store.session.refusals():
                connection = self._store.connection
                is_read = connection.execute(_IS_READ, (self._xid,)).fetchone()
                connection.execute(f"VACUUM {', '.join(naming.table.name for naming in NAMING)}")
        except DispatcherError as error:
            return [("its tables", f"they could not be vacuumed: {error.message} Erase once more to do so")]
        if is_read is not None and is_read[0]:
            return [("its tables", "somebody was reading them; erase once more to clear them")]
        return ()


class _PostgresSearch:
    """What was found, in temporary tables: the keys of rows, and whether these are about the person as a whole."""

    def __init__(self, store: PostgresStore, connection: Connection, person: Person, mentions: Mentions) -> None:
        self._transaction = store.within(connection)
        self._connection = connection
        self._person = person
        self._mentions = mentions
        self._scratch = MetaData()
        self._found = {
            naming.table.name: Table(
                f"found_{naming.table.name}",
                self._scratch,
                *(Column(key.name, key.type) for key in _keys(naming.table)),
                Column("whole", Boolean(create_constraint=False)),
                prefixes=["TEMPORARY"],
                postgresql_on_commit="DROP",
            )
            for naming in NAMING
        }
        self._is_made = False

    def look(self, since: datetime | None) -> bool:
        """Search all that there is, or what came since a time; return whether something was found."""
        # In memory first: a transaction that has not written yet holds nobody up, however long the search takes.
        found = {naming.table.name: list(self._look_into(naming, since)) for naming in NAMING}
        if not self._is_made:
            self._scratch.create_all(self._connection, checkfirst=False)
            self._is_made = True
        for name, rows in found.items():
            self._connection.execute(delete(self._found[name]))
            if rows:
                self._connection.execute(insert(self._found[name]), rows)
            self.gathered(self._found[name])
        return any(found.values())

    def whole(self, table: Table) -> ColumnElement[bool]:
        found = self._found[table.name]
        return tuple_(*_keys(table)).in_(select(*(found.c[key.name] for key in _keys(table))).where(found.c.whole))

    def gathered(self, table: Table) -> None:
        # Without it the planner takes a table that it knows nothing of for a large one, and reads all of the others.
        self._connection.exec_driver_sql(f"ANALYZE {table.name}")

    def hold_off(self) -> None:
        self._transaction.lock_contacts([(self._person.account_key, self._person.msisdn)])

    def sweep(self, table: Table) -> int:
        found, keys = self._found[table.name], _keys(table)
        all_found = self._connection.execute(
            select(*(found.c[key.name] for key in keys)).order_by(*(found.c[key.name] for key in keys))
        ).all()
        return sum(
            self._clean(BY_TABLE[table.name], all_found[at : at + _AT_ONCE])
            for at in range(0, len(all_found), _AT_ONCE)
        )

    def _clean(self, naming: Naming, found: Sequence[Row[Any]]) -> int:
        """Put marks into these rows, as they are now; return how many had something to mark."""
        keys = _keys(naming.table)
        names = [*naming.texts, *naming.json]
        wanted = [*(key.name for key in keys), *(name for name in names if name not in {key.name for key in keys})]
        these = tuple_(*keys).in_([tuple(row) for row in found])
        taken = select(*(naming.table.c[name] for name in wanted)).where(these).order_by(*keys).with_for_update()
        changes = []
        for row in self._connection.execute(taken).mappings():
            cleaned = {name: self._mentions.without(row[name]) for name in naming.texts}
            cleaned |= {name: self._mentions.without_in_json(row[name]) for name in naming.json}
            if any(cleaned[name] != row[name] for name in names):
                changes.append({f"new_{name}": text for name, text in cleaned.items()} | _old(keys, row))
        if changes:
            this = [key == bindparam(f"old_{key.name}") for key in keys]
            values: dict[str, Any] = {name: bindparam(f"new_{name}") for name in names}
            self._connection.execute(update(naming.table).where(*this).values(**values), changes)
        return len(changes)

    def _look_into(self, naming: Naming, since: datetime | None) -> Iterator[dict[str, Any]]:
        """Yield the keys of the rows of a table that name the person, and whether they are about them as a whole."""
        table = naming.table
        columns = [table.c[name] for name in dict.fromkeys((*naming.whole, *naming.texts, *naming.json))]
        # They may be among the keys too.
        looked_at = [column.label(f"in_{column.name}") for column in columns]
        conditions = [scope(table, self._person), or_(*self._may_be_named(columns))]
        if since is not None:
            moment = f"{since:%Y-%m-%d}" if naming.since == "received_on" else as_text(since)
            conditions.append(table.c[naming.since] >= moment)
        query = select(*_keys(table), *looked_at).where(*conditions).execution_options(yield_per=_at_once(table))
        for of_day in self._days(table, since):
            for row in self._connection.execute(query.where(of_day)).mappings():
                whole = any(self._is_named(row[f"in_{name}"]) for name in naming.whole)
                if whole or any(self._is_named(row[f"in_{name}"]) for name in (*naming.texts, *naming.json)):
                    yield {key.name: row[key.name] for key in _keys(table)} | {"whole": whole}

    def _days(self, table: Table, since: datetime | None) -> Iterator[ColumnElement[bool]]:
        """Yield the days of a table, each as a condition: no query takes longer than one of them."""
        if table.name not in PARTITIONED:
            yield true()
            return
        for day in partitions.days(self._transaction.connection):
            if since is None or day >= f"{since:%Y-%m-%d}":
                yield table.c.received_on == day

    def _is_named(self, value: str | bytes | None) -> bool:
        if isinstance(value, bytes):
            return self._mentions.found_in_bytes(value)
        return self._mentions.found_in(value)

    def _may_be_named(self, columns: Sequence[Column[Any]]) -> Iterator[ColumnElement[bool]]:
        """Yield conditions of which one holds for each row that names the person, and for not too many others."""
        texts = [column for column in columns if not isinstance(column.type, LargeBinary)]
        joined: Any = func.coalesce(texts[0], "")
        for column in texts[1:]:
            joined = joined + '","' + func.coalesce(column, "")
        yield from self._may_name(joined)
        # Digits of other scripts are not for the server to know.
        yield func.octet_length(joined) != func.char_length(joined)
        for column in columns:
            if isinstance(column.type, LargeBinary):
                # In ASCII, with a backslash for each byte that is none, for a NUL, and for what may escape a digit.
                escaped = func.encode(column, "escape")
                yield from self._may_name(escaped)
                yield func.strpos(escaped, "\\") > 0

    def _may_name(self, text: Any) -> Iterator[ColumnElement[bool]]:
        # What stands between the digits of a number, see `mentions`, is at least no digit.
        _, national = split_number(self._person.msisdn)
        # The first is a weaker condition than the second, and quicker to tell.
        yield and_(text.like(f"%{'%'.join(national)}%"), text.op("~")("[^0-9]{0,3}".join(national)))
        for word in self._person.words:
            # Of letters that are not ASCII the texts are looked at anyway.
            if word.isascii():
                yield func.strpos(func.lower(text), word.lower()) > 0


def _keys(table: Table) -> list[Column[Any]]:
    """Return what names a row, and the partition in which it is."""
    keys = list(table.primary_key.columns)
    return [*keys, table.c.received_on] if table.name in PARTITIONED else keys


def _at_once(table: Table) -> int:
    return _BODIES_AT_ONCE if table.name == "dead_letters" else _AT_ONCE


def _old(keys: Sequence[Column[Any]], row: Any) -> dict[str, Any]:
    return {f"old_{key.name}": row[key.name] for key in keys}
