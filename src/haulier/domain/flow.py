"""Flows: jobs that wait for other jobs, and what becomes of them when one of these fails."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from haulier.domain.ids import text_id_of
from haulier.domain.job import JobError, JobState, NewJob
from haulier.exceptions import Problem, ValidationError

MOST_PARENTS = 10_000
"""Jobs that one job can wait for: a store tells them in one transaction."""

PARENT_FAILED = "ParentFailed"
"""The class of the error that a job is cancelled with when one that it waited for failed."""

DELETED_PARENT = JobError(type="JobDeleted", message="it was deleted before it was done")
"""What is told of a parent that was removed while others waited for it."""


class Otherwise(StrEnum):
    """What becomes of a job that waits for another which fails or is cancelled.

    cancel: it is cancelled too, with the reason. run: it runs all the same.
    """

    CANCEL = "cancel"
    RUN = "run"


class After(NamedTuple):
    """A job that another one waits for: its parent. For the head of a batch, the whole batch."""

    job_id: str
    otherwise: Otherwise = Otherwise.CANCEL


@dataclass(frozen=True, slots=True)
class Parent:
    """A parent of a job as it is now, or as it was when it ended.

    `ended`: it did, and what it came to is kept here for as long as the job, even if the parent
    itself is removed. A parent that failed and is requeued has not ended again until it has.
    """

    job_id: str
    otherwise: Otherwise
    state: JobState
    ended: bool
    result: bytes | None = None
    error: JobError | None = None

    @property
    def value(self) -> Any:
        """What it returned, as plain JSON values; None unless it completed."""
        return None if self.result is None else json.loads(self.result)


def error_text(parent_id: str, state: JobState, error: tuple[str, str] | None) -> str:
    """Why a job was cancelled: which parent, what it came to, and its error (class, message)."""
    why = f"parent {parent_id} {state.value}"
    return f"{why}: {error[0]}: {error[1]}"[:1000] if error else why


def check(jobs: Sequence[NewJob]) -> None:
    """Refuse what could never run: jobs that wait for themselves, alone or in a circle.

    Raises ValidationError, naming the circle.
    """
    parents: dict[str, tuple[str, ...]] = {}
    for number, job in enumerate(jobs):
        if not job.after:
            continue
        job_id = text_id_of(job.id)
        try:
            ids = tuple(text_id_of(each.job_id) for each in job.after)
        except ValueError as error:
            raise absent([str(error)]) from None
        reason = _wrong(job, job_id, ids)
        if reason is not None:
            where = "after" if len(jobs) == 1 else f"{number}.after"
            raise ValidationError(f"{job.kind}: the job was refused", [Problem(where, reason)])
        parents[job_id] = ids
    circle = find_circle(parents)
    if circle is not None:
        path = " waits for ".join(circle)
        raise ValidationError(
            "the jobs were refused", [Problem("after", f"they wait in a circle: {path}")]
        )


def _wrong(job: NewJob, job_id: str, ids: tuple[str, ...]) -> str | None:
    if job.batch_id is not None:
        return "an item of a batch cannot wait for other jobs: let its batch wait"
    if len(ids) > MOST_PARENTS:
        return f"a job can wait for {MOST_PARENTS:,} others, not for {len(ids):,}"
    if job_id in ids:
        return f"the job {job_id} waits for itself"
    if len(set(ids)) < len(ids):
        twice = next(each for place, each in enumerate(ids) if each in ids[:place])
        return f"names the job {twice} twice"
    return None


def find_circle(parents: Mapping[str, Iterable[str]]) -> list[str] | None:
    """The first circle among nodes and those they wait for, beginning and ending alike."""
    done: set[str] = set()
    for start in parents:
        path: list[str] = []
        on_path: set[str] = set()
        stack = [(start, iter(parents.get(start, ())))] if start not in done else []
        if stack:
            path.append(start)
            on_path.add(start)
        while stack:
            node, rest = stack[-1]
            for following in rest:
                if following in on_path:
                    return [*path[path.index(following) :], following]
                if following in parents and following not in done:
                    stack.append((following, iter(parents[following])))
                    path.append(following)
                    on_path.add(following)
                    break
            else:
                stack.pop()
                path.pop()
                on_path.discard(node)
                done.add(node)
    return None


def absent(parent_ids: Iterable[str]) -> ValidationError:
    """The refusal of jobs that wait for others which are not there."""
    names = ", ".join(sorted(parent_ids)[:5])
    return ValidationError("the jobs were refused", [Problem("after", f"there is no job {names}")])
