"""The commands that users run, over a run's store: `haulier worker` and `haulier serve`."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from faults.run import Run
from nursery import TESTS
from processes import Daemon, running
from support import wait_until

STARTING = 90.0
"""Seconds that a command may take to start on a machine that has a lot to do."""


@contextlib.contextmanager
def command(run: Run, *arguments: str, **env: str) -> Iterator[Daemon]:
    """A command with the tasks of these tests: its store writes down what it is asked."""
    spec = run.folder / "spec.json"
    spec.write_text(json.dumps(run.spec()))
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    name, *flags = arguments
    with running(
        run.folder, name, "faults.work:app", *flags, FAULTS_SPEC=str(spec), PYTHONPATH=path, **env
    ) as daemon:
        yield daemon


@dataclass
class Api:
    """An HTTP API, and how long its answers took. `longest`: seconds of the slowest."""

    daemon: Daemon
    client: httpx.AsyncClient
    longest: float = 0.0
    statuses: list[int] = field(default_factory=list)

    async def ask(self, path: str = "/api/v1/jobs", **body: Any) -> httpx.Response:
        """Read what is there, or with a body post it."""
        began = time.monotonic()
        answer = await self.client.request("POST" if body else "GET", path, **body)
        self.longest = max(self.longest, time.monotonic() - began)
        self.statuses.append(answer.status_code)
        return answer


@contextlib.asynccontextmanager
async def api(run: Run, patience: float):
    """`haulier serve`, asked over HTTP by a client that waits no longer than so many seconds."""
    with command(run, "serve", "--no-token", "--port", "0", "--concurrency", "2") as daemon:
        address = await wait_until(
            lambda: re.search(r"serves (http://\S+)", daemon.says()), STARTING
        )
        async with httpx.AsyncClient(base_url=address[1], timeout=patience) as client:
            yield Api(daemon, client)
