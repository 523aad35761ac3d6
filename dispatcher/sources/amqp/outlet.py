"""The way to one exchange: a channel of its own, the exchange made sure of, messages in flight, and their answers.

What happens to one exchange cannot touch the messages of another. Everything here runs in the link's thread. What is
said about the broker is RabbitMQ's rabbit_channel (3.10), what is said about pika its source (1.4.4).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from pika import BasicProperties
from pika.adapters.select_connection import SelectConnection
from pika.channel import Channel
from pika.exceptions import ChannelClosedByBroker, ShortStringTooLong
from pika.spec import Basic

from dispatcher.errors import DispatcherError
from dispatcher.sources.amqp.fates import Fate, Outgoing, Published
from dispatcher.telemetry import log

Settle = Callable[[Sequence[Published]], None]

_ACCESS_REFUSED: Final = 403
_NOT_FOUND: Final = 404
# The broker looks at permissions anew once a channel has slept, which it does after a second without work.
_IDLE_SECONDS: Final = 0.5
# Whether it may publish at all, a message is told within a round trip; a confirm may take as long as a queue is stuck.
_PATIENCE_SECONDS: Final = 1.0
# An exchange that takes nothing is not asked again sooner.
_PAUSE_SECONDS: Final = 1.0
_LONGEST_NAME: Final = 255
_NACKED = "the broker refused it (nack): a queue is full, or could not store it"


@dataclass(frozen=True, slots=True)
class ExchangeStatus:
    """An exchange that was published to: whether it takes messages as far as is known, and if not, why."""

    name: str
    ready: bool
    reason: str | None


class Outlet:
    """Publishes to one exchange. `kind` is the type to create it with if it is absent; None: it is not ours to create.

    A new channel, and one that was idle, carries a single message until the broker has answered (or kept silent for a
    second: a queue is stuck, and the others need not wait for it). A permission that was
    taken away or an exchange that is gone thus costs one message, and its fate is certain, instead of a window of
    messages whose fate nobody knows. `more` is called when there is room for what waits; it calls `pump`.
    """

    def __init__(
        self,
        exchange: str,
        *,
        kind: str | None,
        window: int,
        settle: Settle,
        more: Callable[[], None],
        monotonic: Callable[[], float],
    ) -> None:
        self._exchange = exchange
        self._kind = kind
        self._window = window
        self._settle = settle
        self._more = more
        self._monotonic = monotonic
        self._waiting: deque[Outgoing] = deque()  # not written
        self._pending: dict[int, Outgoing] = {}  # written, by the channel's delivery tag, in order
        self._returned: dict[int, str] = {}
        self._stage: Literal["closed", "checking", "making", "open"] = "closed"
        self._channel: Channel | None = None
        self._tag = 0
        self._last_returned = 0
        self._alone = True  # one message only, until it is answered
        self._proven = False  # this channel has had an answer
        self._answered_at = 0.0
        self._reason: str | None = None
        self._paused_until = 0.0

    @property
    def status(self) -> ExchangeStatus:
        """How the exchange fares (any thread)."""
        return ExchangeStatus(self._exchange, self._reason is None, self._reason)

    @property
    def quiet_since(self) -> float | None:
        """Since when messages are in flight and no answer has come, on the monotonic clock (any thread)."""
        return self._answered_at if self._pending else None

    def add(self, message: Outgoing) -> None:
        """Take a message, to be written by the next `pump`."""
        self._waiting.append(message)

    def pump(self, connection: SelectConnection) -> None:
        """Write what waits, as far as the window allows; open the channel first if there is none."""
        if not self._waiting:
            return
        if self._stage == "open":
            self._write()
        elif self._stage == "closed":
            if self._monotonic() < self._paused_until and self._reason is not None:
                self._refuse_waiting(self._reason)
            elif len(self._exchange.encode(errors="replace")) > _LONGEST_NAME:
                self._troubled(f"the name of an exchange has at most {_LONGEST_NAME} bytes")
            else:
                self._open(connection, "checking")

    def lost(self, reason: str) -> None:
        """Tell the fates of all messages: the connection is gone."""
        self._stage, self._channel = "closed", None
        self._paused_until = 0.0
        told = self._told_pending("unknown", reason)
        while (message := _popped(self._waiting)) is not None:
            told.append(Published(message.seq, "unsent", reason))
        self._told(told)

    def _open(self, connection: SelectConnection, stage: Literal["checking", "making"]) -> None:
        self._stage = stage
        self._channel = connection.channel(on_open_callback=self._on_open)
        self._channel.add_on_close_callback(self._on_close)

    def _on_open(self, channel: Channel) -> None:
        channel.add_on_return_callback(self._on_return)
        if not self._exchange:  # the default exchange is always there, and may not be asked for
            self._on_exchange(None)
        elif self._stage == "making":
            kind = self._kind or "direct"
            channel.exchange_declare(self._exchange, exchange_type=kind, durable=True, callback=self._on_exchange)
        else:
            channel.exchange_declare(self._exchange, passive=True, callback=self._on_exchange)

    def _on_exchange(self, _frame: Any) -> None:
        if self._channel is not None:
            self._channel.confirm_delivery(self._on_answer, callback=self._on_ready)

    def _on_ready(self, _frame: Any) -> None:
        self._stage = "open"
        self._tag = self._last_returned = 0
        self._alone, self._proven = True, False
        self._more()

    def _write(self) -> None:
        channel, waiting, pending = self._channel, self._waiting, self._pending
        if channel is None:
            return
        quiet = (now := self._monotonic()) - self._answered_at
        if not pending:
            self._alone = self._alone or quiet > _IDLE_SECONDS
            self._answered_at = now
        elif quiet > _PATIENCE_SECONDS:
            self._alone = False
        window = 1 if self._alone else self._window
        while waiting and len(pending) < window:
            message = waiting.popleft()
            self._tag += 1
            # Before the call: whatever escapes from it, the message is accounted for.
            pending[self._tag] = message
            properties = BasicProperties(  # type: ignore[no-untyped-call]  # pika left this one without types
                content_type="application/json",
                content_encoding="utf-8",
                delivery_mode=2,
                message_id=message.message_id,
            )
            try:
                channel.basic_publish(
                    self._exchange, message.routing_key, message.body, properties=properties, mandatory=True
                )
            except (ShortStringTooLong, UnicodeError) as error:
                # pika makes all frames of a message before it sends the first: nothing was written, no tag used.
                del pending[self._tag]
                self._tag -= 1
                reason = f"its routing key or id cannot be written: {type(error).__name__}"
                self._told([Published(message.seq, "refused", reason)])

    def _on_answer(self, frame: Any) -> None:
        """Basic.Ack or Basic.Nack, for one message or for all up to it."""
        method, pending, returned = frame.method, self._pending, self._returned
        last = method.delivery_tag
        acked = isinstance(method, Basic.Ack)
        first = next(iter(pending), last) if method.multiple else last
        told = []
        for tag in range(first, last + 1):
            message = pending.pop(tag, None)
            if message is None:
                continue
            if returned and (reply := returned.pop(tag, None)) is not None:
                told.append(Published(message.seq, "unroutable", reply))
            elif acked:
                told.append(Published(message.seq, "confirmed"))
            else:
                told.append(Published(message.seq, "refused", _NACKED))
        self._alone, self._proven = False, True
        self._answered_at = self._monotonic()
        self._recovered()
        self._told(told)
        if self._waiting:
            self._more()

    def _on_return(self, _channel: Channel, method: Basic.Return, properties: BasicProperties, _body: bytes) -> None:
        """Basic.Return, which comes before the message's own ack."""
        key = (properties.message_id, method.routing_key)
        # They come in the order of publishing; the second look is for the case that this ever changes.
        for tag in (*range(self._last_returned + 1, self._tag + 1), *self._pending):
            message = self._pending.get(tag)
            if message is not None and (message.message_id, message.routing_key) == key and tag not in self._returned:
                self._returned[tag] = f"{method.reply_code} {method.reply_text}"
                self._last_returned = tag
                return
        # Its ack would pass for a confirm. pika ends the connection for what escapes here, and nobody is misled.
        raise DispatcherError("the broker gave back a message that was not in flight")

    def _on_close(self, channel: Channel, reason: Exception) -> None:
        if channel is not self._channel or not isinstance(reason, ChannelClosedByBroker):
            return  # an older channel, or the connection goes too: `lost` follows
        stage, self._stage, self._channel = self._stage, "closed", None
        said = f"{reason.reply_code} {reason.reply_text}"
        if stage == "checking" and reason.reply_code == _NOT_FOUND:
            if self._kind is not None:
                self._open(channel.connection, "making")
                return
            said = f'there is no exchange "{self._exchange}"; whoever reads from it must create it ({said})'
        if reason.reply_code in (_ACCESS_REFUSED, _NOT_FOUND):
            # On this channel only a publish can be answered so, and the broker does nothing on the channel after it:
            # the last message in flight is the culprit or came after it. Those before may have been taken.
            told = self._told_pending("unknown", said)
            if told:
                told[-1] = Published(told[-1].seq, "refused", said)
        else:
            told = self._told_pending("unknown", said)
        self._told(told)
        if stage == "open" and reason.reply_code == _NOT_FOUND and self._proven:
            # It was there, and was deleted. Those that wait go on once it is made sure of.
            if self._waiting:
                self._open(channel.connection, "checking")
            return
        self._troubled(said)

    def _troubled(self, reason: str) -> None:
        self._paused_until = self._monotonic() + _PAUSE_SECONDS
        if reason != self._reason:
            log.warning("exchange.refused", exchange=self._exchange, reason=reason)
        self._reason = reason
        self._refuse_waiting(reason)

    def _recovered(self) -> None:
        if self._reason is not None:
            log.info("exchange.recovered", exchange=self._exchange)
            self._reason = None

    def _refuse_waiting(self, reason: str) -> None:
        told = []
        while (message := _popped(self._waiting)) is not None:
            told.append(Published(message.seq, "refused", reason))
        self._told(told)

    def _told_pending(self, fate: Fate, reason: str) -> list[Published]:
        """Empty what is in flight; return one fate for each, oldest first."""
        taken = []
        while self._pending:
            try:
                taken.append(self._pending.popitem()[1])
            except KeyError:  # another thread, after a stop that ran out of patience
                break
        self._returned.clear()
        return [Published(message.seq, fate, reason) for message in reversed(taken)]

    def _told(self, told: Sequence[Published]) -> None:
        if told:
            self._settle(told)


def _popped(messages: deque[Outgoing]) -> Outgoing | None:
    try:
        return messages.popleft()
    except IndexError:
        return None
