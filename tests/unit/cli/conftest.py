"""The command line within the test's own process: a folder with a small rulebook, and what a verb said."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import dataclass
from typing import Any

import pytest

from dispatcher.cli.main import run
from tests.unit.engine.conftest import emptied_databases, postgres_place

__all__ = ["dispatcher", "emptied_databases", "event_file", "here", "postgres_place"]

RULEBOOK = """\
version: 1
accounts:
  acc1: {region: ZA}
conversations: {c9: vxpolls}
events:
  - conversation_type: vxpolls
    event_type: poll_complete
    subject: data.msisdn
    fields: {msisdn: text, name: text, consent: text}
senders:
  default: {type: outbox}
chains:
  - name: welcome
    on: {conversation_type: vxpolls, event_type: poll_complete}
    when: data.consent == "yes"
    steps:
      - id: contact
        handler: create_contact
        with: {msisdn: "{{ data.msisdn }}", name: "{{ data.name | title }}"}
      - handler: send_sms
        when: steps.contact.created
        with: {to: "{{ steps.contact.msisdn }}", text: "Thanks!"}
  - name: elsewhere
    on: {account: acc2, event_type: something_else}
    steps: [{handler: log_event}]
  - name: nobody-listens
    default: true
    steps: [{handler: log_event, with: {level: warning}}]
"""


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


def an_event(**fields) -> dict[str, Any]:
    known = {
        "event_id": "e1",
        "account_key": "acc1",
        "conversation_key": "c1",
        "conversation_type": "vxpolls",
        "event_type": "poll_complete",
        "event_data": {"msisdn": "082 123 4567", "name": "thandi", "consent": "yes"},
    }
    return {name: value for name, value in (known | fields).items() if value is not None}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The folder that the verbs run in, with `rulebook.yaml` and a store that is not there yet."""
    (tmp_path / "rulebook.yaml").write_text(RULEBOOK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DISPATCHER_RULEBOOK", "rulebook.yaml")
    monkeypatch.setenv("DISPATCHER_STORE", "sqlite:///store.db")
    return tmp_path


@pytest.fixture
def dispatcher(here, capsys, monkeypatch):
    """Runs a verb as the console script would."""

    def invoke(*arguments: object, stdin: bytes = b"") -> Said:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = run([str(argument) for argument in arguments])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return Said(code, said.out, said.err)

    return invoke


@pytest.fixture
def event_file(here):
    """Writes one event to a file and returns its name."""

    def write(**fields) -> str:
        (here / "event.json").write_text(json.dumps(an_event(**fields)))
        return "event.json"

    return write
