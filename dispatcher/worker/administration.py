"""The writing verbs, for whoever holds the store: the worker's loop between two batches, or a verb without a worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from dispatcher.errors import UsageError
from dispatcher.events.limits import Limits
from dispatcher.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from dispatcher.store.operations import Operations


def perform(store: SqliteStore, verb: str, args: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """Do what a verb asks, in one transaction, and return what changed: `changed`, `ids`, `message`.

    Raises NotFound, NotPossible or UsageError, and has done nothing then.
    """
    from dispatcher.store.operations import Operations  # noqa: PLC0415 - brings SQLAlchemy, and is seldom needed

    actor = str(args.get("actor") or "unknown")

    def within(change: Callable[[Operations], dict[str, Any]]) -> dict[str, Any]:
        return store.administer(lambda connection: change(Operations(connection, actor, now)))

    match verb:
        case "events.replay":
            event, account, again = str(args["event"]), args.get("account"), bool(args.get("again"))
            return within(lambda by: by.replay_event(event, account, again=again).as_json())
        case "runs.retry" if args.get("run"):
            return within(lambda by: by.retry_run(str(args["run"])).as_json())
        case "runs.retry":
            state = str(args.get("state") or "failed")
            chain, account = args.get("chain"), args.get("account")
            return within(lambda by: by.retry_runs(chain=chain, state=state, account=account).as_json())
        case "runs.cancel":
            return within(lambda by: by.cancel_run(str(args["run"])).as_json())
        case "runs.resolve":
            return within(lambda by: by.resolve_run(str(args["run"]), sent=bool(args["sent"])).as_json())
        case "dead.replay":
            return _each_letter(store, args, now, actor, replay=True)
        case "dead.discard":
            return _each_letter(store, args, now, actor, replay=False)
        case "contacts.erase":
            from dispatcher.store.erase import erase_contact  # noqa: PLC0415 - as above

            return erase_contact(store, str(args["contact"]), args.get("account"), actor=actor, now=now)
        case _:
            raise UsageError(f"the worker knows no verb {verb!r}.", hint="Are both of one version?")


def _each_letter(
    store: SqliteStore, args: Mapping[str, Any], now: datetime, actor: str, *, replay: bool
) -> dict[str, Any]:
    """Replay or discard one dead letter, or all that are open for a reason."""
    from dispatcher.store.lookup import find_dead_letter  # noqa: PLC0415 - as above
    from dispatcher.store.operations import Operations  # noqa: PLC0415

    def chosen(connection: Any) -> list[str]:
        if args.get("dead"):
            return [find_dead_letter(connection, str(args["dead"]))]
        operations = Operations(connection, actor, now)
        return operations.open_letters(reason=args.get("reason"), account=args.get("account"))

    def discarded(dead_id: str) -> str:
        return store.administer(lambda by: Operations(by, actor, now).discard_letter(dead_id).message)

    changed = store.administer(chosen)
    told = [_replay(store, dead_id, now, actor) if replay else discarded(dead_id) for dead_id in changed]
    message = told[0] if len(told) == 1 else f"{len(changed)} dead letters {'replayed' if replay else 'discarded'}"
    return {"changed": len(changed), "ids": changed, "message": message}


def _replay(store: SqliteStore, dead_id: str, now: datetime, actor: str) -> str:
    from dispatcher.engine.intake import Delivery, Intake  # noqa: PLC0415 - as above
    from dispatcher.engine.unit import Overlay  # noqa: PLC0415
    from dispatcher.errors import NotPossible  # noqa: PLC0415
    from dispatcher.store.operations import Operations  # noqa: PLC0415

    letter = store.administer(lambda by: Operations(by, actor, now).letter(dead_id))
    if letter["kind"] != "delivery" or letter["state"] != "open":
        return store.administer(lambda by: Operations(by, actor, now).replay_letter(dead_id).message)
    with store.transaction() as transaction:
        overlay = Overlay(transaction, now)
        (receipt,) = Intake(Limits()).admit([Delivery(bytes(letter["body"]))], overlay)
        if receipt.kind == "refused":
            raise NotPossible(
                f"dead letter {dead_id} is refused again: {receipt.code}: {receipt.detail}",
                hint="Publish it mended, and discard this one.",
            )
        transaction.flush(overlay.changes)
        transaction.commit()
    became = f"event {receipt.event_id}: {receipt.kind}"
    store.administer(lambda by: Operations(by, actor, now).note_delivery(dead_id, became))
    return f"dead letter {dead_id} became {became}"
