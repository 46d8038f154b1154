"""A typed client of the HTTP API: `Client` for plain code, `AsyncClient` for asyncio.

It needs neither a store nor the code of the jobs, only the address of a server and a token.
"""

from __future__ import annotations

from haulier.client.asynchronous import AsyncClient
from haulier.client.blocking import Client
from haulier.client.server import Server

__all__ = ["AsyncClient", "Client", "Server"]
