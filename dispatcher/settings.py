"""The settings of a process, read once from flags and `DISPATCHER_*` variables. The only reader of the environment.

Flags win over variables, variables over defaults; a variable set to nothing counts as not set. Whatever is wrong
is told all at once, under the name by which it was given. A misspelt variable is refused, never ignored.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from dispatcher import urls
from dispatcher.errors import SettingsRefused, StoreUnusable
from dispatcher.urls import check_amqp_url, check_store_url

PREFIX: Final = "DISPATCHER_"

# AMQP writes names as short strings of at most 255 bytes; a queue's dead letters go to "<queue>.dead".
_LONGEST_NAME: Final = 255
_LONGEST_QUEUE: Final = _LONGEST_NAME - len(".dead")

_UNIX: Final = "unix:"

# A Kubernetes service named "dispatcher" puts these into every pod of its namespace; they are not meant for us.
_KUBERNETES: Final = re.compile(r"SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?")


def _check_region(region: str) -> str:
    if not re.fullmatch(r"[A-Za-z]{2}", region):
        raise ValueError('a region is a country code of two letters, such as "ZA"')
    return region.upper()


def _check_exchange(name: str) -> str:
    if len(name.encode()) > _LONGEST_NAME:
        raise ValueError(f"the name of an exchange has at most {_LONGEST_NAME} bytes")
    return name


def _check_queues(names: str) -> str:
    queues = _split(names)
    if not queues:
        raise ValueError('at least one queue is named, such as "vumi.event"')
    for queue in queues:
        if queues.count(queue) > 1:
            raise ValueError(f'the queue "{queue}" is named twice')
        if queue.startswith("amq."):
            raise ValueError(f'the queue "{queue}": names that begin with "amq." belong to the broker')
        if len(queue.encode()) > _LONGEST_QUEUE:
            raise ValueError(f'the queue "{queue[:40]}...": a name has at most {_LONGEST_QUEUE} bytes')
    return names


def _split(names: str) -> tuple[str, ...]:
    return tuple(name for part in names.split(",") if (name := part.strip()))


def _check_http(address: str) -> str:
    if address.startswith(_UNIX):
        if not Path(address.removeprefix(_UNIX)).is_absolute() or "\0" in address:
            raise ValueError("a Unix socket is named by its whole path: unix:/run/dispatcher/http.sock")
        return address
    host, _, port = address.rpartition(":")
    if not host or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65_535:
        raise ValueError('an address is HOST:PORT: "127.0.0.1:9464" for this machine only, "0.0.0.0:9464" for all')
    if re.search(r"[\s/]", host) or (":" in host and not re.fullmatch(r"\[[0-9A-Fa-f:.%]+\]", host)):
        raise ValueError('an address is HOST:PORT, and a host with colons stands in brackets: "[::1]:9464"')
    return address


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


Positive = Annotated[int, Field(ge=1, le=2**31)]
Days = Annotated[int, Field(ge=1, le=36_500)]


class Settings(BaseModel):
    """What holds for a process as a whole. Every field is the variable `DISPATCHER_<NAME>`."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    store: Annotated[str, AfterValidator(check_store_url)] = Field(
        default="sqlite:///dispatcher.db",
        repr=False,
        description="where events, runs, contacts and messages are kept: sqlite:///FILE, or "
        "postgresql://USER:PASSWORD@HOST/DATABASE",
    )
    store_password_file: Path | None = Field(
        default=None, description="a file with the password of a PostgreSQL store, read again at each connection"
    )
    state: Path = Field(
        default=Path(),
        description="the folder for what a worker notes beside a PostgreSQL store: what it has in hand, for after a "
        "crash",
    )
    lease_seconds: float = Field(
        default=60.0,
        ge=1,
        le=3_600,
        description="after which silence a worker counts as dead and its work is taken over, in seconds",
    )
    workers: Positive = Field(default=1, le=256, description="how many worker processes `dispatcher run` starts")
    worker: Positive = Field(
        default=1, description="the number of this process among those of one `run --workers`, which sets it"
    )
    rulebook: Path = Field(default=Path("config/handlers.yaml"), description="the rulebook's file")
    default_region: Annotated[str, AfterValidator(_check_region)] | None = Field(
        default=None, description='the region in which numbers without "+" are read, where the rulebook names none'
    )

    max_event_bytes: Positive = Field(default=1_048_576, description="the largest body of an event, in bytes")
    max_depth: Positive = Field(default=32, le=200, description="how deep an event's containers may nest")
    max_hops: Positive = Field(default=8, description="how many emits in a row may lead to an event")
    max_events_per_root: Positive = Field(default=1_000, description="how many events one event may lead to in all")
    max_crashes: Positive = Field(default=3, description="how often an event may take the process down")
    dedupe_days: Days = Field(default=30, description="how long an event's id is remembered, in days")

    batch_events: Positive = Field(default=256, description="the most events in one commit")
    batch_steps: Positive = Field(default=2_000, description="the most steps in one commit")
    batch_ms: Positive = Field(default=20, description="how long a batch may take before it commits, in milliseconds")
    call_threads: Positive = Field(default=32, le=1_000, description="how many calls may be in threads at once")
    max_ready: Positive = Field(default=10_000, description="how many calls may wait before the sources pause")
    min_free_mb: int = Field(default=64, ge=0, description="the free disk below which the sources pause, in MB")

    handler_warn_ms: Positive = Field(default=100, description="the time in a batch that is worth a warning, in ms")
    handler_hang_seconds: float = Field(
        default=30.0,
        gt=0,
        le=86_400,
        description="the time in a batch after which a handler counts as hung, in seconds",
    )
    drain_seconds: float = Field(
        default=30.0,
        ge=0,
        le=86_400,
        description="how long work in hand may go on after a stop is asked for, in seconds",
    )

    keep_done_days: Days = Field(default=30, description="how long what went well is kept, in days")
    keep_failed_days: Days = Field(default=90, description="how long what failed is kept, in days")
    keep_skipped_days: Days = Field(default=30, description="how long what matched no chain is kept, in days")

    amqp_url: Annotated[str, AfterValidator(check_amqp_url)] | None = Field(
        default=None, repr=False, description="the broker to take events from, amqp://USER:PASSWORD@HOST/VHOST"
    )
    amqp_password_file: Path | None = Field(
        default=None, description="a file with the broker's password, read again at each connection"
    )
    amqp_ca_file: Path | None = Field(
        default=None, description="the authorities that may vouch for the broker, instead of the system's"
    )
    amqp_cert_file: Path | None = Field(default=None, description="the certificate that is shown to the broker")
    amqp_key_file: Path | None = Field(default=None, description="the key of that certificate, where it is apart")
    amqp_exchange: Annotated[str, AfterValidator(_check_exchange)] = Field(
        default="vumi", description="the exchange through which events come, direct"
    )
    amqp_queues: Annotated[str, AfterValidator(_check_queues)] = Field(
        default="vumi.event", description="the queues of events, comma separated, each bound by its own name"
    )
    amqp_queue_type: Annotated[Literal["quorum", "classic"], BeforeValidator(_lower)] = Field(
        default="quorum", description="what a queue of events becomes where there is none yet"
    )
    amqp_prefetch: Positive = Field(
        default=500, le=65_535, description="how many events of a queue may be here without being committed"
    )
    amqp_delivery_limit: Positive = Field(
        default=50, description="how often a queue made here may deliver an event before it is put aside as dead"
    )
    amqp_declare: bool = Field(
        default=True, description="make what the broker lacks; false: wait until somebody else does"
    )
    amqp_heartbeat: Positive = Field(
        default=30, le=3_600, description="the silence between signs of life on a connection, in seconds"
    )
    amqp_blocked_seconds: float = Field(
        default=600.0,
        gt=0,
        le=86_400,
        description="how long the broker may take no messages before its connection is made anew, in seconds",
    )
    http: Annotated[str, AfterValidator(_check_http)] | None = Field(
        default=None, description="where health and metrics are served, HOST:PORT or unix:/FILE; nowhere if not given"
    )

    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)] = Field(
        default="info", description="the least important lines that are logged"
    )
    log_format: Annotated[Literal["auto", "json", "console"], BeforeValidator(_lower)] = Field(
        default="auto", description="json, console, or auto: console on a terminal"
    )
    failpoints: str = Field(default="", description="where this process shall fail on purpose; for tests")

    @property
    def store_kind(self) -> Literal["sqlite", "postgresql"]:
        """Which database `store` names: a file that one process writes, or a server that many share."""
        return "sqlite" if self.store.startswith(urls.SQLITE) else "postgresql"

    @property
    def store_path(self) -> Path:
        """The file that `store` names. Raises RuntimeError for a store that is none: ask `store_kind` first."""
        if self.store_kind != "sqlite":
            raise RuntimeError("a PostgreSQL store is no file: whoever asks for its path must ask for its kind first")
        return Path(self.store.removeprefix(urls.SQLITE))

    @property
    def store_shown(self) -> str:
        """The store as people and logs may see it: its file, or its URL with the password masked."""
        return urls.shown_store(self.store)

    def store_url(self) -> str:
        """Return the URL to open the store by, with the password that is in its file now.

        Raises StoreUnusable when that cannot be read. Not to be shown: see `store_shown`.
        """
        if self.store_password_file is None:
            return self.store
        try:
            password = self.store_password_file.read_text("utf-8").rstrip("\r\n")
        except OSError as error:
            said = f"cannot be read: {error.strerror}"
        except UnicodeDecodeError:
            said = "is no UTF-8 text"
        else:
            return urls.with_password(self.store, password)
        raise StoreUnusable(
            f"the store's password file {self.store_password_file} {said}.",
            hint=f"{PREFIX}STORE_PASSWORD_FILE names it.",
        )

    @property
    def amqp_url_shown(self) -> str | None:
        """The broker's URL as people and logs may see it: with its password masked."""
        return None if self.amqp_url is None else urls.shown(self.amqp_url)

    @property
    def amqp_queue_names(self) -> tuple[str, ...]:
        """The queues that `amqp_queues` names, in its order; at least one."""
        return _split(self.amqp_queues)

    @property
    def http_address(self) -> tuple[str, int] | Path | None:
        """Host and port of `http`, without the brackets of an IPv6 address, or its file; None if nothing is served."""
        if self.http is None:
            return None
        if self.http.startswith(_UNIX):
            return Path(self.http.removeprefix(_UNIX))
        host, _, port = self.http.rpartition(":")
        return host.strip("[]"), int(port)


