"""Flows against the event log: who waits for whom, who is told what, and who goes with a parent."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from haulier.domain.event import DELETED, INSERTED, Event
from haulier.domain.flow import PARENT_FAILED, Otherwise, Parent
from haulier.domain.job import JobState
from haulier.domain.moves import RULES, Move
from simulation.history import Entry, What


@dataclass(slots=True)
class _Edge:
    """What a job waits for. `told`: what that came to; None while it is waited for.

    forgiven: somebody requeued the job itself although this parent had failed.
    """

    otherwise: Otherwise
    told: JobState | None = None
    forgiven: bool = False

    @property
    def bars(self) -> bool:
        bad = self.told not in (None, JobState.COMPLETED)
        return bad and self.otherwise is Otherwise.CANCEL


class _Replay:
    """Follows the events, and what the children of each job must have been told by then."""

    def __init__(self, history: Sequence[Entry]) -> None:
        enqueued = [entry for entry in history if entry.what is What.ENQUEUE]
        self.after = {entry.job: entry.after for entry in enqueued if entry.after}
        # Requeued by somebody, and not brought back with a parent.
        self.by_hand = {e.job: [] for e in history if e.what is What.REQUEUE}
        for entry in history:
            if entry.what is What.REQUEUE and entry.span is not None:
                self.by_hand[entry.job].append(entry.span)
        self.edges: dict[str, dict[str, _Edge]] = {}
        self.children: dict[str, set[str]] = defaultdict(set)
        self.state: dict[str, JobState] = {}
        self.batch_of: dict[str, str] = {}
        self.unfinished: dict[str, set[str]] = defaultdict(set)
        self.waiting: set[str] = set()
        self.gone: set[str] = set()

    def take(self, event: Event) -> Iterator[str]:
        """Findings at this event."""
        job = event.job_id
        if event.type == INSERTED:
            self.state[job] = JobState.PENDING
            if event.batch_id is not None:
                self.batch_of[job] = event.batch_id
            if job in self.after:
                self._begin_to_wait(job)
        elif event.type == DELETED:
            self._deleted(job)
        elif event.type in RULES:
            self.state[job] = RULES[Move(event.type)].target
            if job in self.edges:
                yield from self._of_child(event)
            if event.type in (Move.REQUEUE, Move.REOPEN):
                self._reopen(job)
        else:
            return
        self._settle(job)

    def _begin_to_wait(self, job: str) -> None:
        self.edges[job] = {each.job_id: _Edge(each.otherwise) for each in self.after[job]}
        self.waiting.add(job)
        for parent in self.edges[job]:
            self.children[parent].add(job)
            if self._has_ended(parent):
                self._tell(parent, job, self.state[parent])

    def _of_child(self, event: Event) -> Iterator[str]:
        job, edges = event.job_id, self.edges[event.job_id]
        barring = sorted(parent for parent, edge in edges.items() if edge.bars)
        if event.type == Move.CLAIM:
            early = sorted(parent for parent, edge in edges.items() if edge.told is None)
            against = [parent for parent in barring if not edges[parent].forgiven]
            if early:
                yield f"job {job}: started at event {event.seq}, before {early} had ended"
            if against:
                yield f"job {job}: started at event {event.seq}, although {against} had failed"
        elif event.type == Move.REQUEUE:
            yield from self._requeued(event, barring)
        elif event.error_type == PARENT_FAILED:
            if not barring:
                yield f"job {job}: cancelled with its parents at event {event.seq}, none had failed"
            self.gone.add(job)
        if self.state[job] is not JobState.PENDING:
            self.waiting.discard(job)

    def _requeued(self, event: Event, barring: list[str]) -> Iterator[str]:
        job, edges = event.job_id, self.edges[event.job_id]
        if any(first < event.seq <= last for first, last in self.by_hand.get(job, ())):
            for parent, edge in edges.items():
                edge.forgiven = edge.bars
                if parent in self.state and not self.state[parent].final:
                    edge.told, edge.forgiven = None, False
        elif job not in self.gone or barring:
            yield f"job {job}: brought back at event {event.seq}, although {barring} had failed"
        self.gone.discard(job)
        if any(edge.told is None for edge in edges.values()):
            self.waiting.add(job)

    def _reopen(self, parent: str) -> None:
        """Those that wait, or went with it, wait for it anew."""
        for child in self.children[parent] & (self.waiting | self.gone):
            edge = self.edges[child][parent]
            edge.told, edge.forgiven = None, False

    def _deleted(self, job: str) -> None:
        state = self.state.pop(job, JobState.CANCELLED)
        bad = state in (JobState.FAILED, JobState.CANCELLED)
        for child in self.children[job]:
            self._tell(job, child, state if bad else JobState.CANCELLED)
        for parent in self.edges.pop(job, {}):
            self.children[parent].discard(job)
        self.waiting.discard(job)
        self.gone.discard(job)

    def _settle(self, job: str) -> None:
        """What has ended is told to its children; with a last item its batch may have, too."""
        at: str | None = job
        while at is not None:
            over = at not in self.state or self._has_ended(at)
            if over and at in self.state:
                for child in self.children[at]:
                    self._tell(at, child, self.state[at])
            batch = self.batch_of.get(at)
            if batch is not None:
                (self.unfinished[batch].discard if over else self.unfinished[batch].add)(at)
            at = batch

    def _has_ended(self, job: str) -> bool:
        """For the head of a batch: it and all that lies within."""
        return job in self.state and self.state[job].final and not self.unfinished[job]

    def _tell(self, parent: str, child: str, state: JobState) -> None:
        edges = self.edges[child]
        if edges[parent].told is not None:
            return
        edges[parent].told = state
        if all(edge.told is not None for edge in edges.values()) and not edges[parent].bars:
            self.waiting.discard(child)

    def left(self, parents: Mapping[str, Sequence[Parent]]) -> Iterator[str]:
        """Findings at the end. `parents`: what the store tells of those of each job."""
        for job, edges in self.edges.items():
            waits = sorted(parent for parent, edge in edges.items() if edge.told is None)
            if waits and job in self.waiting:
                yield f"job {job}: waits for {waits} at the end"
            if job in self.gone and not any(edge.bars for edge in edges.values()):
                yield f"job {job}: cancelled with its parents at the end, none of which failed"
            meant = {parent: edge.told for parent, edge in edges.items()}
            told = {
                each.job_id: each.state if each.ended else None for each in parents.get(job, ())
            }
            if job in parents and told != meant:
                yield f"job {job}: its parents are told as {told}, not as {meant}"
            for each in parents.get(job, ()):
                if each.ended and (each.result is None) == (each.state is JobState.COMPLETED):
                    what = f"{each.state} with the result {each.result!r}"
                    yield f"job {job}: {each.job_id} is {what}"


def check_flows(
    history: Sequence[Entry],
    events: Sequence[Event],
    parents: Mapping[str, Sequence[Parent]] | None = None,
) -> Iterator[str]:
    """Nothing starts too early, waits for ever, or goes with a parent for which it was to run."""
    replay = _Replay(history)
    for event in events:
        yield from replay.take(event)
    yield from replay.left(parents or {})
