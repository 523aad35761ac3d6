"""The URLs of stores and brokers: which are refused, and how they are shown.

No message repeats a part of a URL in which a password may stand; what is shown has its password masked.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote, urlsplit

SQLITE: Final = "sqlite:///"
POSTGRESQL: Final = "postgresql://"

_BOTH_STORES: Final = "write sqlite:///FILE, or postgresql://USER:PASSWORD@HOST/DATABASE"
_MASK: Final = "***"
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
# What the driver reads as a parameter of the connection: "sslmode=verify-full".
_OPTION: Final = re.compile(r"[a-z_]+=[^=@?]*")


def check_store_url(url: str) -> str:
    """Return a store's URL, `postgres://` written in full. Raises ValueError for what names no store."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        if "@" in url:
            raise ValueError(f"a store is named by a URL: {_BOTH_STORES}")
        raise ValueError(f'a store is named by a URL: write "sqlite:///{url}"')
    if scheme == "sqlite":
        return _check_file(url, rest)
    if scheme in ("postgresql", "postgres"):
        return _check_database(f"{POSTGRESQL}{rest}")
    # The rest of another URL may hold a password, so only its scheme is repeated.
    known = f"{scheme}:// is no store" if _SCHEME.fullmatch(scheme) else "this is no URL"
    raise ValueError(f"{known}; {_BOTH_STORES}")


def _check_file(url: str, rest: str) -> str:
    if not rest.startswith("/"):
        raise ValueError('a file takes three slashes, an absolute path four: "sqlite:///FILE", "sqlite:////DIR/FILE"')
    if rest[1:] in ("", ":memory:") or rest.endswith("/"):
        raise ValueError("the store must be a file, since it has to outlive the process: sqlite:///FILE")
    if "?" in rest or "\0" in rest:
        raise ValueError("a store in a file takes no options: write sqlite:///FILE")
    return url


def _check_database(url: str) -> str:
    encoded = (
        "in a user, password or database, write %40 for @, %2F for /, %3A for :, %23 for #, %3F for ?, %26 for &, "
        "%25 for %"
    )
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError(f"the host or the port cannot be read; {encoded}") from None
    if port == 0 or (parts.hostname and "," in parts.hostname):
        raise ValueError("it names no one host; write postgresql://USER:PASSWORD@HOST:PORT/DATABASE")
    if "#" in url or parts.netloc.count("@") > 1 or re.search(r"[\x00-\x20\x7f]", url):
        raise ValueError(f"it cannot be read without doubt; {encoded}")
    if not parts.path[1:]:
        raise ValueError(f"it names no database; write postgresql://USER:PASSWORD@HOST/DATABASE; {encoded}")
    if re.search(r"[/@]", parts.path[1:]):
        raise ValueError(f"it cannot be read without doubt; {encoded}")
    if "?" in url and not all(_OPTION.fullmatch(option) for option in parts.query.split("&")):
        raise ValueError(f'options are written "?sslmode=verify-full&connect_timeout=10"; {encoded}')
    if re.search(r"%(?![0-9A-Fa-f]{2})", url):
        raise ValueError(f"a % must be followed by two digits; {encoded}")
    names = [option.partition("=")[0] for option in parts.query.split("&")]
    if "dbname" in names or "service" in names:
        raise ValueError("the database is named behind the host: postgresql://USER:PASSWORD@HOST/DATABASE")
    return url


def check_amqp_url(url: str) -> str:
    """Return a broker's URL. Raises ValueError for what names no broker."""
    scheme, separator, _ = url.partition("://")
    if not separator:
        raise ValueError("a broker is named by a URL: amqp://USER:PASSWORD@HOST/VHOST")
    if scheme not in ("amqp", "amqps"):
        known = f"{scheme}:// is no broker" if _SCHEME.fullmatch(scheme) else "this is no URL"
        raise ValueError(f"{known}; write amqp://USER:PASSWORD@HOST/VHOST, or amqps:// for TLS")
    encoded = "in a user, password or vhost, write %40 for @, %2F for /, %3A for :, %23 for #, %3F for ?, %25 for %"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError(f"the host or the port cannot be read; {encoded}") from None
    if not parts.hostname or port == 0:
        raise ValueError("it names no host; write amqp://USER:PASSWORD@HOST/VHOST")
    if parts.query or parts.fragment or "?" in url or "#" in url:
        raise ValueError(f"a broker's URL takes no options, they are settings of their own (AMQP_...); {encoded}")
    if re.fullmatch(r"/[^/@]*/", parts.path) and parts.netloc.count("@") <= 1:
        raise ValueError("a vhost ends without a slash: drop the last one, or write %2F where it belongs to the vhost")
    if parts.netloc.count("@") > 1 or re.search(r"[/@]", parts.path[1:]) or re.search(r"[\x00-\x20\x7f]", url):
        raise ValueError(f"it cannot be read without doubt; {encoded}")
    if re.search(r"%(?![0-9A-Fa-f]{2})", url):
        raise ValueError(f"a % must be followed by two digits; {encoded}")
    return url


def shown(url: str) -> str:
    """Return the URL of a store or broker, one that was checked, with its password masked."""
    parts = urlsplit(url)
    credentials, at, host = parts.netloc.rpartition("@")
    user, colon, _ = credentials.partition(":")
    netloc = f"{user}:{_MASK}@{host}" if colon else f"{user}{at}{host}"
    # The path of a password file is no secret; a password, or the passphrase of a key, is.
    query = re.sub(r"((?:^|&)(?:ssl)?password=)[^&]*", rf"\g<1>{_MASK}", parts.query)
    options = f"?{query}" if query else ""
    return f"{parts.scheme}://{netloc}{parts.path}{options}"


def shown_store(url: str) -> str:
    """Return a store as people and logs may see it: its file, or its URL with the password masked."""
    return url.removeprefix(SQLITE) if url.startswith(SQLITE) else shown(url)


def has_password(url: str) -> bool:
    """Tell whether a URL that was checked names a password."""
    parts = urlsplit(url)
    return parts.password is not None or any(option.startswith("password=") for option in parts.query.split("&"))


def with_password(url: str, password: str) -> str:
    """Return the URL of a PostgreSQL store with a password that was kept elsewhere."""
    parts = urlsplit(url)
    if parts.netloc.rpartition("@")[0]:
        user, _, host = parts.netloc.rpartition("@")
        return parts._replace(netloc=f"{user}:{quote(password, safe='')}@{host}").geturl()
    # Without a user before the host there is nothing for the password to stand behind.
    query = f"{parts.query}&" if parts.query else ""
    base = url.partition("?")[0]
    return f"{base}?{query}password={quote(password, safe='')}"
