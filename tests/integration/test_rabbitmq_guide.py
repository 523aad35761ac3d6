"""What docs/rabbitmq.md tells operators to type suffices: permissions, the policy, the way back for dead events."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pika.exceptions
import pytest

from dispatcher.settings import Settings
from dispatcher.sources.amqp.topology import queue_arguments
from tests.harness.waiting import wait_until

GUIDE = (Path(__file__).parents[2] / "docs" / "rabbitmq.md").read_text("utf-8")
SCRIPT = Path(sys.executable).with_name("dispatcher")
RULEBOOK = """\
version: 1
senders: {default: {type: vumi, transport_name: sms_transport}}
chains:
  - name: welcome
    on: {conversation_type: vxpolls, event_type: poll_complete}
    steps:
      - {handler: send_sms, with: {to: "{{ data.msisdn }}", text: Thanks}}
      - {handler: emit_event, with: {event_type: thanked, publish: true, event_data: {}}}
"""
SILENT = """\
version: 1
chains:
  - name: welcome
    on: {conversation_type: vxpolls, event_type: poll_complete}
    steps: [{handler: create_contact, with: {msisdn: "{{ data.msisdn }}"}}]
"""
EVENT = {
    "event_id": "e-1",
    "account_key": "acc1",
    "conversation_key": "poll-7",
    "conversation_type": "vxpolls",
    "event_type": "poll_complete",
    "event_data": {"msisdn": "+27821234567"},
}


def permissions(label):
    """Return what the guide's command of that label sets: configure, write, read."""
    block = re.search(rf"^<!-- {label} -->\n```sh\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    found = re.findall(r"'([^']*)'", block[1])
    assert len(found) == 3
    return found


@pytest.fixture
def outsider(vhost):
    """What others have made on the broker: the exchange, a transport's queue."""
    vhost.declare_queue("sms_transport.outbound", kind=None, exchange="vumi")
    return vhost


def everything_made(vhost):
    """Make what the worker would."""
    vhost.declare_queue("vumi.event", kind=None, arguments=queue_arguments(Settings(), "vumi.event"), exchange="vumi")
    vhost.declare_queue("sms_transport.event", kind=None, exchange="vumi")
    with vhost.channel() as channel:
        channel.exchange_declare("vumi.events", "topic", durable=True)