def process_environ() -> Mapping[str, str]:
    """Return a copy of this process's environment: for `load_settings`, and for `${NAME}` in a rulebook."""
    return dict(os.environ)


def load_settings(environ: Mapping[str, str] | None = None, **flags: object) -> Settings:
    """Read the settings from `environ` (the process's own if None) and `flags`; a flag that is None is not given.

    Raises SettingsRefused with a message for everything that is wrong.
    """
    given: dict[str, object] = {}
    origin: dict[str, str] = {}
    messages: list[str] = []
    for variable, text in sorted((process_environ() if environ is None else environ).items()):
        if not variable.startswith(PREFIX) or not text or _KUBERNETES.fullmatch(variable, len(PREFIX)):
            continue
        name = variable.removeprefix(PREFIX).lower()
        if variable.isupper() and name in Settings.model_fields:
            given[name], origin[name] = text, variable
        else:
            messages.append(_unknown_variable(variable))
    for name, value in flags.items():
        # A script says `--http "$HTTP"`, whether there is one or not.
        if value is not None and (name, value) != ("http", ""):
            given[name], origin[name] = value, f"--{name.removesuffix('_url').replace('_', '-')}"

    try:
        settings = Settings.model_validate(given)
        messages.extend(_contradictions(settings, origin))
    except ValidationError as invalid:
        messages.extend(
            _invalid_value(origin[str(detail["loc"][0])], detail)
            for detail in invalid.errors(include_url=False, include_context=False)
        )
    if messages:
        raise SettingsRefused(messages)
    return settings


