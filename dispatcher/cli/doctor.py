"""`dispatcher doctor`: what is wrong here, what somebody should look at, and what is in order."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from dispatcher.cli import exits
from dispatcher.cli.findings import Finding
from dispatcher.cli.options import AmqpOption, JsonOption, RulebookOption, StoreOption, new_app, read_settings
from dispatcher.cli.output import say, write_json, write_wrapped
from dispatcher.errors import DispatcherError, RulebookRefused, SettingsRefused, StoreUnusable

if TYPE_CHECKING:
    from dispatcher.plugins.services import Sender
    from dispatcher.rules.plan import Plan
    from dispatcher.settings import Settings
    from dispatcher.store.examination import Examination

app = new_app(
    examples=(
        "dispatcher doctor",
        "dispatcher doctor --quick      # for health checks: does the worker answer?",
        "dispatcher doctor --json | jq '.findings[].message'",
    )
)

_PATIENCE: Final = 5.0
_SHOWN_PROBLEMS: Final = 3


@app.command()
def doctor(
    *,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only whether a worker runs and answers; for health checks.")
    ] = False,
    store: StoreOption = None,
    rulebook: RulebookOption = None,
    amqp: AmqpOption = None,
    as_json: JsonOption = False,
) -> None:
    """Examine settings, store, worker, broker, rulebook and plugins. Exit code 1 when something is wrong.

    Changes nothing.
    """
    document: dict[str, Any] = {}
    try:
        settings = read_settings(store=store, rulebook=rulebook, amqp_url=amqp)
    except SettingsRefused as refused:
        findings = [Finding("wrong", "settings", message) for message in refused.messages]
    else:
        stored, work = _stored(settings, document, quick=quick)
        findings = stored
        if not quick:
            findings += _plugins()
            plan, said = _rulebook(settings, document.get("queued_texts", {}))
            findings += said
            if settings.amqp_url is not None:
                findings += _broker(settings, document, plan, work)
    if as_json:
        healthy = all(finding.level != "wrong" for finding in findings)
        write_json({"healthy": healthy, "findings": [asdict(finding) for finding in findings], **document})
    else:
        _print(findings)
    wrong = sum(finding.level == "wrong" for finding in findings)
    if wrong:
        say(f"{wrong} of these must be mended." if wrong > 1 else "One thing must be mended.")
        raise typer.Exit(exits.PROBLEMS)


_ALIVE: Final = Finding("ok", "worker", "runs and answers")
_NONE_RUNS: Final = "none runs"
_STARTS_ONE: Final = "`dispatcher run` starts one."
_MAKES_ONE: Final = "The first `run` or `publish` makes it."
_MARKS: Final = {"ok": "ok   ", "look": "look ", "wrong": "WRONG"}


def _print(findings: Iterable[Finding]) -> None:
    for finding in findings:
        write_wrapped(
            f"{finding.message}. {finding.hint}" if finding.hint else finding.message,
            first=f"{_MARKS[finding.level]}  {finding.area:<12}  ",
            indent=" " * 21,
        )


@dataclass(frozen=True, slots=True)
class _AtWork:
    """Whether workers run on this store, and how many if it can be shared; None where that is not clear."""

    runs: bool | None
    workers: int | None = None


def _stored(settings: Settings, document: dict[str, Any], *, quick: bool) -> tuple[list[Finding], _AtWork]:
    """Look at the store and at who works on it."""
    if settings.store_kind == "postgresql":
        try:
            return _database(settings, document, quick=quick)
        except StoreUnusable as error:
            return [Finding("wrong", "store", error.message.rstrip("."), error.hint)], _AtWork(None)
    worker = _worker(settings, must_run=quick)
    return [worker, *([] if quick else (*_file(settings, document), *_disk(settings)))], _AtWork(_runs(worker))


def _database(settings: Settings, document: dict[str, Any], *, quick: bool) -> tuple[list[Finding], _AtWork]:
    from dispatcher.cli.database import alive, server_document, server_findings, state_finding, worker_finding  # noqa: PLC0415 - see main
    from dispatcher.store.postgres.migrate import version_at  # noqa: PLC0415
    from dispatcher.store.postgres.workers import read_workers  # noqa: PLC0415

    url = settings.store_url()
    if quick:
        workers = read_workers(url, patience_seconds=int(_PATIENCE))
        return [worker_finding(workers, settings, must_run=True)], _AtWork(None)
    if version_at(url) is None:
        none = Finding("look", "store", f"there is none yet in {settings.store_shown}", _MAKES_ONE)
        return [Finding("ok", "worker", _NONE_RUNS, _STARTS_ONE), none], _AtWork(runs=False, workers=0)
    from dispatcher.store.examination import examine  # noqa: PLC0415
    from dispatcher.store.postgres.examination import examine_server  # noqa: PLC0415
    from dispatcher.store.reading import open_reader  # noqa: PLC0415

    with open_reader(url) as connection:
        found, server = examine(connection, check_integrity=False), examine_server(connection)
    document["counts"] = _counts_document(found)
    document["queued_texts"] = dict(found.queued_texts)
    document["store"] = {
        "url": settings.store_shown, "schema": found.schema, "bytes": server.database_bytes, **server_document(server),
    }  # fmt: skip
    size = f"{server.database_bytes / 1e6:,.1f} MB"
    findings = [
        worker_finding(server.workers, settings, must_run=False),
        Finding("ok", "store", f"{settings.store_shown}: schema {found.schema}, {size}"),
        *server_findings(server, settings),
        *_contents(found, has_broker=settings.amqp_url is not None),
        state_finding(settings),
    ]
    living = len(alive(server.workers, settings))
    return findings, _AtWork(living > 0, living)


def _worker(settings: Settings, *, must_run: bool) -> Finding:
    """Ask the worker for a sign of life; its loop answers between two batches, so an answer means that it moves."""
    from dispatcher.store.sqlite.lock import socket_path  # noqa: PLC0415 - see main
    from dispatcher.worker.control import ControlClient, NoWorker  # noqa: PLC0415

    with ControlClient(socket_path(settings.store_path), patience_seconds=_PATIENCE) as client:
        try:
            client.request("ping", {})
        except NoWorker:
            holder = _holder(settings.store_path)
            if holder is not None:
                told = f"process {holder} holds the store and does not listen: it starts, ends, or only publishes"
                return Finding("wrong" if must_run else "look", "worker", told)
            return Finding("wrong" if must_run else "ok", "worker", _NONE_RUNS, _STARTS_ONE)
        except DispatcherError as error:
            return Finding("wrong", "worker", f"runs, but: {error.message}", error.hint)
    return _ALIVE


def _runs(worker: Finding) -> bool | None:
    """Tell whether a worker is at work on this store; None where that is not clear."""
    return True if worker is _ALIVE else False if worker.message == _NONE_RUNS else None


def _holder(store: Path) -> int | None:
    """Return the process that holds the store's lock, as far as the lock file tells."""
    try:
        holder = int(Path(f"{store}.lock").read_text("ascii"))
        os.kill(holder, 0)
    except PermissionError:
        return holder
    except (OSError, ValueError):
        return None
    return holder


