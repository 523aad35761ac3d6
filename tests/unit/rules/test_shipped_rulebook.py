"""The rulebook that is shipped, and its JSON Schema."""

from __future__ import annotations

from pathlib import Path

from dispatcher.rules.plan import check_rulebook, json_schema, load_plan

SHIPPED = Path(__file__).parents[3] / "config" / "handlers.yaml"


def test_the_shipped_rulebook_passes_the_strict_check(registry):
    assert check_rulebook([SHIPPED], registry, strict=True) == []


def test_the_shipped_rulebook_runs_without_any_setting(registry):
    plan = load_plan(SHIPPED, registry, default_region=None, environ={})

    assert not plan.disabled
    assert [chain.name for chain in plan.chains if chain.default] == ["nobody-listens"]
    assert plan.services["clinic"].base_url == "http://127.0.0.1:8790"


def test_the_schema_describes_every_installed_handler_sender_and_service(registry):
    schema = json_schema(registry)
    definitions = schema["$defs"]
    step = definitions["HandlerStep"]

    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert set(step["properties"]["handler"]["enum"]) == set(registry.handlers)
    assert {rule["if"]["properties"]["handler"]["const"] for rule in step["allOf"]} == set(registry.handlers)
    assert set(definitions["Sender"]["properties"]["type"]["enum"]) == set(registry.senders)
    assert set(definitions["Service"]["properties"]["type"]["enum"]) == set(registry.services)
    assert definitions["send_sms.params"]["required"] == ["to", "text"]


def test_the_schema_allows_templates_where_they_are_read_and_nowhere_else(registry):
    params = json_schema(registry)["$defs"]["send_sms.params"]["properties"]

    assert any("pattern" in choice for choice in params["to"]["anyOf"])
    assert "anyOf" not in params["sender"]


def test_every_reference_in_the_schema_leads_somewhere(registry):
    schema = json_schema(registry)
    found = set()

    def look(value):
        if isinstance(value, dict):
            if "$ref" in value:
                found.add(value["$ref"].removeprefix("#/$defs/"))
            for inner in value.values():
                look(inner)
        elif isinstance(value, list):
            for inner in value:
                look(inner)

    look(schema)

    assert found <= schema["$defs"].keys()
    assert "null" not in str(schema["$defs"]["ChainShape"])
