from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from dispatcher import Context, Done, Effect, Event, Handler, Outcome, Sender, Service
from dispatcher.errors import CannotStart
from dispatcher.plugins import registry as module
from dispatcher.plugins.registry import HANDLERS, SENDERS, SERVICES, Installed, classify, load_registry

BUILT_IN_HANDLERS = [
    "create_contact", "emit_event", "http_request", "log_event", "opt_out",
    "send_command", "send_sms", "subscribe", "update_contact",
]  # fmt: skip
BUILT_IN_SENDERS = [
    "africas_talking", "clickatell", "http", "infobip", "junebug", "kannel", "outbox", "twilio", "vonage",
    "vumi",
]  # fmt: skip

GOOD = '''
from dispatcher import Done, Effect, Handler

class Good(Handler):
    """Does nothing. Emits nothing. Twice is once."""
    effect = Effect.PURE
    def run(self, event, context):
        return Done()
'''


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a distribution as a folder on the import path: modules, and a dist-info beside them."""

    def installed(name, entry_points, modules, version="1.0"):
        site = tmp_path / name
        info = site / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        lines = []
        for group, names in entry_points.items():
            lines += [f"[{group}]", *(f"{entry} = {target}" for entry, target in names.items())]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
        for path, source in modules.items():
            (site / path).write_text(source)
            monkeypatch.delitem(sys.modules, Path(path).stem, raising=False)
        monkeypatch.syspath_prepend(str(site))

    return installed


def test_the_built_ins_are_all_there_and_whole():
    registry = load_registry()
    registry.load_all()
    assert registry.broken == {}
    assert list(registry.handlers) == BUILT_IN_HANDLERS
    assert list(registry.senders) == BUILT_IN_SENDERS
    assert list(registry.services) == ["http", "vumi"]
    assert registry.handlers["send_sms"].distribution == "event-dispatcher"


def test_nothing_is_imported_before_it_is_named(install):
    install("lazy", {HANDLERS: {"lazy_one": "lazy_module:Good"}}, {"lazy_module.py": GOOD})
    registry = load_registry()
    assert "lazy_one" in registry.handlers.names()
    assert "lazy_module" not in sys.modules
    found = registry.handlers["lazy_one"]
    assert isinstance(found, Installed)
    assert (found.name, found.distribution, found.version) == ("lazy_one", "lazy", "1.0")
    assert found.target.__name__ == "Good"
    assert "lazy_module" in sys.modules


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import there_is_no_such_module", "ModuleNotFoundError"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("raise BaseException('odd')", "BaseException: odd"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def broken(:", "SyntaxError"),
        ("x = 1", "AttributeError"),
        ("Good = 7", "not a class"),
    ],
)
def test_a_plugin_that_cannot_be_loaded_is_broken_by_name_and_harms_no_other(install, source, reason):
    install("bad", {HANDLERS: {"bad_one": "bad_module:Good"}}, {"bad_module.py": source})
    registry = load_registry()
    assert registry.handlers.get("bad_one") is None
    broken = registry.broken[HANDLERS, "bad_one"]
    assert (broken.name, broken.distribution, broken.version) == ("bad_one", "bad", "1.0")
    assert reason in broken.reason
    assert "bad_one" not in registry.handlers.names()
    assert registry.handlers["send_sms"]


def test_ctrl_c_during_an_import_is_no_fault_of_the_plugin(install):
    install("slow", {HANDLERS: {"slow_one": "slow_module:Good"}}, {"slow_module.py": "raise KeyboardInterrupt"})
    registry = load_registry()
    with pytest.raises(KeyboardInterrupt):
        registry.handlers.get("slow_one")


def test_two_distributions_with_one_name_break_that_name_and_both_are_named(install):
    install("one", {HANDLERS: {"shared": "one_module:Good", "own": "one_module:Good"}}, {"one_module.py": GOOD})
    install("two", {HANDLERS: {"shared": "two_module:Good"}}, {"two_module.py": GOOD}, version="2.1")
    registry = load_registry()
    assert "shared" not in registry.handlers
    reason = registry.broken[HANDLERS, "shared"].reason
    assert "one 1.0" in reason
    assert "two 2.1" in reason
    assert "own" in registry.handlers


def test_nobody_takes_a_built_in_name_unseen(install):
    install("thief", {HANDLERS: {"send_sms": "thief_module:Good"}}, {"thief_module.py": GOOD})
    registry = load_registry()
    assert registry.handlers.get("send_sms") is None
    assert "event-dispatcher" in registry.broken[HANDLERS, "send_sms"].reason
    assert "thief" in registry.broken[HANDLERS, "send_sms"].reason


def test_one_name_may_stand_in_two_groups(install):
    source = GOOD + "\nfrom dispatcher import Service\nclass Line(Service):\n    '''A line.'''\n"
    names = {HANDLERS: {"both": "both_module:Good"}, SERVICES: {"both": "both_module:Line"}}
    install("both", names, {"both_module.py": source})
    registry = load_registry()
    assert registry.handlers["both"].target is not registry.services["both"].target


@pytest.mark.parametrize("files", [["__init__.py"], ["__init__.py", "log_event.py"]])
def test_a_folder_called_handlers_does_not_pass_for_ours(tmp_path, files):
    (tmp_path / "handlers").mkdir()
    for name in files:
        (tmp_path / "handlers" / name).write_text(GOOD.replace("Good", "LogEvent"))
    code = (
        "from dispatcher.plugins.registry import load_registry; registry = load_registry();"
        "print(registry.handlers.get('log_event'), *registry.broken.values())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert found.stdout.startswith("None log_event of event-dispatcher")
    assert "stands before the built-in package" in found.stdout


def test_without_our_own_distribution_nothing_can_start(monkeypatch):
    monkeypatch.setattr(module, "entry_points", lambda group: ())
    with pytest.raises(CannotStart, match="not installed"):
        load_registry()


def test_a_group_is_a_mapping_of_what_works(install):
    install(
        "mixed",
        {HANDLERS: {"mixed_good": "mixed_module:Good", "mixed_bad": "mixed_module:Nothing"}},
        {"mixed_module.py": GOOD},
    )
    handlers = load_registry().handlers
    assert "mixed_bad" in handlers.names()
    assert "mixed_bad" not in dict(handlers)
    assert len(handlers) == len(BUILT_IN_HANDLERS) + 1
    with pytest.raises(KeyError):
        handlers["mixed_bad"]
    with pytest.raises(KeyError):
        handlers["never_heard_of"]


class Sound(Handler):
    """A sound handler."""

    effect = Effect.PURE

    def run(self, event: Event, context: Context) -> Outcome:
        return Done()


def handler_like(**changes):
    return type("Changed", (Sound,), {"__doc__": "Changed.", "__module__": __name__, **changes})


def test_a_sound_handler_has_nothing_wrong():
    assert classify(HANDLERS, "sound", Sound) is None
    assert classify(HANDLERS, "sound", handler_like()) is None


class Plain(Sound):
    """Its result is a plain class."""

    class Result:
        """Plain."""


async def run_async(self, event, context):
    return Done()


@pytest.mark.parametrize(
    ("name", "target", "reason"),
    [
        ("Sound", Sound, "lower case"),
        ("wait", Sound, "control"),
        ("sound", Done, "not a subclass of dispatcher.Handler"),
        ("sound", Handler, "does not say its effect"),
        ("sound", handler_like(effect="pure"), "does not say its effect"),
        ("sound", handler_like(__doc__=None), "no docstring"),
        ("sound", Plain, "not a pydantic model"),
        ("sound", handler_like(timeout=timedelta(0)), "timeout"),
        ("sound", handler_like(transient=(int,)), "transient"),
        ("sound", handler_like(run=run_async), "async"),
    ],
)
def test_what_is_wrong_with_a_handler_is_said(name, target, reason):
    assert reason in classify(HANDLERS, name, target)


def test_a_handler_without_run_is_broken():
    class Idle(Handler):
        """Idle."""

        effect = Effect.PURE

    assert "no `run`" in classify(HANDLERS, "idle", Idle)


def test_a_call_may_be_async():
    assert classify(HANDLERS, "sound", handler_like(run=run_async, effect=Effect.CALL)) is None


def test_a_sender_does_what_its_effect_needs():
    class Caller(Sender):
        """Calls."""

    class Queuer(Sender):
        """Queues."""

        effect = Effect.TRANSACTION

    class Pure(Sender):
        """Neither."""

        effect = Effect.PURE

    assert "no `send`" in classify(SENDERS, "x", Caller)
    assert "no `queue`" in classify(SENDERS, "x", Queuer)
    assert "neither" in classify(SENDERS, "x", Pure)
    assert "not a subclass of dispatcher.Sender" in classify(SENDERS, "x", Service)
    assert "not a subclass of dispatcher.Service" in classify(SERVICES, "x", Sound)
