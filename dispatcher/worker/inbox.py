"""What others ask of the worker through the control socket, until its loop takes it up between two batches."""

from __future__ import annotations

import base64
import binascii
from collections import deque
from collections.abc import Callable, Sequence

from dispatcher.engine.intake import Delivery, Receipt
from dispatcher.errors import DispatcherError, UsageError
from dispatcher.worker.control import Request


class Publishing:
    """A request to take events; answered when they are committed."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self.deliveries: Sequence[Delivery] = [
            Delivery(base64.b64decode(body, validate=True)) for body in request.args.get("bodies", [])
        ]

    def reply(self, receipts: Sequence[Receipt]) -> None:
        """Answer with what became of each delivery."""
        told = [[receipt.kind, receipt.event_id, receipt.code, receipt.detail] for receipt in receipts]
        self._request.reply({"receipts": told})

    def fail(self, error: DispatcherError) -> None:
        """Answer that nothing was taken."""
        self._request.fail(error)


class Inbox:
    """Requests in the order they came. `submit` is called by the socket's threads, the rest by the loop."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._publishing: deque[Publishing] = deque()
        self._verbs: deque[Request] = deque()

    def submit(self, request: Request) -> None:
        """Take a request in."""
        if request.verb == "publish":
            try:
                self._publishing.append(Publishing(request))
            except (binascii.Error, TypeError, ValueError) as error:
                request.fail(UsageError(f"publish takes bodies in base64: {error}"))
                return
        else:
            self._verbs.append(request)
        self._wake()

    def next_publish(self) -> Publishing | None:
        """Return the next request to take events."""
        return self._publishing.popleft() if self._publishing else None

    def next_verb(self) -> Request | None:
        """Return the next request of another kind."""
        return self._verbs.popleft() if self._verbs else None

    def refuse_all(self, error: DispatcherError) -> None:
        """Answer whatever is left: the worker stops."""
        while (publishing := self.next_publish()) is not None:
            publishing.fail(error)
        while (request := self.next_verb()) is not None:
            request.fail(error)
