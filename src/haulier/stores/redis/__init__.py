"""Jobs in Redis or Valkey: every transition is one Lua script."""

from haulier.stores.redis.store import RedisStore

__all__ = ["RedisStore"]
