"""The hot path: finished transitions in, newly claimed jobs out, one call of one function."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from haulier.domain.job import MICROSECOND, Job
from haulier.domain.moves import RULES, Move, Transition, after_loss, runs_alone
from haulier.domain.worker import Demand, Exchange
from haulier.stores.codes import STATE_CODE, error_to_text, rank_of
from haulier.stores.postgres.connection import Connection
from haulier.stores.postgres.rows import job_from_row, storable
from haulier.stores.watching import Change

_EXCHANGE = f"SELECT * FROM exchange({', '.join(f'${n}' for n in range(1, 19))})"
_PUT_BACK = "SELECT put_back($1, $2)::text[]"
_END = "SELECT * FROM end_worker($1, $2, $3)"


Line = tuple[str, str]
"""A queue and a kind."""

LOWEST = -(2**63)

REST = 100
LONGEST_REST = 1.0
"""After a slow search, so many times its length, but at most so many seconds, later ones begin
where the last one ended."""


class Frontier:
    """How far the lines of one worker have been claimed.

    A claim leaves an entry behind in the index of ready jobs until a vacuum removes it. When there
    are so many that to pass over them takes long, because vacuum is late or an old snapshot holds
    it up, most searches begin behind them. Every now and then one begins at the front, so a job
    that came in there waits a second at most.
    """

    def __init__(self, *, still: bool = False) -> None:
        self._still = still
        self._ranks: dict[Line, int] = {}
        self._rests_until = 0.0

    def passed(self) -> Mapping[Line, int] | None:
        """Where to begin in each line; None: at the front."""
        return self._ranks if time.monotonic() < self._rests_until else None

    def learn(
        self, jobs: Sequence[Job], slow: int | None, due_in: int | None, *, passed: bool
    ) -> int | None:
        """Take note of what was claimed and how long it took to find (microseconds, if long).

        Returns when to come again, if nothing else happens.
        """
        for job in jobs:
            line, rank = (job.queue, job.kind), rank_of(job.run_at, job.priority)
            self._ranks[line] = max(rank, self._ranks.get(line, rank))
        now = time.monotonic()
        if passed:
            left = max(0, round((self._rests_until - now) * MICROSECOND))
            return left if due_in is None else min(left, due_in)
        if slow is not None and not self._still:
            self._rests_until = now + min(slow * REST / MICROSECOND, LONGEST_REST)
        return due_in


@dataclass(frozen=True, slots=True)
class Told:
    """The answer, and what it means for those who wait.

    `wrote`: it changed something. `settled`: a batch did. `ready`: items were let into the line.
    `drain`: batches that somebody has to go on with. `follow`: and with what follows for flows.
    """

    reply: Exchange
    wrote: bool = True
    settled: bool = False
    ready: bool = False
    drain: list[str] = field(default_factory=list)
    follow: bool = False


async def exchange(
    connection: Connection,
    now: int | None,
    worker_id: str,
    finished: Sequence[Transition],
    demands: Sequence[Demand],
    turn: int | None,
    doubt: int | None,
    frontier: Frontier,
) -> Told:
    """One exchange; `doubt` is the last turn that got no answer."""
    passed = frontier.passed()
    completions = [t for t in finished if t.move is Move.COMPLETE]
    others = (
        []
        if len(completions) == len(finished)
        else [t for t in finished if t.move is not Move.COMPLETE]
    )
    rows = await connection.fetch(
        _EXCHANGE,
        now,
        worker_id,
        turn,
        doubt,
        [t.job.seq for t in completions],
        [t.job.lease for t in completions],
        [t.result for t in completions],
        moves_to_text(others) if others else None,
        *_lines(demands, passed),
        sum(demand.slots for demand in demands),
        *_times(demands),
    )
    told: Mapping[str, Any] = json.loads(rows.pop()["message"])
    if told.get("late"):
        return Told(Exchange(lost=tuple(finished)), wrote=False)
    jobs = tuple(map(job_from_row, rows))
    due_in = frontier.learn(jobs, told.get("slow"), told.get("due_in"), passed=passed is not None)
    lost = [completions[place - 1] for place in told.get("lost_done") or ()]
    lost += [others[place - 1] for place in told.get("lost_moves") or ()]
    reply = Exchange(
        jobs=jobs,
        lost=tuple(lost),
        cancels=tuple(told.get("cancels") or ()),
        due_in=due_in,
        alive=told["alive"],
        version=told.get("version"),
    )
    return Told(
        reply,
        wrote=bool(rows or finished),
        settled=told.get("settled", False),
        ready=told.get("ready", False),
        drain=told.get("drain") or [],
        follow=told.get("follow", False),
    )


def changed(finished: Sequence[Transition], told: Told) -> Change:
    """What an exchange changed for those who wait."""
    if not finished:
        return Change.EVENTS | (Change.READY if told.ready else Change.NOTHING)
    put_back = any(transition.move is not Move.COMPLETE for transition in finished)
    if told.settled or put_back or told.ready:
        return Change.ANY
    return Change.SETTLED | Change.EVENTS


def _lines(demands: Sequence[Demand], passed: Mapping[Line, int] | None) -> tuple[list[Any], ...]:
    """One line per queue and kind that a worker asks for, with the slots that it shares."""
    floors = passed or {}
    lines = [
        (number, place, queue, kind, floors.get((queue, kind), LOWEST), portion.slots, demand.slots)
        for number, demand in enumerate(demands)
        for place, portion in enumerate(demand.portions)
        for queue in demand.queues
        for kind in portion.kinds
    ]
    return tuple(map(list, zip(*lines, strict=True))) if lines else ([], [], [], [], [], [], [])


def _times(demands: Sequence[Demand]) -> tuple[list[int | None] | None, ...]:
    """Of each of these lines the time of its queue; None if all queues are one line."""
    if not any(demand.shares for demand in demands):
        return None, None
    shares = [
        share
        for demand in demands
        for portion in demand.portions
        for share in (demand.shares or (None,) * len(demand.queues))
        for _ in portion.kinds
    ]
    return [share and share.step for share in shares], [share and share.ahead for share in shares]


def moves_to_text(transitions: Sequence[Transition]) -> str:
    """Transitions other than completions, each with what the rules say that it brings along."""
    return json.dumps([_move(t) for t in transitions], separators=(",", ":"))


def _move(transition: Transition) -> dict[str, Any]:
    job, rule, error = transition.job, RULES[transition.move], transition.error
    return {
        "seq": job.seq,
        "lease": job.lease,
        "move": transition.move.value,
        "target": STATE_CODE[rule.target],
        "delay": transition.delay,
        "attempt": rule.attempt,
        "lost": rule.lost,
        "rise": rule.lease,
        "yields": rule.yields_to_cancel,
        "records": rule.records,
        "alone": runs_alone(job.lost + rule.lost),
        # Its time is the server's affair, and stands in a column of its own.
        "error": error and error_to_text(error, 0, lease=job.lease, worker=job.worker),
        "error_type": error and storable(error.type),
    }


async def retire(
    connection: Connection, now: int | None, worker_id: str, *, expired: bool
) -> tuple[int, list[str]]:
    """End an incarnation and put back its jobs, in one transaction.

    Returns how many it held, and the batches that are to be drained. What becomes of a job whose
    worker was lost is the domain's affair, so the server is asked twice.
    """
    async with connection.transaction():
        held: list[Job] = [
            job_from_row(row) for row in await connection.fetch(_END, now, worker_id, expired)
        ]
        if not held:
            return 0, []
        moves = moves_to_text([after_loss(job) for job in held])
        drain = await connection.fetchval(_PUT_BACK, now, moves)
        return len(held), list(drain)
