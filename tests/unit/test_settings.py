"""Settings: what they are read from, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from dispatcher.errors import CannotStart, SettingsRefused
from dispatcher.settings import Settings, load_settings


def refused(environ=None, **flags):
    with pytest.raises(SettingsRefused) as caught:
        load_settings(environ or {}, **flags)
    return caught.value.messages


def test_nothing_given_means_the_defaults_of_the_manual():
    settings = load_settings({})

    assert settings == Settings()
    assert settings.store_path == Path("dispatcher.db")
    assert settings.rulebook == Path("config/handlers.yaml")
    assert settings.max_event_bytes == 1_048_576
    assert settings.max_depth == 32


def test_a_variable_wins_over_a_default_and_a_flag_over_a_variable():
    environ = {"DISPATCHER_STORE": "sqlite:///one.db", "DISPATCHER_BATCH_EVENTS": "7", "PATH": "/bin"}

    settings = load_settings(environ, store="sqlite:///two.db", rulebook=None)

    assert settings.store_path == Path("two.db")
    assert settings.batch_events == 7
    assert settings.rulebook == Path("config/handlers.yaml")


def test_the_environment_of_the_process_is_read_when_none_is_given(monkeypatch):
    monkeypatch.setenv("DISPATCHER_MAX_HOPS", "3")

    assert load_settings().max_hops == 3


def test_a_variable_set_to_nothing_counts_as_not_set():
    assert load_settings({"DISPATCHER_STORE": "", "DISPATCHER_AMQP_URL": ""}) == Settings()


@pytest.mark.parametrize(
    ("url", "path"),
    [("sqlite:///d.db", "d.db"), ("sqlite:////var/lib/d.db", "/var/lib/d.db"), ("sqlite:///a b/d.db", "a b/d.db")],
)
def test_a_store_is_a_file_named_by_a_url(url, path):
    assert load_settings({}, store=url).store_path == Path(path)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("dispatcher.db", 'write "sqlite:///dispatcher.db"'),
        ("sqlite://d.db", "three slashes"),
        ("sqlite:///", "must be a file"),
        ("sqlite:///dir/", "must be a file"),
        ("sqlite:///:memory:", "must be a file"),
        ("sqlite:///d.db?mode=ro", "takes no options"),
        ("postgresql://me@host/db", "postgresql:// needs a later version"),
        ("postgresql+psycopg://me@host/db", "needs a later version"),
        ("mysql://host/db", "mysql:// is no store"),
    ],
)
def test_any_other_store_is_refused_with_what_to_write(url, said):
    (message,) = refused({"DISPATCHER_STORE": url})

    assert message.startswith("DISPATCHER_STORE: ")
    assert said in message


def test_a_password_in_a_url_is_not_repeated():
    environ = {"DISPATCHER_STORE": "postgresql://me:s3cret@host/db", "DISPATCHER_AMQP_URL": "amqp://me:s3cret@host"}

    assert "s3cret" not in "".join(refused(environ))


def test_everything_wrong_is_told_at_once_by_the_name_it_was_given_under():
    environ = {
        "DISPATCHER_MAX_DEPTH": "0",
        "DISPATCHER_BATCH_EVENTS": "many",
        "DISPATCHER_DRAIN_SECONDS": "inf",
        "DISPATCHER_LOG_LEVEL": "loud",
        "DISPATCHER_DEFAULT_REGION": "South Africa",
    }

    messages = refused(environ, store="d.db")

    assert {message.partition(":")[0].partition("=")[0] for message in messages} == {*environ, "--store"}
    assert any("the most events in one commit (256 if not given)" in message for message in messages)


def test_a_misspelt_variable_is_refused_with_the_nearest_name():
    assert refused({"DISPATCHER_RULEBOK": "r.yaml"}) == (
        "DISPATCHER_RULEBOK is no setting of the dispatcher. Did you mean DISPATCHER_RULEBOOK?",
    )


@pytest.mark.parametrize("variable", ["DISPATCHER_CRM_TOKEN", "DISPATCHER_", "DISPATCHER_ZZ"])
def test_a_variable_that_resembles_nothing_is_refused_too(variable):
    (message,) = refused({variable: "x"})

    assert message.startswith(f"{variable} is no setting of the dispatcher. Variables of your own")


def test_a_variable_in_small_letters_is_refused_with_its_right_name():
    (message,) = refused({"DISPATCHER_store": "sqlite:///d.db"})

    assert message.endswith("Did you mean DISPATCHER_STORE?")


def test_what_kubernetes_sets_for_a_service_of_our_name_is_left_alone():
    environ = {
        "DISPATCHER_PORT": "tcp://10.0.0.7:80",
        "DISPATCHER_PORT_80_TCP": "tcp://10.0.0.7:80",
        "DISPATCHER_PORT_80_TCP_ADDR": "10.0.0.7",
        "DISPATCHER_SERVICE_HOST": "10.0.0.7",
        "DISPATCHER_SERVICE_PORT": "80",
        "DISPATCHER_SERVICE_PORT_HTTP": "80",
    }

    assert load_settings(environ) == Settings()


@pytest.mark.parametrize(
    ("environ", "flags", "name"),
    [({"DISPATCHER_AMQP_URL": "amqp://h"}, {}, "DISPATCHER_AMQP_URL"), ({}, {"amqp_url": "amqp://h"}, "--amqp")],
)
def test_a_broker_is_refused_for_now_rather_than_ignored(environ, flags, name):
    (message,) = refused(environ, **flags)

    assert message.startswith(f"{name} is set, but this version takes events from its own store")


def test_regions_levels_and_formats_are_read_in_any_case():
    environ = {
        "DISPATCHER_DEFAULT_REGION": "za",
        "DISPATCHER_LOG_LEVEL": "WARNING",
        "DISPATCHER_LOG_FORMAT": "Json",
    }

    settings = load_settings(environ)

    assert (settings.default_region, settings.log_level, settings.log_format) == ("ZA", "warning", "json")


def test_settings_do_not_change():
    with pytest.raises(ValidationError):
        load_settings({}).max_hops = 9


def test_a_refusal_is_a_reason_not_to_start_and_lists_its_messages_line_by_line():
    refusal = SettingsRefused(["one", "two"])

    assert isinstance(refusal, CannotStart)
    assert str(refusal) == "one\ntwo"


def test_every_setting_says_what_it_is_for():
    assert all(field.description for field in Settings.model_fields.values())
