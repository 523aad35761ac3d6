"""The real console script, in a folder of its own."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.harness.waiting import wait_until

SCRIPT = Path(sys.executable).with_name("dispatcher")
ROOT = Path(__file__).parent.parent.parent
DEADLINE = 30.0

RULEBOOK = """\
version: 1
accounts: {acc1: {region: ZA}}
senders: {default: {type: outbox}}
chains:
  - name: welcome
    on: {conversation_type: vxpolls, event_type: poll_complete}
    when: data.consent == "yes"
    steps:
      - id: contact
        handler: create_contact
        with: {msisdn: "{{ data.msisdn }}", name: "{{ data.name | title }}"}
      - handler: send_sms
        with: {to: "{{ steps.contact.msisdn }}", text: "Thanks {{ steps.contact.name }}!"}
      - handler: emit_event
        with: {event_type: welcome_sent, event_data: {msisdn: "{{ steps.contact.msisdn }}"}}
  - name: nobody-listens
    default: true
    steps: [{handler: log_event}]
"""


def an_event(number: int = 1, **fields: Any) -> dict[str, Any]:
    return {
        "event_id": f"e-{number}",
        "account_key": "acc1",
        "conversation_key": "c1",
        "conversation_type": "vxpolls",
        "event_type": "poll_complete",
        "event_data": {"msisdn": f"082 555 {number:04d}", "name": "thandi", "consent": "yes"},
    } | fields


@dataclass(frozen=True)
class Done:
    code: int
    out: bytes
    err: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.out)


class Folder:
    """A folder with a rulebook and a store, and the console script in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.environ = {
            name: value for name, value in os.environ.items() if not name.startswith(("DISPATCHER_", "PYTHON"))
        }
        self.environ |= {"DISPATCHER_STORE": "sqlite:///store.db", "DISPATCHER_RULEBOOK": "rulebook.yaml"}
        (path / "rulebook.yaml").write_text(RULEBOOK)
        self.started: list[subprocess.Popen[bytes]] = []

    def write_events(self, *events: Any, name: str = "events.jsonl") -> str:
        lines = [event if isinstance(event, bytes) else json.dumps(event).encode() for event in events]
        (self.path / name).write_bytes(b"\n".join(lines) + b"\n")
        return name

    def run(self, *arguments: str, stdin: bytes = b"") -> Done:
        done = subprocess.run(
            [SCRIPT, *arguments],
            cwd=self.path,
            env=self.environ,
            input=stdin,
            capture_output=True,
            timeout=DEADLINE,
            check=False,
        )
        assert b"Traceback" not in done.stderr, done.stderr.decode()
        return Done(done.returncode, done.stdout, done.stderr)

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [SCRIPT, *arguments], cwd=self.path, env=self.environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        self.started.append(process)
        return process

    def start_worker(self) -> subprocess.Popen[bytes]:
        """Start a worker and wait until it listens."""
        worker = self.start("run")
        wait_until(lambda: (self.path / "store.db.sock").exists() or worker.poll() is not None)
        assert worker.poll() is None
        return worker


@pytest.fixture
def folder(tmp_path):
    folder = Folder(tmp_path)
    yield folder
    for process in folder.started:
        process.kill()
        process.communicate()


# With a broker. What these need is imported by them, not above: most of the tests have no broker, nor time to load it.


@pytest.fixture
def site(folder, vhost):
    """A folder whose worker has a broker, and the ledger of what goes in and comes out."""
    from tests.acceptance import brokers

    with brokers.a_site(folder, vhost) as site:
        yield site


@pytest.fixture
def proxy(vhost):
    """A network to the broker that can misbehave."""
    from tests.harness.proxy import ChaosProxy

    with ChaosProxy(vhost.port) as proxy:
        yield proxy


@pytest.fixture
def distant(folder, vhost, proxy):
    """A site whose worker reaches the broker through that network; the traffic takes another way."""
    from tests.acceptance import brokers

    with brokers.a_site(folder, vhost, url=proxy.url(vhost.url)) as site:
        yield site


@pytest.fixture
def chance():
    """Chance that can be had again: its seed is shown when the test fails."""
    seed = random.randrange(10**6)
    print(f"seed {seed}")  # noqa: T201 - shown when it fails
    return random.Random(seed)


# With PostgreSQL, and several workers on it.


@pytest.fixture
def workshop(folder, postgres):
    """A folder whose workers share a database."""
    from tests.acceptance import databases

    with databases.a_workshop(folder, postgres) as workshop:
        yield workshop


@pytest.fixture
def shared_site(folder, vhost, postgres):
    """A folder whose workers share a database and a broker, and the ledger of what goes in and comes out."""
    from tests.acceptance import databases

    with databases.a_shared_site(folder, vhost, postgres) as site:
        yield site


@pytest.fixture
def ledger():
    """An HTTP service that notes what it is asked."""
    from tests.acceptance.outsiders import Ledger

    ledger = Ledger()
    yield ledger
    ledger.close()
