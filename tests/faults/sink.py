"""What jobs do to the world: a sink that keeps the highest lease per job and refuses older ones.

It lives in the process of the test, which is never killed. Workers reach it by a unix socket; a
request is one line, and so is its answer.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections import defaultdict
from pathlib import Path
from typing import Self

from faults.log import Log
from support import wait_until


class Sink:
    """Takes effects, and knows which process is busy with which claims.

    busy: what each process has begun and not ended. over: how many attempts came to their end.
    """

    def __init__(self, path: Path, log: Log) -> None:
        self.path = path
        self._log = log
        self.busy: dict[int, set[tuple[str, int]]] = defaultdict(set)
        self.over = 0
        self._highest: dict[str, int] = {}
        self._gone: set[int] = set()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._serve, self.path)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.close()
        await wait_until(lambda: not self._writers)

    @property
    def jobs(self) -> int:
        """How many jobs have begun at least once."""
        return len(self._highest)

    def forget(self, pid: int) -> None:
        """That process is gone. What it still had on the way makes it busy no more."""
        self._gone.add(pid)
        self.busy.pop(pid, None)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while line := await reader.readline():
                writer.write(b"1\n" if self._take(json.loads(line)) else b"0\n")
        except ConnectionError:
            return
        finally:
            writer.close()
            self._writers.discard(writer)

    def _take(self, request: dict) -> bool:
        job, lease, pid = request["job"], request["lease"], request["pid"]
        accepted = lease >= self._highest.get(job, 0)
        if accepted:
            self._highest[job] = lease
        # Written down here, where their order is decided, and by no worker that has its answer.
        self._log.write("effect", job=job, lease=lease, accepted=accepted)
        if request["last"]:
            self.busy[pid].discard((job, lease))
            self.over += 1
        elif pid not in self._gone:
            self.busy[pid].add((job, lease))
        return accepted


class SinkClient:
    """How a worker process reaches the sink: from its event loop, or from a thread."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = asyncio.Lock()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def effect(self, request: dict) -> bool:
        """Whether the sink accepted it."""
        # Shielded: a job that is cancelled here must not leave an answer for the next one to read.
        return await asyncio.shield(self._ask(request))

    async def _ask(self, request: dict) -> bool:
        async with self._lock:
            if self._streams is None:
                self._streams = await asyncio.open_unix_connection(self._path)
            reader, writer = self._streams
            writer.write(json.dumps(request).encode() + b"\n")
            return await reader.readline() == b"1\n"

    def effect_in_thread(self, request: dict) -> bool:
        """The same, blocking, on a connection of its own."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(self._path)
            connection.sendall(json.dumps(request).encode() + b"\n")
            return connection.recv(2) == b"1\n"
