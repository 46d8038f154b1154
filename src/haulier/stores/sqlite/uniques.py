"""Unique names: who holds them, what a new job does about it, and when they are free again."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

import apsw

from haulier.domain.ids import raw_id, text_id
from haulier.domain.job import NewJob
from haulier.domain.unique import Conflict, Scope, Uniqueness
from haulier.exceptions import DuplicateJobError, IdempotencyConflictError
from haulier.stores.codes import (
    PENDING,
    RUNNING,
    SCOPE_CODE,
)
from haulier.stores.sqlite.rows import (
    fetch,
)

_HOLDER = (
    "SELECT u.job, u.until, u.digest, j.state, "
    "EXISTS (SELECT 1 FROM batches b WHERE b.id = u.job AND b.total > 0) "
    "FROM uniques u LEFT JOIN jobs j ON j.id = u.job WHERE u.name = ?"
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to become of a new job: inserted, or `instead` of it there is another.

    `replaced` are pending jobs that it takes the place of.
    """

    instead: bytes | None = None
    replaced: tuple[bytes, ...] = ()


def judge(db: apsw.Connection, now: int, job: NewJob) -> Verdict:
    """Look at all names of a new job before any of them is taken; may raise for a conflict."""
    replaced = []
    for unique in job.unique:
        held = _holder(db, now, unique.name)
        if held is None or held[0] == raw_id(job.id):
            continue
        holder, digest, state, begun = held
        if unique.conflict is Conflict.SKIP:
            return Verdict(instead=holder)
        if unique.conflict is Conflict.MATCH:
            if digest != unique.digest:
                raise IdempotencyConflictError(
                    "this idempotency key was used before, with another body", text_id(holder)
                )
            return Verdict(instead=holder)
        stays = state == RUNNING or (state == PENDING and begun)
        if unique.conflict is Conflict.REJECT or stays:
            raise DuplicateJobError(
                f"job {text_id(holder)} already holds this unique name",
                text_id(holder),
            )
        if state == PENDING:
            replaced.append(holder)
    return Verdict(replaced=tuple(replaced))


def _holder(
    db: apsw.Connection, now: int, name: str
) -> tuple[bytes, bytes, int | None, bool] | None:
    """Who holds a name: id, digest, state (None: it was pruned), and whether it has items."""
    for holder, until, digest, state, begun in fetch(db, _HOLDER, (name,)):
        if until is None and state is None:
            continue
        if until is None or until > now:
            return holder, digest, state, bool(begun)
    return None


def take(db: apsw.Connection, now: int, job: NewJob) -> None:
    """Write down the names of a job that was inserted."""
    for unique in job.unique:
        db.execute(
            "INSERT INTO uniques (name, job, scope, until, digest) VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (name) DO UPDATE SET job = excluded.job, scope = excluded.scope, "
            "until = excluded.until, digest = excluded.digest",
            (
                unique.name,
                raw_id(job.id),
                SCOPE_CODE[unique.scope],
                now + unique.period if unique.scope is Scope.PERIOD else None,
                unique.digest,
            ),
        )


def names_to_text(names: tuple[Uniqueness, ...]) -> str | None:
    """What the job's row keeps: the names that a requeue has to take back."""
    if not names:
        return None
    return json.dumps([each.name for each in names if each.scope is Scope.ACTIVE])


def release_claimed(db: apsw.Connection, job: bytes) -> None:
    """A worker has claimed the job: names held only while it was pending are free."""
    db.execute("DELETE FROM uniques WHERE job = ? AND scope = 0", (job,))


def release_ended(db: apsw.Connection, job: bytes) -> None:
    """The job has come to an end: names held while it was active are free."""
    db.execute("DELETE FROM uniques WHERE job = ? AND scope < 2", (job,))


def forget(db: apsw.Connection, job: bytes) -> None:
    """The job is deleted, and with it everything that was in its name."""
    db.execute("DELETE FROM uniques WHERE job = ?", (job,))


def retake(db: apsw.Connection, now: int, job: bytes, text: str | None) -> bool:
    """Take back the names of a job that becomes active again; false if another holds one."""
    names: Iterable[str] = json.loads(text) if text else ()
    for name in names:
        held = _holder(db, now, name)
        if held is not None and held[0] != job:
            return False
    for name in names:
        db.execute(
            "INSERT INTO uniques (name, job, scope, digest) VALUES (?, ?, 1, x'') "
            "ON CONFLICT (name) DO UPDATE SET job = excluded.job, scope = 1, until = NULL",
            (name, job),
        )
    return True
