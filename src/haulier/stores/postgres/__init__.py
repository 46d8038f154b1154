"""The PostgreSQL store: jobs in a schema of their own, in a database that others may use too."""

from haulier.stores.postgres.store import PostgresStore

__all__ = ["PostgresStore"]
