"""`handlers` and `schema`: what is installed, told to people, programs and editors."""

from __future__ import annotations

import pytest

from dispatcher.cli.handlers import type_text

BUILT_IN = {
    "create_contact",
    "update_contact",
    "opt_out",
    "subscribe",
    "send_sms",
    "emit_event",
    "send_command",
    "http_request",
    "log_event",
}


def test_the_built_in_handlers_are_listed_with_effect_and_distribution(dispatcher):
    said = dispatcher("handlers", "--json")
    assert said.code == 0
    listed = {entry["name"]: entry for entry in said.document}
    assert listed.keys() >= BUILT_IN
    assert listed["create_contact"]["effect"] == "transaction"
    assert listed["create_contact"]["distribution"] == "event-dispatcher"
    assert listed["create_contact"]["broken"] is None


def test_the_table_fits_80_columns(dispatcher):
    lines = dispatcher("handlers").out.splitlines()
    assert lines[0].split() == ["name", "kind", "effect", "from"]
    assert max(map(len, lines)) <= 80


def test_a_kind_or_all_of_them_can_be_asked_for(dispatcher):
    assert {entry["kind"] for entry in dispatcher("handlers", "--kind", "sender", "--json").document} == {"sender"}
    kinds = {entry["kind"] for entry in dispatcher("handlers", "--kind", "all", "--json").document}
    assert kinds == {"handler", "sender", "service"}
    assert dispatcher("handlers", "--kind", "nonsense").code == 2


def test_a_manual_tells_params_and_what_later_steps_get(dispatcher):
    said = dispatcher("handlers", "create_contact")
    assert said.code == 0
    assert "Run twice = once" in said.out
    assert "msisdn: phone number, required" in said.out
    assert "if_exists: update | keep | fail, update if left out" in said.out
    assert "steps.<id>.created: true or false" in said.out


def test_a_manual_for_programs_has_the_schemas(dispatcher):
    document = dispatcher("handlers", "create_contact", "--json").document
    assert document["params"]["properties"]["msisdn"]["format"] == "msisdn"
    assert "created" in document["result"]["properties"]


def test_a_name_of_two_kinds_shows_both_and_asks_programs_which(dispatcher):
    assert dispatcher("handlers", "http").out.count("from event-dispatcher") == 2
    said = dispatcher("handlers", "http", "--json")
    assert said.code == 2
    assert "--kind" in said.err
    assert dispatcher("handlers", "http", "--kind", "service", "--json").document["kind"] == "service"


def test_an_unknown_name_says_what_was_meant(dispatcher):
    said = dispatcher("handlers", "create_contct")
    assert said.code == 1
    assert "Did you mean create_contact?" in said.err


def test_a_plugin_that_cannot_be_loaded_is_listed_with_its_reason(dispatcher, tmp_path, monkeypatch):
    info = tmp_path / "site" / "acme_broken-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-broken\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[dispatcher.handlers]\nbroken = acme_nowhere:Broken\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    said = dispatcher("handlers")
    assert said.code == 0
    assert "broken (handler of acme-broken 1.2): ModuleNotFoundError" in said.out
    assert dispatcher("handlers", "broken").code == 1


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "string"}, "text"),
        ({"type": "string", "format": "msisdn"}, "phone number"),
        ({"type": "string", "format": "password"}, "secret"),
        ({"enum": ["a", "b"]}, "a | b"),
        ({"const": "a"}, "a"),
        ({"type": "array", "items": {"type": "integer"}}, "list of whole number"),
        ({"type": "array"}, "list"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "text"),
        ({"anyOf": [{"type": "string"}, {"type": "number"}]}, "text or number"),
        ({"$ref": "#/$defs/Kind"}, "x | y"),
        ({}, "anything"),
    ],
)
def test_types_are_told_in_words(schema, text):
    assert type_text(schema, {"Kind": {"enum": ["x", "y"]}}) == text


def test_the_schema_knows_every_handler(dispatcher):
    said = dispatcher("schema")
    assert said.code == 0
    assert all(f'"{name}"' in said.out for name in BUILT_IN)
    assert said.document["$schema"].startswith("https://json-schema.org/")
