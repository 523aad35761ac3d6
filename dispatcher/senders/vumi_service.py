"""The `vumi` service: where commands for Vumi's workers go, and which worker serves which kind of conversation.

Facts: vumi-go, `go.vumitools.api` and `go.vumitools.api_worker`. A command dispatcher consumes `vumi.api` and hands
each command to `<worker_name>.control`, if it knows the worker; if not, it drops the command.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from dispatcher.plugins.services import Service
from dispatcher.text.durations import Rate


def _in_lower_case(name: str) -> str:
    if name != name.lower():
        raise ValueError("a worker's name is written in lower case: Vumi uses no other routing keys")
    return name


class VumiService(Service):
    """Vumi Go's command dispatcher, such as `services: {go: {type: vumi, worker_names: {survey: survey_application}}}`.

    Steps of `send_command` name it. It opens no connection of its own: commands go out through the worker's.
    """

    concurrency: int = Field(default=1000, ge=1, le=1000, description="How many commands may be unconfirmed at once.")
    rate: Rate | None = Field(default=None, description='How many commands may leave in a time, such as "30/s".')
    exchange: str = Field(default="vumi", min_length=1, description="The exchange to publish commands to.")
    routing_key: str = Field(default="vumi.api", min_length=1, description="The routing key to publish them with.")
    worker_names: dict[str, Annotated[str, Field(min_length=1), AfterValidator(_in_lower_case)]] = Field(
        default_factory=dict,
        description="The worker of each conversation type; of any other it is <conversation_type>_application.",
    )

    def worker_name(self, conversation_type: str) -> str:
        """Return the name of the worker that serves conversations of this type."""
        return self.worker_names.get(conversation_type) or f"{conversation_type}_application"
