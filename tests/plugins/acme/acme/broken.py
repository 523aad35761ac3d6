"""`acme_broken`: needs a library that is not there."""

from __future__ import annotations

import acme_library_that_is_not_installed  # noqa: F401

from dispatcher import Done, Effect, Handler


class Broken(Handler):
    """Never gets as far as being defined."""

    effect = Effect.PURE

    def run(self, event, context):
        """Never runs."""
        return Done()
