from __future__ import annotations

from dataclasses import replace

import pytest
from pydantic import ValidationError

from dispatcher.plugins.effects import Effect
from dispatcher.plugins.outcomes import Done, Failed, RetryLater, Unknown
from dispatcher.senders.http import HttpSender


@pytest.fixture
def opened():
    senders = []

    def build(**settings):
        sender = HttpSender.model_validate(settings)
        sender.open()
        senders.append(sender)
        return sender

    yield build
    for sender in senders:
        sender.close()


def test_templates_fill_url_headers_query_and_body(opened, gateway, text):
    gateway.answer(200, {"id": "g-1"})
    sender = opened(
        url=gateway.url + "/send/{{ to_digits }}",
        headers={"X-Token": "Token {{ secrets.token }}"},
        query={"ref": "{{ message_id }}", "alphabet": "{{ encoding }}"},
        body={"to": "{{ to }}", "from": "{{ from_digits }}", "text": "{{ text }}", "n": 1, "parts": ["{{ text }}"]},
        secrets={"token": "s3cret{{"},
        reply={"id": "id"},
    )
    assert sender.send(text) == Done({"gateway_id": "g-1"})
    [seen] = gateway.received
    assert seen.path == "/send/27821234567"
    assert seen.headers["x-token"] == "Token s3cret{{"
    assert seen.query == {"ref": text.message_id, "alphabet": "GSM-7"}
    assert seen.json == {
        "to": "+27821234567",
        "from": "27821230000",
        "text": "Thank you, Thandi!",
        "n": 1,
        "parts": ["Thank you, Thandi!"],
    }


def test_text_that_looks_like_a_template_arrives_as_it_is(opened, gateway, text):
    sender = opened(url=gateway.url, form={"text": "{{ text }}"})
    sender.send(replace(text, content="{{ secrets }} & {{7*7}}"))
    assert gateway.received[0].form == {"text": "{{ secrets }} & {{7*7}}"}


def test_what_has_no_value_is_left_out(opened, gateway, text):
    sender = opened(url=gateway.url, form={"to": "{{ to }}", "from": "{{ from_addr }}"})
    sender.send(replace(text, from_addr=None))
    assert gateway.received[0].form == {"to": "+27821234567"}


def test_a_text_that_needs_what_is_missing_fails_unsent(opened, gateway, text):
    sender = opened(url=gateway.url, form={"from": "+{{ from_digits }}"})
    assert isinstance(sender.send(replace(text, from_addr=None)), Failed)
    assert gateway.received == []


def test_basic_authentication_and_the_idempotency_key_are_headers(opened, gateway, text):
    sender = opened(url=gateway.url, username="u", password="p", idempotency_header="X-Key")
    sender.send(text)
    assert gateway.received[0].headers["authorization"] == "Basic dTpw"
    assert gateway.received[0].headers["x-key"] == "key-1"
    assert sender.keyed


def test_a_lost_reply_is_unknown_without_keys_and_tried_again_with_them(opened, gateway, text):
    gateway.answer(acts="reset")
    assert isinstance(opened(url=gateway.url).send(text), Unknown)
    assert isinstance(opened(url=gateway.url, idempotency_header="X-Key").send(text), RetryLater)


def test_a_500_after_accepting_is_not_sent_again_without_keys(opened, gateway, text):
    gateway.answer(500, "oops")
    assert isinstance(opened(url=gateway.url).send(text), Unknown)


def test_a_busy_gateway_says_when_to_come_back(opened, gateway, text):
    gateway.answer(429, Retry_After="7")
    outcome = opened(url=gateway.url).send(text)
    assert isinstance(outcome, RetryLater)
    assert (outcome.after.total_seconds(), outcome.counts) == (7, False)


def test_a_success_with_an_error_in_it_fails(opened, gateway, text):
    gateway.answer(200, {"status": "error", "error": "no credit"})
    sender = opened(url=gateway.url, reply={"error": "error"})
    assert sender.send(text) == Failed("the gateway answered 200: no credit")


def test_the_effect_is_a_call():
    assert HttpSender.effect is Effect.CALL


def test_secrets_do_not_show():
    sender = HttpSender.model_validate(
        {
            "url": "https://gw.example/canary1",
            "headers": {"Authorization": "canary2"},
            "query": {"k": "canary3"},
            "body": {"k": ["canary4"]},
            "password": "canary5",
            "secrets": {"x": "canary6"},
        }
    )
    for shown in (repr(sender), str(sender), str(sender.model_dump()), sender.model_dump_json()):
        assert "canary" not in shown


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "https://{{ to }}/x"}, "without templates"),
        ({"url": "gw.example/x"}, "scheme and host"),
        ({"url": "https://gw.example/{{ tok }}"}, "no name tok here"),
        ({"url": "https://gw.example/{{ to"}, "never closed"),
        ({"url": "https://gw.example/", "body": {"a": ["{{ to.__class__ }}"]}}, "__class__"),
        ({"url": "https://gw.example/", "form": {"a": "{{ secrets.x }}"}}, "no secrets.x in this sender"),
        ({"url": "https://gw.example/", "form": {"a": "1"}, "body": "x"}, "not both"),
        ({"url": "https://gw.example/", "timeout": "soon"}, "not a duration"),
        ({"url": "https://gw.example/", "reply": {"idd": "x"}}, "Extra inputs"),
    ],
)
def test_a_badly_written_sender_is_refused_at_load(settings, message):
    with pytest.raises(ValidationError, match=message):
        HttpSender.model_validate(settings)


def test_rates_and_numbers_may_be_texts_as_yaml_gives_them():
    sender = HttpSender.model_validate(
        {"url": "https://gw.example", "concurrency": "4", "rate": "30/s", "reply": {"busy": ["429", "503"]}}
    )
    assert sender.concurrency == 4
    assert sender.reply.busy == (429, 503)
