"""Measure ansible-rulebook outside of the table: it acts by a playbook for each event, of which there are few a second.

Two rulebooks with the job's condition take events from a queue of BENCH_AMQP_URL. In publish.yml the action runs a
module that publishes the text; print.yml only prints the text, so that the rule engine can be told from the action.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from pathlib import Path

import pika

URL = os.environ["BENCH_AMQP_URL"]
INCOMING, OUTGOING = "vumi.event", "sms.outbound"
PUBLISHED, PRINTED = 20, 3_000
PATIENCE = 180.0
BIN = Path(sys.executable).parent


def an_event(number):
    person = {"msisdn": f"+2782{number:07d}", "name": "thandi dlamini", "consent": "yes", "language": "en"}
    answers = {"age": "25-34", "visited": "yes", "again": "no", "clinic": "Kwa-Zenzele"}
    conversation = {"conversation_key": "a6a20571e77f4aa89a8b10a771b005bc", "conversation_type": "vxpolls"}
    event = {"event_id": str(number), "account_key": "acc1", **conversation, "event_type": "poll_complete"}
    return json.dumps({**event, "event_data": {**person, "answers": answers}})


@contextmanager
def channel():
    with closing(pika.BlockingConnection(pika.URLParameters(URL))) as connection:
        yield connection.channel()


def fill(events):
    with channel() as open_channel:
        for queue in (INCOMING, OUTGOING):
            open_channel.queue_declare(queue, durable=True, arguments={"x-queue-type": "quorum"})
            open_channel.queue_purge(queue)
        open_channel.confirm_delivery()
        for number in range(events):
            open_channel.basic_publish("", INCOMING, an_event(number), pika.BasicProperties(delivery_mode=2))


@contextmanager
def rulebook(name, *arguments):
    command = [BIN / "ansible-rulebook", "--rulebook", name, "--inventory", "inventory.yml", "--source-dir", "sources"]
    environ = os.environ | {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "JAVA_HOME": os.environ.get("JAVA_HOME") or str(Path(shutil.which("java")).resolve().parent.parent),
        "ANSIBLE_LIBRARY": str(Path("library").resolve()),
        "PYTHONUNBUFFERED": "1",
    }
    process = subprocess.Popen(
        [*command, "--env-vars", "BENCH_AMQP_URL", *arguments],
        env=environ, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    # Reading its output, or the queue, must not wait for ever for one that has come to a halt.
    signal.signal(signal.SIGALRM, lambda *_: os.killpg(process.pid, signal.SIGKILL))
    signal.alarm(int(PATIENCE))
    try:
        yield process
    finally:
        signal.alarm(0)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def published():
    """How many texts the action publishes in a second."""
    fill(PUBLISHED)
    parallel = ("--execution-strategy", "parallel", "--max-concurrent-actions", "4")
    with rulebook("publish.yml", *parallel) as process, channel() as open_channel:
        came = {}
        for _, _, body in open_channel.consume(OUTGOING, auto_ack=True, inactivity_timeout=1):
            if body is not None:
                came[json.loads(body)["to_addr"]] = time.perf_counter()
            if len(came) == PUBLISHED:
                break
            if process.poll() is not None:
                raise SystemExit(f"it ended after {len(came)} of {PUBLISHED} texts")
    times = sorted(came.values())
    return (PUBLISHED - 1) / (times[-1] - times[0])


def printed():
    """How many events a second the rule engine takes where its action only prints."""
    fill(PRINTED)
    times = []
    with rulebook("print.yml") as process:
        for line in process.stdout:
            if "Thanks" in line:
                times.append(time.perf_counter())
            if len(times) == PRINTED:
                break
    if len(times) < PRINTED:
        raise SystemExit(f"it printed {len(times)} of {PRINTED} texts")
    first = PRINTED // 10
    return (PRINTED - first) / (times[-1] - times[first - 1])


def main():
    engine, action = printed(), published()
    what = (
        f"run_module with a module that publishes the text, {PUBLISHED} events; where the action only prints the text, "
        f"{engine:,.0f} events/s of {PRINTED:,}"
    )
    print(json.dumps({"events": PUBLISHED, "events_per_second": round(action, 2), "what": what}))


if __name__ == "__main__":
    main()
