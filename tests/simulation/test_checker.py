"""The checker can fail: each wrong history is found out, and a right one is not."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from haulier.domain.batch import Batch, Counts
from haulier.domain.event import INSERTED, Event
from haulier.domain.ids import derived_id
from haulier.domain.job import Job, JobState, Role
from haulier.domain.moves import Move
from simulation.checker import check
from simulation.history import Entry, Final, What
from simulation.queues import Shut, check_queues
from support import new_id

A, B = "worker-a", "worker-b"
X, BATCH = new_id(), new_id()
ITEM, CALLBACK = derived_id(BATCH, "0"), derived_id(BATCH, "finish/0")

DONE = JobState.COMPLETED


def enqueue(job: str = X, **fields) -> Entry:
    return Entry(What.ENQUEUE, job, **fields)


def claim(lease: int, worker: str = A, job: str = X) -> Entry:
    return Entry(What.CLAIM, job, worker=worker, lease=lease)


def finish(lease: int, move: Move = Move.COMPLETE, ok: bool | None = True, job: str = X) -> Entry:
    return Entry(What.FINISH, job, ok, lease=lease, move=move)


def step(lease: int, name: str = "0", ok: bool = True, job: str = X) -> Entry:
    return Entry(What.STEP, job, ok, lease=lease, step=name)


def end(worker: str = A) -> Entry:
    return Entry(What.END, worker=worker)


def left(lease: int = 1, state: JobState = DONE, job: str = X, **fields) -> Job:
    fields = {"attempt": lease, "payload": b"{}", **fields}
    return Job(job, 1, "work", "default", state=state, lease=lease, **fields)


def final(*jobs: Job, batches: tuple[Batch, ...] = (), events: list[Event] | None = None) -> Final:
    return Final(
        jobs={job.id: job for job in jobs},
        batches={batch.id: batch for batch in batches},
        counts=Counter((job.queue, job.kind, job.role, job.state) for job in jobs),
        events=events,
    )


def event(seq: int, kind: str, lease: int = 0, attempt: int | None = None, **fields) -> Event:
    attempt = lease if attempt is None else attempt
    values = {"job_id": X, "worker": A if kind in set(Move) else None, **fields}
    return Event("epoch", seq, 0, kind, attempt=attempt, lease=lease, **values)


ONCE = [enqueue(), claim(1), finish(1)]
ITS_EVENTS = [event(1, INSERTED), event(2, Move.CLAIM, 1), event(3, Move.COMPLETE, 1)]
RIGHT = {
    "done at the first try": (ONCE, final(left(), events=ITS_EVENTS)),
    "a retry": (
        [enqueue(), claim(1), finish(1, Move.RETRY), claim(2, B), finish(2)],
        final(left(2)),
    ),
    "a lost worker that comes back": (
        [enqueue(), claim(1), end(), claim(2, B), finish(1, ok=False), finish(2)],
        final(left(2)),
    ),
    "an answer that got lost": (
        [enqueue(), claim(1), finish(1, ok=None), finish(1, ok=False)],
        final(left()),
    ),
    "a retry whose answer got lost": (
        [enqueue(), claim(1), finish(1, Move.RETRY, ok=None), claim(2, B), finish(2)],
        final(left(2)),
    ),
    "requeued by an operator": (
        [*ONCE[:2], finish(1, Move.FAIL), Entry(What.REQUEUE, X), claim(2), finish(2)],
        final(left(2)),
    ),
    "steps of two claims, and one that came too late": (
        [
            *(enqueue(), claim(1), step(1), end(), claim(2, B), step(2, "1")),
            *(step(1, "1", ok=False), finish(2)),
        ],
        replace(final(left(2)), steps={X: frozenset("01")}),
    ),
    "cancelled before it ran": (
        [enqueue(), Entry(What.CANCEL, X)],
        final(left(0, JobState.CANCELLED)),
    ),
    "a worker that was never told of its claim": (
        [enqueue(), end()],
        final(left(1, JobState.FAILED)),
    ),
}
WRONG = {
    "accepted and lost": ([enqueue()], final()),
    "there, but nobody enqueued it": ([], final(left())),
    "still pending at the end": ([enqueue()], final(left(0, JobState.PENDING))),
    "while (1, 'worker-a') holds it": (
        [enqueue(), claim(1), claim(2, B), finish(1, ok=False), finish(2)],
        final(left(2)),
    ),
    "lease 1 after 1: it must rise": (
        [enqueue(), claim(1), finish(1, Move.RETRY), claim(1, B), finish(1)],
        final(left()),
    ),
    "started again after complete, nobody requeued it": (
        [*ONCE, claim(2), finish(2)],
        final(left(2)),
    ),
    "with the stale lease 1 was accepted": (
        [enqueue(), claim(1), end(), claim(2, B), finish(1), finish(2)],
        final(left(2)),
    ),
    "with its own lease 1 was refused": ([enqueue(), claim(1), finish(1, ok=False)], final(left())),
    "completed at the end, its last lease ended by fail": (
        [enqueue(), claim(1), finish(1, Move.FAIL)],
        final(left()),
    ),
    "cancelled at the end, its last lease ended by nothing": (
        [enqueue()],
        final(left(0, JobState.CANCELLED)),
    ),
    "step 0 with the stale lease 1 was kept": (
        [enqueue(), claim(1), end(), claim(2, B), step(1), finish(2)],
        final(left(2)),
    ),
    "step 0 with its own lease was refused": (
        [enqueue(), claim(1), step(1, ok=False), finish(1)],
        final(left()),
    ),
    "step 0 done again under 2": (
        [enqueue(), claim(1), step(1), finish(1, Move.RETRY), claim(2), step(2), finish(2)],
        final(left(2)),
    ),
    "has the steps [], not ['0']": (
        [enqueue(), claim(1), step(1), finish(1)],
        replace(final(left()), steps={X: frozenset()}),
    ),
    "lease 1 at the end, it had 2 before": (
        [enqueue(), claim(1), end(), claim(2), finish(2)],
        final(left(1)),
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_history_passes(name):
    history, state = RIGHT[name]
    assert check(history, state) == []


@pytest.mark.parametrize("finding", WRONG)
def test_a_wrong_history_is_found_out(finding):
    history, state = WRONG[finding]
    assert any(finding in found for found in check(history, state)), check(history, state)


def test_counters_that_differ_from_the_jobs_are_found_out():
    wrong = replace(final(left()), counts={("default", "work", Role.SINGLE, JobState.FAILED): 1})
    assert "the counters say" in check(ONCE, wrong)[0]


def test_leases_that_begin_anew_with_an_item_are_found_out():
    known = [enqueue(ITEM, batch=BATCH), claim(1, job=ITEM), finish(1, job=ITEM)]
    history = [enqueue(BATCH), *known, Entry(What.DISCARD, BATCH), *known]
    assert f"job {ITEM}: lease 1 after 1: it must rise" in check(history, final())


class TestBatches:
    HISTORY = (
        enqueue(BATCH, calls_back=True), enqueue(ITEM, batch=BATCH),
        claim(1, job=ITEM), finish(1, job=ITEM), claim(1, job=CALLBACK), finish(1, job=CALLBACK),
    )  # fmt: skip
    HEAD = left(0, job=BATCH, role=Role.HEAD)
    ONE = left(job=ITEM, role=Role.ITEM, batch_id=BATCH)
    BACK = left(job=CALLBACK, payload=b'{"batch_id": "%s"}' % BATCH.encode())
    TOLD = Batch(
        id=BATCH, kind="work", queue="default", state=DONE, counts=Counts(total=1, completed=1),
        sealed=True, finish_job=CALLBACK,
    )  # fmt: skip

    def found(self, *jobs: Job, batch: Batch = TOLD) -> str:
        return "\n".join(check(self.HISTORY, final(*jobs, batches=(batch,))))

    def test_a_right_one_passes(self):
        assert self.found(self.HEAD, self.ONE, self.BACK) == ""

    def test_wrong_counts_are_found_out(self):
        counts = Counts(total=2, completed=1, failed=1)
        found = self.found(self.HEAD, self.ONE, self.BACK, batch=replace(self.TOLD, counts=counts))
        assert "its counts say" in found
        counts = Counts(total=2, completed=1)
        found = self.found(self.HEAD, self.ONE, self.BACK, batch=replace(self.TOLD, counts=counts))
        assert "does not add up to 2" in found

    def test_a_callback_that_is_missing_or_too_many_is_found_out(self):
        assert "0 finish callbacks" in self.found(self.HEAD, self.ONE)
        second = self.BACK._replace(id=new_id(), seq=2)
        assert "its last callback is" in self.found(self.HEAD, self.ONE, self.BACK, second)

    def test_a_head_that_did_not_settle_is_found_out(self):
        running = self.HEAD._replace(state=JobState.RUNNING)
        found = self.found(running, self.ONE, self.BACK)
        assert "still running at the end" in found
        assert "but its head running" in found


class TestEvents:
    def found(self, *events: Event, job: Job | None = None) -> str:
        return "\n".join(check(ONCE, final(job or left(), events=list(events))))

    def test_a_gap_is_found_out(self):
        first, second, third = ITS_EVENTS
        assert "there is a gap" in self.found(first, second, third._replace(seq=4))
        assert "there is a gap" in self.found(first, second, third._replace(epoch="other"))

    def test_a_move_that_the_table_does_not_know_is_found_out(self):
        found = self.found(ITS_EVENTS[0], event(2, Move.COMPLETE, 0), event(3, Move.CLAIM, 1))
        assert "complete at event 2 while it was pending" in found

    def test_wrong_numbers_are_found_out(self):
        found = self.found(*ITS_EVENTS[:2], event(3, Move.COMPLETE, 2, attempt=1))
        assert "has attempt 1 and lease 2, not 1 and 1" in found

    def test_an_answer_without_its_event_is_found_out(self):
        assert "no event tells of complete under 1" in self.found(*ITS_EVENTS[:2])
        found = self.found(ITS_EVENTS[0], ITS_EVENTS[1]._replace(worker=B), ITS_EVENTS[2])
        assert "no event tells of the claim 1 by worker-a" in found

    def test_a_move_that_nobody_handed_in_is_found_out(self):
        failed = event(3, Move.FAIL, 1)
        assert "nobody handed it in" in self.found(*ITS_EVENTS[:2], failed)

    def test_a_lease_that_ended_twice_is_found_out(self):
        again = event(4, Move.COMPLETE, 1)
        assert "ended by complete and by complete" in self.found(*ITS_EVENTS, again)

    def test_another_end_than_the_jobs_is_found_out(self):
        found = self.found(*ITS_EVENTS, job=left(state=JobState.FAILED))
        assert "failed at the end, completed by its events" in found
        assert "by its events" in self.found(*ITS_EVENTS, job=left(attempt=5))

    def test_a_job_without_events_or_inserted_twice_is_found_out(self):
        assert "events and jobs differ" in self.found()
        twice = event(4, INSERTED)
        assert "inserted twice" in self.found(*ITS_EVENTS, twice)
        assert "before it was inserted" in self.found(*ITS_EVENTS[1:])

    def test_two_holders_of_one_name_are_found_out(self):
        history = [enqueue(X, name="one"), enqueue(ITEM, name="one")]
        events = [event(1, INSERTED), event(2, INSERTED, job_id=ITEM)]
        found = check(history, final(events=events))
        assert f"job {ITEM}: takes the name one that {X} holds" in found
        events.insert(1, event(2, Move.DROP))
        assert not any("takes the name" in each for each in check(history, final(events=events)))

    def test_a_batch_that_called_back_too_often_is_found_out(self):
        batches = TestBatches
        second = batches.BACK._replace(id=new_id(), seq=2)
        events = [
            event(1, INSERTED, job_id=BATCH, role=Role.HEAD),
            event(2, Move.SETTLE, job_id=BATCH),
        ]
        left_behind = final(
            batches.HEAD, batches.BACK, second, batches=(batches.TOLD,), events=events
        )
        found = check([enqueue(BATCH, calls_back=True)], left_behind)
        assert f"batch {BATCH}: ended 1 times, called back 2 times" in found


def test_a_claim_of_a_paused_queue_is_found_out():
    setting = {"job_id": "", "setting": "queues.default.paused"}
    told = {"job_id": X, "queue": "default"}
    paused, claimed = event(1, "configured", **setting), event(2, Move.CLAIM, 1, **told)
    resumed = event(3, "configured", **setting)
    assert list(check_queues([paused, claimed, resumed])) == [
        f"job {X}: claimed at event 2 while default is paused"
    ]
    assert list(check_queues([paused, resumed, claimed])) == []
    shut = Shut({"default"})
    shut.given([left()._replace(queue="slow"), left()])
    assert shut.findings == [f"job {X}: started although default is paused"]
