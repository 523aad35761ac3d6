"""The job as Celery does it: one task for an event, which sends the text's task to another queue.

celery --app worker worker --queues vumi.event --pool threads --concurrency 8
"""

import os
from uuid import uuid4

from celery import Celery
from jinja2 import Environment
from kombu import Exchange, Queue
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


def quorum_queue(name):
    return Queue(name, Exchange("vumi", "direct"), routing_key=name, queue_arguments={"x-queue-type": "quorum"})


app = Celery("worker", broker=os.environ["BENCH_AMQP_URL"])
app.conf.update(
    broker_transport_options={"confirm_publish": True},
    task_queues=[quorum_queue("vumi.event"), quorum_queue("sms.outbound")],
    task_routes={"handle_event": {"queue": "vumi.event"}, "send_sms": {"queue": "sms.outbound"}},
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=64,
)

template = Environment(autoescape=False).from_string("Thanks {{ name }}!")


def welcome(event):
    contact = Contact(msisdn=event.event_data.msisdn, name=event.event_data.name.title())
    send_sms.delay(to_addr=contact.msisdn, content=template.render(name=contact.name), message_id=str(uuid4()))


CHAINS = {("vxpolls", "poll_complete"): (lambda event: event.event_data.consent == "yes", welcome)}


@app.task(name="handle_event")
def handle_event(payload):
    event = Event.model_validate(payload)
    condition, steps = CHAINS[event.conversation_type, event.event_type]
    if condition(event):
        steps(event)


@app.task(name="send_sms")
def send_sms(to_addr, content, message_id):
    """For the transport that listens to sms.outbound; no worker runs it here."""
