"""A flow as its producer builds it: jobs that wait for each other, inserted all or none."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from haulier.domain.flow import After, Otherwise, find_circle
from haulier.domain.ids import text_id_of
from haulier.domain.job import NewJob
from haulier.exceptions import HaulierError, Problem, ValidationError
from haulier.ports import JobStore
from haulier.services.payload import Payload

STARTER = "haulier.flow"
"""The kind of the head that the first jobs of a large flow wait for while the rest is inserted."""


@dataclass(eq=False, slots=True)
class Node:
    """A job of a flow that is being built. `name` is what it is called in refusals."""

    job: NewJob
    name: str
    parents: list[After] = field(default_factory=list)

    @property
    def id(self) -> str:
        """The id that its job has, or will have."""
        return self.job.id


Parents = str | After | Node | Sequence["str | After | Node"]
"""What a job waits for: ids, jobs of the same flow, or After with what to do if one fails."""


def after_of(given: Any, problems: list[Problem]) -> tuple[After, ...]:
    """What a job waits for, in one form; what is wrong with it goes to the problems."""
    if given is None:
        return ()
    each_given = [given] if isinstance(given, str | After | Node) else given
    if not isinstance(each_given, Sequence):
        problems.append(Problem("after", "must be ids of jobs, or After(id, otherwise)"))
        return ()
    found = []
    for place, each in enumerate(each_given):
        one = After(each.id) if isinstance(each, Node) else each
        one = After(one) if isinstance(one, str) else one
        try:
            parent = one.job_id.id if isinstance(one.job_id, Node) else one.job_id
            found.append(After(text_id_of(parent), Otherwise(one.otherwise)))
        except (AttributeError, ValueError):
            reason = f"{str(each)[:80]!r} is neither an id nor After(id, 'cancel' or 'run')"
            problems.append(Problem(f"after[{place}]", reason))
    return tuple(found)


class Flow:
    """Jobs that wait for each other, as `App.flow()` begins it.

    Nothing is stored before `start`. `make` makes the checked jobs of a kind.
    """

    def __init__(
        self,
        store: JobStore,
        make: Callable[[Any, Sequence[Payload], dict[str, Any]], list[NewJob]],
        starter: Callable[[], NewJob],
    ) -> None:
        self._store = store
        self._make = make
        self._starter = starter
        self._nodes: list[Node] = []
        self._by_id: dict[str, Node] = {}

    def add(
        self,
        task: Any,
        payload: Payload | None = None,
        *,
        after: Parents | None = None,
        name: str | None = None,
        **options: Any,
    ) -> Node:
        """Add a job that waits for others, given as `after`; returns it, for others to wait for.

        The payload and the options are those of `App.enqueue`, and are checked at once.
        """
        (node,) = self._add(task, [payload or {}], after, name, options)
        return node

    def add_many(
        self,
        task: Any,
        payloads: Iterable[Payload],
        *,
        after: Parents | None = None,
        **options: Any,
    ) -> list[Node]:
        """Add a job per payload, each of which waits for the same others."""
        return self._add(task, list(payloads), after, None, options)

    def chain(self, *steps: tuple[Any, Payload], after: Parents | None = None) -> list[Node]:
        """Add jobs one after the other: (task, payload) each, waiting for the one before."""
        found: list[Node] = []
        for task, payload in steps:
            found.append(self.add(task, payload, after=found[-1] if found else after))
        return found

    def wait_for(self, node: Node, after: Parents) -> None:
        """Let a job that was added before wait for others too."""
        node.parents.extend(_parents(node.name, after))

    async def start(self) -> list[str]:
        """Insert all jobs, in one transaction if they are not too many; returns their ids.

        More are inserted chunk by chunk, and none of them starts before the last one is there: if
        this does not come to its end, they are cancelled, or wait for ever. Raises ValidationError
        for jobs that wait in a circle, naming it, or for others that are not there.
        """
        self._check()
        jobs = [node.job._replace(after=tuple(node.parents)) for node in self._nodes]
        if len(jobs) <= self._store.chunk:
            await self._store.insert(jobs)
        else:
            await self._start_in_chunks(self._in_order(jobs))
        return [job.id for job in jobs]

    async def _start_in_chunks(self, jobs: list[NewJob]) -> None:
        head, size = self._starter(), self._store.chunk
        await self._store.open_batch(head, [], sealed=False)
        waits = After(head.id)
        try:
            for begin in range(0, len(jobs), size):
                chunk = jobs[begin : begin + size]
                await self._store.insert(
                    [job if self._waits_inside(job) else _also(job, waits) for job in chunk]
                )
            await self._store.seal(head.id)
        except (Exception, asyncio.CancelledError):
            with contextlib.suppress(HaulierError):
                await asyncio.shield(self._store.cancel([head.id]))
            raise

    def _waits_inside(self, job: NewJob) -> bool:
        return any(each.job_id in self._by_id for each in job.after)

    def _in_order(self, jobs: list[NewJob]) -> list[NewJob]:
        """Parents before their children: each chunk needs those before it alone."""
        by_id = {job.id: job for job in jobs}
        ordered: dict[str, NewJob] = {}

        def is_first(parent: After) -> bool:
            return parent.job_id in by_id and parent.job_id not in ordered

        for job in jobs:
            stack = [(job, iter(job.after))]
            while stack:
                top, rest = stack[-1]
                following = next((by_id[each.job_id] for each in rest if is_first(each)), None)
                if following is not None:
                    stack.append((following, iter(following.after)))
                else:
                    ordered.setdefault(top.id, top)
                    stack.pop()
        return list(ordered.values())

    def _add(
        self,
        task: Any,
        payloads: Sequence[Payload],
        after: Parents | None,
        name: str | None,
        options: dict[str, Any],
    ) -> list[Node]:
        jobs = self._make(task, payloads, options)
        kind = jobs[0].kind if jobs else ""
        parents = _parents(kind, after)
        found = [Node(job, name or job.kind, list(parents)) for job in jobs]
        self._nodes += found
        self._by_id |= {node.id: node for node in found}
        return found

    def _check(self) -> None:
        circle = find_circle({n.id: [each.job_id for each in n.parents] for n in self._nodes})
        if circle is not None:
            path = " waits for ".join(self._by_id[each].name for each in circle)
            raise ValidationError(
                "the flow was refused", [Problem("after", f"its jobs wait in a circle: {path}")]
            )


def _also(job: NewJob, parent: After) -> NewJob:
    return job._replace(after=(*job.after, parent))


def _parents(name: str, after: Parents | None) -> tuple[After, ...]:
    problems: list[Problem] = []
    found = after_of(after, problems)
    if problems:
        raise ValidationError(f"{name}: the job was refused", problems)
    return found
