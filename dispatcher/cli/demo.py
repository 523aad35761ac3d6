"""`dispatcher demo`: a day's events through the shipped rulebook, by the real verbs in processes of their own.

What the rulebook calls out to is here too: the clinic's own system, played by a small HTTP server that is not always
up.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from dispatcher.cli import exits
from dispatcher.cli.doctor import listed
from dispatcher.cli.options import RulebookOption, new_app, read_settings
from dispatcher.cli.output import print_table, say, write, write_wrapped
from dispatcher.errors import NotFound, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Connection

    from dispatcher.cli.clinic import Clinic

app = new_app(
    examples=(
        "dispatcher demo                       # leaves its store in ./demo",
        "dispatcher demo --folder /tmp/demo",
    )
)

_EVENTS: Final = "demo-events.jsonl"
_STORE: Final = "dispatcher.db"
_LOG: Final = "run.log"
# What a demo may leave behind, and takes away when it begins anew.
_OURS: Final = (_STORE, *(_STORE + end for end in ("-wal", "-shm", ".lock", ".sock", ".slot")), _LOG)
# Settings of a real installation: another store, and a broker that must not see a demo.
_NOT_MEANT: Final = ("DISPATCHER_STORE", "DISPATCHER_WORKERS", "DISPATCHER_AMQP", "DISPATCHER_HTTP")
_ROUNDS: Final = 20
_PATIENCE: Final = 20.0
_TICK: Final = 0.01
_SHOWN: Final = 5
# So many digits from its end tell a number from all others here.
_TELLING: Final = 9


@app.command()
def demo(
    *,
    folder: Annotated[Path, typer.Option("--folder", metavar="DIR", help="Where its store goes.")] = Path("demo"),
    rulebook: RulebookOption = None,
) -> None:
    """Send a day's events through the shipped rulebook, and show what became of them.

    The store in the folder is made anew; nothing else is touched, and nothing leaves this machine.
    """
    settings = read_settings(rulebook=rulebook)
    from dispatcher.cli.clinic import Clinic  # noqa: PLC0415 - see main
    from dispatcher.settings import process_environ  # noqa: PLC0415

    events = settings.rulebook.parent / _EVENTS
    if not events.is_file():
        raise NotFound(
            f"{events} is not there.", hint="Run the demo from a checkout: the rulebook and it lie in config/."
        )
    _clear(folder)
    store = f"sqlite:///{folder / _STORE}"
    began = time.monotonic()
    with Clinic() as clinic:
        environ = {
            **{name: value for name, value in process_environ().items() if not name.startswith(_NOT_MEANT)},
            "DISPATCHER_STORE": store,
            "DISPATCHER_RULEBOOK": str(settings.rulebook),
            "CLINIC_URL": clinic.url,
            "NO_PROXY": "127.0.0.1",
        }
        _publish(events, environ)
        with (folder / _LOG).open("wb") as log:
            rounds = _drain(folder / _STORE, environ, log.fileno())
        took = time.monotonic() - began
        _tell(folder / _STORE, clinic)
    write()
    write(f"All of it took {took:.1f} seconds; the worker was started {rounds} times. To look further:")
    write()
    if shutil.which("dispatcher") is None:
        write(f"  . {os.path.relpath(Path(sys.executable).with_name('activate'))}")
    write(f"  export DISPATCHER_STORE={store}")
    for command in (
        "messages list --limit 5",
        "runs list --state failed",
        "dead list",
        "contacts show 0825550042        # in any spelling",
        "doctor",
    ):
        write(f"  dispatcher {command}")
    write()
    write_wrapped(f"The worker's log is {folder / _LOG}; what is done with an event is written in {settings.rulebook}.")


def _clear(folder: Path) -> None:
    """Make the folder, without the store of an earlier demo."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in _OURS:
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot write in {folder}: {error.strerror or error}.", hint="Name another folder with --folder."
        ) from error


def _command(*arguments: str) -> list[str]:
    # -P: a folder of the user's must not stand in for one of our packages.
    return [sys.executable, "-P", "-m", "dispatcher", *arguments]


def _publish(events: Path, environ: Mapping[str, str]) -> None:
    write(f"$ dispatcher publish {events}")
    sys.stdout.flush()
    done = subprocess.run(_command("publish", str(events)), env=environ, check=False)  # noqa: S603 - our own verbs
    # 1: some lines cannot be read, as is meant.
    if done.returncode not in (exits.OK, exits.PROBLEMS):
        raise typer.Exit(done.returncode)


