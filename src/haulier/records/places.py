"""Where records are: read from their URL, or found beside a store."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from haulier.exceptions import ConfigurationError
from haulier.services.urls import own_options, positive_int, shown, sqlite_url

MEMORY = ":memory:"

BESIDE_REDIS = "sqlite:///haulier-records.db"
"""Redis is no relational database: a file in the working folder, as a store without a URL is."""

_STORE_SCHEMA = "haulier"
_DEFAULT_SCHEMA = "haulier_records"
_DEFAULT_POOL = 2
_OPTIONS = frozenset({"schema", "pool", "pooler"})
_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,62}")


@dataclass(frozen=True, slots=True)
class SqliteFile:
    """A file, or memory."""

    path: str

    @property
    def shown(self) -> str:
        """For messages."""
        return "in memory" if self.path == MEMORY else self.path


@dataclass(frozen=True, slots=True)
class PostgresSchema:
    """A schema of a PostgreSQL database. `pooled`: behind a pooler, see docs/stores.md."""

    url: str
    schema: str
    pool: int
    pooled: bool

    @property
    def shown(self) -> str:
        """For messages: without the password."""
        return shown(self.url)


Place = SqliteFile | PostgresSchema


def place_of(url: str) -> Place:
    """The place that a URL names; raises ConfigurationError."""
    scheme = _scheme(url)
    if scheme == "sqlite":
        return SqliteFile(_sqlite_path(url))
    if scheme in ("postgresql", "postgres"):
        if importlib.util.find_spec("asyncpg") is None:
            raise ConfigurationError(
                "records in PostgreSQL need its driver: pip install 'haulier[postgres]'"
            )
        return _postgres_schema(url)
    raise ConfigurationError(
        f"records are at sqlite:// or postgresql://, not at {scheme or url.split(':', 1)[0]!r}"
    )


def beside(store: str) -> str:
    """The URL of the records of a store whose URL is given, where nothing else was set.

    Of an SQLite file `jobs.db` it is `jobs.records.db`, of a PostgreSQL store another schema of the
    same database, of a store in Redis a file in the working folder.
    """
    scheme = _scheme(store)
    if scheme == "sqlite":
        path = _sqlite_path(store)
        if path == MEMORY:
            return "sqlite://"
        file = Path(path)
        beside_it = file.with_name(f"{file.stem}.records{file.suffix or '.db'}")
        return sqlite_url(str(beside_it))
    if scheme in ("postgresql", "postgres"):
        theirs, ours = own_options(store, _OPTIONS)
        ours["schema"] = f"{ours.get('schema', _STORE_SCHEMA)}_records"
        # The store's pool is for its traffic, not for this.
        ours.pop("pool", None)
        options = "&".join(f"{name}={value}" for name, value in ours.items())
        return f"{theirs}{'&' if '?' in theirs else '?'}{options}"
    return BESIDE_REDIS


def _scheme(url: str) -> str:
    scheme, colon, _ = url.partition(":")
    return scheme.lower() if colon else ""


def _sqlite_path(url: str) -> str:
    parts = urlsplit(url)
    if parts.netloc or parts.query or parts.fragment:
        raise ConfigurationError(
            f"{url!r} is not a URL of records; write sqlite:///file.db or sqlite:////folder/file.db"
        )
    return unquote(parts.path[1:]) or MEMORY


def _postgres_schema(url: str) -> PostgresSchema:
    theirs, ours = own_options(url, _OPTIONS)
    schema = ours.get("schema", _DEFAULT_SCHEMA)
    if not _SCHEMA.fullmatch(schema):
        raise ConfigurationError(
            "the URL's option schema is a name of up to 63 small letters, digits and _"
        )
    pooler = ours.get("pooler", "session")
    if pooler not in ("session", "transaction"):
        raise ConfigurationError("the URL's option pooler is session or transaction")
    size = positive_int(ours, "pool", _DEFAULT_POOL)
    return PostgresSchema(theirs, schema, size, pooler == "transaction")
