"""`dispatcher publish`: hand in events from a file or a pipe: to a broker, to the worker that runs, or to the store."""

from __future__ import annotations

import sys
import time
from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Protocol, cast

import typer

from dispatcher.cli import exits
from dispatcher.cli.options import AmqpOption, JsonOption, StoreOption, new_app, read_settings
from dispatcher.cli.output import Progress, say, write_json
from dispatcher.errors import (
    BrokerUnreachable,
    Contended,
    LeaseLost,
    RowsRefused,
    StoreInUse,
    StoreUnusable,
    UsageError,
)

if TYPE_CHECKING:
    from io import BufferedReader

    from dispatcher.engine.intake import Intake
    from dispatcher.events.limits import Limits, Refusal
    from dispatcher.settings import Settings
    from dispatcher.sources.amqp.handover import Handover
    from dispatcher.sources.embedded import Numbered
    from dispatcher.store.ports import Store

app = new_app(
    examples=(
        "dispatcher publish events.jsonl       # one event a line",
        "dispatcher publish event.json         # one event, however many lines",
        "zcat old.jsonl.gz | dispatcher publish",
        "dispatcher publish --amqp amqp://vumi:PASSWORD@broker/vumi events.jsonl",
    )
)

# How long another process may hold the store without answering: it is starting, or publishing itself.
_PATIENCE: Final = 30.0
_PAUSE: Final = 0.02
_KEPT_BEYOND: Final = 2**20
# How many events a worker is asked to take at once: as many as it puts into one batch.
_A_FRAME: Final = 256


Taken = tuple[str, str | None, str | None, str | None]


class _Gate(Protocol):
    """The way into a store."""

    def take(self, bodies: list[bytes]) -> list[Taken]:
        """Return (kind, event id, code, detail) of each body, once all of them are durable."""
        ...


class _FileGate:
    """The way into a store that one process writes: through that process, or, where there is none, into the file."""

    def __init__(self, settings: Settings) -> None:
        from dispatcher.store.sqlite.lock import socket_path  # noqa: PLC0415 - see main
        from dispatcher.worker.control import ControlClient  # noqa: PLC0415

        self._path = settings.store_path
        self._intake = _intake(settings)
        self._store: Store | None = None
        self._client = ControlClient(socket_path(self._path))

    def close(self) -> None:
        self._client.close()
        if self._store is not None:
            self._store.close()

    def take(self, bodies: list[bytes]) -> list[Taken]:
        """Raises StoreInUse when the process that holds the store does not answer for half a minute."""
        from dispatcher.worker.control import NoWorker, WorkerStopping  # noqa: PLC0415

        taken: list[Taken] = []
        deadline = time.monotonic() + _PATIENCE
        while len(taken) < len(bodies):
            try:
                if (store := self._opened()) is not None:
                    taken += _admit(store, self._intake, bodies[len(taken) :])
                else:
                    taken += self._ask(bodies[len(taken) : len(taken) + _A_FRAME])
            except (NoWorker, WorkerStopping) as busy:
                # A worker that starts or ends, or another `publish`: nothing was taken, so asking again is safe.
                if time.monotonic() > deadline:
                    raise StoreInUse(
                        f"another process holds the store {self._path}, and does not answer.",
                        hint="`dispatcher doctor` tells which one.",
                    ) from busy
                time.sleep(_PAUSE)
        return taken

    def _opened(self) -> Store | None:
        """Return the store if this process holds it, or could take it now."""
        from dispatcher.store.sqlite.store import SqliteStore  # noqa: PLC0415

        if self._store is None:
            with suppress(StoreInUse):
                self._store = SqliteStore.open(self._path)
        return self._store

    def _ask(self, bodies: list[bytes]) -> list[Taken]:
        answer = self._client.request("publish", {"bodies": [b64encode(body).decode() for body in bodies]})
        return [tuple(receipt) for receipt in answer["receipts"]]


class _SharedGate:
    """The way into a store that many processes write: any of them may, at any time."""

    def __init__(self, settings: Settings) -> None:
        from dispatcher.store.opening import open_store  # noqa: PLC0415 - see main

        self._intake = _intake(settings)
        self._store = open_store(settings.store_url())

    def close(self) -> None:
        self._store.close()

    def take(self, bodies: list[bytes]) -> list[Taken]:
        """Raises StoreUnusable when nobody knows whether these were stored, Contended after half a minute of it."""
        deadline = time.monotonic() + _PATIENCE
        refused = False
        while True:
            try:
                return _admit(self._store, self._intake, bodies)
            except RowsRefused:
                # A day had begun for which nobody had made room; the store has made it now. Nothing else is refused
                # of what the intake has let in.
                if refused:
                    raise
                refused = True
            except Contended:
                # Somebody else was just storing one of these events; once that is done, it is a duplicate.
                if time.monotonic() > deadline:
                    raise
            except LeaseLost as lost:
                raise StoreUnusable(
                    f"{lost.message} Of up to {len(bodies)} events nobody knows whether they are stored.",
                    hint="Publishing again is safe for events with an id of their own: they are taken once.",
                ) from lost
            time.sleep(_PAUSE)