def _file(settings: Settings, document: dict[str, Any]) -> Iterator[Finding]:
    path = settings.store_path
    if not path.exists():
        yield Finding("look", "store", f"there is none yet at {path.absolute()}", _MAKES_ONE)
        return
    from dispatcher.store.examination import examine, sqlite_verdict  # noqa: PLC0415 - see main
    from dispatcher.store.reading import open_reader  # noqa: PLC0415

    try:
        with open_reader(path) as connection:
            found = examine(connection, check_integrity=True)
    except StoreUnusable as error:
        yield Finding("wrong", "store", error.message.rstrip("."), error.hint)
        return
    document["counts"] = _counts_document(found)
    size = sum(part.stat().st_size for part in (path, Path(f"{path}-wal")) if part.exists())
    document["queued_texts"] = dict(found.queued_texts)
    document["store"] = {"url": settings.store, "schema": found.schema, "bytes": size}
    if found.complaints:
        told = f"{path} is damaged: {'; '.join(found.complaints)}"
        yield Finding("wrong", "store", told, "Stop the worker and restore the last backup.")
    else:
        yield Finding("ok", "store", f"{path}: schema {found.schema}, {size / 1e6:.1f} MB, sound")
    version, has_bug = sqlite_verdict()
    verdict = "has the WAL-reset bug of 3.7.0 to 3.51.2, which needs two writers; there is one" if has_bug else "fine"
    yield Finding("ok", "sqlite", f"{version}: {verdict}")
    yield from _contents(found, has_broker=settings.amqp_url is not None)


