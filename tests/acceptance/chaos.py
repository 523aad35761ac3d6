"""A plugin that misbehaves on request, installed into a folder as any plugin would be, and an oracle over the store."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing

_PLUGIN = '''
import ctypes, os, time
from pathlib import Path
from dispatcher import Done, Effect, Handler, RetryLater, Settled

MISDEEDS = {
    "abort": os.abort,
    "segfault": lambda: ctypes.string_at(0),
    "hang": lambda: time.sleep(1e9),
    "leak": lambda: bytearray(2**40),
}

def misbehave(event):
    MISDEEDS.get(event.data.get("misdeed"), lambda: None)()

class Misbehave(Handler):
    """Do what the event asks for, within the batch."""
    effect = Effect.TRANSACTION
    def run(self, event, context):
        misbehave(event)
        return Done()

class Call(Handler):
    """Note the key of the call in a file, then do what the event asks for."""
    effect = Effect.CALL
    keyed: bool = False
    @classmethod
    def settle(cls, params, bindings):
        return Settled(cls.effect, keyed=str(params.get("keyed")).lower() == "true")
    def run(self, event, context):
        with open("calls.txt", "a") as calls:
            calls.write(f"{event.event_id} {context.idempotency_key}\\n")
        misbehave(event)
        return Done()

class Wait(Call):
    """Note the key, then wait until there is a file named "go"."""
    def run(self, event, context):
        super().run(event, context)
        while not Path("go").exists():
            time.sleep(0.01)
        return Done()

class Flaky(Handler):
    """Fail twice, then succeed."""
    effect = Effect.PURE
    def run(self, event, context):
        return RetryLater(reason="not yet") if context.attempt < 3 else Done({"attempt": context.attempt})
'''

_HANDLERS = ("Misbehave", "Call", "Wait", "Flaky")

CHAINS = """\
  - name: misbehaving
    on: {event_type: misbehave}
    steps: [{handler: chaos_misbehave}]
  - name: calling
    on: {event_type: call}
    steps: [{id: out, handler: chaos_call, with: {keyed: true}}]
  - name: calling-without-key
    on: {event_type: call_once}
    steps: [{id: out, handler: chaos_call}]
  - name: flaky
    on: {event_type: flaky}
    steps: [{handler: chaos_flaky, retry: {initial: 1ms}}]
"""


def install(folder):
    """Put the plugin onto the import path, with a dist-info, and its chains into the rulebook."""
    plugins = folder.path / "plugins"
    info = plugins / "chaos-1.dist-info"
    info.mkdir(parents=True)
    (plugins / "chaos.py").write_text(_PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: chaos\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[dispatcher.handlers]\n" + "".join(f"chaos_{name.lower()} = chaos:{name}\n" for name in _HANDLERS)
    )
    folder.environ["PYTHONPATH"] = str(plugins)
    rulebook = folder.path / "rulebook.yaml"
    rulebook.write_text(rulebook.read_text() + CHAINS)
    return folder


def calls(folder):
    """Return the (event, key) of every call that was made."""
    path = folder.path / "calls.txt"
    return [tuple(line.split()) for line in path.read_text().splitlines()] if path.exists() else []


def query(folder, statement, store="store.db"):
    """Read the store beside whoever writes it."""
    with closing(sqlite3.connect(f"file:{folder.path / store}?mode=ro", uri=True, timeout=10)) as connection:
        return connection.execute(statement).fetchall()


def count(folder, what):
    return query(folder, f"SELECT count(*) FROM {what}")[0][0]


def log_lines(err):
    """Return what a worker logged; every line of its stderr must be JSON, so a traceback is found."""
    return [json.loads(line) for line in err.decode().splitlines()]


def all_is_well(folder, events):
    """Assert that of so many poll_complete events each had its effects once, and nothing is left over."""
    assert query(folder, "PRAGMA integrity_check") == [("ok",)]
    assert query(folder, "SELECT state, count(*) FROM runs GROUP BY 1") == [("done", 2 * events)]
    assert query(folder, "SELECT event_type, state, count(*) FROM events GROUP BY 1, 2") == [
        ("poll_complete", "matched", events),
        ("welcome_sent", "matched", events),
    ]
    assert count(folder, "contacts") == count(folder, "(SELECT DISTINCT msisdn FROM contacts)") == events
    assert count(folder, "messages") == count(folder, "(SELECT DISTINCT to_addr FROM messages)") == events
    assert count(folder, "(SELECT DISTINCT parent_id FROM events WHERE hops = 1)") == events
    assert count(folder, "steps WHERE state <> 'done'") == 0
    assert count(folder, "dead_letters") == 0
