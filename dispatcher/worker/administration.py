"""The writing verbs, for whoever holds the store: the worker's loop between two batches, or a command by itself.

    events.replay   event, account?, again?                    runs.cancel     run
    runs.retry      run | state?, chain?, account?, page?      runs.resolve    sent, run | chain?, account?, page?
    dead.replay     dead | reason?, kind?, account?, page?     dead.discard    the same, why?
    contacts.erase  contact, account?, region?                 ping

Each also takes `actor`, who asks. A verb over many rows does a page of them and says where to go on (`next`), so that
the worker never stands still for long. A store in a file has one writer, so a command asks the worker that runs, if
one does; into a store that processes share it writes itself.
"""

from __future__ import annotations

import os
import pwd
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from dispatcher.errors import DispatcherError, StoreInUse, StoreUnusable, UsageError
from dispatcher.events.limits import Limits
from dispatcher.worker.control import ControlClient, NoWorker, WorkerStopping

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from dispatcher.clock import Clock
    from dispatcher.engine.intake import Delivery, Receipt
    from dispatcher.store.operations import Changed, Operations
    from dispatcher.store.ports import Store
    from dispatcher.worker.inbox import Inbox

# How long another process may hold the store without answering: it is starting, stopping or publishing.
_PATIENCE_SECONDS: Final = 15.0
_PAUSE_SECONDS: Final = 0.05


def answer(inbox: Inbox, store: Store, clock: Clock, *, limits: Limits) -> bool:
    """Perform and answer every verb in the inbox, each in a transaction of its own; return whether there was one."""
    answered = False
    while (request := inbox.next_verb()) is not None:
        answered = True
        try:
            request.reply(perform(store, request.verb, request.args, clock.now(), limits=limits))
        except DispatcherError as error:
            request.fail(error)
    return answered


def perform(
    store: Store, verb: str, args: Mapping[str, Any], now: datetime, *, limits: Limits | None = None
) -> dict[str, Any]:
    """Do what a verb asks, in one transaction; return `changed`, `ids`, `message`, `left` and `next`.

    Raises NotFound, NotPossible, UsageError, StoreUnusable or Contended, and has done nothing then.
    """
    from dispatcher.store.operations import Operations  # noqa: PLC0415 - brings SQLAlchemy, and is seldom needed

    if verb == "ping":
        return {}  # that whoever holds the store answers is all that is asked
    asked = _Arguments(verb, args)
    actor = asked.optional("actor") or "unknown"
    if verb == "contacts.erase":
        from dispatcher.store.erase import erase  # noqa: PLC0415 - as above

        who, account, region = asked.text("contact"), asked.optional("account"), asked.optional("region")
        return erase(store, who, account, region=region, actor=actor, now=now).as_json()

    def change(connection: Connection) -> Changed:
        operations = Operations(connection, actor, now)
        if verb.startswith("dead."):
            return _change_letters(store, operations, asked, now, limits or Limits())
        return _change_work(operations, asked)

    return store.administer(change).as_json()


def _change_work(operations: Operations, asked: _Arguments) -> Changed:
    match asked.verb:
        case "events.replay":
            return operations.replay_event(
                asked.text("event"), asked.optional("account"), again=asked.truth("again", default=False)
            )
        case "runs.retry" if asked.optional("run") is not None:
            return operations.retry_run(asked.text("run"))
        case "runs.retry":
            state, chain, account = (asked.optional(name) for name in ("state", "chain", "account"))
            return operations.retry_runs(chain=chain, state=state or "failed", account=account, page=asked.page())
        case "runs.cancel":
            return operations.cancel_run(asked.text("run"))
        case "runs.resolve":
            sent = asked.truth("sent")
            if asked.optional("run") is not None:
                return operations.resolve_run(asked.text("run"), sent=sent)
            chain, account = (asked.optional(name) for name in ("chain", "account"))
            return operations.resolve_runs(sent=sent, chain=chain, account=account, page=asked.page())
        case verb:
            raise UsageError(f"there is no verb {verb!r}.", hint="Are worker and command of one version?")


def _change_letters(store: Store, operations: Operations, asked: _Arguments, now: datetime, limits: Limits) -> Changed:
    from dispatcher.engine.intake import Intake  # noqa: PLC0415 - see `perform`
    from dispatcher.engine.unit import Overlay  # noqa: PLC0415
    from dispatcher.store.letters import Letters  # noqa: PLC0415

    def take_in(delivery: Delivery) -> Receipt:
        # Within the transaction that closes the letter, so that a crash leaves both or neither.
        transaction = store.within(operations.connection)
        overlay = Overlay(transaction, now)
        (receipt,) = Intake(limits).admit([delivery], overlay)
        if receipt.kind == "stored":
            transaction.flush(overlay.changes)
        return receipt

    letters = Letters(operations, take_in)
    one = asked.optional("dead") is not None
    filters = {"reason": asked.optional("reason"), "kind": asked.optional("kind")}
    filters["account_key"] = asked.optional("account")
    match asked.verb:
        case "dead.replay":
            return letters.replay(asked.text("dead")) if one else letters.replay_all(filters, asked.page())
        case "dead.discard":
            why = asked.optional("why")
            return letters.discard(asked.text("dead"), why) if one else letters.discard_all(filters, why, asked.page())
        case verb:
            raise UsageError(f"there is no verb {verb!r}.", hint="Are worker and command of one version?")


