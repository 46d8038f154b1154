"""Runs of schemathesis against an API that is served over the loopback interface."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import schemathesis
import uvicorn
from fastapi import FastAPI
from schemathesis.engine import events, from_schema

from haulier.cli.echo import address_of, listen
from haulier.exceptions import StoreError, StoreFullError, StoreUnavailableError
from haulier.ports import JobReader
from haulier.records import open_records
from haulier.services.jobs import JobManager
from haulier.services.registry import Registry
from haulier.services.secrets import Sealer
from haulier.stores.sqlite import SqliteStore
from haulier.web.app import create_app
from haulier.web.options import WebOptions

PROBLEM = "application/problem+json"
PHASES = ("examples", "coverage", "fuzzing", "stateful")
NO_END = "/api/v1/events/stream"
"""A stream that never ends: no answer of it is ever whole. (tests/web/test_live_streams.py)"""

REFUSED = ["400", "401", "403", "404", "405", "409", "413", "415", "422", "429", "501"]
"""What may be answered to a request that the document does not allow."""

CHECKS = {
    # Which server errors may be is what `own_server_errors_only` says.
    "not_a_server_error": {"enabled": False},
    "negative_data_rejection": {"expected-statuses": REFUSED},
    # No schema tells which kinds, ids and names there are, nor which fields go together.
    "positive_data_acceptance": {"enabled": False},
    # The server takes whoever is on this machine for an admin; tests/web/test_auth.py is about who
    # may ask for what. With tokens a run would revoke its own.
    "ignored_auth": {"enabled": False},
}


@schemathesis.serializer("application/x-ndjson")
def _as_lines(_context: Any, value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


@schemathesis.check
def own_server_errors_only(_context: Any, response: Any, case: Any) -> None:
    """A server error is one that the operation tells of, as a problem; 429 and 503 say when."""
    status = response.status_code
    if status >= 500:
        assert str(status) in case.operation.definition.raw["responses"], f"undeclared {status}"
    if status >= 400:
        [kind] = response.headers["content-type"]
        assert kind == PROBLEM, kind
        told = response.json()
        assert told["status"] == status
        promised = status == 429 or told["type"].endswith((":store-unavailable", ":store-frozen"))
        assert not promised or "retry-after" in response.headers, "no Retry-After"


@dataclass
class Run:
    """What a run did and found: requests by phase, answers by status, faults by what is wrong."""

    requests: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    operations: set[str] = field(default_factory=set)
    good: set[str] = field(default_factory=set)
    faults: dict[tuple[str, str], str] = field(default_factory=dict)

    def __str__(self) -> str:
        phases = ", ".join(f"{phase} {count:,}" for phase, count in self.requests.items())
        told = sorted(self.statuses.items())
        statuses = ", ".join(f"{status}: {count:,}" for status, count in told)
        return (
            f"{self.requests.total():,} requests ({phases}) to {len(self.operations)} operations, "
            f"of which {len(self.good)} had a success; {statuses}"
        )

    def told(self) -> str:
        """The faults, for a person."""
        return "\n\n".join(f"{' · '.join(what)}\n{how}" for what, how in self.faults.items())


def run(
    document: Mapping[str, Any],
    address: str,
    *phases: str,
    seed: int,
    examples: int,
    checks: Mapping[str, Any] = CHECKS,
) -> Run:
    """Send what the phases draw from the document, the same for the same seed."""
    config = schemathesis.Config.from_dict(
        {
            "seed": seed,
            "checks": checks,
            "phases": {phase: {"enabled": phase in phases} for phase in PHASES},
            "generation": {
                "max-examples": examples,
                "no-shrink": True,
                "database": "none",
                # Tokens that are made up only lead to the throttle.
                "with-security-parameters": False,
            },
            "cache": {"enabled": False},
            "output": {"sanitization": {"enabled": False}},
            "operations": [{"include-path": NO_END, "enabled": False}],
        }
    )
    schema = schemathesis.openapi.from_dict(dict(document), config=config)
    schema.config.update(base_url=address)
    told = Run()
    for event in from_schema(schema).execute():
        if isinstance(event, events.ScenarioFinished):
            _note(told, event)
        elif isinstance(event, events.NonFatalError):
            told.faults.setdefault((event.label, type(event.value).__name__), str(event.value))
        elif isinstance(event, events.FatalError):
            raise event.exception
    return told


def _note(told: Run, event: events.ScenarioFinished) -> None:
    recorder = event.recorder
    for case_id, sent in recorder.interactions.items():
        told.requests[event.phase.value] += 1
        operation = recorder.cases[case_id].value.operation.label
        told.operations.add(operation)
        if sent.response is None:
            told.faults.setdefault((operation, "No answer"), f"{sent.request.uri}")
            continue
        told.statuses[sent.response.status_code] += 1
        if sent.response.status_code < 300:
            told.good.add(operation)
    for case_id, checks in recorder.checks.items():
        operation = recorder.cases[case_id].value.operation.label
        for check in checks:
            if check.failure_info is not None:
                failure = check.failure_info.failure
                how = f"{failure.message}\n{check.failure_info.code_sample}"
                told.faults.setdefault((operation, failure.title), how)


class Failing:
    """A store, or a part of one, of which some calls fail: which ones is a matter of the seed."""

    def __init__(self, store: Any, dice: random.Random, share: float) -> None:
        self._store = store
        self._dice = dice
        self._share = share
        self.failed: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if name in PARTS:
            part = Failing(found(), self._dice, self._share)
            part.failed = self.failed
            return lambda: part
        if not asyncio.iscoroutinefunction(found):
            return found

        async def perhaps(*args: Any, **more: Any) -> Any:
            if self._dice.random() < self._share:
                # Who only reads needs no space.
                error = self._dice.choice(TROUBLES[: 2 if name in READS else 3])
                self.failed[error.__name__] += 1
                raise error("drawn by the test")
            return await found(*args, **more)

        return perhaps


PARTS = ("schedules", "limits", "configurable", "transferable")
TROUBLES = (StoreUnavailableError, StoreError, StoreFullError)
READS = {*vars(JobReader), "find", "get", "ticks", "keys", "list", "configuration", "history"}


@dataclass
class Served:
    """Makes APIs over stores in memory; `failing` is the store of the last one if it fails."""

    registry: Registry
    options: WebOptions
    share: float = 0.0
    seed: int = 0
    failing: Failing | None = None

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[FastAPI]:
        async with SqliteStore(":memory:") as store, open_records("sqlite://") as records:
            kept: Any = store
            if self.share:
                kept = self.failing = Failing(store, random.Random(self.seed), self.share)
            jobs = JobManager(kept, self.registry, Sealer(lambda: b"k" * 32))
            api = create_app(jobs=jobs, options=self.options, records=records)
            async with api.router.lifespan_context(api):
                yield api


@contextmanager
def served(make: Callable[[], AbstractAsyncContextManager[FastAPI]]) -> Iterator[str]:
    """The address of an API in a thread with a loop of its own, for as long as the block lasts."""
    listening = listen("127.0.0.1", 0)
    ready = threading.Event()
    servers: list[uvicorn.Server] = []

    async def serve() -> None:
        async with make() as api:
            config = uvicorn.Config(api, log_config=None, lifespan="off", access_log=False)
            servers.append(server := uvicorn.Server(config))
            ready.set()
            await server.serve(sockets=[listening])

    def run_it() -> None:
        try:
            asyncio.run(serve())
        finally:
            ready.set()

    thread = threading.Thread(target=run_it, name="schema-server")
    thread.start()
    try:
        ready.wait()
        assert servers, "the server did not start"
        yield address_of(listening)
    finally:
        for server in servers:
            server.should_exit = True
        thread.join()
        listening.close()


def narrowed(document: Mapping[str, Any], kinds: Sequence[str]) -> dict[str, Any]:
    """The document with the kinds that this server has, so that what is drawn gets further."""
    told = json.loads(json.dumps(document))
    for model in ("EnqueueBody", "OpenBody", "ScheduleBody"):
        told["components"]["schemas"][model]["properties"]["kind"]["enum"] = list(kinds)
    return told
