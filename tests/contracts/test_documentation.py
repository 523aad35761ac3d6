"""What README.md and docs/ say is so: examples run, names exist, and no verb, setting, handler or code goes unnamed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from datetime import timedelta
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from dispatcher.cli.main import VERBS
from dispatcher.events.limits import REFUSAL_CODES, Limits, Refusal
from dispatcher.events.transport import read_transport_event
from dispatcher.events.wire import decode
from dispatcher.plugins.handler import AtLoad
from dispatcher.plugins.registry import load_registry
from dispatcher.rules.expressions.compiler import TEST_NAMES
from dispatcher.rules.expressions.filters import FILTER_NAMES
from dispatcher.rules.plan import check_rulebook
from dispatcher.rules.shape import (
    ChainShape,
    DefaultsShape,
    FragmentShape,
    HandlerStep,
    RetryShape,
    StopStep,
    WaitStep,
)
from dispatcher.senders.replies import ReplyRules
from dispatcher.settings import Settings
from dispatcher.text.durations import format_duration

ROOT = Path(__file__).parents[2]
SCRIPT = Path(sys.executable).with_name("dispatcher")
DOCUMENTS = {
    path.relative_to(ROOT).as_posix(): path.read_text("utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
README = DOCUMENTS["README.md"]

_BLOCK = re.compile(
    r"(?:^<!-- (?P<label>[\w.-]+) -->\n)?^```(?P<info>[^\n`]+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
_LINK = re.compile(r"\]\((?!https?://)(?P<path>[^)#]*)(?:#(?P<anchor>[^)]+))?\)")

# How tables say that a thing has no default.
NOTHING = "\N{EN DASH}"

# What a run's, an event's and a call's dead letters say; those of deliveries are in events/limits.
LATER_REASONS = {"unknown_message", "loop", "crashed", "failed", "exhausted", "unknown", "cannot_bind"}
PROBLEM_CODES = {
    *("yaml_syntax", "unknown_key", "missing_key", "wrong_type", "bad_value", "duplicate_key"),
    *("duplicate_name", "anchor", "comment_in_text", "unknown_handler", "broken_handler", "unknown_param"),
    *("missing_param", "bad_param", "template_syntax", "unsafe_template", "undefined_name", "unknown_step"),
    *("bad_duration", "unknown_sender", "unknown_service", "include_missing", "env_missing", "emit_cycle"),
    *("unreachable",),
}

# What an example that is not a whole rulebook stands in.
HEAD = """\
version: 1
accounts: {acc1: {region: ZA}}
vars: {copy: {en: "Thank you!", zu: "Siyabonga!"}}
events:
  - conversation_type: vxpolls
    event_type: poll_complete
    fields: {msisdn: text, name: text, consent: text, language: text, answers: object}
