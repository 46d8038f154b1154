"""A snapshot held open, as a backup or a long report holds one: for measurements and tests."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from haulier.stores.postgres.connection import Place, translated

PATIENCE = 10.0


@contextlib.asynccontextmanager
async def held(url: str) -> AsyncIterator[None]:
    """Within the block, what dies in the store of this URL cannot be removed by a vacuum."""
    place = Place.from_url(url)
    with translated(place):
        connection = await place.connect("snapshot", PATIENCE)
    try:
        await connection.execute("SET idle_in_transaction_session_timeout = 0")
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            await connection.fetchval("SELECT count(*) FROM jobs")
            yield
    finally:
        await connection.close()
