"""The relational database beside the store: tokens, sessions, the audit log. Low traffic.

A table is added in `tables.py`, with a migration in `migrations/versions/` that makes it; a test
holds the two together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from haulier.records.database import Records


def open_records(url: str, *, create: bool = True) -> Records:
    """The records behind a URL, not yet opened: enter them as an async context manager.

    `sqlite:///relative.db`, `sqlite:////absolute.db`, `sqlite://` for ones in memory, or
    `postgresql://user@host/database` (extra `postgres`) with `schema`, `pool` and `pooler` as a
    store's URL has them. Entering makes the tables or brings them to the newest form; without
    `create` it raises ConfigurationError where there is nothing yet. Raises ConfigurationError for
    any other URL.
    """
    from haulier.records.database import Records
    from haulier.records.places import place_of

    return Records(place_of(url), create=create)
