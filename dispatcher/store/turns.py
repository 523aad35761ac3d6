"""How the room of a batch is shared among accounts, so that none with much to do starves another."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, TypeVar

K = TypeVar("K", bound=Hashable)


def share_out(accounts: Iterable[str], limit: int, take: Callable[[str, int, int], Sequence[Any]]) -> list[Any]:
    """Return up to `limit` rows, each account's in their order; what one leaves free goes to the others.

    `take(account, behind, limit)` returns rows of an account whose first column, its `seq`, is greater than `behind`.
    """
    taken: list[Any] = []
    behind = dict.fromkeys(accounts, 0)
    while behind and len(taken) < limit:
        share = max(1, (limit - len(taken)) // len(behind))
        for account, seq in list(behind.items()):
            if len(taken) >= limit:
                break
            found = take(account, seq, min(share, limit - len(taken)))
            taken.extend(found)
            if len(found) < share:
                del behind[account]
            else:
                behind[account] = found[-1][0]
    return taken


def half_in_turns(
    longest: Sequence[K], limit: int, accounts: Callable[[], Sequence[str]], take: Callable[[str, int], Iterable[K]]
) -> list[K]:
    """Return what is the longest due, or, where more is due than fits, half of that and half of each account's.

    `take(account, limit)` returns what of one account is the longest due.
    """
    if len(longest) < limit or limit <= 1:
        return list(longest)
    chosen = dict.fromkeys(longest[: limit // 2])
    serve = accounts()
    share = max(1, (limit - len(chosen)) // max(1, len(serve)))
    for account in serve:
        chosen.update(dict.fromkeys(take(account, share)))
    chosen.update(dict.fromkeys(longest))
    return list(chosen)[:limit]
