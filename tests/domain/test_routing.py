"""Which jobs no live worker would take."""

from __future__ import annotations

import pytest

from haulier.domain.job import JobState, Role
from haulier.domain.routing import Unroutable, lines_of
from haulier.domain.worker import WorkerRow


def worker(kinds: str, queues: str = "default", *, alive: bool = True) -> WorkerRow:
    return WorkerRow(
        id="w",
        host="h",
        pid=1,
        queues=tuple(queues.split()),
        kinds=tuple(kinds.split()),
        slots=1,
        alive=alive,
    )


def of(counts, *workers):
    return {(line.queue, line.kind): line for line in lines_of(counts, workers)}


WAITING = {("default", "mail", Role.SINGLE, JobState.PENDING): 3}


@pytest.mark.parametrize(
    ("workers", "why", "served"),
    [
        ([worker("mail")], None, 1),
        ([worker("mail"), worker("mail other")], None, 2),
        ([worker("other")], Unroutable.KIND, 0),
        ([worker("other"), worker("mail", alive=False)], Unroutable.KIND, 0),
        ([worker("mail", "slow")], Unroutable.QUEUE, 0),
        ([worker("mail", "slow"), worker("other", "default")], Unroutable.QUEUE, 0),
        ([worker("mail", "slow default")], None, 1),
        ([], None, 0),
        ([worker("mail", alive=False)], None, 0),
    ],
)
def test_a_line_that_waits_needs_a_live_worker_for_its_queue_and_kind(workers, why, served):
    (line,) = of(WAITING, *workers).values()
    assert (line.pending, line.unroutable, line.workers) == (3, why, served)


@pytest.mark.parametrize("state", [state for state in JobState if state is not JobState.PENDING])
def test_what_does_not_wait_is_not_unroutable(state):
    (line,) = of({("default", "mail", Role.SINGLE, state): 3}, worker("other")).values()
    assert line.unroutable is None


def test_roles_count_together_and_empty_lines_are_left_out():
    counts = {
        ("q", "mail", Role.SINGLE, JobState.PENDING): 1,
        ("q", "mail", Role.ITEM, JobState.PENDING): 2,
        ("q", "mail", Role.ITEM, JobState.FAILED): 4,
        ("q", "gone", Role.SINGLE, JobState.PENDING): 0,
        ("a", "mail", Role.HEAD, JobState.RUNNING): 1,
    }
    lines = lines_of(counts, [])
    assert [(line.queue, line.kind) for line in lines] == [("a", "mail"), ("q", "mail")]
    assert (lines[1].pending, lines[1].failed, lines[0].running) == (3, 4, 1)
