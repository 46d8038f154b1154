"""The checker of real runs can fail: each wrong history is found out, and a right one is not."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import pytest

from faults.history import Report, percentile, prove
from faults.log import Line, Log, read
from haulier.domain.event import DELETED, INSERTED, Event
from haulier.domain.job import Job, JobState
from haulier.domain.limits import Limit
from haulier.domain.moves import Move
from haulier.services.ids import new_id
from simulation.history import Final

X, Y = new_id(), new_id()
A, B = "worker-a", "worker-b"
PID = {A: 101, B: 102}
SECOND = 1_000_000
DONE = JobState.COMPLETED


def line(what: str, at: float = 0.0, by: int = 1, **fields: Any) -> Line:
    return {"what": what, "at": round(at * SECOND), "by": by, **fields}


def enqueue(job: str = X, ok: bool | None = True) -> Line:
    return line("enqueue", ok=ok, jobs=[[job, None]], heads=[])


def start(lease: int, worker: str = A, job: str = X, at: float = 0.0, **fields: Any) -> Line:
    told = {"kind": "work", "queue": "default", "key": None, **fields}
    return line("start", at, job=job, lease=lease, worker=worker, by=PID[worker], **told)


def end(lease: int, job: str = X, at: float = 0.0) -> Line:
    return line("end", at, job=job, lease=lease)


def limit(**fields: Any) -> Line:
    return line("limit", limit=Limit(name="l", **fields).as_json())


def effect(lease: int, accepted: bool = True, job: str = X) -> Line:
    return line("effect", job=job, lease=lease, accepted=accepted)


def hand_in(lease: int, move: Move = Move.COMPLETE, ok: bool | None = True, job: str = X) -> Line:
    return line("hand_in", ok=ok, moves=[[job, lease, move]])


def step(what: str, lease: int, number: int = 0) -> Line:
    return line(what, job=X, lease=lease, step=number)


def kill(worker: str = A, at: float = 1.0, what: str = "kill") -> Line:
    return line(what, at, pid=PID[worker])


def stall(worker: str) -> Line:
    return line("stall", since=2 * SECOND, until=5 * SECOND, pid=PID[worker])


WORKERS = [line("enlist", worker=worker, by=pid) for worker, pid in PID.items()]


def event(seq: int, kind: str, lease: int, at: float, worker: str = A, **fields: Any) -> Event:
    """`at`: seconds of the monotonic clock, as in the lines."""
    wall = time.time_ns() // 1000 - time.monotonic_ns() // 1000 + round(at * SECOND)
    attempt = fields.pop("attempt", lease)
    values = {"job_id": X, "worker": worker if kind in set(Move) else None, **fields}
    return Event("epoch", seq, wall, kind, attempt=attempt, lease=lease, **values)


def final(
    *events: Event, state: JobState = DONE, lease: int = 1, attempt: int = 1, **fields: Any
) -> Final:
    job = Job(X, 1, "work", "default", b"{}", state, lease=lease, attempt=attempt, **fields)
    return Final(
        jobs={X: job},
        batches={},
        counts=Counter([(job.queue, job.kind, job.role, job.state)]),
        events=events,
    )


BEGUN = [event(1, INSERTED, 0, 0.0), event(2, Move.CLAIM, 1, 0.5)]
AT_ONCE = final(*BEGUN, event(3, Move.COMPLETE, 1, 0.6))
ONCE = [*WORKERS, enqueue(), start(1), effect(1), end(1), hand_in(1, ok=None), hand_in(1)]

TAKEN = final(
    *BEGUN,
    event(3, Move.LOSE, 1, 4.0, attempt=0),
    event(4, Move.CLAIM, 2, 5.0, worker=B, attempt=1),
    event(5, Move.COMPLETE, 2, 5.1, worker=B, attempt=1),
    lease=2,
)
BY_ANOTHER = [start(2, B), end(2), hand_in(2)]

RIGHT = {
    "done at the first try": (ONCE, AT_ONCE),
    "taken from a killed worker": ([*WORKERS, enqueue(), start(1), kill(), *BY_ANOTHER], TAKEN),
    "a worker that killed itself": (
        [*WORKERS, enqueue(), start(1), line("crash", 1.0, by=PID[A], point="x"), *BY_ANOTHER],
        TAKEN,
    ),
    "a sleeper that comes back": (
        [
            *(*WORKERS, enqueue(), start(1), kill(what="stop"), *BY_ANOTHER),
            *(effect(1, accepted=False), hand_in(1, ok=False)),
        ],
        TAKEN,
    ),
    "taken while the network was away": (
        [*WORKERS, enqueue(), start(1), line("trouble", since=0, until=9 * SECOND), *BY_ANOTHER],
        TAKEN,
    ),
    "taken from one that the machine let stand still": (
        [*WORKERS, enqueue(), start(1), stall(A), *BY_ANOTHER],
        TAKEN,
    ),
    "steps that the next claim goes on after": (
        [
            *(*WORKERS, enqueue(), start(1)),
            *(step("did", 1), step("passed", 1), step("did", 1, 1), kill()),
            *(step("passed", 2), step("did", 2, 1), step("passed", 2, 1), *BY_ANOTHER),
        ],
        TAKEN,
    ),
    "a step that a sleeper does although another has finished it": (
        [
            *(*WORKERS, enqueue(), start(1), kill(what="stop")),
            *(step("did", 2), step("passed", 2), *BY_ANOTHER, step("did", 1)),
        ],
        TAKEN,
    ),
    "an enqueue that nobody heard of": ([*ONCE, enqueue(Y, ok=None)], AT_ONCE),
    "killed after its finish was sent": (
        [*WORKERS, enqueue(), start(1), end(1), hand_in(1, ok=None), kill()],
        AT_ONCE,
    ),
}
WRONG = {
    "accepted and lost": ([*ONCE, enqueue(Y)], AT_ONCE, "lost"),
    "there, but nobody enqueued it": (ONCE[3:], AT_ONCE, "lost"),
    "still running at the end": (
        [*WORKERS, enqueue(), start(1)],
        final(*BEGUN, state=JobState.RUNNING),
        "lost",
    ),
    "which never came to its end": (
        [each for each in ONCE if each["what"] != "end"],
        AT_ONCE,
        "lost",
    ),
    "which had no trouble": (
        [*WORKERS, enqueue(), start(1), kill(B), *BY_ANOTHER],
        TAKEN,
        "unexplained",
    ),
    "had no trouble": (
        [*WORKERS, enqueue(), start(1), stall(B), *BY_ANOTHER],
        TAKEN,
        "unexplained",
    ),
    "before it was struck": (
        [*WORKERS, enqueue(), start(1), kill(at=7.0), *BY_ANOTHER],
        TAKEN,
        "unexplained",
    ),
    "started 2 times under the lease 1": ([*ONCE, start(1)], AT_ONCE, "unexplained"),
    "accepted under 1, which was lost": (
        [*WORKERS, enqueue(), start(1), kill(), hand_in(1), *BY_ANOTHER],
        TAKEN,
        "stale",
    ),
    "refused under its own lease 1": (
        [*WORKERS, enqueue(), start(1), end(1), hand_in(1, ok=False)],
        final(*BEGUN, state=JobState.RUNNING),
        "stale",
    ),
    "accepted after one under 2": (
        [*WORKERS, enqueue(), start(1), kill(what="stop"), *BY_ANOTHER, effect(2), effect(1)],
        TAKEN,
        "stale",
    ),
    "step 0 done under 2, finished before": (
        [
            *(*WORKERS, enqueue(), start(1), step("did", 1), step("passed", 1), kill()),
            *(step("did", 2), *BY_ANOTHER),
        ],
        TAKEN,
        "redone",
    ),
    "step 0 done under 1, finished before": (
        [*ONCE, step("did", 1), step("passed", 1), step("did", 1)],
        AT_ONCE,
        "redone",
    ),
    "which never started": ([*ONCE, effect(3)], AT_ONCE, None),
    "nobody handed it in": ([each for each in ONCE if each["what"] != "hand_in"], AT_ONCE, None),
    "no event tells of the claim 1 by worker-b": ([*ONCE, start(1, B)], AT_ONCE, None),
    "there is a gap": (ONCE, final(*BEGUN, event(4, Move.COMPLETE, 1, 0.6)), None),
    "while it was completed": (
        ONCE,
        final(*AT_ONCE.events, event(4, Move.CLAIM, 2, 0.7), lease=2, attempt=2),
        None,
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_history_passes(name):
    assert prove(*RIGHT[name]).findings == []


@pytest.mark.parametrize("finding", WRONG)
def test_a_wrong_history_is_found_out_and_counted(finding):
    lines, state, counted = WRONG[finding]
    report = prove(lines, state)
    assert any(finding in found for found in report.findings), report.findings
    if counted is not None:
        assert getattr(report, counted) == 1


def test_what_was_deleted_is_not_lost():
    gone = Final(jobs={}, batches={}, counts={}, events=[*BEGUN[:1], event(2, DELETED, 0, 1.0)])
    assert prove([enqueue()], gone).findings == []


def test_times_are_counted_from_the_kill():
    report = prove(*RIGHT["taken from a killed worker"])
    assert (report.kills, report.repeated, report.taken, report.refused) == (1, 1, 1, 0)
    assert report.released == [pytest.approx(3.0, abs=0.05)]
    assert report.again == [pytest.approx(4.0, abs=0.05)]
    assert "claimed again p50 4.0" in str(report)


def test_what_was_refused_is_counted():
    assert prove(*RIGHT["a sleeper that comes back"]).refused == 2


def test_percentiles():
    assert [percentile([5.0, *([1.0] * 98), 2.0], percent) for percent in (50, 99, 100)] == [
        1,
        2,
        5,
    ]
    assert percentile([3.0], 99) == 3


def test_figures_of_nothing():
    assert "free again never" in str(Report())


class TestLog:
    def test_lines_are_read_as_they_were_written(self, tmp_path):
        log = Log(tmp_path / "log")
        log.write("kill", pid=7)
        log.write("start", job=X)
        log.close()
        first, second = read(tmp_path / "log")
        assert (first["what"], first["pid"], second["job"]) == ("kill", 7, X)
        assert 0 <= second["at"] - first["at"] < SECOND

    def test_a_torn_line_spoils_no_other(self, tmp_path):
        path = tmp_path / "log"
        path.write_text('\n{"what": "kill", "by": 1}\n\n{"what": "sta')
        log = Log(path)
        log.write("end", job=X)
        log.close()
        assert [each["what"] for each in read(path)] == ["kill", "end"]


ONE, EACH = limit(concurrency=1), limit(concurrency=1, per_key=True)


@pytest.mark.parametrize(
    ("lines", "fullest"),
    [
        ([ONE, start(1, at=1), end(1, at=2), start(1, B, Y, 2), end(1, Y, 3)], 1),
        ([ONE, start(1, at=1), kill(A, 2), start(1, B, Y, 2), end(1, Y, 3)], 1),
        (
            [EACH, start(1, at=1, key="a"), start(1, B, Y, 1, key="b"), end(1, at=2), end(1, Y, 2)],
            1,
        ),
        ([EACH, start(1, at=1), start(1, B, Y, 1), end(1, at=2), end(1, Y, 2)], 0),
        ([limit(concurrency=1, kind="play"), start(1), start(1, B, Y), end(1), end(1, Y)], 0),
    ],
)
def test_runs_that_a_limit_allows_are_no_crowd(lines, fullest):
    report = prove([*WORKERS, *lines], final())
    assert report.crowded == 0
    assert report.fullest.get("l", 0) == fullest


@pytest.mark.parametrize(
    "lines",
    [
        [ONE, start(1, at=1), start(1, B, Y, 1.9), end(1, at=2), end(1, Y, 3)],
        [ONE, start(1, at=1), start(1, B, Y, 1.9), kill(A, 2), end(1, Y, 3)],
        [EACH, start(1, at=1, key="a"), start(1, B, Y, 1.5, key="a"), end(1, at=2), end(1, Y, 3)],
    ],
)
def test_one_too_many_at_a_time_is_a_crowd(lines):
    report = prove([*WORKERS, *lines], final())
    assert (report.crowded, report.fullest) == (1, {"l": 2})
    assert any("as number 2 under l" in finding for finding in report.findings)
