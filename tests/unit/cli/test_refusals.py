"""What a broker's refusal means, in words that say who can mend it, and never with a password."""

from __future__ import annotations

import pytest

from dispatcher.cli.refusals import meaning_of, no_right_to_read, no_right_to_write, who_was_refused
from dispatcher.settings import Settings

LOGIN = "the broker refused the login (403 ACCESS_REFUSED - Login was refused)"


@pytest.mark.parametrize(
    ("refusal", "told"),
    [
        ("amqp:vumi/sms.outbound: unroutable: 312 NO_ROUTE", "the Vumi transport makes one when it starts"),
        ("amqp:vumi.events/vxpolls.done: unroutable: 312 NO_ROUTE", "a subscriber makes one"),
        ("amqp:vumi/vumi.api: unroutable: 312 NO_ROUTE", "Vumi's command dispatcher makes one"),
        ("amqp:vumi/clinic.control: unroutable: 312 NO_ROUTE", "the worker that reads them makes one"),
        ("amqp:/sms.outbound: unroutable: 312 NO_ROUTE", "the exchange (the default) with the key sms.outbound"),
        ("amqp:vumi/a: refused: 403 ACCESS_REFUSED - x", "has no right to write to the exchange vumi"),
        (
            'amqp:go/a: refused: there is no exchange "go" (404 NOT_FOUND)',
            "Whoever reads from the exchange go makes it",
        ),
        ("amqp:vumi/a.outbound: refused: the broker refused it (nack): a queue is full", "A queue behind a.outbound"),
        ("amqp:vumi/403: unsent: the connection was lost", "It is tried again"),
        ("something else", "It is tried again"),
    ],
)
def test_a_refusal_says_who_mends_it(refusal, told):
    assert told in meaning_of(refusal)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("amqp://me:s3cret@broker/go", "The user is 'me', the password is that of the URL."),
        ("amqp://me@broker/go", "The user is 'me', no password is given"),
        ("amqp://broker/go", "The user is 'guest', the URL names no user"),
    ],
)
def test_a_refused_login_names_the_user_and_where_the_password_is_from(url, told):
    said = who_was_refused(Settings(amqp_url=url), LOGIN)

    assert said.startswith(told)
    assert "s3cret" not in said


def test_the_file_with_the_password_is_named():
    said = who_was_refused(Settings(amqp_url="amqp://me@broker", amqp_password_file="/run/password"), LOGIN)

    assert "DISPATCHER_AMQP_PASSWORD_FILE (/run/password)" in said


def test_a_refused_vhost_is_named_as_the_broker_knows_it():
    said = who_was_refused(Settings(amqp_url="amqp://me@broker/%2Fgo"), "the broker refused the vhost (530 x)")

    assert said.startswith("The user 'me' is let in, and the vhost '/go' is not there or not open to it")


def test_anything_else_was_no_refusal():
    assert who_was_refused(Settings(amqp_url="amqp://me@broker"), "connection refused at broker:5672") is None


def test_a_missing_right_is_told_with_the_command_that_gives_it():
    settings = Settings(amqp_url="amqp://me:s3cret@broker")

    assert "`rabbitmqctl set_permissions -p / me CONFIGURE WRITE READ`" in no_right_to_write(settings)
    assert no_right_to_read(settings, "vumi.event").endswith("where READ matches vumi.event.")
