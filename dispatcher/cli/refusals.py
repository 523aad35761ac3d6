"""What a broker's refusal means, and who can mend it: of a message that waits in the outbox, of a login, of a right."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from dispatcher.settings import Settings

# How the store's examination tells what is not taken: `amqp:EXCHANGE/KEY: FATE: REASON`.
_REFUSAL = re.compile(
    r"amqp:(?P<exchange>[^/]*)/(?P<key>.*?): (?P<error>(?:unroutable|refused|unknown|unsent): .*)", re.DOTALL
)


def meaning_of(refusal: str) -> str:
    """Say what `amqp:EXCHANGE/KEY: FATE: REASON` means, who mends it, and that what waits goes then."""
    found = _REFUSAL.fullmatch(refusal)
    if found is None:
        return "It is tried again."
    exchange, key, error = found["exchange"], found["key"], found["error"]
    shown = exchange or "(the default)"
    if error.startswith("unroutable"):
        return (
            f"No queue is bound to the exchange {shown} with the key {key}: {_who_binds(exchange, key)}. "
            "What waits goes within a minute of its being there."
        )
    if "403" in error:
        return (
            f"The broker's user has no right to write to the exchange {shown}: `rabbitmqctl set_permissions`, the "
            "second pattern. What waits goes within a minute of its having it."
        )
    if "404" in error:
        return f"Whoever reads from the exchange {shown} makes it. What waits goes within a minute of its being there."
    if "nack" in error:
        return f"A queue behind {key} is full or cannot store: see whether its reader runs. It is tried again."
    return "It is tried again, after a minute at most."


def _who_binds(exchange: str, key: str) -> str:
    """Say who makes the queue that takes messages with this key."""
    from dispatcher.engine.records import EVENT_EXCHANGE  # noqa: PLC0415 - see main

    if key.endswith(".outbound"):
        return "the Vumi transport makes one when it starts"
    if exchange == EVENT_EXCHANGE:
        return "a subscriber makes one, for the events that it wants"
    if key == "vumi.api":
        return "Vumi's command dispatcher makes one when it starts"
    return "the worker that reads them makes one"


def who_was_refused(settings: Settings, reason: str) -> str | None:
    """Name user and vhost, and where the password is from, if `reason` is that the broker refused the login or vhost.

    The password is never told.
    """
    if settings.amqp_url is None:
        return None
    url = urlsplit(settings.amqp_url)
    user, vhost = _whose(settings)
    if "refused the login" in reason or "during the login" in reason:
        if settings.amqp_password_file is not None:
            source = f"the password is that of DISPATCHER_AMQP_PASSWORD_FILE ({settings.amqp_password_file})"
        elif url.password:
            source = "the password is that of the URL"
        elif url.username is None:
            source = "the URL names no user, and RabbitMQ lets guest in from its own machine only"
        else:
            source = "no password is given: DISPATCHER_AMQP_PASSWORD_FILE names a file with it"
        return f"The user is {user!r}, {source}. `rabbitmqctl authenticate_user {user}` asks whether the two fit."
    if "refused the vhost" in reason or "the vhost was opened" in reason:
        return (
            f"The user {user!r} is let in, and the vhost {vhost!r} is not there or not open to it: "
            f"`rabbitmqctl list_user_permissions {user}` lists where it may go."
        )
    return None


def no_right_to_write(settings: Settings) -> str:
    """Say which right a publisher of events lacks that was refused with a 403, and how it gets it."""
    exchange = settings.amqp_exchange
    return _right(settings, f"write to the exchange {exchange!r}", f"WRITE matches {exchange}")


def no_right_to_read(settings: Settings, queue: str) -> str:
    """Say which right the worker lacks that was refused a queue with a 403, and how it gets it."""
    return _right(settings, f"read from the queue {queue!r}", f"READ matches {queue}")


def _right(settings: Settings, what: str, condition: str) -> str:
    user, vhost = _whose(settings)
    command = f"rabbitmqctl set_permissions -p {vhost} {user} CONFIGURE WRITE READ"
    return f"The user {user!r} has no right to {what}: `{command}`, where {condition}."


def _whose(settings: Settings) -> tuple[str, str]:
    """Return user and vhost as the broker knows them."""
    url = urlsplit(settings.amqp_url or "")
    return unquote(url.username or "guest"), unquote(url.path.removeprefix("/")) or "/"