def _intake(settings: Settings) -> Intake:
    from dispatcher.engine.intake import Intake  # noqa: PLC0415 - see main
    from dispatcher.events.limits import Limits  # noqa: PLC0415

    return Intake(Limits(settings.max_event_bytes, settings.max_depth))


def _admit(store: Store, intake: Intake, bodies: list[bytes]) -> list[Taken]:
    from dispatcher.sources.embedded import admit  # noqa: PLC0415 - see main

    receipts = admit(store, intake, bodies)
    return [(receipt.kind, receipt.event_id, receipt.code, receipt.detail) for receipt in receipts]


@contextmanager
def _gate(settings: Settings) -> Iterator[_Gate]:
    with closing(_FileGate(settings) if settings.store_kind == "sqlite" else _SharedGate(settings)) as gate:
        yield gate


@app.command()
def publish(
    file: Annotated[
        str,
        typer.Argument(metavar="[FILE|-]", help="A .jsonl file or - for stdin: one event a line; else one event."),
    ] = "-",
    *,
    store: StoreOption = None,
    amqp: AmqpOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hand in events; when this ends, all that was taken is safe: in the store, or, with a broker, in its queue.

    What cannot be read becomes a dead letter and is told on stderr with its line and code; the rest is taken all the
    same, and the exit code is 1. An event whose id is known already is taken once.

    With --amqp or DISPATCHER_AMQP_URL the events go to the broker, and count once it has confirmed them. At the first
    one that it does not confirm nothing more is sent, and the lines that it does not have are told.
    """
    settings = read_settings(store=store, amqp_url=amqp)
    from dispatcher import failpoints  # noqa: PLC0415 - see main

    failpoints.arm(settings.failpoints)
    where = "line {}" if _is_one_a_line(file) else file.replace("{", "{{").replace("}", "}}")
    if settings.amqp_url is not None:
        try:
            _to_broker(file, settings, where, as_json=as_json)
        except BrokerUnreachable as error:
            from dispatcher.cli.refusals import who_was_refused  # noqa: PLC0415 - see main

            raise BrokerUnreachable(
                error.message, hint=who_was_refused(settings, error.message) or error.hint
            ) from error
    else:
        _to_store(file, settings, where, as_json=as_json)


def _to_store(file: str, settings: Settings, where: str, *, as_json: bool) -> None:
    taken = {"stored": 0, "duplicate": 0, "refused": 0}
    refused: list[dict[str, Any]] = []
    with _bodies(file, settings) as chunks, _gate(settings) as gate, Progress("events") as progress:
        for chunk in chunks:
            receipts = gate.take([body for _, body in chunk])
            for (line, _), (kind, _, code, detail) in zip(chunk, receipts, strict=True):
                taken[kind] += 1
                if kind == "refused":
                    refused.append({"line": line, "code": code, "detail": detail})
                    say(f"{where.format(line)}: {code}: {detail}")
            progress.reached(sum(taken.values()))
    if as_json:
        write_json({"stored": taken["stored"], "duplicates": taken["duplicate"], "refused": refused})
    say(f"{taken['stored']} stored, {taken['duplicate']} duplicates, {taken['refused']} refused")
    if refused:
        say("`dispatcher dead list` shows what was refused.")
        raise typer.Exit(exits.PROBLEMS)


def _to_broker(file: str, settings: Settings, where: str, *, as_json: bool) -> None:
    from dispatcher import telemetry  # noqa: PLC0415 - see main
    from dispatcher.events.limits import Limits  # noqa: PLC0415
    from dispatcher.sources.amqp.handover import Handover  # noqa: PLC0415

    # What the connection logs is told below, in one sentence.
    telemetry.configure(level="critical")
    limits = Limits(settings.max_event_bytes, settings.max_depth)
    refused: list[dict[str, Any]] = []
    unsent_from: int | None = None
    with _bodies(file, settings) as chunks, Handover(settings) as handover, Progress("events") as progress:
        for chunk in chunks:
            messages = []
            for line, body in chunk:
                identity, refusal = _identify(body, limits)
                messages.append((line, body, identity))
                if refusal is not None:
                    refused.append({"line": line, "code": refusal.code, "detail": refusal.detail})
                    say(f"{where.format(line)}: {refusal.code}: {refusal.detail}")
            unsent_from = handover.send(messages)
            progress.reached(handover.confirmed)
            if unsent_from is not None:
                break
        handover.finish()
    if unsent_from is not None:
        refused = [entry for entry in refused if entry["line"] < unsent_from]
    unconfirmed = [
        {"line": failure.seq, "fate": failure.fate, "reason": failure.reason} for failure in handover.failures
    ]
    if as_json:
        write_json(
            {
                "stored": 0,
                "duplicates": 0,
                "confirmed": handover.confirmed,
                "refused": refused,
                "unconfirmed": unconfirmed,
                "unsent_from": unsent_from,
            }
        )
    _tell_unconfirmed(handover, settings, where, unsent_from)
    said = f"{handover.confirmed} confirmed by {settings.amqp_url_shown}"
    say(f"{said}, {len(refused)} of what was sent cannot be read" if refused else said)
    if refused:
        say("The worker that takes them keeps those as dead letters: `dispatcher dead list` shows them.")
    if refused or unconfirmed or unsent_from is not None:
        raise typer.Exit(exits.PROBLEMS)


def _identify(body: bytes, limits: Limits) -> tuple[str, Refusal | None]:
    """Return the message id for a body, and why the worker will refuse it, if it will."""
    from dispatcher.events.limits import Refusal  # noqa: PLC0415 - see main
    from dispatcher.events.wire import decode  # noqa: PLC0415
    from dispatcher.sources.amqp.handover import message_id  # noqa: PLC0415

    try:
        return message_id(decode(body, limits).event_id), None
    except Refusal as refusal:
        return message_id(None), refusal


# What became of a message that the broker did not confirm, and what to do about it.
_FATES: Final = {
    "unroutable": "no queue took {lines}: {reason}",
    "refused": "the broker refused {lines}: {reason}",
    "unknown": "nobody knows whether the broker has {lines}: {reason}",
    "unsent": "{lines} did not reach the broker: {reason}",
}


def _tell_unconfirmed(handover: Handover, settings: Settings, where: str, unsent_from: int | None) -> None:
    from dispatcher.cli.refusals import no_right_to_write  # noqa: PLC0415 - see main

    lines: dict[tuple[str, str | None], list[int]] = {}
    for failure in handover.failures:
        lines.setdefault((failure.fate, failure.reason), []).append(failure.seq)
    for (fate, reason), numbers in lines.items():
        named = _spans(numbers) if where.startswith("line ") else where.format(1)
        say(f"error: {_FATES[fate].format(lines=named, reason=reason or 'it did not say why')}.")
    if unsent_from is not None:
        if not handover.failures:
            say(f"error: {handover.stuck or 'the broker takes nothing'}.")
        say(f"Nothing was sent from line {unsent_from} on.")
    fates = {failure.fate for failure in handover.failures}
    if any(failure.fate == "refused" and (failure.reason or "").startswith("403") for failure in handover.failures):
        say(no_right_to_write(settings))
    elif fates & {"unroutable", "refused"}:
        say(
            f"`dispatcher run --amqp` makes the exchange {settings.amqp_exchange!r} and the queue "
            f"{settings.amqp_queue_names[0]!r} where they are missing; `dispatcher doctor` says what is there."
        )
    if "unknown" in fates:
        say("Publishing those again is safe for events with an id of their own: they are taken once.")


def _spans(numbers: Sequence[int]) -> str:
    """Write line numbers as people do: `lines 3, 7-9`."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and spans[-1][-1] == number - 1:
            spans[-1][1:] = [number]
        else:
            spans.append([number])
    told = ", ".join("-".join(map(str, span)) for span in spans)
    return f"line {told}" if len(numbers) == 1 else f"lines {told}"


def _is_one_a_line(name: str) -> bool:
    return name == "-" or name.endswith(".jsonl")


@contextmanager
def _bodies(name: str, settings: Settings) -> Iterator[Iterator[list[Numbered]]]:
    """Open the file and yield its bodies in chunks, read as they are asked for."""
    from dispatcher.sources.embedded import chunks  # noqa: PLC0415

    if name == "-":
        if sys.stdin.isatty():
            say("Reading events from the terminal, one a line; Ctrl-D ends.")
        stream = cast("BufferedReader", sys.stdin.buffer)
    else:
        try:
            stream = Path(name).open("rb")  # noqa: SIM115 - closed below
        except OSError as error:
            raise UsageError(f"cannot read {name}: {error.strerror or error}.") from error
    try:
        # What is longer is no event whatever it holds; the dead letter keeps so much of it.
        longest = settings.max_event_bytes + _KEPT_BEYOND
        yield chunks(stream, longest=longest) if _is_one_a_line(name) else iter([[(1, stream.read(longest))]])
    except IsADirectoryError as error:
        raise UsageError(f"cannot read {name}: it is a folder.") from error
    finally:
        if stream is not sys.stdin.buffer:
            stream.close()
