"""The `vumi` service: where commands for Vumi's workers go, and which worker serves which kind of conversation.

Facts: vumi-go, `go.vumitools.api` and `go.vumitools.api_worker`. A command dispatcher consumes `vumi.api` and hands
each command to `<worker_name>.control`, if it knows the worker; if not, it drops the command.
"""

from __future__ import annotations

from pydantic import Field, field_validator

from dispatcher.plugins.services import Service


class VumiService(Service):
    """Vumi Go's command dispatcher, such as `services: {go: {type: vumi, worker_names: {survey: survey_application}}}`.

    Steps of `send_command` name it. It opens no connection of its own: commands go out through the worker's.
    """

    exchange: str = Field(default="vumi", min_length=1, description="The exchange to publish commands to.")
    routing_key: str = Field(default="vumi.api", min_length=1, description="The routing key to publish them with.")
    worker_names: dict[str, str] = Field(
        default_factory=dict,
        description="The worker of each conversation type; of any other it is <conversation_type>_application.",
    )

    @field_validator("worker_names")
    @classmethod
    def _are_routing_keys(cls, value: dict[str, str]) -> dict[str, str]:
        for conversation_type, name in value.items():
            if not name or name != name.lower():
                raise ValueError(f"the worker's name for {conversation_type!r} is a text in lower case")
        return value

    def worker_name(self, conversation_type: str) -> str:
        """Return the name of the worker that serves conversations of this type."""
        return self.worker_names.get(conversation_type) or default_worker_name(conversation_type)


def default_worker_name(conversation_type: str) -> str:
    """Return what Vumi Go names the worker of a conversation type, unless its set-up says otherwise."""
    return f"{conversation_type}_application"
