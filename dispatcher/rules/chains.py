"""What the engine runs: chains and their steps, bound to handlers, with everything resolved that can be at load."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal

from dispatcher.plugins.handler import Handler, Settled
from dispatcher.plugins.registry import BrokenPlugin
from dispatcher.rules.expressions import Expression
from dispatcher.rules.params import Params
from dispatcher.rules.shape import OnError, OnUnknown

# What most chains have in common, so that each costs a tenth of its text in memory.
_COMMON = json.dumps(
    {
        "default": False,
        "on": {"account": [""], "conversation": [""], "conversation_type": [""], "event_type": [""]},
        "steps": [
            {
                "handler": "create_contact",
                "id": "contact",
                "on_error": "stop",
                "on_unknown": "hold",
                "retry": {"for": "1d", "initial": "2s", "max": "10m"},
                "timeout": "30s",
                "with": {"text": "{{ data.msisdn }}", "to": "{{ steps.contact.msisdn }}"},
            },
            {"handler": "send_sms", "id": "send_sms", "on_error": "continue"},
        ],
        "vars": {},
    },
    separators=(",", ":"),
).encode()


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long a step is tried again: the first pause doubles up to the longest; `attempts` counts calls in all."""

    within: timedelta
    initial: timedelta
    longest: timedelta
    attempts: int | None


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a chain, ready to be run.

    `handler`, `params` and `settled` belong to the kind "handler", `wait` and `stop` to the control of that name.
    `number_params` are the fields of the handler that hold phone numbers.
    """

    position: int
    id: str
    kind: Literal["handler", "wait", "stop"]
    handler_name: str
    when: Expression | None
    handler: type[Handler] | None
    params: Params | None
    number_params: tuple[str, ...]
    settled: Settled | None
    timeout: timedelta
    retry: RetryPolicy
    on_error: OnError
    on_unknown: OnUnknown
    wait: timedelta | None
    stop: Expression | None


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain, bound and compiled. Each part of the trigger is the texts that fit it, or None for any.

    `digest` stands for all that decides what the chain does; `text` is that, enough to rebuild it.
    """

    name: str
    digest: str
    packed_text: bytes = field(repr=False)
    description: str | None
    account: tuple[str, ...] | None
    conversation: tuple[str, ...] | None
    conversation_type: tuple[str, ...] | None
    event_type: tuple[str, ...] | None
    when: Expression | None
    default: bool
    steps: tuple[Step, ...]
    vars: dict[str, Any]
    order: int
    file: str
    line: int

    @property
    def text(self) -> str:
        """The chain as canonical JSON, with defaults, account and the vars that it uses resolved into it."""
        unpacker = zlib.decompressobj(zdict=_COMMON)
        return (unpacker.decompress(self.packed_text) + unpacker.flush()).decode()


@dataclass(slots=True)
class BoundChain:
    """A chain, and what keeps it from running although it is sound: a plugin that cannot be used."""

    chain: Chain
    broken: BrokenPlugin | None = None


def pack(text: bytes) -> bytes:
    """Compress the text of a chain: it is read when a run is pinned to the chain, and kept for all of them."""
    packer = zlib.compressobj(6, zdict=_COMMON)
    return packer.compress(text) + packer.flush()
