"""The job as Nameko does it: a service that consumes the queue and publishes the text by a dependency.

nameko run --config config.yaml worker
"""

from uuid import uuid4

from jinja2 import Environment
from kombu import Exchange, Queue
from nameko.messaging import Publisher, consume
from pydantic import BaseModel


class Answers(BaseModel):
    msisdn: str
    name: str
    consent: str
    language: str
    answers: dict[str, str]


class Event(BaseModel):
    event_id: str
    account_key: str
    conversation_key: str
    conversation_type: str
    event_type: str
    event_data: Answers


class Contact(BaseModel):
    msisdn: str
    name: str


vumi = Exchange("vumi", "direct")
incoming = Queue("vumi.event", vumi, routing_key="vumi.event", queue_arguments={"x-queue-type": "quorum"})
template = Environment(autoescape=False).from_string("Thanks {{ name }}!")


def welcome(event, publish):
    contact = Contact(msisdn=event.event_data.msisdn, name=event.event_data.name.title())
    content = template.render(name=contact.name)
    text = {"to_addr": contact.msisdn, "content": content, "message_id": str(uuid4())}
    publish(text, routing_key="sms.outbound")


CHAINS = {("vxpolls", "poll_complete"): (lambda event: event.event_data.consent == "yes", welcome)}


class Dispatcher:
    name = "dispatcher"

    publish = Publisher(exchange=vumi)

    @consume(incoming, requeue_on_error=True)
    def handle_event(self, payload):
        event = Event.model_validate(payload)
        condition, steps = CHAINS[event.conversation_type, event.event_type]
        if condition(event):
            steps(event, self.publish)
