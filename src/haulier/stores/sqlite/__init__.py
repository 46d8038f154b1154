"""Jobs in one SQLite file: durable, for any number of processes on one machine."""

from haulier.stores.sqlite.store import SqliteStore

__all__ = ["SqliteStore"]
