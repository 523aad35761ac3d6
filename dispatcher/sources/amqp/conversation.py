"""A talk of several questions with the broker on a channel, written as a generator that is driven by callbacks.

The generator yields a question (a function that is given the channel and where to put the answer) and gets the answer.
Where the broker closes the channel instead, as it does to refuse, `Refused` is thrown in; a generator that catches it
and goes on gets a new channel for its next question. What it returns is handed on together with the open channel.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Generic, TypeVar

import pika
from pika.channel import Channel
from pika.exceptions import ChannelClosedByBroker

T = TypeVar("T")
Question = Callable[[Channel, Callable[[Any], None]], object]
Talk = Generator[Question, Any, T]


class Refused(Exception):
    """The broker closed the channel over a question; `code` and `text` are its own words."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code} {text}")
        self.code = code
        self.text = text


class Conversation(Generic[T]):
    """One run of a talk on a connection. All of it happens in the connection's thread.

    `on_end` gets the open channel and what the talk returned; `on_loss` gets the reason, once: when the broker refused
    and the talk did not go on, or later, when it closed the channel that was handed over. The end of the connection
    is nobody's news here: it ends the conversation without a word.
    """

    def __init__(
        self,
        connection: pika.SelectConnection,
        talk: Talk[T],
        on_end: Callable[[Channel, T], None],
        on_loss: Callable[[Refused], None],
    ) -> None:
        self._connection = connection
        self._talk = talk
        self._on_end = on_end
        self._on_loss = on_loss
        self._over = False
        self._step: Callable[[Channel], None] = self._begin
        self._open()

    def abandon(self) -> None:
        """Take no more notice of it."""
        self._over = True
        self._talk.close()

    def _open(self) -> None:
        channel = self._connection.channel(on_open_callback=self._step)
        channel.add_on_close_callback(self._closed)

    def _begin(self, channel: Channel) -> None:
        self._advance(lambda: self._talk.send(None), channel)

    def _advance(self, resume: Callable[[], Question], channel: Channel | None) -> None:
        """Let the talk go on to its next question; without a channel, on a new one."""
        if self._over:
            return
        try:
            question = resume()
        except StopIteration as stop:
            result: T = stop.value
            self._step = lambda opened: self._on_end(opened, result)
        except Refused as refused:
            self._over = True
            if channel is not None and channel.is_open:  # it was the talk itself that would not go on
                channel.close()
            self._on_loss(refused)
            return
        else:
            self._step = lambda opened: self._ask(question, opened)
        if channel is None:
            self._open()
        else:
            self._step(channel)

    def _ask(self, question: Question, channel: Channel) -> None:
        if not self._over:
            question(channel, lambda answer: self._advance(lambda: self._talk.send(answer), channel))

    def _closed(self, _channel: Channel, reason: Exception) -> None:
        if self._over:
            return
        if not isinstance(reason, ChannelClosedByBroker):
            self.abandon()
            return
        refused = Refused(reason.reply_code, reason.reply_text)
        # A talk that has ended raises what is thrown into it: then it is the channel handed over that was closed.
        self._advance(lambda: self._talk.throw(refused), None)
