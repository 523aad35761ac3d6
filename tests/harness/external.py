"""The servers that whoever runs the tests may have named for them."""

from __future__ import annotations

import os

VARIABLE = "DISPATCHER_TEST_AMQP_URL"
POSTGRES_VARIABLE = "DISPATCHER_TEST_POSTGRES_URL"
SIZE_VARIABLE = "DISPATCHER_TEST_SIZE"

# Read at once: tests/conftest.py, which imports this first, then takes every DISPATCHER_* out of the environment.
URL = os.environ.get(VARIABLE) or None
NEEDS_NODE = f"needs to control a private RabbitMQ node, and {VARIABLE} names a server instead: unset it"
POSTGRES_URL = os.environ.get(POSTGRES_VARIABLE) or None
NEEDS_SERVER = f"needs to control a private PostgreSQL, and {POSTGRES_VARIABLE} names a server instead: unset it"

# Some tests repeat a fault as often as there is time for; "full" makes them as large as what they are to prove.
FULL_SIZE = os.environ.get(SIZE_VARIABLE) == "full"
