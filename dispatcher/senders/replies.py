"""What a gateway's reply means: sent, surely not sent, or nobody can tell. Knows nothing of how the reply came.

Gateways agree on little. Many answer 200 and put the error into the body; some answer in lines of text; for some a 403
means this number and for some the whole account. So each gateway has its rules, and these are what rules can say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from dispatcher.plugins.outcomes import Done, Failed, Outcome, RetryLater
from dispatcher.senders.exchange import HttpReply, lost, presentable

# A client error means that the request was refused, except where it says "not now", "too slow" or "at work on it".
_ABOUT_TIMING = frozenset({408, 409, 425, 429})
_ABOUT_THE_ACCOUNT = (401, 402, 407)
_MARKUP = re.compile(r"\s*[<{\[]")


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, (str, int)) else value


# One or several; the first that is there counts.
Paths = Annotated[tuple[str, ...], BeforeValidator(_listed)]
Codes = Annotated[tuple[str, ...], BeforeValidator(_listed)]
Statuses = Annotated[tuple[int, ...], BeforeValidator(_listed)]


class ReplyRules(BaseModel):
    """Where in a reply the id and the error lie, and which replies say that the text was surely not sent.

    A path such as `messages.0.messageId` goes through JSON; a pattern is a regular expression over the text, whose
    first group is taken. Where `accepted` or `id` is given, a reply of 2xx that lacks it does not count as a success:
    it may come from a proxy that has never heard of texts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)

    id: Paths = Field(default=(), description="Path of the gateway's id for the message, or several.")
    id_pattern: str | None = Field(default=None, description="Pattern of the id, for replies that are not JSON.")
    error: Paths = Field(default=(), description="Path of what the gateway says about an error, or several.")
    code: Paths = Field(default=(), description="Path of the error's code, or several.")
    code_pattern: str | None = Field(default=None, description="Pattern of the code, for replies that are not JSON.")
    accepted: dict[str, Codes] = Field(
        default_factory=dict, description="Paths and the values that say that the text was taken."
    )
    accepted_pattern: str | None = Field(
        default=None, description="What the reply says when the text was taken, for replies that are not JSON."
    )
    busy: Statuses = Field(
        default=(429,), description="Statuses: surely not sent, the gateway is busy. Tried again, uncharged."
    )
    busy_codes: Codes = Field(default=(), description="Codes of errors that mean the same.")
    not_yet: Statuses = Field(
        default=_ABOUT_THE_ACCOUNT,
        description="Statuses: surely not sent, but it may be later, as with credentials or credit. Tried again.",
    )
    not_yet_codes: Codes = Field(default=(), description="Codes of errors that mean the same.")
    not_sent: Statuses | None = Field(
        default=None,
        description="Statuses: surely not sent, for good. Left out: 3xx and 4xx without 408, 409, 425 and 429.",
    )
    unsure_codes: Codes = Field(default=(), description="Codes of errors after which nobody can tell.")

    @field_validator("id_pattern", "code_pattern", "accepted_pattern")
    @classmethod
    def _is_a_pattern(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"not a regular expression: {error}") from None
        return value

    def surely_refused(self, status: int) -> bool:
        """Tell whether this status says that the request was looked at and turned down."""
        if self.not_sent is not None:
            return status in self.not_sent
        return 300 <= status < 500 and status not in _ABOUT_TIMING


@dataclass(frozen=True, slots=True)
class _Reading:
    """What the rules find in one reply."""

    gateway_id: str | None
    error: str | None
    code: str | None
    is_accepted: bool | None  # None: the reply does not say


def judge(reply: HttpReply, rules: ReplyRules, *, keyed: bool) -> Outcome:
    """Return the outcome of sending a text from the gateway's reply."""
    reading = _read(reply, rules)
    said = _summary(reply, reading)
    wait, code = reply.retry_after, reading.code
    is_success = 200 <= reply.status < 300
    if is_success and reading.is_accepted:
        return Done({"gateway_id": reading.gateway_id})
    if code in rules.unsure_codes:
        return lost(said, keyed=keyed)
    # Whoever answers 503 and says when to come back has turned the request away at the door.
    overloaded = reply.status == 503 and wait is not None
    if overloaded or reply.status in rules.busy or code in rules.busy_codes:
        return RetryLater(after=wait, reason=said, counts=False)
    if reply.status in rules.not_yet or code in rules.not_yet_codes:
        return RetryLater(after=wait, reason=said)
    if is_success and reading.is_accepted is None:
        return lost(f"{said}, without saying whether the text was taken", keyed=keyed)
    if is_success or rules.surely_refused(reply.status):
        return Failed(said)
    return lost(said, keyed=keyed)


def _read(reply: HttpReply, rules: ReplyRules) -> _Reading:
    document = reply.json()
    text = reply.text
    gateway_id = _at_any(document, rules.id) or _matched(rules.id_pattern, text)
    error = _at_any(document, rules.error)
    code = _at_any(document, rules.code) or _matched(rules.code_pattern, text)
    if rules.accepted or rules.accepted_pattern:
        accepted = _acceptance(document, text, rules)
    elif error:
        accepted = False
    else:
        accepted = True if gateway_id or not (rules.id or rules.id_pattern) else None
    if accepted is None and error:
        accepted = False
    return _Reading(gateway_id, error, code, accepted)


def _acceptance(document: Any, text: str, rules: ReplyRules) -> bool | None:
    if rules.accepted_pattern is not None and re.search(rules.accepted_pattern, text) is None:
        return None
    for path, values in rules.accepted.items():
        value = _at(document, path)
        if value is None:
            return None
        if value not in values:
            return False
    return True


def _at_any(document: Any, paths: Iterable[str]) -> str | None:
    return next((found for path in paths if (found := _at(document, path))), None)


def _at(document: Any, path: str) -> str | None:
    """Return what lies at a path, as text; None when nothing does."""
    found = document
    for part in path.split("."):
        if isinstance(found, Mapping):
            found = found.get(part)
        elif isinstance(found, list) and part.isascii() and part.isdigit() and int(part) < len(found):
            found = found[int(part)]
        else:
            return None
    if found is None or isinstance(found, (Mapping, list)):
        return None
    if isinstance(found, bool):
        return "true" if found else "false"
    return str(found) or None


def _matched(pattern: str | None, text: str) -> str | None:
    found = re.search(pattern, text) if pattern else None
    if found is None:
        return None
    return found[1] if found.re.groups else found[0]


def _summary(reply: HttpReply, reading: _Reading) -> str:
    said = f"the gateway answered {reply.status}"
    details = " ".join(detail for detail in (reading.code, reading.error) if detail)
    if not details and len(reply.content) <= 200 and not _MARKUP.match(reply.text):
        details = reply.text
    details = presentable(details)
    return f"{said}: {details}" if details else said