class _Arguments:
    """The arguments of a verb, as they came over the socket: anything may be missing or of another type."""

    def __init__(self, verb: str, args: Mapping[str, Any]) -> None:
        self.verb = verb
        self._args = args

    def text(self, name: str) -> str:
        value = self.optional(name)
        if value is None:
            raise UsageError(f"{self.verb}: `{name}` is missing.")
        return value

    def optional(self, name: str) -> str | None:
        value = self._args.get(name)
        if value is None:
            return None
        # A shell hands on bytes that are no UTF-8 as lone surrogates, which no store can look for; nor for a NUL.
        if isinstance(value, str) and not any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in value):
            return value
        raise UsageError(f"{self.verb}: `{name}` must be a text.")

    def truth(self, name: str, *, default: bool | None = None) -> bool:
        value = self._args.get(name, default)
        if isinstance(value, bool):
            return value
        raise UsageError(f"{self.verb}: `{name}` must be true or false.")

    def page(self) -> Any:
        from dispatcher.store.operations import Page  # noqa: PLC0415 - see `perform`

        value = self._args.get("page")
        if value is None:
            return Page()
        if isinstance(value, list) and len(value) == 2 and all(type(at) is int and 0 <= at < 2**63 for at in value):
            return Page(*value)
        raise UsageError(f"{self.verb}: `page` must be what `next` was.")


# For commands: through the worker that runs, or straight into the store.


class Holder(Protocol):
    """Whoever holds the store and can be asked to write."""

    def request(self, verb: str, args: dict[str, Any]) -> dict[str, Any]:
        """Have a verb done and return its result."""
        ...


class _OwnHold:
    def __init__(self, store: Store, limits: Limits) -> None:
        self._store = store
        self._limits = limits

    def request(self, verb: str, args: dict[str, Any]) -> dict[str, Any]:
        return perform(self._store, verb, args, self._store.clock.now(), limits=self._limits)


class Administrator:
    """Sends writing verbs to the process that holds the store, or holds it itself where nobody does.

    `store` is the file of the one kind of store, or the URL of the other, with its password.
    """

    def __init__(self, store: Path | str, limits: Limits) -> None:
        self._store = store
        self._limits = limits

    def request(self, verb: str, **args: Any) -> dict[str, Any]:
        """Have a verb done and return its result. Raises what the verb raises, and StoreUnusable without a store."""
        args["actor"] = user_name()
        if isinstance(self._store, str):
            return self._request_shared(self._store, verb, args)
        if not self._store.exists():
            raise StoreUnusable(
                f"there is no store at {self._store.absolute()}.",
                hint="`dispatcher run` or `dispatcher publish` makes one; --store or DISPATCHER_STORE names another.",
            )
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                with self._holder(self._store) as holder:
                    return holder.request(verb, args)
            except (StoreInUse, WorkerStopping):
                if time.monotonic() > deadline:
                    raise
            time.sleep(_PAUSE_SECONDS)

    def _request_shared(self, url: str, verb: str, args: dict[str, Any]) -> dict[str, Any]:
        from dispatcher.store.opening import open_store  # noqa: PLC0415 - see `perform`
        from dispatcher.store.reading import open_reader  # noqa: PLC0415

        with open_reader(url):
            pass  # whoever opens a store for writing makes it, and a verb that changes one is no reason to
        with closing(open_store(url)) as store:
            return _OwnHold(store, self._limits).request(verb, args)

    def every_page(self, verb: str, **args: Any) -> Iterator[dict[str, Any]]:
        """Have a verb over many rows done, page by page."""
        page: list[int] | None = None
        while True:
            result = self.request(verb, **args, page=page)
            yield result
            page = result["next"]
            if page is None:
                return

    @contextmanager
    def _holder(self, path: Path) -> Iterator[Holder]:
        from dispatcher.store.sqlite.lock import socket_path  # noqa: PLC0415 - see `perform`
        from dispatcher.store.sqlite.store import SqliteStore  # noqa: PLC0415

        with ControlClient(socket_path(path)) as client:
            try:
                client.connect()
            except NoWorker:
                pass
            else:
                yield client
                return
        with closing(SqliteStore.open(path)) as store:
            yield _OwnHold(store, self._limits)


def user_name() -> str:
    """Return the name of the user that this process runs as: the kernel's word, not the environment's."""
    number = os.getuid()
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:  # in a container users often have no name
        return f"uid {number}"
