"""Settings: what they are read from, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from dispatcher.errors import CannotStart, SettingsRefused, StoreUnusable
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
        ("postgresql+psycopg://me@host/db", "write sqlite:///FILE, or postgresql://"),
        ("mysql://host/db", "mysql:// is no store; write sqlite:///FILE, or postgresql://"),
        ("my sql://host/db", "this is no URL; write sqlite:///FILE, or postgresql://"),
    ],
)
def test_any_other_store_is_refused_with_what_to_write(url, said):
    (message,) = refused({"DISPATCHER_STORE": url})

    assert message.startswith("DISPATCHER_STORE: ")
    assert said in message


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://host/db", "postgresql://host/db"),
        ("postgresql:///db?host=/run/postgresql", "postgresql:///db?host=/run/postgresql"),
        ("postgresql://me:s3cret@host:5433/db", "postgresql://me:***@host:5433/db"),
        ("postgresql://me:s3cr%2Fet@[::1]/my%20db", "postgresql://me:***@[::1]/my%20db"),
        ("postgresql://me@h/db?password=s3cret&sslmode=require", "postgresql://me@h/db?password=***&sslmode=require"),
        ("postgresql:///db?sslkey=k&sslpassword=s3cret", "postgresql:///db?sslkey=k&sslpassword=***"),
    ],
)
def test_a_store_may_be_a_database_whose_url_is_shown_without_its_password(url, shown):
    settings = load_settings({}, store=url)

    assert (settings.store, settings.store_kind, settings.store_shown) == (url, "postgresql", shown)
    assert settings.store_url() == url
    assert "s3cr" not in repr(settings)


def test_a_file_is_shown_as_it_is():
    settings = load_settings({}, store="sqlite:///d.db")

    assert (settings.store_kind, settings.store_shown, settings.store_url()) == ("sqlite", "d.db", "sqlite:///d.db")


def test_the_short_name_of_postgresql_is_written_in_full():
    assert load_settings({}, store="postgres://me@host/db").store == "postgresql://me@host/db"


def test_a_database_has_no_path():
    with pytest.raises(RuntimeError, match="no file"):
        _ = load_settings({}, store="postgresql://host/db").store_path


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql//me:s3cret@host/db", "a store is named by a URL"),
        ("s3cret s://me@host/db", "this is no URL"),
        ("postgresql://me:s3cret@host", "it names no database"),
        ("postgresql://me:s3cret@host/", "it names no database"),
        ("postgresql://me:12?s3cret@host/db", "it names no database"),
        ("postgresql://me:s3cret@host:0/db", "it names no one host"),
        ("postgresql://me:s3cret@one,two/db", "it names no one host"),
        ("postgresql://me:s3cret@host:99999/db", "the host or the port cannot be read"),
        ("postgresql://me:s3cret/@host/db", "the host or the port cannot be read"),
        ("postgresql://me:12/s3cret@host/db", "it cannot be read without doubt"),
        ("postgresql://me:s3@cret@host/db", "it cannot be read without doubt"),
        ("postgresql://me:s3cret@host/db/more", "it cannot be read without doubt"),
        ("postgresql://me:s3 cret@host/db", "it cannot be read without doubt"),
        ("postgresql://me:12#s3cret@host/db", "it cannot be read without doubt"),
        ("postgresql://me:12/3?s3cret@host/db", 'options are written "?sslmode='),
        ("postgresql://me:s3cret@host/db?", 'options are written "?sslmode='),
        ("postgresql://me@host/db?password=s3&cret", 'options are written "?sslmode='),
        ("postgresql://me:s3cret@host/db?dbname=other", "the database is named behind the host"),
        ("postgresql://me:s3cret%@host/db", "a % must be followed by two digits"),
    ],
)
def test_a_url_that_names_no_database_is_refused_without_repeating_what_may_be_a_password(url, said):
    (message,) = refused({"DISPATCHER_STORE": url})

    assert message.startswith("DISPATCHER_STORE: ")
    assert said in message
    assert "s3" not in message
    assert "cret" not in message


@pytest.mark.parametrize(
    ("url", "with_it"),
    [
        ("postgresql://me@host:5433/db", "postgresql://me:s3%2Fcr%20et@host:5433/db"),
        ("postgresql://host/db", "postgresql://host/db?password=s3%2Fcr%20et"),
        ("postgresql:///db?user=me", "postgresql:///db?user=me&password=s3%2Fcr%20et"),
    ],
)
def test_the_password_of_a_store_is_read_from_its_file_each_time(tmp_path, url, with_it):
    file = tmp_path / "password"
    settings = load_settings({"DISPATCHER_STORE_PASSWORD_FILE": str(file)}, store=url)

    file.write_text("s3/cr et\n")
    assert settings.store_url() == with_it
    file.write_text("another")
    assert "another" in settings.store_url()
    assert settings.store_shown == url


@pytest.mark.parametrize(("content", "said"), [(None, "cannot be read: No such file"), (b"\xff", "is no UTF-8 text")])
def test_a_password_file_that_cannot_be_read_is_told(tmp_path, content, said):
    file = tmp_path / "password"
    if content is not None:
        file.write_bytes(content)
    settings = load_settings({"DISPATCHER_STORE_PASSWORD_FILE": str(file)}, store="postgresql://me@host/db")

    with pytest.raises(StoreUnusable, match=f"password file {file} {said}"):
        settings.store_url()


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"DISPATCHER_STORE_PASSWORD_FILE": "p"}, "DISPATCHER_STORE_PASSWORD_FILE is for a PostgreSQL store"),
        (
            {"DISPATCHER_STORE": "postgresql://me:s3cret@h/db", "DISPATCHER_STORE_PASSWORD_FILE": "p"},
            "DISPATCHER_STORE_PASSWORD_FILE and DISPATCHER_STORE both name a password",
        ),
        (
            {"DISPATCHER_STORE": "postgresql://h/db?password=s3cret", "DISPATCHER_STORE_PASSWORD_FILE": "p"},
            "DISPATCHER_STORE_PASSWORD_FILE and DISPATCHER_STORE both name a password",
        ),
        ({"DISPATCHER_WORKERS": "2"}, "DISPATCHER_WORKERS: one process writes an SQLite file"),
        (
            {"DISPATCHER_STORE": "postgresql://h/db", "DISPATCHER_LEASE_SECONDS": "30"},
            "DISPATCHER_LEASE_SECONDS: DISPATCHER_LEASE_SECONDS (30) must be greater than",
        ),
        (
            {"DISPATCHER_STORE": "postgresql://h/db", "DISPATCHER_HANDLER_HANG_SECONDS": "90"},
            "DISPATCHER_HANDLER_HANG_SECONDS: DISPATCHER_LEASE_SECONDS (60) must be greater than",
        ),
    ],
)
def test_settings_of_the_store_that_contradict_each_other_are_refused(environ, said):
    (message,) = refused(environ)

    assert message.startswith(said)
    assert "s3cret" not in message


def test_a_lease_means_nothing_to_a_file_and_many_workers_share_a_database():
    assert load_settings({"DISPATCHER_HANDLER_HANG_SECONDS": "90"}).lease_seconds == 60
    assert load_settings({"DISPATCHER_STORE": "postgresql://h/db"}, workers=8).workers == 8


def test_a_password_in_a_url_is_not_repeated():
    environ = {"DISPATCHER_STORE": "mysql://me:s3cret@host/db", "DISPATCHER_AMQP_URL": "amqp//me:s3cret@host"}

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
    ("url", "shown"),
    [
        ("amqp://broker", "amqp://broker"),
        ("amqp://vumi@broker:5673/vumi", "amqp://vumi@broker:5673/vumi"),
        ("amqp://vumi:s3cret@broker/%2Fvumi", "amqp://vumi:***@broker/%2Fvumi"),
        ("amqps://vumi:s3cr%2Fet@[::1]:5671/", "amqps://vumi:***@[::1]:5671/"),
        ("amqp://:s3cret@broker", "amqp://:***@broker"),
    ],
)
def test_a_broker_is_named_by_a_url_that_is_shown_without_its_password(url, shown):
    settings = load_settings({}, amqp_url=url)

    assert settings.amqp_url == url
    assert settings.amqp_url_shown == shown
    assert "s3cr" not in repr(settings)


def test_without_a_url_there_is_no_broker_to_show():
    settings = load_settings({})

    assert (settings.amqp_url, settings.amqp_url_shown, settings.http_address) == (None, None, None)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("broker:5672", "a broker is named by a URL"),
        ("http://me:s3cret@broker", "http:// is no broker"),
        ("s3cret s://me@broker", "this is no URL"),
        ("amqp://", "it names no host"),
        ("amqp://me:s3cret@:5672/", "it names no host"),
        ("amqp://me:s3cret@broker:0/", "it names no host"),
        ("amqp://me:s3cret@broker:99999/", "the host or the port cannot be read"),
        ("amqp://me:s3cret/@broker/", "the host or the port cannot be read"),
        ("amqp://me:12/s3cret@broker", "it cannot be read without doubt"),
        ("amqp://me:s3@cret@broker", "it cannot be read without doubt"),
        ("amqp://me:s3cret@broker/a/b", "it cannot be read without doubt"),
        ("amqp://me:s3 cret@broker", "it cannot be read without doubt"),
        ("amqp://me:12#s3cret@broker", "takes no options"),
        ("amqp://me:s3cret@broker?heartbeat=5", "takes no options"),
        ("amqp://me:s3cret%@broker", "a % must be followed by two digits"),
    ],
)
def test_any_other_url_is_refused_without_repeating_what_may_be_a_password(url, said):
    (message,) = refused({"DISPATCHER_AMQP_URL": url})

    assert message.startswith("DISPATCHER_AMQP_URL: ")
    assert said in message
    assert "s3" not in message
    assert "cret" not in message


def test_a_slash_behind_the_vhost_is_to_be_dropped():
    (message,) = refused({"DISPATCHER_AMQP_URL": "amqp://me:s3cret@broker/vumi/"})

    assert "drop the last one" in message
    assert "s3cret" not in message


def test_an_empty_address_for_health_and_metrics_counts_as_not_given():
    assert load_settings({}, http="").http is None
    assert load_settings({"DISPATCHER_HTTP": "[::1]:80"}, http="").http == "[::1]:80"


def test_a_refusal_by_pydantic_itself_repeats_no_input():
    with pytest.raises(ValidationError) as caught:
        Settings(amqp_url="http://me:s3cret@broker")

    assert "s3cret" not in str(caught.value)


def test_queues_are_separated_by_commas():
    assert load_settings({"DISPATCHER_AMQP_QUEUES": "vumi.event, survey.event ,"}).amqp_queue_names == (
        "vumi.event",
        "survey.event",
    )


@pytest.mark.parametrize(
    ("queues", "said"),
    [
        (",", "at least one queue"),
        ("a,b,a", 'the queue "a" is named twice'),
        ("amq.mine", "belong to the broker"),
        ("q" * 251, "at most 250 bytes"),
    ],
)
def test_queues_that_a_broker_would_refuse_are_refused_at_once(queues, said):
    (message,) = refused({"DISPATCHER_AMQP_QUEUES": queues})

    assert said in message


def test_an_exchange_has_a_name_that_amqp_can_write():
    assert "at most 255 bytes" in refused({"DISPATCHER_AMQP_EXCHANGE": "é" * 128})[0]


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"DISPATCHER_AMQP_KEY_FILE": "key.pem"}, "DISPATCHER_AMQP_KEY_FILE is the key of no certificate"),
        (
            {"DISPATCHER_AMQP_URL": "amqp://me:s3cret@h", "DISPATCHER_AMQP_PASSWORD_FILE": "p"},
            "DISPATCHER_AMQP_PASSWORD_FILE and DISPATCHER_AMQP_URL both name a password",
        ),
        (
            {"DISPATCHER_AMQP_URL": "amqp://h", "DISPATCHER_AMQP_CA_FILE": "ca.pem"},
            "DISPATCHER_AMQP_CA_FILE needs TLS, and DISPATCHER_AMQP_URL has none",
        ),
    ],
)
def test_settings_of_the_broker_that_contradict_each_other_are_refused(environ, said):
    (message,) = refused(environ)

    assert message.startswith(said)


@pytest.mark.parametrize(
    ("address", "read"),
    [("127.0.0.1:9464", ("127.0.0.1", 9464)), ("[::1]:80", ("::1", 80)), ("localhost:0", ("localhost", 0))],
)
def test_the_address_for_health_is_a_host_and_a_port(address, read):
    assert load_settings({}, http=address).http_address == read


def test_the_address_for_health_may_be_a_unix_socket():
    assert load_settings({}, http="unix:/run/http.sock").http_address == Path("/run/http.sock")


def test_a_unix_socket_is_named_by_its_whole_path():
    assert "whole path" in refused({}, http="unix:http.sock")[0]


@pytest.mark.parametrize("address", ["9464", ":9464", "localhost:", "localhost:http", "h:65536", "::1:80", "a/b:80"])
def test_any_other_address_is_refused(address):
    (message,) = refused({}, http=address)

    assert message.startswith("--http: an address is HOST:PORT")


@pytest.mark.parametrize(("text", "read"), [("false", False), ("no", False), ("0", False), ("true", True)])
def test_a_switch_is_read_in_the_usual_words(text, read):
    assert load_settings({"DISPATCHER_AMQP_DECLARE": text}).amqp_declare is read


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
