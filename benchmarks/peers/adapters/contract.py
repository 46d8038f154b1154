"""What every adapter can be asked for, and how each answer is measured: the same for all.

    ADAPTER produce N [name=value ...]        enqueue N jobs in the peer's bulk way
    ADAPTER work N [name=value ...]           one worker process runs them and ends
    ADAPTER listen N [name=value ...]         a worker that measures N jobs as they come
    ADAPTER send N RATE [name=value ...]      enqueue N jobs one by one, RATE a second

The environment's PEER_SERVER is where the jobs live: the URL of a server, or a folder. Each command
prints one JSON document; `listen` prints a line `ready` before it. Clocks are the machine's
monotonic one, so that two processes can compare theirs.

A job counts from the first line of the first task to the moment when the peer's store has no job
left that waits, runs or is not yet acknowledged. The process then ends without more ado: how a peer
shuts down is not measured.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import importlib.util
import itertools
import json
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, Protocol

LOOK_EVERY = 0.002
WARM_UP = 50
"""The first jobs of `listen`, which are not counted: connections open, code is compiled."""

SERVER = os.environ.get("PEER_SERVER", "")


class Tally:
    """Counts the jobs that start, in whichever thread, and keeps what is needed of their times."""

    def __init__(self) -> None:
        self.first = 0.0
        self.processor = 0.0
        self.latencies: list[float] | None = None
        self.all_started = threading.Event()
        self.when_all_started: Callable[[], object] = self.all_started.set
        self._left = itertools.count(-1, -1)

    def expect(self, jobs: int) -> None:
        """So many are to come."""
        self._left = itertools.count(jobs - 1, -1)

    def one(self, number: float) -> None:
        """The body of every task. `number` is when the job was sent, if that is measured."""
        now = time.perf_counter()
        if not self.first:
            self.first = now
            self.processor = time.process_time()
        if self.latencies is not None:
            self.latencies.append(now - number)
        if next(self._left) == 0:
            self.when_all_started()


TALLY = Tally()


class Peer(Protocol):
    """A peer whose worker runs in the main thread, with threads of its own or none."""

    def produce(self, numbers: Iterable[int]) -> None: ...

    def send(self, number: float) -> None: ...

    def work(self) -> None:
        """Run one worker until the process ends."""
        ...

    def drained(self) -> bool:
        """Whether every job is acknowledged. Called in a thread of its own."""
        ...


class AsyncPeer(Protocol):
    """A peer whose worker runs on the event loop; `opened` and `produce` come first."""

    async def open(self) -> None: ...

    async def produce(self, numbers: Iterable[int]) -> None: ...

    async def send(self, number: float) -> None: ...

    async def work(self) -> None: ...

    async def drained(self) -> bool: ...


def option(name: str, default: int) -> int:
    """A setting of this run, from the command line."""
    given = dict(word.split("=", 1) for word in sys.argv[2:] if "=" in word)
    return int(given.get(name, default))


def main(peer: Peer) -> None:
    """The command line of a peer without an event loop."""
    command, amounts = _command()
    if command == "produce":
        began = time.perf_counter()
        peer.produce(range(int(amounts[0])))
        _answer(jobs=int(amounts[0]), seconds=time.perf_counter() - began)
    if command == "send":
        _paced(peer.send, int(amounts[0]), amounts[1])
        _answer(jobs=int(amounts[0]))
    jobs = _prepare(command, int(amounts[0]))
    threading.Thread(target=_watch, args=(peer, jobs), daemon=True).start()
    peer.work()
    sys.exit("the worker ended by itself")


def main_async(peer: AsyncPeer) -> None:
    """The command line of a peer on asyncio, with uvloop if its environment has it."""
    factory = None
    if importlib.util.find_spec("uvloop") is not None:
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(run_async(peer))


async def run_async(peer: AsyncPeer) -> None:
    """One command on the running loop."""
    command, amounts = _command()
    await peer.open()
    if command == "produce":
        began = time.perf_counter()
        await peer.produce(range(int(amounts[0])))
        _answer(jobs=int(amounts[0]), seconds=time.perf_counter() - began)
    if command == "send":
        await _paced_async(peer.send, int(amounts[0]), amounts[1])
        _answer(jobs=int(amounts[0]))
    jobs = _prepare(command, int(amounts[0]))
    all_started = asyncio.Event()
    loop = asyncio.get_running_loop()
    TALLY.when_all_started = lambda: loop.call_soon_threadsafe(all_started.set)
    worker = asyncio.create_task(peer.work())
    waiting = asyncio.create_task(all_started.wait())
    await asyncio.wait((worker, waiting), return_when=asyncio.FIRST_COMPLETED)
    if worker.done():
        worker.result()
        sys.exit("the worker ended by itself")
    # The peers' stores tell nobody when they are drained.
    while not await peer.drained():  # noqa: ASYNC110
        await asyncio.sleep(LOOK_EVERY)
    _report(jobs)


def versions(*packages: str) -> str:
    """The installed versions of the packages that matter."""
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)


def _command() -> tuple[str, list[float]]:
    command = sys.argv[1]
    return command, [float(word) for word in sys.argv[2:] if "=" not in word]


def _prepare(command: str, jobs: int) -> int:
    if command == "listen":
        jobs += WARM_UP
        TALLY.latencies = []
        print("ready", flush=True)
    TALLY.expect(jobs)
    return jobs


def _watch(peer: Peer, jobs: int) -> None:
    TALLY.all_started.wait()
    while not peer.drained():
        time.sleep(LOOK_EVERY)
    _report(jobs)


def _report(jobs: int) -> NoReturn:
    seconds = time.perf_counter() - TALLY.first
    processor = time.process_time() - TALLY.processor
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if TALLY.latencies is None:
        _answer(jobs=jobs, seconds=seconds, processor=processor, peak_mb=round(peak, 1))
    counted = sorted(TALLY.latencies[WARM_UP:])
    _answer(
        jobs=len(counted),
        p50_ms=round(1000 * counted[len(counted) // 2], 3),
        p99_ms=round(1000 * counted[-(-len(counted) * 99 // 100) - 1], 3),
        peak_mb=round(peak, 1),
    )


def _answer(**figures: Any) -> NoReturn:
    print(json.dumps(figures), flush=True)
    os._exit(0)


def _paced(send: Callable[[float], object], jobs: int, rate: float) -> None:
    began = time.perf_counter()
    for number in range(jobs + WARM_UP):
        time.sleep(max(began + number / rate - time.perf_counter(), 0))
        send(time.perf_counter())


async def _paced_async(send: Callable[[float], Any], jobs: int, rate: float) -> None:
    began = time.perf_counter()
    for number in range(jobs + WARM_UP):
        await asyncio.sleep(max(began + number / rate - time.perf_counter(), 0))
        await send(time.perf_counter())