def _counts_document(found: Examination) -> dict[str, Any]:
    return {
        name: value if isinstance(value := getattr(found, name), int) else dict(value)
        for name in (
            "events",
            "runs",
            "messages",
            "dead_letters",
            "weak_events",
            "contacts",
            "opt_outs",
            "outbox_ready",
            "outbox_sending",
            "outbox_held",
            "outbox_refused",
        )
    }


def _contents(found: Examination, *, has_broker: bool) -> Iterator[Finding]:
    yield Finding("ok", "events", listed(found.events) or "none yet")
    yield Finding("ok", "runs", listed(found.runs) or "none yet")
    yield Finding("ok", "messages", listed(found.messages) or "none yet")
    held = found.runs.get("held", 0)
    if held:
        hint = "`dispatcher runs list --state held` names them, `dispatcher runs resolve` settles them."
        yield Finding(
            "look",
            "held runs",
            f"{held:,} {'waits' if held == 1 else 'wait'} for a person to say what became of a call",
            hint,
        )
    if found.dead_letters:
        hint = (
            "`dispatcher dead list` shows them; `dispatcher dead replay` or `discard` settles them, and for those that "
            "are unknown `dispatcher runs resolve`."
        )
        yield Finding("look", "dead letters", listed(found.dead_letters), hint)
    if found.weak_events:
        came = "1 event" if found.weak_events == 1 else f"{found.weak_events:,} events"
        told = f"{came} came without an id, so a repetition of one cannot be told from a new one"
        yield Finding("look", "weak events", told, "Have their publisher set event_id.")
    yield from _outbox(found, has_broker=has_broker)


def _outbox(found: Examination, *, has_broker: bool) -> Iterator[Finding]:
    from dispatcher.cli.refusals import meaning_of  # noqa: PLC0415 - see main

    waiting = f"{found.outbox_ready:,} message{'' if found.outbox_ready == 1 else 's'}"
    if found.outbox_since is not None:
        waiting += f" (the oldest since {found.outbox_since:%Y-%m-%d %H:%M:%S} UTC)"
    waiting += " waits" if found.outbox_ready == 1 else " wait"
    if found.outbox_ready and has_broker:
        them = "it" if found.outbox_ready == 1 else "them"
        hint = f"The worker publishes {them} when the broker takes {them}."
        yield Finding("look", "outbox", f"{waiting} to be published", hint)
    elif found.outbox_ready:
        hint = "Name one: DISPATCHER_AMQP_URL, or --amqp."
        yield Finding("look", "outbox", f"{waiting} for a broker, and none is configured", hint)
    for reason, count in sorted(found.outbox_refused.items(), key=lambda entry: -entry[1])[:_SHOWN_PROBLEMS]:
        yield Finding(
            "look",
            "outbox",
            f"{count:,} {'is' if count == 1 else 'are'} not taken by the broker: {reason}",
            meaning_of(reason),
        )
    if found.outbox_held:
        told = f"{found.outbox_held:,} may have been published or not; a person is to say"
        hint = "`dispatcher dead list --reason unknown` names their runs, `dispatcher runs resolve` settles them."
        yield Finding("look", "outbox", told, hint)


def _disk(settings: Settings) -> Iterator[Finding]:
    folder = settings.store_path.absolute().parent
    try:
        free_mb = shutil.disk_usage(folder).free // 2**20
    except OSError as error:
        yield Finding("wrong", "disk", f"{folder}: {error.strerror or error}", "The folder of the store must exist.")
        return
    if free_mb < settings.min_free_mb:
        told = f"{free_mb} MB free in {folder}, less than min_free_mb ({settings.min_free_mb}): nothing is taken in"
        yield Finding("wrong", "disk", told, "Free some space; work goes on by itself.")
    else:
        yield Finding("ok", "disk", f"{free_mb:,} MB free in {folder}")


