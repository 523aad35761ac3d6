from __future__ import annotations

import pytest
from pydantic import ValidationError

from dispatcher import Done, Effect, Failed, HttpService, Publish, VumiService
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
        message_id=command_id,
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


def test_an_opted_out_number_is_found_among_the_args_too():
    params = SEND | {"args": ["acc1", "conv1", DATA], "kwargs": {}}
    run = run_handler(SendCommand, params, opt_outs={"+27821234567": "said STOP"})
    assert run.outcome == Done(skipped="opted out: said STOP")


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


def test_args_stand_for_the_first_names_and_the_rest_is_filled_in():
    params = SEND | {"args": ["acc9"], "kwargs": {"command_data": DATA}}
    [publish] = run_handler(SendCommand, params, an_event(conversation_key="conv1")).publishes
    assert publish.body["args"] == ["acc9"]
    assert publish.body["kwargs"].keys() == {"conversation_key", "command_data"}
    params = SEND | {"args": ["acc9", "conv9", DATA], "kwargs": {}}
    [publish] = run_handler(SendCommand, params).publishes
    assert publish.body["args"] == ["acc9", "conv9", {"msg_options": {}, **DATA}]
    assert publish.body["kwargs"] == {}


@pytest.mark.parametrize(
    ("command", "kwargs"),
    [
        ("start", {}),
        ("stop", {}),
        ("collect_metrics", {}),
        ("send_message", {"command_data": DATA | {"batch_id": "ignored"}, "more": 1}),
        ("send_jsbox", {"batch_id": "b"}),
        ("send_survey", {"batch_id": "b", "msg_options": {}, "delivery_class": "sms", "more": 1}),
        (
            "bulk_send",
            {"batch_id": "b", "msg_options": {}, "content": "x", "dedupe": True, "delivery_class": "sms", "more": 1},
        ),
    ],
)
def test_each_command_gets_the_keys_that_its_worker_calls_them_by(command, kwargs):
    event = an_event(account_key="acc1", conversation_key="conv1")
    [publish] = run_handler(SendCommand, {"worker_name": "w", "command": command, "kwargs": kwargs}, event).publishes
    sent = publish.body["kwargs"]
    assert sent["user_account_key"] == "acc1"
    assert sent["conversation_key"] == "conv1"
    assert sent.keys() == {"user_account_key", "conversation_key", *kwargs}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"command": "start", "args": ["a", "c", "d"]}, "takes 2 args at most"),
        ({"command": "stop", "args": ["a"], "kwargs": {"user_account_key": "b"}}, "given twice"),
        ({"command": "start", "kwargs": {"mood": "good"}}, "takes no mood"),
        ({"command": "send_jsbox", "kwargs": {"batch_id": "b", "router_key": "r"}}, "takes no router_key"),
        ({"command": "send_message", "args": ["a", "c", {"content": "x"}]}, "needs to_addr"),
        ({"command": "send_message", "args": ["a", "c"]}, "needs command_data"),
    ],
)
def test_a_command_that_its_worker_could_not_call_fails_unsent(given, message):
    step = SendCommand.model_validate({"worker_name": "w", **given})
    outcome = step.run(an_event(), run_handler(SendCommand, SEND).context)
    assert isinstance(outcome, Failed)
    assert message in outcome.reason


# Services.

GO = VumiService(exchange="go", routing_key="go.api", worker_names={"surveys": "survey_application"})
TO_SERVICE = {"service": "go", "command": "send_message", "kwargs": {"command_data": DATA}}


@pytest.mark.parametrize(
    ("conversation_type", "worker_name"),
    [("surveys", "survey_application"), ("bulk_message", "bulk_message_application")],
)
def test_a_service_tells_where_commands_go_and_to_which_worker(conversation_type, worker_name):
    event = an_event(conversation_type=conversation_type)
    run = run_handler(SendCommand, TO_SERVICE, event, services={"go": GO})
    [publish] = run.publishes
    assert (publish.exchange, publish.routing_key) == ("go", "go.api")
    assert publish.body["worker_name"] == run.result["worker_name"] == worker_name
    assert (run.settled.effect, run.settled.connection) == (Effect.TRANSACTION, "service:go")


def test_without_a_service_the_worker_is_told_by_the_type_alone():
    params = {"command": "send_message", "kwargs": {"command_data": DATA}}
    run = run_handler(SendCommand, params, an_event(conversation_type="jsbox"))
    assert run.result["worker_name"] == "jsbox_application"
    assert (run.publishes[0].exchange, run.publishes[0].routing_key) == ("vumi", "vumi.api")


def test_what_the_step_says_goes_before_what_the_service_says():
    params = TO_SERVICE | {"worker_name": "mine", "exchange": "x", "routing_key": "y"}
    [publish] = run_handler(SendCommand, params, services={"go": GO}).publishes
    assert (publish.exchange, publish.routing_key, publish.body["worker_name"]) == ("x", "y", "mine")


@pytest.mark.parametrize(
    ("conversation_type", "message"),
    [(None, "give worker_name, or list the conversation"), ("Survey", "lower case; give worker_name")],
)
def test_an_event_that_tells_no_worker_fails_with_what_to_do(conversation_type, message):
    run = run_handler(SendCommand, TO_SERVICE, an_event(conversation_type=conversation_type), services={"go": GO})
    assert isinstance(run.outcome, Failed)
    assert message in run.outcome.reason


def test_a_routers_worker_must_be_named():
    params = {"command": "start", "kwargs": {"router_key": "r1"}}
    with pytest.raises(ValueError, match=r"worker_name: .*such as keyword_router"):
        run_handler(SendCommand, params)
    outcome = SendCommand.model_validate(params).run(an_event(), run_handler(SendCommand, SEND).context)
    assert isinstance(outcome, Failed)


def test_a_service_of_another_type_is_refused_at_load_and_after_a_reload():
    crm = HttpService(base_url="https://crm.example")
    with pytest.raises(ValueError, match="of the type `vumi`"):
        run_handler(SendCommand, TO_SERVICE, services={"go": crm})
    context = run_handler(SendCommand, TO_SERVICE, services={"go": GO}).context
    context.services["go"] = crm
    outcome = SendCommand.model_validate(TO_SERVICE).run(an_event(), context)
    assert isinstance(outcome, Failed)


def test_the_workers_that_a_service_names_are_in_lower_case():
    with pytest.raises(ValidationError, match="lower case"):
        VumiService(worker_names={"survey": "Survey_Application"})
