"""A talk with the broker reads as if it were written down in order, whatever comes between its questions."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from pika.exceptions import ChannelClosedByBroker, StreamLostError

from dispatcher.sources.amqp.conversation import Conversation, Refused


class Connection:
    """Opens channels when it is told to."""

    def __init__(self) -> None:
        self.channels: list[SimpleNamespace] = []

    def channel(self, *, on_open_callback):
        channel = SimpleNamespace(number=len(self.channels), asked=[])
        channel.add_on_close_callback = lambda closed: setattr(channel, "closed", closed)
        channel.open = lambda: on_open_callback(channel)
        self.channels.append(channel)
        return channel

    @property
    def newest(self):
        return self.channels[-1]


def ask(question: str):
    def put(channel, answer) -> None:
        channel.asked.append(question)
        channel.answer = answer

    return put


def close(channel, code: int = 404) -> None:
    channel.closed(channel, ChannelClosedByBroker(code, "NO"))


@pytest.fixture
def told() -> list:
    return []


@pytest.fixture
def converse(told):
    def begin(talk) -> Connection:
        connection = Connection()
        connection.conversation = Conversation(
            connection, talk, lambda channel, result: told.append((channel.number, result)), told.append
        )
        return connection

    return begin


def test_questions_are_put_one_after_the_other_and_answers_come_back(converse, told):
    def talk():
        first = yield ask("a")
        second = yield ask("b")
        return first + second

    connection = converse(talk())
    connection.newest.open()
    connection.newest.answer(1)
    connection.newest.answer(2)

    assert connection.newest.asked == ["a", "b"]
    assert told == [(0, 3)]


def test_a_refusal_that_is_caught_goes_on_with_a_new_channel(converse, told):
    def talk():
        try:
            yield ask("is it there")
        except Refused as refused:
            return (yield ask("make it")), refused.code

    connection = converse(talk())
    connection.newest.open()
    close(connection.newest)
    connection.newest.open()
    connection.newest.answer("made")

    assert [channel.asked for channel in connection.channels] == [["is it there"], ["make it"]]
    assert told == [(1, ("made", 404))]


def test_a_talk_that_ends_with_a_refusal_it_caught_gets_an_open_channel(converse, told):
    def talk():
        try:
            yield ask("a")
        except Refused:
            return "lived with"

    connection = converse(talk())
    connection.newest.open()
    close(connection.newest)
    assert told == []
    connection.newest.open()

    assert told == [(1, "lived with")]


def test_a_refusal_that_is_not_caught_ends_the_conversation(converse, told):
    def talk():
        yield ask("a")

    connection = converse(talk())
    connection.newest.open()
    close(connection.newest, 403)

    (refused,) = told
    assert (refused.code, refused.text, str(refused)) == (403, "NO", "403 NO")
    assert len(connection.channels) == 1


def test_the_loss_of_the_channel_that_was_handed_over_is_told_once(converse, told):
    def talk():
        yield ask("a")

    connection = converse(talk())
    connection.newest.open()
    connection.newest.answer(None)
    close(connection.newest, 406)
    close(connection.newest, 406)

    assert told[0] == (0, None)
    assert [str(refused) for refused in told[1:]] == ["406 NO"]


@pytest.mark.parametrize("ended_by", ["the connection", "us"])
def test_nobody_is_told_of_the_end_of_the_connection_nor_of_what_was_given_up(converse, told, ended_by):
    cleaned = []

    def talk():
        try:
            yield ask("a")
        finally:
            cleaned.append("up")

    connection = converse(talk())
    connection.newest.open()
    if ended_by == "us":
        connection.conversation.abandon()
    else:
        connection.newest.closed(connection.newest, StreamLostError("gone"))
    connection.newest.answer(1)
    close(connection.newest)

    assert (told, cleaned) == ([], ["up"])
