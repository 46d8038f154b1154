"""The hot path: finished transitions in, newly claimed jobs out, one call of one function."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from haulier.domain.job import Job
from haulier.domain.moves import RULES, Move, Transition, after_loss, runs_alone
from haulier.domain.worker import Demand, Exchange
from haulier.stores.codes import STATE_CODE, error_to_text
from haulier.stores.postgres.connection import Connection
from haulier.stores.postgres.rows import job_from_row, storable

_EXCHANGE = f"SELECT * FROM exchange({', '.join(f'${n}' for n in range(1, 16))})"
_APPLY = (
    "SELECT drain::text[] FROM apply_moves(coalesce($1, clock_us()), '{}', '{}', '{}', $2, '{}')"
)
_END = "SELECT * FROM end_worker($1, $2, $3)"


@dataclass(frozen=True, slots=True)
class Told:
    """The answer, and what it means for those who wait.

    `wrote`: it changed something. `settled`: a batch did. `ready`: items were let into the line.
    `drain`: batches that somebody has to go on with.
    """

    reply: Exchange
    wrote: bool = True
    settled: bool = False
    ready: bool = False
    drain: list[str] = field(default_factory=list)


async def exchange(
    connection: Connection,
    now: int | None,
    worker_id: str,
    finished: Sequence[Transition],
    demands: Sequence[Demand],
    turn: int | None,
    doubt: int | None,
) -> Told:
    """One exchange; `doubt` is the last turn that got no answer."""
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
        *_lines(demands),
        sum(demand.slots for demand in demands),
    )
    told: Mapping[str, Any] = json.loads(rows.pop()["message"])
    if told.get("late"):
        return Told(Exchange(lost=tuple(finished)), wrote=False)
    lost = [completions[place - 1] for place in told.get("lost_done") or ()]
    lost += [others[place - 1] for place in told.get("lost_moves") or ()]
    reply = Exchange(
        jobs=tuple(map(job_from_row, rows)),
        lost=tuple(lost),
        cancels=tuple(told.get("cancels") or ()),
        due_in=told.get("due_in"),
        alive=told["alive"],
    )
    return Told(
        reply,
        wrote=bool(rows or finished),
        settled=told.get("settled", False),
        ready=told.get("ready", False),
        drain=told.get("drain") or [],
    )


def _lines(demands: Sequence[Demand]) -> tuple[list[Any], ...]:
    """One line per queue and kind that a worker asks for, with the slots that it shares."""
    lines = [
        (number, place, queue, kind, portion.slots, demand.slots)
        for number, demand in enumerate(demands)
        for place, portion in enumerate(demand.portions)
        for queue in demand.queues
        for kind in portion.kinds
    ]
    return tuple(map(list, zip(*lines, strict=True))) if lines else ([], [], [], [], [], [])


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
        drain = await connection.fetchval(_APPLY, now, moves)
        return len(held), list(drain)
