"""Proves from a history, and from what a store tells at its end, that nothing went wrong.

Pure, and the same for every store: a run with real processes writes the same kind of history.
Each finding is a sentence; a clean run has none.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from haulier.domain.batch import Batch
from haulier.domain.flow import PARENT_FAILED
from haulier.domain.job import Job, JobState
from haulier.domain.moves import RULES, Move
from simulation.event_log import check_events
from simulation.history import Entry, Final, What, callbacks_of


def check(history: Sequence[Entry], final: Final) -> list[str]:
    """All that is wrong."""
    trail = Trail()
    findings = [finding for entry in history for finding in trail.take(entry)]
    findings += _jobs(trail, final)
    findings += _steps(trail, final)
    findings += counters_agree(final)
    findings += batches_agree({job for job, known in trail.jobs.items() if known.calls_back}, final)
    if final.events is not None:
        findings += check_events(history, final)
    return findings


@dataclass(slots=True)
class Known:
    """What the history says of one job so far.

    live: the lease and the worker that hold it. in_doubt: a finish of that lease may have been
    applied. steps: the names of those that were kept. ends: the moves by which its last lease may
    have ended; none if it is still live.
    """

    accepted: bool = False
    batch: str | None = None
    calls_back: bool = False
    live: tuple[int, str] | None = None
    in_doubt: bool = False
    last: int = 0
    ends: set[Move] = field(default_factory=set)
    steps: set[str] = field(default_factory=set)
    requeued: bool = False
    cancel_asked: bool = False


class Trail:
    """Follows a history entry by entry."""

    def __init__(self) -> None:
        self.jobs: dict[str, Known] = defaultdict(Known)
        self.items: dict[str, set[str]] = defaultdict(set)
        self.leases: dict[str, int] = {}

    def take(self, entry: Entry) -> Iterator[str]:
        """Findings at this entry."""
        match entry.what:
            case What.ENQUEUE:
                self._enqueue(entry)
            case What.CLAIM:
                yield from self._claim(entry)
            case What.FINISH:
                yield from self._finish(entry)
            case What.STEP:
                yield from self._step(entry)
            case What.END:
                self._end(entry)
            case What.CANCEL:
                self._cancel(entry)
            case What.REQUEUE:
                self._requeue(entry)
            case What.DELETE:
                self._discard(entry)
                self.jobs.pop(entry.job, None)
            case What.DISCARD:
                self._discard(entry)

    def _enqueue(self, entry: Entry) -> None:
        known = self.jobs[entry.job]
        known.accepted |= entry.ok is True
        known.batch = entry.batch
        known.calls_back = entry.calls_back
        if entry.batch is not None:
            self.items[entry.batch].add(entry.job)

    def _claim(self, entry: Entry) -> Iterator[str]:
        known = self.jobs[entry.job]
        before = known.last or self.leases.get(entry.job, 0)
        if entry.lease <= before:
            yield f"{_job(entry)}: lease {entry.lease} after {before}: it must rise"
        if known.live is not None and not known.in_doubt:
            yield f"{_job(entry)}: claimed by {entry.worker} while {known.live} holds it"
        if known.ends and not known.requeued and not any(map(_goes_on, known.ends)):
            yield f"{_job(entry)}: started again after {_names(known.ends)}, nobody requeued it"
        known.live, known.last = (entry.lease, entry.worker), entry.lease
        known.in_doubt = known.requeued = False
        known.ends = set()

    def _finish(self, entry: Entry) -> Iterator[str]:
        known = self.jobs[entry.job]
        assert entry.move is not None
        holds = known.live is not None and known.live[0] == entry.lease
        if entry.ok is None:
            if holds:
                known.in_doubt = True
                known.ends.add(entry.move)
            return
        if entry.ok and not holds:
            yield f"{_job(entry)}: {entry.move} with the stale lease {entry.lease} was accepted"
        if not entry.ok and holds and not known.in_doubt:
            yield f"{_job(entry)}: {entry.move} with its own lease {entry.lease} was refused"
        if entry.ok:
            known.live, known.in_doubt, known.ends = None, False, {entry.move}

    def _step(self, entry: Entry) -> Iterator[str]:
        known = self.jobs[entry.job]
        holds = known.live is not None and known.live[0] == entry.lease
        if entry.ok and not holds:
            yield f"{_job(entry)}: step {entry.step} with the stale lease {entry.lease} was kept"
        if not entry.ok and holds and not known.in_doubt:
            yield f"{_job(entry)}: step {entry.step} with its own lease was refused"
        if entry.ok and entry.step in known.steps:
            yield f"{_job(entry)}: step {entry.step} done again under {entry.lease}"
        if entry.ok:
            known.steps.add(entry.step)

    def _cancel(self, entry: Entry) -> None:
        todo = [entry.job]
        while todo:
            job = todo.pop()
            self.jobs[job].cancel_asked = True
            # Of one within it, its items too.
            todo += self.items.get(job, ())

    def _requeue(self, entry: Entry) -> None:
        for job in {entry.job} if entry.batch is None else self.items[entry.batch]:
            self.jobs[job].requeued = True

    def _discard(self, entry: Entry) -> None:
        todo = [*self.items.pop(entry.job, ())]
        while todo:
            job = todo.pop()
            # Made anew it has the same id, so its leases go on from where they were.
            self.leases[job] = self.jobs.pop(job).last
            todo += self.items.pop(job, ())

    def _end(self, entry: Entry) -> None:
        for known in self.jobs.values():
            if known.live is not None and known.live[1] == entry.worker:
                known.live, known.in_doubt = None, False
                known.ends.add(Move.LOSE)


def _job(entry: Entry) -> str:
    return f"job {entry.job}"


def _names(moves: set[Move]) -> str:
    return " or ".join(sorted(moves))


def _goes_on(move: Move) -> bool:
    return RULES[move].target is JobState.PENDING


# ── What is left at the end ──────────────────────────────────────────────────────────────────


def _jobs(trail: Trail, final: Final) -> Iterator[str]:
    """Each accepted job is there, in a final state that its history explains; and no other is."""
    callbacks = {job for jobs in callbacks_of(final).values() for job in jobs}
    for job_id, known in trail.jobs.items():
        if known.accepted and job_id not in final.jobs:
            yield f"job {job_id}: accepted and lost"
    for job_id, job in final.jobs.items():
        known = trail.jobs.get(job_id, Known())
        if job_id not in callbacks and job_id not in trail.jobs:
            yield f"job {job_id}: there, but nobody enqueued it"
        if not job.state.final:
            yield f"job {job_id}: still {job.state} at the end"
        elif not _explained(job, known, trail, final):
            ends = _names(known.ends) or "nothing"
            yield f"job {job_id}: {job.state} at the end, its last lease ended by {ends}"
        if job.lease < known.last:
            yield f"job {job_id}: lease {job.lease} at the end, it had {known.last} before"


def _steps(trail: Trail, final: Final) -> Iterator[str]:
    """What was kept is still there, and nothing else is."""
    for job_id, there in (final.steps or {}).items():
        meant = trail.jobs[job_id].steps
        if there != meant:
            yield f"job {job_id}: has the steps {sorted(there)}, not {sorted(meant)}"


def _explained(job: Job, known: Known, trail: Trail, final: Final) -> bool:
    cut_short = any(batch.max_failures is not None for batch in _batches_of(job, final))
    match job.state:
        case JobState.COMPLETED if job.role.heads:
            # By its producer, or handed over by the worker that expanded it.
            return known.last == 0 or Move.HAND_OVER in known.ends
        case JobState.COMPLETED:
            return Move.COMPLETE in known.ends and job.lease == known.last
        case JobState.FAILED:
            # A claim that no answer told of may have been the one whose worker was lost.
            unseen = job.lease > known.last
            whole = cut_short and job.role.heads
            return bool(known.ends & {Move.FAIL, Move.LOSE}) or unseen or whole
        case _:
            # Items go with a head that failed while it was expanding.
            heads = [final.jobs[batch.id] for batch in _batches_of(job, final)]
            with_head = any(
                head.state in (JobState.FAILED, JobState.CANCELLED)
                for head in heads
                if head.id != job.id
            )
            asked = known.cancel_asked or trail.jobs[job.batch_id or job.id].cancel_asked
            with_parent = job.error is not None and job.error.type == PARENT_FAILED
            return Move.CANCEL in known.ends or asked or cut_short or with_head or with_parent


def _batches_of(job: Job, final: Final) -> list[Batch]:
    """Its own batch if it is a head, the one it is an item of, and all around that."""
    found: list[Batch] = []
    at: str | None = job.id if job.role.heads else job.batch_id
    while at is not None and at in final.batches:
        found.append(final.batches[at])
        at = found[-1].within
    return found


def counters_agree(final: Final) -> Iterator[str]:
    counted = Counter((job.queue, job.kind, job.role, job.state) for job in final.jobs.values())
    told = {key: number for key, number in final.counts.items() if number}
    if told != dict(counted):
        yield f"the counters say {told}, the jobs {dict(counted)}"


def batches_agree(calls_back: Collection[str], final: Final) -> Iterator[str]:
    states: dict[str, Counter[JobState]] = defaultdict(Counter)
    for job in final.jobs.values():
        if job.batch_id is not None:
            states[job.batch_id][job.state] += 1
    callbacks = callbacks_of(final)
    for batch_id, batch in final.batches.items():
        told = {state: getattr(batch.counts, state) for state in JobState}
        if any(told[state] != states[batch_id][state] for state in JobState):
            yield f"batch {batch_id}: its counts say {told}, its items {dict(states[batch_id])}"
        if batch.counts.total != sum(told.values()):
            yield f"batch {batch_id}: {told} does not add up to {batch.counts.total}"
        if batch.state is not final.jobs[batch_id].state:
            yield f"batch {batch_id}: {batch.state}, but its head {final.jobs[batch_id].state}"
        made = callbacks[batch_id]
        if bool(made) != (batch_id in calls_back):
            yield f"batch {batch_id}: {len(made)} finish callbacks"
        elif made and batch.finish_job != made[-1]:
            yield f"batch {batch_id}: its last callback is {batch.finish_job}, not {made[-1]}"
