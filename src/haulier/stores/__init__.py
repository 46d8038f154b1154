"""Where jobs live. `open_store` picks the adapter by the URL's scheme."""

from __future__ import annotations

from typing import TYPE_CHECKING

from haulier.exceptions import ConfigurationError
from haulier.ports import DEFAULT_TTL

if TYPE_CHECKING:
    from haulier.ports import JobStore

_REDIS = frozenset(
    {"redis", "rediss", "unix", "redis+unix", "redis+sentinel", "rediss+sentinel", "redis+cluster"}
)


def open_store(url: str, *, ttl: float = DEFAULT_TTL, create: bool = True) -> JobStore:
    """The store behind a URL, not yet opened: enter it as an async context manager.

    `ttl` (seconds) is how long a worker of this process lives without renewing its row. Where
    there is no store yet, entering it makes one; without `create` it raises ConfigurationError and
    leaves nothing behind.

    `sqlite:///relative.db`, `sqlite:////absolute.db`, or `sqlite://` for one in memory that lives
    as long as it is open. `postgresql://user@host/database` (extra `postgres`).
    `redis://host:6379/0`, or one of its kin (extra `redis`; docs/stores.md). Raises
    ConfigurationError for any other scheme, or when the driver is not installed.
    """
    scheme, colon, _ = url.partition(":")
    scheme = scheme.lower() if colon else ""
    if scheme == "sqlite":
        from haulier.stores.sqlite import SqliteStore

        return SqliteStore.from_url(url, ttl=ttl, create=create)
    if scheme in ("postgresql", "postgres"):
        try:
            from haulier.stores.postgres import PostgresStore
        except ModuleNotFoundError as error:
            if error.name != "asyncpg":
                raise
            raise ConfigurationError(
                "a PostgreSQL store needs its driver: pip install 'haulier[postgres]'"
            ) from None
        return PostgresStore.from_url(url, ttl=ttl, create=create)
    if scheme in _REDIS:
        try:
            from haulier.stores.redis import RedisStore
        except ModuleNotFoundError as error:
            if error.name not in ("redis", "hiredis"):
                raise
            raise ConfigurationError(
                "a Redis store needs its driver: pip install 'haulier[redis]'"
            ) from None
        return RedisStore.from_url(url, ttl=ttl, create=create)
    raise ConfigurationError(
        "a store URL starts with sqlite://, postgresql:// or redis://, "
        f"not {scheme or url.split(':', 1)[0]!r}"
    )
