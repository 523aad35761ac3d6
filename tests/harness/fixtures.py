"""The fixtures: `rabbit`, a node to be broken, and `vhost`, a place of one's own on a broker.

The broker is started when the first test asks for it. A test that needs only a vhost runs against the server of
DISPATCHER_TEST_AMQP_URL when that is set; one that needs to break a node is then skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import pytest

from tests.harness import external

# The harness is imported by the fixtures, not here: most tests need no broker, and no time to load its clients.
if TYPE_CHECKING:
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