senders: {default: {type: outbox}}
services: {crm: {type: http, base_url: "https://crm.example"}}
"""
SOUND_CHAIN = "chains:\n  - {name: fine, steps: [{handler: log_event}]}\n"


class Block:
    """A fenced block: the words behind its fence, its text, and the comment above it."""

    def __init__(self, document, found):
        self.document = document
        self.words = found["info"].split()
        self.text = found["text"]
        self.label = found["label"]
        self.line = DOCUMENTS[document].count("\n", 0, found.start("info")) + 1

    def __repr__(self):
        return f"{self.document}:{self.line}"


BLOCKS = [Block(name, found) for name, text in DOCUMENTS.items() for found in _BLOCK.finditer(text)]
REGISTRY = load_registry()


def blocks(*words):
    return [block for block in BLOCKS if block.words[: len(words)] == list(words)]


def as_rulebook(kind, text):
    """Make a whole rulebook of an example."""
    match kind:
        case "rulebook":
            return text
        case "section":
            return f"version: 1\n{text}{SOUND_CHAIN}"
        case "chain":
            return f"{HEAD}chains:\n{textwrap.indent(text, '  ')}"
        case "steps":
            on = "{conversation_type: vxpolls, event_type: poll_complete}"
            return f"{HEAD}chains:\n  - name: example\n    on: {on}\n    steps:\n{textwrap.indent(text, '      ')}"
    raise AssertionError(f"an example is a rulebook, a section, a chain or steps, not {kind!r}")


@pytest.fixture
def check(tmp_path):
    def check_text(kind, text):
        (tmp_path / "rulebook.yaml").write_text(as_rulebook(kind, text))
        return check_rulebook([tmp_path / "rulebook.yaml"], REGISTRY)

    return check_text


# Examples.


def test_every_block_of_yaml_says_what_it_is():
    kinds = {"rulebook", "section", "chain", "steps", "broken", "fragment"}

    assert [block for block in blocks("yaml") if block.words[1:2] == [] or block.words[1] not in kinds] == []


@pytest.mark.parametrize("block", [b for b in blocks("yaml") if b.words[1] not in ("broken", "fragment")], ids=repr)
def test_an_example_of_a_rulebook_is_sound(block, check):
    assert [str(problem) for problem in check(block.words[1], block.text)] == []


@pytest.mark.parametrize("block", blocks("yaml", "broken"), ids=repr)
def test_an_example_of_a_problem_has_that_problem_and_no_other(block, check):
    kind = block.words[3] if len(block.words) > 3 else "steps"

    assert [problem.code for problem in check(kind, block.text)] == [block.words[2]]


@pytest.mark.parametrize("block", blocks("json", "event"), ids=repr)
def test_an_example_of_an_event_is_read(block):
    assert decode(block.text.encode(), Limits()).event_type


@pytest.mark.parametrize("block", blocks("json", "report"), ids=repr)
def test_an_example_of_a_report_is_read(block):
    assert read_transport_event(block.text.encode(), Limits()).message_id


@pytest.mark.parametrize("document", sorted({block.document for block in blocks("python")}))
def test_examples_in_python_run_one_after_the_other(document, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "example"}
    for block in blocks("python"):
        if block.document == document:
            exec(compile("\n" * block.line + block.text, str(ROOT / document), "exec", dont_inherit=True), names)


def test_the_first_chain_of_the_readme_does_what_it_says(tmp_path):
    texts = {block.label: block.text for block in BLOCKS if block.document == "README.md"}
    for name in ("first.yaml", "event.json"):
        (tmp_path / name).write_text(texts[name])
    environ = {name: value for name, value in os.environ.items() if not name.startswith("DISPATCHER_")}
    environ["PATH"] = f"{SCRIPT.parent}{os.pathsep}{os.environ['PATH']}"

    done = subprocess.run(
        ["sh", "-ec", texts["walkthrough"]], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert re.search(r"^welcome: matched", done.stdout, re.MULTILINE)
    assert re.search(r"\+27821234567 +queued +Thanks Thandi!", done.stdout)
    assert "1 stored, 0 duplicates, 0 refused" in done.stderr


def test_a_mistake_in_the_first_chain_is_told_as_the_readme_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts = {block.label: block.text for block in BLOCKS}
    Path("first.yaml").write_text(texts["first.yaml"].replace("steps.contact.name", "steps.contact.nmae"))

    (problem,) = check_rulebook(["first.yaml"], REGISTRY)

    told = f"{problem.file}:{problem.line}:{problem.column}: {problem.code}: … Did you mean {problem.suggestion!r}?"
    assert told in README


# Names.


def every_document(*names):
    return "\n".join(text for name, text in DOCUMENTS.items() if not names or name in names)


def test_the_readme_names_the_two_commands():
    assert re.search(r"^make demo\b", README, re.MULTILINE)
    assert re.search(r"^make test\b", README, re.MULTILINE)


def test_every_verb_is_in_the_readme():
    told = set(re.findall(r"^\| `dispatcher (\w+)", README, re.MULTILINE))

    assert told == set(VERBS)


@pytest.mark.parametrize("verb", ["events", "runs", "dead", "contacts", "messages"])
def test_every_sub_verb_is_in_the_readme(verb):
    import importlib

    app = importlib.import_module(f"dispatcher.cli.{verb}").app
    names = [command.name or command.callback.__name__ for command in app.registered_commands]
    row = re.search(rf"^\| `dispatcher {verb} ([^`]+)`", README, re.MULTILINE)

    assert row is not None
    assert row[1].split("\\|") == names


@pytest.mark.parametrize(
    "word",
    re.findall(r"`dispatcher ((?:events|runs|dead|contacts|messages) \w+|\w+)", every_document()),
)
def test_a_verb_that_is_named_exists(word):
    verb, _, rest = word.partition(" ")

    assert verb in VERBS
    if rest:
        assert re.search(rf"^\| `dispatcher {verb} [^`]*\b{rest}\b", README, re.MULTILINE)


def test_every_setting_is_in_the_table_as_it_is():
    rows = {
        f"| `DISPATCHER_{name.upper()}` | {shown(field.default)} | {field.description} |"
        for name, field in Settings.model_fields.items()
    }
    told = set(re.findall(r"^\| `DISPATCHER_\w+` \|.*\|$", DOCUMENTS["docs/operators.md"], re.MULTILINE))

    assert told == rows


def shown(default):
    return NOTHING if default in (None, "") else f"`{default}`"


def test_every_variable_that_is_named_exists():
    names = set(re.findall(r"\bDISPATCHER_[A-Z][A-Z_]*[A-Z]", every_document()))
    known = {f"DISPATCHER_{name.upper()}" for name in Settings.model_fields}

    assert names <= {*known, "DISPATCHER_AMQP_URL"}


def test_every_reason_of_a_dead_letter_has_its_row_for_operators():
    told = set(re.findall(r"^\| `(\w+)` \| (?:delivery|event|run|any)", DOCUMENTS["docs/operators.md"], re.MULTILINE))

    assert told == {*REFUSAL_CODES, *LATER_REASONS}


def test_every_line_that_is_logged_is_explained_to_operators():
    sources = [*(ROOT / "dispatcher").rglob("*.py"), *(ROOT / "handlers").glob("*.py")]
    call = re.compile(r'(?:\blog\.\w+|getattr\(log, self\.level\)|_say_once)\(\s*"([a-z_]+\.[a-z_]+)"')
    logged = {name for path in sources for name in call.findall(path.read_text())}

    assert {"worker.started", "event.logged", "store.unusable"} <= logged
    assert {name for name in logged if f"`{name}`" not in DOCUMENTS["docs/operators.md"]} == set()


@pytest.mark.parametrize(
    ("code", "body"), re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", DOCUMENTS["docs/events.md"], re.MULTILINE)
)
def test_an_example_of_a_refusal_is_refused_so(code, body):
    with pytest.raises(Refusal) as refused:
        decode(body.encode(), Limits())

    assert refused.value.code == code


def test_every_refusal_code_is_in_the_manual_of_events_in_its_order():
    assert re.findall(r"^\| `(\w+)` \|", DOCUMENTS["docs/events.md"].partition("## Refusals")[2], re.MULTILINE) == list(
        REFUSAL_CODES
    )


def test_every_problem_code_has_its_section():
    told = set(re.findall(r"^### (\w+)$", DOCUMENTS["docs/rulebook.md"], re.MULTILINE))

    assert told == PROBLEM_CODES


def test_every_code_that_the_rules_give_is_a_problem_code():
    source = "\n".join(path.read_text() for path in (ROOT / "dispatcher" / "rules").rglob("*.py"))
    given = set(re.findall(r'(?:note|add|_note|yield Advice|TemplateProblem)\([^"\n]*"([a-z]+_[a-z_]+)"', source))

    assert given
    assert given <= PROBLEM_CODES


def test_every_key_of_the_rulebook_is_in_its_manual():
    manual = DOCUMENTS["docs/rulebook.md"]
    shapes = (FragmentShape, ChainShape, HandlerStep, WaitStep, StopStep, RetryShape, DefaultsShape)
    keys = {field.alias or name for shape in shapes for name, field in shape.model_fields.items()}

    assert {key for key in keys if f"`{key}" not in manual} == set()


def test_every_filter_and_test_of_expressions_is_in_the_manual():
    manual = DOCUMENTS["docs/rulebook.md"]
    lines = {kind: re.search(rf"^- \*\*{kind}\*\*: (.*)\.$", manual, re.MULTILINE)[1] for kind in ("Filters", "Tests")}

    assert re.findall(r"`(\w+)`", lines["Filters"]) == sorted(FILTER_NAMES)
    assert re.findall(r"`(\w+)`", lines["Tests"]) == sorted(TEST_NAMES)


# Handlers, senders, services.


def params_of(model):
    """Say each param in a row: its name, type, default, and what it means."""
    from dispatcher.cli.handlers import type_text

    schema = model.model_json_schema()
    for name, field in model.model_fields.items():
        kind = type_text(schema["properties"][name], schema.get("$defs", {})).replace("|", "\\|")
        if any(isinstance(mark, AtLoad) for mark in field.metadata):
            kind += ", at load"
        yield f"| `{name}` | {kind} | {default_of(field)} | {field.description.replace('|', '&#124;')} |"


def default_of(field):
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value in (None, "", (), [], {}) or isinstance(value, BaseModel):
        return NOTHING
    if isinstance(value, timedelta):
        return f"`{format_duration(value)}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def sections(document):
    """Return the text below each heading that is a name in code: `name`."""
    parts = re.split(r"^## `?(\w+)`?.*$", DOCUMENTS[document], flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def own(group):
    return {name: group[name].target for name in group if group[name].distribution == "event-dispatcher"}


@pytest.mark.parametrize(("name", "handler"), own(REGISTRY.handlers).items())
def test_every_handler_has_its_page(name, handler):
    page = sections("docs/handlers.md")[name]

    assert [row for row in params_of(handler) if row not in page] == []
    assert f"effect **{handler.effect.value}**" in page
    assert "**Emits**" in page
    assert "**Run twice**" in page
    assert {field for field in handler.Result.model_fields if f"`{field}`" not in page} == set()
    assert f"handler: {name}" in page


def test_no_page_is_about_a_handler_that_is_not_there():
    pages = {name for name, page in sections("docs/handlers.md").items() if "effect **" in page}

    assert pages == set(own(REGISTRY.handlers))


@pytest.mark.parametrize(("name", "sender"), own(REGISTRY.senders).items())
def test_every_sender_has_its_page(name, sender):
    page = sections("docs/gateways.md")[name]

    common = ("concurrency", "rate", "from_addr", "timeout")
    wanted = [row for row in params_of(sender) if not row.startswith(tuple(f"| `{each}` |" for each in common))]
    assert [row for row in wanted if row not in page] == []
    assert f"type: {name}" in page


@pytest.mark.parametrize(("name", "service"), own(REGISTRY.services).items())
def test_every_service_has_its_page(name, service):
    page = sections("docs/gateways.md")["services"]

    assert [row for row in params_of(service) if row not in page] == []
    assert f"type: {name}" in page


def test_every_rule_for_replies_is_in_the_manual():
    assert [row for row in params_of(ReplyRules) if row not in sections("docs/gateways.md")["http"]] == []


def test_every_public_name_is_in_the_manual_for_plugin_authors():
    import dispatcher

    manual = DOCUMENTS["docs/plugins.md"]
    assert {name for name in dispatcher.__all__ if not re.search(rf"\b{name}\b", manual)} == set()


def test_every_outcome_is_explained():
    from dispatcher import Outcome

    told = set(re.findall(r"^\| `([A-Z]\w+)\(", DOCUMENTS["docs/plugins.md"], re.MULTILINE))

    assert told == {kind.__name__ for kind in get_args(Outcome)}


# Files.


def tree():
    """Return the paths of the tree in the README, folders with a slash behind them."""
    (block,) = blocks("tree")
    paths, folder = [], ""
    for line in block.text.splitlines():
        name = line.split()[0]
        if line.startswith("  "):
            paths.append(folder + name)
        else:
            folder = name
            paths.append(name)
    return paths


def test_the_tree_in_the_readme_is_the_real_one():
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    files = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    real = set()
    for path in files:
        top, slash, rest = path.partition("/")
        if not top.startswith("."):
            real.add(top + slash)
        if top == "dispatcher":
            name, inner, _ = rest.partition("/")
            real.add(f"dispatcher/{name}{inner}")

    assert set(tree()) == real


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_leads_somewhere(document):
    broken = []
    for link in _LINK.finditer(DOCUMENTS[document]):
        target = (ROOT / document).parent / link["path"] if link["path"] else ROOT / document
        if not target.exists() or (link["anchor"] and link["anchor"] not in anchors(target.read_text("utf-8"))):
            broken.append(link[0])

    assert broken == []


def anchors(text):
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_schema_names_every_handler_that_the_manual_does():
    command = [str(SCRIPT), "schema"]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert {name for name in own(REGISTRY.handlers) if name not in json.dumps(told)} == set()
