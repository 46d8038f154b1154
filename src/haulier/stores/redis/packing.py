"""Values as the flat arguments of scripts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from haulier.domain.batch import BatchPolicy
from haulier.domain.job import NewJob
from haulier.domain.moves import Move, Transition
from haulier.domain.unique import Uniqueness
from haulier.domain.worker import Demand, Note
from haulier.stores.codes import ON_LOST_CODE, ROLE_CODE, key_of, retry_to_text
from haulier.domain.ids import raw_id, text_id
from haulier.stores.redis.scripts import CONFLICTS, SCOPES

Arg = str | bytes | int

_SCOPE_CODE = {scope: code for code, scope in enumerate(SCOPES)}
_CONFLICT_CODE = {conflict: code for code, conflict in enumerate(CONFLICTS)}


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
    length_at = 0
    for job in jobs:
        job_id, kind, payload, version, queue, priority, run_at, delay, key, retry, *rest = job
        role, batch, position, on_lost, unique = rest
        same = (kind, queue, role, version, priority, run_at, delay, batch, retry, on_lost)
        if same != last:
            last = same
            runs += 1
            packed += (
                *(kind, queue, ROLE_CODE[role], version, int(priority)),
                *("" if run_at is None else run_at, delay),
                "" if batch is None else canonical(batch),
                "" if retry is None else retry_to_text(retry),
                *(ON_LOST_CODE[on_lost], 0),
            )
            length_at = len(packed) - 1
        packed[length_at] += 1  # type: ignore[operator]
        packed += (
            canonical(job_id),
            payload,
            "" if key is None else key,
            "" if position is None else position,
            _names(unique) if unique else "",
        )
    packed[0] = runs
    return packed


def _names(unique: tuple[Uniqueness, ...]) -> str:
    names = [
        [
            each.name,
            _SCOPE_CODE[each.scope],
            _CONFLICT_CODE[each.conflict],
            each.period,
            each.digest.hex(),
        ]
        for each in unique
    ]
    return json.dumps(names, separators=(",", ":"), ensure_ascii=False)


# ── Workers ──────────────────────────────────────────────────────────────────────────────────


def pack_finished(finished: Sequence[Transition]) -> list[Arg]:
    """Completions group by group, then the other moves; each with its number in the sequence."""
    groups: dict[tuple[object, ...], list[Arg]] = {}
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
        moves += (number, move.value, job.id, job.lease, "" if delay is None else delay)
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
        packed += (queue, kind, ROLE_CODE[role], batch or "", worker or "", len(group) // 5)  # type: ignore[index,arg-type]
        packed += group
    return packed + moves


def pack_demands(demands: Sequence[Demand]) -> list[Arg]:
    packed: list[Arg] = [len(demands)]
    for demand in demands:
        packed += (demand.slots, len(demand.queues), *demand.queues, len(demand.portions))
        for portion in demand.portions:
            packed += (portion.slots, len(portion.kinds), *portion.kinds)
    return packed


def pack_notes(notes: Sequence[Note]) -> list[Arg]:
    packed: list[Arg] = [len(notes)]
    for note in notes:
        # A mark in front tells an empty message from none.
        message = "" if note.message is None else f"={note.message}"
        packed += (note.job_id, note.lease, optional(note.progress), message, int(note.heard))
    return packed