@pytest.fixture
def dispatcher(tmp_path, vhost):
    """Runs a verb of the dispatcher as the vhost's user."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("DISPATCHER_")}
    environ |= {
        "DISPATCHER_STORE": f"sqlite:///{tmp_path}/store.db",
        "DISPATCHER_RULEBOOK": str(tmp_path / "rules.yaml"),
        "DISPATCHER_AMQP_URL": vhost.url,
    }
    (tmp_path / "rules.yaml").write_text(RULEBOOK)
    (tmp_path / "event.json").write_text(json.dumps(EVENT))

    def run(*words, **settings):
        given = {f"DISPATCHER_{name.upper()}": value for name, value in settings.items()}
        return subprocess.run(
            [SCRIPT, *words],
            cwd=tmp_path,
            env=environ | given,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    @contextlib.contextmanager
    def working(**settings):
        given = {f"DISPATCHER_{name.upper()}": value for name, value in settings.items()}
        with (tmp_path / "log").open("wb") as log:
            worker = subprocess.Popen([SCRIPT, "run"], cwd=tmp_path, env=environ | given, stderr=log)
            try:
                yield
            finally:
                worker.terminate()
                worker.wait(40)

    run.working = working
    return run


def publish(vhost):
    with vhost.channel() as channel:
        channel.confirm_delivery()
        channel.basic_publish("vumi", "vumi.event", json.dumps(EVENT).encode(), mandatory=True)


def listens_to_events(vhost):
    """Bind a queue to `vumi.events`, once it is there."""
    try:
        vhost.declare_queue("listener")
        with vhost.channel() as channel:
            channel.queue_bind("listener", "vumi.events", "#")
    except pika.exceptions.ChannelClosedByBroker:
        return False
    return True


def everything_went_out(vhost):
    return vhost.queue_depth("sms_transport.outbound") == (1, 0) and vhost.queue_depth("listener") == (1, 0)


def test_a_worker_that_makes_what_is_missing_may_with_these_permissions(outsider, dispatcher):
    outsider.set_permissions(*permissions("makes"))
    with dispatcher.working():
        wait_until(lambda: {each["queue"] for each in outsider.consumers()} == {"vumi.event", "sms_transport.event"})
        publish(outsider)
        wait_until(lambda: listens_to_events(outsider))
        wait_until(lambda: everything_went_out(outsider))
    assert outsider.queue_arguments("vumi.event") == queue_arguments(Settings(), "vumi.event")
    assert "vumi.event.dead" in outsider.queues()


def test_a_worker_that_finds_everything_made_may_with_these_permissions(outsider, dispatcher):
    everything_made(outsider)
    assert listens_to_events(outsider)
    outsider.set_permissions(*permissions("finds"))
    publish(outsider)

    told = dispatcher("run", "--drain", amqp_declare="false")

    assert told.returncode == 0, told.stderr
    assert everything_went_out(outsider)


def test_a_worker_that_publishes_nothing_may_with_these_permissions(outsider, dispatcher, tmp_path):
    everything_made(outsider)
    (tmp_path / "rules.yaml").write_text(SILENT)
    outsider.set_permissions(*permissions("takes"))
    publish(outsider)

    told = dispatcher("run", "--drain", amqp_declare="false")

    assert told.returncode == 0, told.stderr
    assert len(json.loads(dispatcher("contacts", "list", "--json").stdout)) == 1


def test_a_publisher_may_with_these_permissions(outsider, dispatcher):
    everything_made(outsider)
    outsider.set_permissions(*permissions("publishes"))

    told = dispatcher("publish", "event.json")

    assert told.returncode == 0, told.stderr
    assert outsider.queue_depth("vumi.event") == (1, 0)


def test_events_that_the_broker_gave_up_are_taken_into_the_store_and_known_there(outsider, dispatcher):
    everything_made(outsider)
    assert listens_to_events(outsider)
    command = re.search(r"^(DISPATCHER_AMQP_QUEUES=.*) dispatcher run --drain$", GUIDE, re.MULTILINE)[1]
    settings = dict(part.split("=") for part in command.lower().replace("dispatcher_", "").split())
    outsider.declare_queue("vumi.event.dead")
    publish(outsider)
    assert dispatcher("run", "--drain").returncode == 0
    with outsider.channel() as channel:
        channel.basic_publish("", "vumi.event.dead", json.dumps(EVENT).encode())

    told = dispatcher("run", "--drain", **settings)

    assert told.returncode == 0, told.stderr
    assert outsider.queue_depth("vumi.event.dead") == (0, 0)
    assert everything_went_out(outsider)


def test_a_transport_of_a_few_lines_takes_a_text_and_says_that_it_was_taken(vhost, dispatcher, tmp_path):
    readme = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    for name in ("first.yaml", "event.json"):
        block = re.search(rf"^<!-- {name} -->\n```[^\n]*\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
        (tmp_path / name).write_text(block[1])
    for label in ("transport.py", "trying"):
        block = re.search(rf"^<!-- {label} -->\n```sh\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
        made = [line for line in block[1].splitlines() if label == "transport.py" or line.startswith("sed ")]
        subprocess.run(["sh", "-ec", "\n".join(made)], cwd=tmp_path, check=True)
    environ = os.environ | {"DISPATCHER_AMQP_URL": vhost.url}
    words = [sys.executable, "transport.py"]
    with subprocess.Popen(words, cwd=tmp_path, env=environ, stdout=subprocess.PIPE, text=True) as transport:
        try:
            with dispatcher.working(rulebook="vumi.yaml"):
                wait_until(
                    lambda: {"vumi.event", "sms_transport.event"} <= {each["queue"] for each in vhost.consumers()}
                )
                assert dispatcher("publish", "event.json").returncode == 0
                assert transport.stdout.readline() == "+27821234567 Thanks Thandi!\n"
                wait_until(lambda: " acked " in dispatcher("messages", "list").stdout)
        finally:
            transport.terminate()
    assert "gateway-1" in dispatcher("messages", "list", "--json").stdout


@pytest.mark.parametrize(("kind", "given_up"), [("quorum", True), ("classic", False)])
def test_a_delivery_limit_set_by_a_policy_works_for_quorum_queues_only(vhost, kind, given_up):
    vhost.declare_queue("vumi.event", kind=kind)
    limit = '[{<<"delivery-limit">>, 2}]'
    vhost.node.eval(f'rabbit_policy:set(<<"{vhost.name}">>, <<"p">>, <<".*">>, {limit}, 0, <<"queues">>, <<"test">>).')
    with vhost.channel() as channel:
        channel.confirm_delivery()
        channel.basic_publish("", "vumi.event", b"{}")
        for _ in range(20):
            wait_until(lambda: vhost.queue_depth("vumi.event")[1] == 0)
            method, _, _ = channel.basic_get("vumi.event")
            if method is None:
                break
            channel.basic_reject(method.delivery_tag, requeue=True)

    assert (method is None) is given_up


def test_the_policy_of_the_guide_gives_a_queue_the_arguments_of_one_that_we_make():
    policy = json.loads(re.search(r"vumi-event '\^vumi\\\.event\$' \\\n  '(.*)'$", GUIDE, re.MULTILINE)[1])

    ours = queue_arguments(Settings(), "vumi.event")
    assert {f"x-{name}": value for name, value in policy.items()} | {"x-queue-type": "quorum"} == ours
