"""What holds for every test: no settings from outside, repeatable properties, and no skip that nobody sees."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator

import hypothesis
import pytest

# First of all, for it reads the DISPATCHER_* that are meant for the tests themselves. No server starts until one asks.
from tests.harness.fixtures import (
    postgres,
    postgres_databases,
    postgres_server,
    rabbit,
    running_postgres,
    running_rabbit,
    vhost,
)

__all__ = [
    "postgres",
    "postgres_databases",
    "postgres_server",
    "rabbit",
    "running_postgres",
    "running_rabbit",
    "vhost",
]

CI = os.environ.get("CI", "").lower() in ("1", "true", "yes")


def pytest_configure(config: pytest.Config) -> None:
    # The settings of whoever runs the tests must not reach them, nor the processes that they start.
    for name in [name for name in os.environ if name.startswith("DISPATCHER_")]:
        del os.environ[name]
    # Who runs the tests in the background of a shell ignores Ctrl-C, and so would every process that they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # A deadline measures the machine; in CI the examples must be those that a developer sees.
    hypothesis.settings.register_profile("calm", deadline=None, derandomize=CI, print_blob=True)
    hypothesis.settings.load_profile("calm")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
    call: pytest.CallInfo[None],
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if CI and report.skipped and not hasattr(report, "wasxfail") and not item.get_closest_marker("may_skip_in_ci"):
        refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if CI and report.skipped:
        refuse_skip(report)
    return report


def refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    why = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    report.outcome = "failed"
    report.longrepr = f"{why}\nIn CI a skipped test is a failure; `may_skip_in_ci` marks those that may be."
