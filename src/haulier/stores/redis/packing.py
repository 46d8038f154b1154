"""Values as the flat arguments of scripts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from haulier.domain.batch import BatchPolicy
from haulier.domain.flow import After, Otherwise
from haulier.domain.ids import raw_id, text_id
from haulier.domain.job import NewJob, Role
from haulier.domain.moves import Move, Transition
from haulier.domain.step import Step
from haulier.domain.unique import Uniqueness
from haulier.domain.worker import Demand, Note
from haulier.stores.codes import (
    CONFLICT_CODE,
    ON_LOST_CODE,
    ROLE_CODE,
    SCOPE_CODE,
    key_of,
    retry_to_text,
)

Arg = str | bytes | int


def canonical(job_id: str) -> str:
    """The id in the one form that keys are made of; raises ValueError for what is no UUID."""
    return text_id(raw_id(job_id))


def known_id(job_id: str) -> str:
    """The same for an id to be looked up; raises JobNotFoundError."""
    return text_id(key_of(job_id))


def optional(value: Arg | None) -> Arg:
    return "" if value is None else value


def list_of(values: Sequence[str]) -> list[Arg]:
    return [len(values), *values]


# ── New jobs ─────────────────────────────────────────────────────────────────────────────────


def pack_policy(policy: BatchPolicy | None) -> list[Arg]:
    policy = policy or BatchPolicy()
    finish = policy.finish
    return [
        finish.kind if finish else "",
        finish.queue if finish else "",
        optional(policy.concurrency),
        optional(policy.batch_size),
        optional(policy.max_failures),
    ]


def pack_jobs(jobs: Iterable[NewJob]) -> list[Arg]:
    """Jobs in runs that have all in common but id, payload, key, position and names."""
    packed: list[Arg] = [0]
    runs = 0
    last: tuple[object, ...] | None = None
    length_at = length = 0
    for job in jobs:
        same = (
            *(job.kind, job.queue, job.role, job.version, job.priority, job.run_at, job.delay),
            *(job.batch_id, job.retry, job.on_lost, job.baggage, job.after),
        )
        if same != last:
            last = same
            runs += 1
            packed += _in_common(job)
            length_at = len(packed) - 1
            length = 0
        length += 1
        packed[length_at] = length
        packed += (
            canonical(job.id),
            job.payload,
            "" if job.key is None else job.key,
            "" if job.position is None else job.position,
            _names(job.unique) if job.unique else "",
        )
    packed[0] = runs
    return packed


def _in_common(job: NewJob) -> list[Arg]:
    """What the jobs of a run share, and a place for how many they are."""
    return [
        *(job.kind, job.queue, ROLE_CODE[job.role], job.version, int(job.priority)),
        *("" if job.run_at is None else job.run_at, job.delay),
        "" if job.batch_id is None else canonical(job.batch_id),
        "" if job.retry is None else retry_to_text(job.retry),
        *(ON_LOST_CODE[job.on_lost], job.baggage or ""),
        *(_after(job.after) if job.after else "", 0),
    ]


def _after(after: Sequence[After]) -> str:
    edges = [[canonical(each.job_id), int(each.otherwise is Otherwise.RUN)] for each in after]
    return json.dumps(edges, separators=(",", ":"))


def _names(unique: tuple[Uniqueness, ...]) -> str:
    names = [
        [
            each.name,
            SCOPE_CODE[each.scope],
            CONFLICT_CODE[each.conflict],
            each.period,
            each.digest.hex(),
        ]
        for each in unique
    ]
    return json.dumps(names, separators=(",", ":"), ensure_ascii=False)


# ── Workers ──────────────────────────────────────────────────────────────────────────────────


def pack_finished(finished: Sequence[Transition]) -> list[Arg]:
    """Completions group by group, then the other moves; each with its number in the sequence."""
    groups: dict[tuple[str, str, Role, str | None, str | None], list[Arg]] = {}
    moves: list[Arg] = [0]
    others = 0
    for number, (job, move, delay, result, error) in enumerate(finished):
        if move is Move.COMPLETE:
            same = (job.queue, job.kind, job.role, job.batch_id, job.worker)
            group = groups.get(same)
            if group is None:
                group = groups[same] = []
            group += (number, job.id, job.lease, job.attempt, b"null" if result is None else result)
            continue
        others += 1
        moves += (number, move.value, job.id, job.lease, job.worker or "")
        moves.append("" if delay is None else delay)
        moves.append("" if result is None else result)
        if error is None:
            moves += ("", "")
        else:
            values = {
                "type": error.type,
                "message": error.message,
                "traceback": error.traceback,
                "attempt": error.attempt,
            }
            moves += (json.dumps(values, separators=(",", ":")), error.type)
    moves[0] = others
    packed: list[Arg] = [len(groups)]
    for (queue, kind, role, batch, worker), group in groups.items():
        packed += (queue, kind, ROLE_CODE[role], batch or "", worker or "", len(group) // 5)
        packed += group
    return packed + moves


def pack_demands(demands: Sequence[Demand]) -> list[Arg]:
    packed: list[Arg] = [len(demands)]
    for demand in demands:
        packed += (demand.slots, len(demand.queues), *demand.queues, 1 if demand.shares else 0)
        for share in demand.shares:
            packed += share
        packed.append(len(demand.portions))
        for portion in demand.portions:
            packed += (portion.slots, len(portion.kinds), *portion.kinds)
    return packed


def pack_steps(steps: Sequence[Step]) -> list[Arg]:
    packed: list[Arg] = [len(steps)]
    for step in steps:
        packed += (canonical(step.job_id), step.lease, step.name, step.result)
    return packed


def pack_notes(notes: Sequence[Note]) -> list[Arg]:
    packed: list[Arg] = [len(notes)]
    for note in notes:
        # A mark in front tells an empty message from none.
        message = "" if note.message is None else f"={note.message}"
        packed += (note.job_id, note.lease, optional(note.progress), message, int(note.heard))
        packed.append(len(note.lines))
        for line in note.lines:
            packed += (line.number, line.ago, line.text)
    return packed
