"""What simulated histories have found, each as the few calls that it takes."""

from __future__ import annotations

import pytest

from haulier.domain.flow import After
from haulier.domain.job import JobState
from haulier.domain.limits import Limit
from haulier.domain.moves import Move
from haulier.domain.unique import Conflict, Scope, Uniqueness
from haulier.domain.worker import Note
from haulier.ports import Fence, JobStore
from support import Hand, head, items, work


async def test_no_lease_of_an_item_repeats_when_its_head_is_expanded_anew(store: JobStore):
    """Seed 2716: a worker that comes back from before can still write notes to the new item."""
    ghost, hand = await Hand.enlist(store), await Hand.enlist(store)
    top = head()
    await store.insert([top])
    first = await ghost.claim_one()
    await store.insert(items(top.id, 1), fence=Fence(first.id, first.lease))
    await ghost.hand_in(first, Move.HAND_OVER)
    before = await ghost.claim_one()
    await store.retire(ghost.id)
    await store.cancel([top.id])
    await store.requeue([top.id])
    second = await hand.claim_one()
    await store.insert(items(top.id, 1), fence=Fence(second.id, second.lease))
    await hand.hand_in(second, Move.HAND_OVER)
    after = await hand.claim_one()
    await store.note([Note(before.id, before.lease, 99, "from before")])
    assert after.id == before.id
    assert (await store.get(after.id)).message is None
    assert after.lease > before.lease


@pytest.mark.parametrize("conflict", [Conflict.REPLACE, Conflict.SKIP, Conflict.REJECT])
async def test_an_insert_that_is_repeated_late_leaves_the_present_holder_alone(
    store: JobStore, conflict: Conflict
):
    """Seed 1468: it was accepted, has run, and its name went on to another."""
    first, second = (
        work(unique=(Uniqueness("name", Scope.PENDING, each),))
        for each in (conflict, Conflict.SKIP)
    )
    hand = await Hand.enlist(store)
    await store.insert([first])
    await hand.claim_one()
    await store.insert([second])
    again = await store.insert([first])
    assert (again.new, dict(again.instead)) == (0, {})
    assert (await store.get(second.id)).state is JobState.PENDING


async def test_children_of_a_cancelled_head_are_told_once_its_items_have_stopped(store: JobStore):
    """Seed 11: until then, whoever followed what had ended looked for it without end."""
    hand = await Hand.enlist(store, kinds=("work",))
    top = head()
    await store.insert([top])
    await store.insert(items(top.id, 2))
    child = work("later", after=(After(top.id),))
    await store.insert([child])
    held = await hand.claim(9)
    assert await store.cancel([top.id]) == {top.id: JobState.CANCELLED}
    assert (await store.get(child.id)).state is JobState.PENDING
    for job in held:
        await hand.hand_in(job, Move.CANCEL)
    assert (await store.get(child.id)).state is JobState.CANCELLED


async def test_items_in_lanes_are_not_parked_when_their_batch_gets_a_limit(store: JobStore):
    """Seed 571: they were let in, counted as such, and so left themselves no room."""
    hand = await Hand.enlist(store)
    await store.limits().put(Limit(name="all", concurrency=5), by="test")
    top = head()
    await store.open_batch(top, items(top.id, 3), sealed=True)
    await store.alter_batch(top.id, {"concurrency": 1}, by="test")
    await store.sweep()
    assert await hand.work_off() == 3
    assert (await store.get(top.id)).state is JobState.COMPLETED
