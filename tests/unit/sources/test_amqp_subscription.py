"""What a subscription does when nothing happens at all. What does happen is tested with a real broker."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from dispatcher.settings import Settings
from dispatcher.sources.amqp import subscription as module
from dispatcher.sources.amqp.subscription import Exchange, Subscription
from dispatcher.sources.amqp.topology import Queue


class Link:
    def __init__(self) -> None:
        self.dropped: list[str] = []
        self.later: list = []

    def drop(self, reason: str) -> None:
        self.dropped.append(reason)

    def call_later(self, seconds: float, callback) -> None:
        self.later.append(callback)


@pytest.fixture
def link() -> Link:
    return Link()


@pytest.fixture
def subscription(link) -> Subscription:
    return Subscription(Settings(amqp_url="amqp://x"), Queue("vumi.event"), link, Exchange(lambda: None), shared=False)


def silent_connection(*, is_open: bool = True):
    """A connection on which nothing is ever answered."""
    channel = SimpleNamespace(add_on_close_callback=lambda _: None)
    return SimpleNamespace(is_open=is_open, channel=lambda **_: channel)


def test_a_set_up_that_gets_no_answer_costs_the_connection(subscription, link, monkeypatch):
    subscription.connected(silent_connection())
    subscription.ticked()
    assert link.dropped == []

    monkeypatch.setattr(module, "SETUP_SECONDS", -1.0)
    subscription.ticked()

    assert ["vumi.event" in reason for reason in link.dropped] == [True]


def test_a_set_up_is_begun_once_until_the_connection_ends(subscription):
    subscription.connected(silent_connection())
    subscription.ticked()
    assert subscription.attempts == 1

    subscription.disconnected("a test")
    assert (subscription.status.consuming, subscription.status.reason) == (False, "a test")
    subscription.connected(silent_connection())

    assert subscription.attempts == 2


def test_a_tick_takes_up_a_set_up_that_could_not_be_begun(subscription):
    connection = silent_connection(is_open=False)
    subscription.connected(connection)
    assert subscription.attempts == 0

    connection.is_open = True
    subscription.ticked()

    assert subscription.attempts == 1


def test_an_ack_without_a_channel_is_stale(subscription):
    subscription.ack("an old epoch", 7, [], 7, 5)

    assert subscription._exchange.stale_acks == 5
