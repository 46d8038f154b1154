"""What a snapshot that is held open for long costs the claim (PostgreSQL)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from haulier.app import App
from haulier.cli.bench.measure import Figures, percentile
from haulier.domain.worker import Exchange
from haulier.exceptions import ConfigurationError
from haulier.stores import open_store

if TYPE_CHECKING:
    from haulier.cli.bench.command import Lines, Load
    from haulier.ports import JobStore

RATE = 200
"""Jobs per second."""

LAST_PART = 5
"""Of the time with a reader only the last one of so many parts counts, when most is in its way."""


class _Timed:
    """A store that notes how long each exchange took that claimed something."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self.claims: list[tuple[float, float]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def __aenter__(self) -> Self:
        await self._store.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self._store.__aexit__(exc_type, exc, tb)

    async def exchange(self, *arguments: Any, **options: Any) -> Exchange:
        began = time.perf_counter()
        reply = await self._store.exchange(*arguments, **options)
        ended = time.perf_counter()
        if reply.jobs:
            self.claims.append((ended, ended - began))
        return reply


async def long_reader(url: str, load: Load) -> tuple[Figures, Lines]:
    """Jobs at a steady rate for so many seconds, first without and then with an open snapshot."""
    if not url.startswith("postgres"):
        raise ConfigurationError("long-reader is for PostgreSQL: give --store postgresql://…")
    from haulier.stores.postgres.snapshot import held

    timed = _Timed(open_store(url))
    app = App(timed)

    @app.task
    async def noop(number: int) -> None:
        del number

    async with app, app.working():
        # Not counted: connections are opened and plans made.
        await _steadily(app, 2.0)
        timed.claims.clear()
        await _steadily(app, load.seconds)
        without = _seconds(timed.claims)
        timed.claims.clear()
        async with held(url):
            began = time.perf_counter()
            await _steadily(app, load.seconds)
            late = began + load.seconds * (1 - 1 / LAST_PART)
            with_reader = _seconds([claim for claim in timed.claims if claim[0] >= late])
    figures: Figures = {
        "seconds": load.seconds,
        "rate": RATE,
        "claim_p50_ms": percentile(without, 50),
        "claim_p99_ms": percentile(without, 99),
        "reader_claim_p50_ms": percentile(with_reader, 50),
        "reader_claim_p99_ms": percentile(with_reader, 99),
    }
    figures["p99_ratio"] = round(figures["reader_claim_p99_ms"] / figures["claim_p99_ms"], 2)
    return figures, [
        ("claim", _line(figures, "claim")),
        (f"after {load.seconds:g} s of a reader", _line(figures, "reader_claim")),
        ("p99", f"{figures['p99_ratio']:.2f} times"),
    ]


async def _steadily(app: App, seconds: float) -> None:
    """One job after the other, each at its time; who is late does not slow the next one down."""
    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(round(seconds * RATE)):
            await asyncio.sleep(max(began + number / RATE - time.perf_counter(), 0))
            group.create_task(app.enqueue("noop", {"number": number}))


def _seconds(claims: Sequence[tuple[float, float]]) -> list[float]:
    return [took for _, took in claims]


def _line(figures: Figures, name: str) -> str:
    return f"p50 {figures[f'{name}_p50_ms']:.2f} ms, p99 {figures[f'{name}_p99_ms']:.2f} ms"
