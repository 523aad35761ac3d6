"""The public names for plugin authors; each is loaded when it is first used, so that importing this costs nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dispatcher.events.event import Event, read_only
    from dispatcher.plugins.context import Contact, Contacts, Context, Message, Messages, MessageState, OptOuts
    from dispatcher.plugins.effects import Effect
    from dispatcher.plugins.handler import AtLoad, Bindings, Handler, Msisdn, PeoplesText, Settled
    from dispatcher.plugins.outcomes import Done, Emit, Failed, Outcome, Publish, RetryLater, Unknown
    from dispatcher.plugins.services import Sender, Service, Text
    from dispatcher.senders.http_service import HttpReply, HttpService
    from dispatcher.senders.vumi_service import VumiService
    from dispatcher.telemetry import log
    from dispatcher.text.durations import Duration, Rate
    from dispatcher.text.numbers import BadNumber, normalise_number

__all__ = [
    "AtLoad",
    "BadNumber",
    "Bindings",
    "Contact",
    "Contacts",
    "Context",
    "Done",
    "Duration",
    "Effect",
    "Emit",
    "Event",
    "Failed",
    "Handler",
    "HttpReply",
    "HttpService",
    "Message",
    "MessageState",
    "Messages",
    "Msisdn",
    "OptOuts",
    "Outcome",
    "PeoplesText",
    "Publish",
    "Rate",
    "RetryLater",
    "Sender",
    "Service",
    "Settled",
    "Text",
    "Unknown",
    "VumiService",
    "log",
    "normalise_number",
    "read_only",
]

_NAMES_BY_MODULE = {
    "dispatcher.events.event": ("Event", "read_only"),
    "dispatcher.plugins.context": (
        "Contact",
        "Contacts",
        "Context",
        "Message",
        "MessageState",
        "Messages",
        "OptOuts",
    ),
    "dispatcher.plugins.effects": ("Effect",),
    "dispatcher.plugins.handler": ("AtLoad", "Bindings", "Handler", "Msisdn", "PeoplesText", "Settled"),
    "dispatcher.plugins.outcomes": ("Done", "Emit", "Failed", "Outcome", "Publish", "RetryLater", "Unknown"),
    "dispatcher.plugins.services": ("Sender", "Service", "Text"),
    "dispatcher.senders.http_service": ("HttpReply", "HttpService"),
    "dispatcher.senders.vumi_service": ("VumiService",),
    "dispatcher.telemetry": ("log",),
    "dispatcher.text.durations": ("Duration", "Rate"),
    "dispatcher.text.numbers": ("BadNumber", "normalise_number"),
}
_MODULE_BY_NAME = {name: module for module, names in _NAMES_BY_MODULE.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_BY_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib  # noqa: PLC0415  (only who asks for a name pays for it)

    found = getattr(importlib.import_module(_MODULE_BY_NAME[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