def _contradictions(settings: Settings, origin: Mapping[str, str]) -> Iterator[str]:
    yield from _store_contradictions(settings, origin)
    url = settings.amqp_url
    if settings.amqp_key_file is not None and settings.amqp_cert_file is None:
        yield f"{origin['amqp_key_file']} is the key of no certificate: set {PREFIX}AMQP_CERT_FILE too."
    if url is None:
        return
    if settings.amqp_password_file is not None and urlsplit(url).password is not None:
        yield f"{origin['amqp_password_file']} and {origin['amqp_url']} both name a password: take it out of the URL."
    for name in ("amqp_ca_file", "amqp_cert_file"):
        if name in origin and not url.startswith("amqps://"):
            yield f"{origin[name]} needs TLS, and {origin['amqp_url']} has none: write amqps://."


def _store_contradictions(settings: Settings, origin: Mapping[str, str]) -> Iterator[str]:
    if settings.store_kind == "sqlite":
        if settings.store_password_file is not None:
            yield f"{origin['store_password_file']} is for a PostgreSQL store, and the store is a file."
        if settings.workers > 1:
            yield (
                f"{origin['workers']}: one process writes an SQLite file, so there is one worker. "
                "Several share a PostgreSQL store: DISPATCHER_STORE=postgresql://USER:PASSWORD@HOST/DATABASE."
            )
        return
    if settings.store_password_file is not None and urls.has_password(settings.store):
        yield f"{origin['store_password_file']} and {origin['store']} both name a password: take it out of the URL."
    if settings.lease_seconds <= settings.handler_hang_seconds:
        named = origin.get("lease_seconds") or origin.get("handler_hang_seconds")
        yield (
            f"{named}: {PREFIX}LEASE_SECONDS ({settings.lease_seconds:g}) must be greater than "
            f"{PREFIX}HANDLER_HANG_SECONDS ({settings.handler_hang_seconds:g}): "
            "a worker says nothing while a handler holds its batch."
        )


def _unknown_variable(variable: str) -> str:
    nearest = difflib.get_close_matches(variable.removeprefix(PREFIX).lower(), Settings.model_fields, n=1)
    if nearest:
        return f"{variable} is no setting of the dispatcher. Did you mean {PREFIX}{nearest[0].upper()}?"
    return f"{variable} is no setting of the dispatcher. Variables of your own need a name without {PREFIX}."


def _invalid_value(origin: str, detail: ErrorDetails) -> str:
    name = str(detail["loc"][0])
    if detail["type"] == "value_error":
        return f"{origin}: {detail['msg'].removeprefix('Value error, ')}"
    field = Settings.model_fields[name]
    said = detail["msg"].removeprefix("Input ")
    return f'{origin}="{detail["input"]}" {said}: {field.description} ({field.default} if not given)'
