"""The fixtures: servers to be broken, `rabbit` and `postgres_server`; places of one's own, `vhost` and `postgres`.

A server is started when the first test asks for it. A test that needs only a place on one runs against the server of
DISPATCHER_TEST_AMQP_URL or DISPATCHER_TEST_POSTGRES_URL when that is set; one that needs to break it is then skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import pytest

from tests.harness import external

# The harness is imported by the fixtures, not here: most tests need no broker, and no time to load its clients.
if TYPE_CHECKING:
    from tests.harness.databases import Databases
    from tests.harness.postgres import Server
    from tests.harness.rabbit import Node
    from tests.harness.vhost import Vhost


@pytest.fixture(scope="session")
def running_rabbit() -> Iterator[Node]:
    """The node itself, started once; tests take `rabbit` or `vhost`, which find it whole."""
    from tests.harness.rabbit import Node, NoRabbit

    if external.URL is not None:
        pytest.skip(external.NEEDS_NODE)
    try:
        node = Node()
    except NoRabbit as problem:
        pytest.skip(str(problem))
    try:
        node.start()
        yield node
    finally:
        node.end()


@pytest.fixture
def rabbit(running_rabbit: Node) -> Iterator[Node]:
    """A private node to do anything to; whatever was broken is mended after the test."""
    yield running_rabbit
    running_rabbit.mend()


@pytest.fixture
def vhost(request: pytest.FixtureRequest) -> Iterator[Vhost]:
    """A vhost with nothing in it and a user who may do anything there."""
    from tests.harness.vhost import external_vhost, vhost_on

    def place() -> AbstractContextManager[Vhost]:
        if external.URL is not None:
            return external_vhost(external.URL)
        return vhost_on(request.getfixturevalue("rabbit"))

    with place() as vhost:
        yield vhost


@pytest.fixture(scope="session")
def running_postgres() -> Iterator[Server]:
    """The server itself, started once; tests take `postgres_server` or `postgres`, which find it whole."""
    from tests.harness.postgres import NoPostgres, Server

    if external.POSTGRES_URL is not None:
        pytest.skip(external.NEEDS_SERVER)
    try:
        server = Server()
    except NoPostgres as problem:
        pytest.skip(str(problem))
    try:
        server.start()
        yield server
    finally:
        server.end()


@pytest.fixture
def postgres_server(running_postgres: Server) -> Iterator[Server]:
    """A private PostgreSQL to stop, kill and restart; it is started again after the test."""
    yield running_postgres
    running_postgres.mend()


@pytest.fixture(scope="session")
def postgres_databases(request: pytest.FixtureRequest) -> Iterator[Databases]:
    """Makes databases, on whichever server there is; who makes one drops it."""
    from tests.harness.databases import Databases

    if external.POSTGRES_URL is None:
        yield request.getfixturevalue("running_postgres").databases
    else:
        databases = Databases(external.POSTGRES_URL)
        yield databases
        databases.close()


@pytest.fixture
def postgres(request: pytest.FixtureRequest, postgres_databases: Databases) -> Iterator[str]:
    """The URL of a database with nothing in it, of a user who may do anything there."""
    if external.POSTGRES_URL is None:
        request.getfixturevalue("postgres_server")  # whole again before the database is dropped
    url = postgres_databases.create()
    yield url
    if external.POSTGRES_URL is None:
        request.getfixturevalue("postgres_server").mend()
    postgres_databases.drop(url)
