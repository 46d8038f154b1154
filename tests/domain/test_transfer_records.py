"""Neutral records, their digests, and the mark of a copy."""

from __future__ import annotations

import pytest

from haulier.domain.batch import Batch
from haulier.domain.job import Job, JobError, JobState, OnLost, Role
from haulier.domain.line import Line
from haulier.domain.retry import RetryPolicy
from haulier.domain.step import Step
from haulier.domain.transfer import (
    BatchRecord,
    EventRecord,
    Gate,
    JobRecord,
    Mark,
    NameRecord,
    Numbers,
    Section,
    Stage,
    Standing,
    Tally,
)
from haulier.domain.unique import Scope

NAME = NameRecord("n", "j", Scope.PERIOD, 5, b"\x00\xff")
EVENT = EventRecord(3, 1, "claim", "k", "q", Role.ITEM, "b", "w", None, (("j", 1, 2), ("i", 1, 1)))
JOB = JobRecord(
    **dict.fromkeys(JobRecord._fields)
    | {
        "seq": 1,
        "id": "j",
        "payload": b"{}",
        "state": JobState.PENDING,
        "role": Role.SINGLE,
        "gate": Gate.ALONE,
        "retry": RetryPolicy(max_attempts=2),
        "names": ("a", "b"),
        "on_lost": OnLost.FAIL,
        "error": JobError(type="T", message="m"),
        "errors": (JobError(type="T", message="m", lease=1),),
        "steps": (Step("j", 1, "s", b"[1]", 7),),
        "lines": (Line(1, 1, 7, "said"),),
    }
)


def test_no_field_of_a_job_is_forgotten():
    """What a job has is in its record, under the same name or as what it follows from."""
    follows = {
        "worker": None,  # none holds a job while its store is copied
        "cancel_requested": "cancel",
        "cancel_heard": "cancel",
        "parked": "gate",
        "waiting": "gate",
        "unique": "names",
    }
    for field in Job._fields:
        if field not in follows:
            assert field in JobRecord._fields
    assert {name for name in follows.values() if name} <= set(JobRecord._fields)


def test_no_field_of_a_batch_is_forgotten():
    of_its_head = {"kind", "queue", "state", "created_at", "finished_at"}
    follows = {"counts": "total", "settled": "owed", "cancel_requested": "cancel"}
    for field in Batch.__dataclass_fields__:
        if field not in of_its_head:
            assert follows.get(field, field) in BatchRecord._fields


class TestTally:
    def test_the_order_does_not_matter(self):
        records = (NAME, EVENT, JOB)
        assert Tally().plus(records) == Tally().plus(records[::-1])

    def test_it_can_be_gone_on_with(self):
        assert Tally().plus([NAME]).plus([EVENT, JOB]) == Tally().plus([NAME, EVENT, JOB])

    @pytest.mark.parametrize("field", JobRecord._fields)
    def test_every_field_of_a_job_counts(self, field):
        other = JOB._replace(**{field: "other"})
        assert Tally().plus([other]) != Tally().plus([JOB])

    @pytest.mark.parametrize(
        "other",
        [
            NAME._replace(digest=b"\x00\xfe"),
            NAME._replace(until=None),
            NAME._replace(scope=Scope.ACTIVE),
        ],
    )
    def test_every_field_of_a_name_counts(self, other):
        assert Tally().plus([other]) != Tally().plus([NAME])

    def test_a_record_twice_is_not_the_record(self):
        once, twice = Tally().plus([NAME]), Tally().plus([NAME, NAME])
        assert (once.count, twice.count) == (1, 2)
        assert once.digest != twice.digest


def test_a_mark_survives_as_text():
    mark = Mark(
        stage=Stage.RECEIVING,
        token="t",
        peer="sqlite:///ü.db",
        source="e",
        section=Section.NAMES,
        cursor="ü ",
        tallies={Section.JOBS: Tally(3, 1 << 255), Section.BATCHES: Tally()},
    )
    assert Mark.from_text(mark.to_text()) == mark
    bare = Mark(stage=Stage.MOVED, token="t", peer="p", source="e")
    assert Mark.from_text(bare.to_text()) == bare


def test_sections_follow_each_other():
    section, seen = next(iter(Section)), []
    while section is not None:
        seen.append(section)
        section = section.following
    assert seen == list(Section)


@pytest.mark.parametrize(
    ("events", "jobs", "running", "under_way", "empty", "idle"),
    [
        (0, 0, 0, 0, True, True),
        (1, 0, 0, 0, False, True),
        (0, 1, 0, 0, False, True),
        (1, 1, 1, 0, False, False),
        (1, 1, 0, 1, False, False),
    ],
)
def test_how_a_store_stands(events, jobs, running, under_way, empty, idle):
    standing = Standing(
        mark=None,
        numbers=Numbers("e", events, jobs),
        running=running,
        under_way=under_way,
        totals={Section.JOBS: jobs},
    )
    assert (standing.empty, standing.idle) == (empty, idle)