def _drain(store: Path, environ: Mapping[str, str], log: int) -> int:
    """Run the worker until nothing is left to do today; return how often it was started."""
    write()
    for started in range(1, _ROUNDS + 1):
        write("$ dispatcher run --drain")
        sys.stdout.flush()
        done = subprocess.run(_command("run", "--drain"), env=environ, stderr=log, check=False)  # noqa: S603 - as above
        if done.returncode != exits.OK:
            say(f"the worker ended with exit code {done.returncode}.")
            raise typer.Exit(done.returncode)
        pause = _until_retry(store)
        if pause is None or pause > _PATIENCE:
            return started
        write("  the clinic's system was down; the worker is started again when its step is due")
        time.sleep(pause + _TICK)
    return _ROUNDS


@contextmanager
def _reading(store: Path) -> Iterator[Connection]:
    from dispatcher.store.reading import open_reader  # noqa: PLC0415 - see main

    with open_reader(store) as connection:
        yield connection


def _until_retry(store: Path) -> float | None:
    from dispatcher.store.examination import next_retry  # noqa: PLC0415 - see main

    with _reading(store) as connection:
        due = next_retry(connection)
    return None if due is None else max(0.0, (due - datetime.now(UTC)).total_seconds())


def _tell(store: Path, clinic: Clinic) -> None:
    """Print what the store holds now."""
    from dispatcher.store.examination import examine  # noqa: PLC0415 - see main
    from dispatcher.store.queries import (  # noqa: PLC0415
        list_contacts,
        list_dead_letters,
        list_events,
        list_messages,
        list_runs,
    )

    with _reading(store) as connection:
        found = examine(connection, check_integrity=False)
        letters = list(list_dead_letters(connection).rows)
        runs = list(list_runs(connection).rows)
        messages = list(list_messages(connection).rows)
        spelt = _spellings(list_contacts(connection).rows, list_events(connection).rows)
    write()
    write("What became of them")
    write()
    print_table(
        ("what", "how many"),
        [
            ("events", listed(found.events)),
            ("runs", listed(found.runs)),
            ("contacts", f"{found.contacts}, of whom {found.opt_outs} opted out"),
            ("messages", listed(found.messages)),
            ("dead letters", sum(found.dead_letters.values())),
        ],
    )
    write()
    print_table(("chain", *_STATES), _by_chain(runs), right=_STATES)
    _show_texts(messages)
    _tell_stories(spelt, clinic)
    write()
    write("Dead letters")
    print_table(("reason", "times", "such as"), _by_reason(letters), right=("times",))


_STATES: Final = ("done", "waiting", "failed")


def _by_chain(runs: list[dict[str, Any]]) -> Iterator[tuple[Any, ...]]:
    states = Counter((run["chain"], run["state"]) for run in runs)
    for chain in dict.fromkeys(run["chain"] for run in runs):
        yield chain, *(states[chain, state] or "" for state in _STATES)


def _by_reason(letters: list[dict[str, Any]]) -> Iterator[tuple[Any, ...]]:
    times = Counter(letter["reason"] for letter in letters)
    examples = {letter["reason"]: letter["detail"] for letter in letters}
    for reason, count in sorted(times.items()):
        yield reason, count, examples[reason]


def _show_texts(messages: list[dict[str, Any]]) -> None:
    """Print some texts: of each state and encoding one, then others that read differently."""
    chosen: dict[str, dict[str, Any]] = {}
    for key in (
        lambda message: (message["state"], message["encoding"]),
        lambda message: message["content"].split("!")[-1],
    ):
        firsts = {key(message): message for message in reversed(messages)}
        chosen |= {message["message_id"]: message for message in firsts.values()}
    write()
    write("Some of the texts")
    print_table(
        ("to", "text", "parts", "state"),
        [
            (message["to_addr"], message["content"], message["segments"], message["error"] or message["state"])
            for message in list(chosen.values())[:_SHOWN]
        ],
        right=("parts",),
    )


def _spellings(contacts: Iterable[dict[str, Any]], events: Iterable[dict[str, Any]]) -> tuple[str, list[str]]:
    """Return the contact whose number came in the most spellings, and these."""
    spelt: dict[str, dict[str, None]] = {}
    for event in events:
        written = event["event_data"].get("msisdn") or event["event_data"].get("from_addr") or ""
        digits = "".join(character for character in str(written) if character.isdigit())
        spelt.setdefault(digits[-_TELLING:], {})[str(written)] = None
    found = {contact["msisdn"]: list(spelt.get(contact["msisdn"][-_TELLING:], {})) for contact in contacts}
    return max(found.items(), key=lambda item: len(item[1]), default=("", []))


def _tell_stories(spelt: tuple[str, list[str]], clinic: Clinic) -> None:
    number, spellings = spelt
    write()
    if len(spellings) > 1:
        write_wrapped(f"One person's number came as {', '.join(spellings)}: one contact, {number}.")
    if clinic.referrals:
        told = f"{clinic.refusals} calls were answered 503 and made again, with the same idempotency key."
        write_wrapped(f"The clinic's system took {clinic.referrals} referrals, each once; {told}")
