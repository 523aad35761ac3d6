"""Reading a store whose server goes away and comes back: told each time, and never for longer than it lasts."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from sqlalchemy import func, select

from dispatcher.errors import StoreUnusable
from dispatcher.settings import load_settings
from dispatcher.store.gauges import gauges_of
from dispatcher.store.postgres import migrate
from dispatcher.store.reading import open_reader
from dispatcher.store.schema import facts


@pytest.fixture
def store(postgres_server, postgres):
    migrate.upgrade(postgres)
    return postgres


def test_numbers_come_back_with_the_server(postgres_server, store):
    count = gauges_of(load_settings({}, store=store))
    assert count(datetime.now(UTC)).workers_alive == 0
    postgres_server.stop()
    with pytest.raises(StoreUnusable, match="Connection refused"):
        count(datetime.now(UTC))
    postgres_server.start()
    assert count(datetime.now(UTC)).events_waiting == 0


def test_server_that_ends_while_it_is_read_is_told(postgres_server, store):
    def read_to_the_end():
        with open_reader(store) as connection:
            postgres_server.kill()
            connection.execute(select(func.count()).select_from(facts))

    with pytest.raises(StoreUnusable, match="cannot be used"):
        read_to_the_end()
    postgres_server.start()
    with open_reader(store) as connection:
        assert connection.execute(select(func.count()).select_from(facts)).scalar() == 2


def test_changed_password_is_read_from_its_file(postgres_server, store, tmp_path):
    file = tmp_path / "password"
    file.write_text("not this one\n")
    url = store.replace(f":{postgres_server.password}@", "@")
    count = gauges_of(load_settings({"DISPATCHER_STORE_PASSWORD_FILE": str(file)}, store=url))
    with pytest.raises(StoreUnusable, match="password authentication failed") as caught:
        count(datetime.now(UTC))
    assert "DISPATCHER_STORE_PASSWORD_FILE" in caught.value.hint
    file.write_text(postgres_server.password)
    assert count(datetime.now(UTC)).events_waiting == 0
