"""The job as Dramatiq does it: one actor for an event, which sends the text's message to another queue.

dramatiq worker --processes 2 --threads 16 --queues vumi.event
"""

import os
from uuid import uuid4

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from jinja2 import Environment
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


broker = RabbitmqBroker(url=os.environ["BENCH_AMQP_URL"], confirm_delivery=True)
dramatiq.set_broker(broker)

template = Environment(autoescape=False).from_string("Thanks {{ name }}!")


def welcome(event):
    contact = Contact(msisdn=event.event_data.msisdn, name=event.event_data.name.title())
    send_sms.send(to_addr=contact.msisdn, content=template.render(name=contact.name), message_id=str(uuid4()))


CHAINS = {("vxpolls", "poll_complete"): (lambda event: event.event_data.consent == "yes", welcome)}


@dramatiq.actor(queue_name="vumi.event")
def handle_event(payload):
    event = Event.model_validate(payload)
    condition, steps = CHAINS[event.conversation_type, event.event_type]
    if condition(event):
        steps(event)


@dramatiq.actor(queue_name="sms.outbound")
def send_sms(to_addr, content, message_id):
    """For the transport that listens to sms.outbound; no worker runs it here."""
