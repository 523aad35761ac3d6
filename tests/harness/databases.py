"""Databases of a test's own: on the private PostgreSQL, or the server that DISPATCHER_TEST_POSTGRES_URL names."""

from __future__ import annotations

import secrets
from urllib.parse import quote, urlsplit

import psycopg
from psycopg import sql

PREFIX = "dispatcher_test_"


class Databases:
    """Makes and drops databases of one server. `url` is somebody's who may do that; nothing happens until one asks."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: psycopg.Connection | None = None

    def create(self, template: str = "template0") -> str:
        """Make a database, as a copy of another one by name that nobody is connected to; return its URL."""
        name = PREFIX + secrets.token_hex(6)
        copy = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
        if template == "template0":
            copy += sql.SQL(" ENCODING 'UTF8'")  # what a server takes by default, nobody knows
        if self._connected().info.server_version >= 150_000:
            copy += sql.SQL(" STRATEGY file_copy")  # half as dear, for what is small
        self._execute(copy)
        return urlsplit(self._url)._replace(path="/" + quote(name)).geturl()

    def drop(self, url: str) -> None:
        """Drop a database that `create` made, by URL or name, whoever is connected to it; again is harmless."""
        name = self.name(url)
        assert name.startswith(PREFIX), f"{name} is no test's"
        self._execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    @staticmethod
    def name(url: str) -> str:
        """The database's name in its URL."""
        return urlsplit(url).path.lstrip("/")

    def close(self) -> None:
        """Let go of the server; the next one who asks connects again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _execute(self, statement: sql.Composed) -> None:
        self._connected().execute(statement)

    def _connected(self) -> psycopg.Connection:
        if self._connection is not None:
            try:
                self._connection.execute("SELECT 1")
            except psycopg.OperationalError:
                self.close()  # the server was restarted since
        if self._connection is None:
            self._connection = psycopg.connect(self._url, autocommit=True)
        return self._connection
