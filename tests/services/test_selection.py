"""Operations on all jobs that a filter finds."""

from __future__ import annotations

import pytest

from haulier import App, JobFilter, JobState, RetryPolicy, ValidationError
from haulier.domain.job import Role
from haulier.domain.moves import Move
from haulier.services import selection
from support import Hand

FAILED = frozenset({JobState.FAILED})


@pytest.fixture(autouse=True)
def kinds(app):
    @app.task(retry=RetryPolicy.never())
    async def work(n: int) -> int:
        return n


@pytest.fixture
async def hand(app):
    return await Hand.enlist(app.store, kinds=("work",))


async def states(app: App, ids):
    return [str((await app.get(job_id)).state) for job_id in ids]


def numbers(count):
    return [{"n": n} for n in range(count)]


async def test_all_that_are_found_are_cancelled_and_no_others(app, hand):
    mine = await app.enqueue_many("work", numbers(3), key="ada", priority="high")
    await hand.claim_one()
    other = await app.enqueue("work", {"n": 1}, key="eve")
    assert await app.cancel_all(JobFilter(key="ada")) == 3
    assert await states(app, [*mine, other]) == ["running", "cancelled", "cancelled", "pending"]
    assert (await app.get(mine[0])).cancel_requested
    # Those that have been asked already are asked again, those that are done are not.
    assert await app.cancel_all(JobFilter(key="ada")) == 1


async def test_the_oldest_come_first_up_to_a_limit(app):
    ids = await app.enqueue_many("work", numbers(5))
    assert await app.cancel_all(JobFilter(), limit=2) == 2
    assert await states(app, ids) == ["cancelled"] * 2 + ["pending"] * 3
    assert await app.cancel_all(JobFilter(), limit=0) == 0


@pytest.mark.parametrize("limit", [-1, 1.5, "1", True, 2**63])
async def test_a_limit_that_is_none_is_refused(app, limit):
    batch = await app.enqueue_batch("work", numbers(2))
    for call in (
        app.cancel_all(JobFilter(), limit=limit),
        app.retry_all(JobFilter(), limit=limit),
        app.delete_all(JobFilter(), limit=limit),
        app.batches.retry_failed(batch, limit=limit),
    ):
        with pytest.raises(ValidationError, match="limit"):
            await call
    assert (await app.batch(batch)).counts.pending == 2


async def test_more_than_a_slice(app, hand):
    count = selection.SLICE + selection.TOGETHER + 1
    await app.enqueue_many("work", numbers(count))
    await hand.work_off(Move.FAIL)
    assert await app.retry_all(JobFilter(kind="work"), limit=count - 1) == count - 1
    assert await app.cancel_all(JobFilter(states=frozenset({JobState.PENDING}))) == count - 1
    assert await app.delete_all(JobFilter()) == count
    assert (await app.find()).jobs == ()


async def test_batches_are_meant_as_a_whole_unless_one_is_named(app, hand):
    batch = await app.enqueue_batch("work", numbers(4))
    assert await app.retry_all(JobFilter()) == 0
    await hand.work_off(Move.FAIL)
    assert await app.retry_all(JobFilter(error_type="Boom")) == 0
    assert await app.retry_all(JobFilter(batch_id=batch, error_type="Boom"), limit=3) == 3
    assert (await app.batch(batch)).counts.pending == 3
    assert await app.cancel_all(JobFilter(batch_id=batch), limit=1) == 1
    assert (await app.batch(batch)).counts.cancelled == 1
    assert await app.cancel_all(JobFilter(kind="work")) == 1
    assert (await app.batch(batch)).counts.cancelled == 3
    assert await app.delete_all(JobFilter(batch_id=batch)) == 0
    assert await app.delete_all(JobFilter()) == 1
    assert (await app.find(JobFilter(roles=frozenset(Role)))).jobs == ()


async def test_only_failed_ones_are_retried_unless_cancelled_ones_are_named(app, hand):
    failed = await app.enqueue("work", {"n": 1}, key="ada")
    await hand.work_off(Move.FAIL)
    cancelled = await app.enqueue("work", {"n": 2}, key="ada")
    await app.cancel(cancelled)
    assert await app.retry_all(JobFilter(key="ada")) == 1
    assert await states(app, [failed, cancelled]) == ["pending", "cancelled"]
    assert await app.retry_all(JobFilter(states=frozenset({JobState.CANCELLED}))) == 1


async def test_states_that_cannot_be_moved_find_nothing(app, hand):
    job_id = await app.enqueue("work", {"n": 1})
    assert await app.delete_all(JobFilter(states=frozenset({JobState.PENDING}))) == 0
    await hand.work_off()
    assert await app.retry_all(JobFilter(states=frozenset({JobState.COMPLETED}))) == 0
    assert await app.cancel_all(JobFilter(states=FAILED)) == 0
    assert await states(app, [job_id]) == ["completed"]


async def test_one_whose_name_another_holds_stays_and_spoils_no_other(app, hand):
    held = await app.enqueue("work", {"n": 1}, unique="ada")
    free = await app.enqueue("work", {"n": 2})
    await hand.work_off(Move.FAIL)
    await app.enqueue("work", {"n": 3}, unique="ada")
    assert await app.retry_all(JobFilter()) == 1
    assert await states(app, [held, free]) == ["failed", "pending"]


async def test_one_that_is_refused_spoils_no_other(app, hand):
    """A batch that its producer filled cannot begin anew; single jobs can."""
    batch = await app.enqueue_batch("work", numbers(2), max_failures=0)
    alone = await app.enqueue("work", {"n": 1})
    await hand.work_off(Move.FAIL)
    assert await states(app, [batch, alone]) == ["failed", "failed"]
    assert await app.retry_all(JobFilter()) == 1
    assert await states(app, [batch, alone]) == ["failed", "pending"]
