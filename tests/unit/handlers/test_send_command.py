from __future__ import annotations

import pytest
from pydantic import ValidationError

from dispatcher import Done, Failed, Publish
from dispatcher.testing import an_event, run_handler
from handlers.send_command import SendCommand

DATA = {"to_addr": "+27821234567", "content": "Hello"}
SEND = {"worker_name": "bulk_message_application", "command": "send_message", "kwargs": {"command_data": DATA}}


def test_a_message_is_commanded_with_what_the_worker_needs():
    run = run_handler(SendCommand, SEND, an_event(account_key="acc1", conversation_key="conv1"))
    [publish] = run.publishes
    command_id = run.result["command_id"]
    assert publish == Publish(
        "vumi",
        "vumi.api",
        {
            "command_id": command_id,
            "worker_name": "bulk_message_application",
            "command": "send_message",
            "args": [],
            "kwargs": {
                "user_account_key": "acc1",
                "conversation_key": "conv1",
                "command_data": {"msg_options": {}, "to_addr": "+27821234567", "content": "Hello"},
            },
        },
    )
    assert len(command_id) == 32
    assert int(command_id, 16) >= 0
    assert set(run.result) == set(SendCommand.Result.model_fields)


def test_the_command_id_is_the_same_for_every_attempt_and_another_for_another_step():
    first = run_handler(SendCommand, SEND)
    again = run_handler(SendCommand, SEND, context=first.context)
    other = run_handler(SendCommand, SEND, idempotency_key="key-2")
    assert first.publishes == again.publishes
    assert first.result["command_id"] != other.result["command_id"]


def test_what_kwargs_give_wins():
    kwargs = {"user_account_key": "a", "conversation_key": "c", "command_data": DATA | {"msg_options": {"x": 1}}}
    run = run_handler(SendCommand, SEND | {"kwargs": kwargs})
    assert run.publishes[0].body["kwargs"] == kwargs


def test_a_router_is_started_by_its_own_key():
    params = {"worker_name": "keyword_router", "command": "start", "kwargs": {"router_key": "r1"}}
    run = run_handler(SendCommand, params)
    assert run.publishes[0].body["kwargs"] == {"router_key": "r1", "user_account_key": "acc1"}


def test_an_opted_out_number_is_not_texted_by_command():
    params = SEND | {"kwargs": {"command_data": DATA | {"to_addr": "082 123 4567"}}}
    run = run_handler(SendCommand, params, region="ZA", opt_outs={"+27821234567": "said STOP"})
    assert run.outcome == Done(skipped="opted out: said STOP")
    assert run.publishes == ()


def test_an_address_that_is_no_number_passes():
    params = SEND | {"kwargs": {"command_data": DATA | {"to_addr": "@thandi"}}}
    assert len(run_handler(SendCommand, params).publishes) == 1


def test_a_command_of_ones_own_is_left_alone():
    params = {"worker_name": "my_worker", "command": "ping", "args": ["x"], "kwargs": {"account_key": "a"}}
    run = run_handler(SendCommand, params)
    assert run.publishes[0].body["args"] == ["x"]
    assert run.publishes[0].body["kwargs"] == {"account_key": "a"}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"account_key": "a", "command_data": DATA}, "user_account_key, not account_key"),
        ({}, "needs command_data"),
        ({"command_data": {"content": "x"}}, "needs to_addr"),
        ({"command_data": DATA, "command_id": "x"}, "command_id is derived"),
    ],
)
def test_what_would_stop_the_worker_is_refused_at_load_and_at_run_time(kwargs, message):
    with pytest.raises(ValueError, match=message):
        run_handler(SendCommand, SEND | {"kwargs": kwargs})
    rendered = SendCommand.model_validate(SEND | {"kwargs": kwargs})
    outcome = rendered.run(an_event(), run_handler(SendCommand, SEND).context)
    assert isinstance(outcome, Failed)
    assert message in outcome.reason


def test_command_data_that_is_no_object_fails():
    run = run_handler(SendCommand, SEND | {"kwargs": {"command_data": "{{ data.whatever }}"}})
    assert run.outcome == Failed("command_data is not an object")


def test_a_worker_name_is_lower_case():
    with pytest.raises(ValidationError):
        run_handler(SendCommand, SEND | {"worker_name": "Bulk_Worker"})
