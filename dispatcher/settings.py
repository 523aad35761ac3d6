"""The settings of a process, read once from flags and `DISPATCHER_*` variables. The only reader of the environment.

Flags win over variables, variables over defaults; a variable set to nothing counts as not set. Whatever is wrong
is told all at once, under the name by which it was given. A misspelt variable is refused, never ignored.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from dispatcher.errors import SettingsRefused

PREFIX: Final = "DISPATCHER_"

_LATER: Final = {
    "amqp_url": (
        "this version takes events from its own store (the embedded source) and knows no broker yet. "
        "Take it away to run without RabbitMQ."
    ),
}

# A Kubernetes service named "dispatcher" puts these into every pod of its namespace; they are not meant for us.
_KUBERNETES: Final = re.compile(r"SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?")


def _check_store(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    if not separator:
        raise ValueError(f'a store is named by a URL: write "sqlite:///{url}"')
    # The rest of another URL may hold a password, so only its scheme is repeated.
    if scheme.startswith("postgres"):
        raise ValueError(f"{scheme}:// needs a later version; this one keeps its store in a file: sqlite:///FILE")
    if scheme != "sqlite":
        raise ValueError(f"{scheme}:// is no store; write sqlite:///FILE")
    if not rest.startswith("/"):
        raise ValueError('a file takes three slashes, an absolute path four: "sqlite:///FILE", "sqlite:////DIR/FILE"')
    if rest[1:] in ("", ":memory:") or rest.endswith("/"):
        raise ValueError("the store must be a file, since it has to outlive the process: sqlite:///FILE")
    if "?" in rest or "\0" in rest:
        raise ValueError("a store takes no options: write sqlite:///FILE")
    return url


def _check_region(region: str) -> str:
    if not re.fullmatch(r"[A-Za-z]{2}", region):
        raise ValueError('a region is a country code of two letters, such as "ZA"')
    return region.upper()


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


Positive = Annotated[int, Field(ge=1, le=2**31)]
Days = Annotated[int, Field(ge=1, le=36_500)]


class Settings(BaseModel):
    """What holds for a process as a whole. Every field is the variable `DISPATCHER_<NAME>`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: Annotated[str, AfterValidator(_check_store)] = Field(
        default="sqlite:///dispatcher.db", description="where events, runs, contacts and messages are kept"
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

    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)] = Field(
        default="info", description="the least important lines that are logged"
    )
    log_format: Annotated[Literal["auto", "json", "console"], BeforeValidator(_lower)] = Field(
        default="auto", description="json, console, or auto: console on a terminal"
    )
    failpoints: str = Field(default="", description="where this process shall fail on purpose; for tests")

    @property
    def store_path(self) -> Path:
        """The file that `store` names."""
        return Path(self.store.removeprefix("sqlite:///"))


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
        if variable.isupper() and (name in Settings.model_fields or name in _LATER):
            given[name], origin[name] = text, variable
        else:
            messages.append(_unknown_variable(variable))
    for name, value in flags.items():
        if value is not None:
            given[name], origin[name] = value, f"--{name.removesuffix('_url').replace('_', '-')}"

    for name in _LATER.keys() & given.keys():
        messages.append(f"{origin[name]} is set, but {_LATER[name]}")
        del given[name]
    try:
        settings = Settings.model_validate(given)
    except ValidationError as invalid:
        messages.extend(
            _invalid_value(origin[str(detail["loc"][0])], detail)
            for detail in invalid.errors(include_url=False, include_context=False)
        )
    if messages:
        raise SettingsRefused(messages)
    return settings


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