def _plugins() -> Iterator[Finding]:
    from dispatcher.plugins.registry import load_registry  # noqa: PLC0415 - see main

    registry = load_registry()
    registry.load_all()
    for plugin in registry.broken.values():
        yield Finding("wrong", "plugins", f"broken: {plugin}", "Chains that use this name do not run.")
    counts = f"{len(registry.handlers)} handlers, {len(registry.senders)} senders, {len(registry.services)} services"
    yield Finding("ok", "plugins", counts)


def _rulebook(settings: Settings, queued: Mapping[str, int]) -> tuple[Plan | None, list[Finding]]:
    from dispatcher.plugins.registry import load_registry  # noqa: PLC0415 - see main
    from dispatcher.rules.plan import load_plan  # noqa: PLC0415
    from dispatcher.settings import process_environ  # noqa: PLC0415

    try:
        plan = load_plan(
            settings.rulebook, load_registry(), default_region=settings.default_region, environ=process_environ()
        )
    except RulebookRefused as refused:
        errors = [str(problem) for problem in refused.problems if problem.severity == "error"]
        more = f"; and {len(errors) - _SHOWN_PROBLEMS} more" if len(errors) > _SHOWN_PROBLEMS else ""
        told = "; ".join(errors[:_SHOWN_PROBLEMS]) + more
        return None, [Finding("wrong", "rulebook", told, "`dispatcher check` lists everything.")]
    return plan, list(_plan(settings, plan, queued))


def _plan(settings: Settings, plan: Plan, queued: Mapping[str, int]) -> Iterator[Finding]:
    chains = "1 chain" if len(plan.chains) == 1 else f"{len(plan.chains)} chains"
    yield Finding("ok", "rulebook", f"{settings.rulebook}: {chains}, digest {plan.digest[:12]}")
    for problem in plan.warnings:
        yield Finding("look", "rulebook", str(problem))
    for disabled in plan.disabled.values():
        yield Finding("wrong", "rulebook", f"disabled: {disabled}")
    kept = [(name, count) for name, count in queued.items() if name in plan.senders and _keeps(plan.senders[name])]
    for name, count in kept:
        are = f"{count:,} {'is' if count == 1 else 'are'} queued"
        told = f"{are} at the sender {name!r}, which keeps texts in the store and hands nothing on"
        yield Finding("look", "texts", told, "Name a gateway under `senders:` to have texts delivered.")


def _broker(settings: Settings, document: dict[str, Any], plan: Plan | None, work: _AtWork) -> Iterator[Finding]:
    from dispatcher.cli.broker import broker_findings, report_findings, transport_findings  # noqa: PLC0415 - see main
    from dispatcher.senders.vumi import VumiSender  # noqa: PLC0415
    from dispatcher.sources.amqp.inspection import inspect_broker  # noqa: PLC0415

    senders = plan.senders.values() if plan is not None else ()
    vumi = [sender for sender in senders if isinstance(sender, VumiSender)]
    transports = dict.fromkeys(f"{sender.transport_name}.outbound" for sender in vumi)
    reports = dict.fromkeys(f"{sender.transport_name}.event" for sender in vumi if sender.reports)
    seen = inspect_broker(settings, list(transports), list(reports))
    document["broker"] = {"url": settings.amqp_url_shown, **asdict(seen)}
    yield from broker_findings(settings, seen, worker_runs=work.runs, workers=work.workers)
    yield from transport_findings(seen.others)
    yield from report_findings(settings, seen.reports, worker_runs=work.runs, workers=work.workers)


def _keeps(sender: Sender) -> bool:
    from dispatcher.senders.outbox import OutboxSender  # noqa: PLC0415 - see main

    return isinstance(sender, OutboxSender)


def listed(counts: Mapping[str, int]) -> str:
    """Say counts by name: `3 done, 1 failed`."""
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())
