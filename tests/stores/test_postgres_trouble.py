"""What the driver says of connections that broke, in ways that only real trouble brings about."""

from __future__ import annotations

import asyncpg
import pytest

import servers
from haulier.exceptions import StoreUnavailableError
from haulier.stores import open_store


async def test_a_connection_that_broke_unnoticed_costs_a_call_and_is_used_no_more():
    """Its server died: an error without an end arrived, the end of the connection did not yet."""
    with servers.or_skip():
        url = servers.server_url("postgres")
    async with open_store(f"{url}?schema=trouble") as store:
        used = []

        async def broken(connection):
            used.append(connection)
            raise asyncpg.InternalClientError("another operation (2) is in progress")

        with pytest.raises(StoreUnavailableError, match="InternalClientError"):
            await store._pool.run(broken)
        assert used[0].is_closed()
        assert await store.counts() == {}
        async with asyncpg.create_pool(url, min_size=1, max_size=1) as pool:
            await pool.execute("DROP SCHEMA trouble CASCADE")
