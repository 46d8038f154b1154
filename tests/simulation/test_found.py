"""What simulated histories have found, each as the few calls that it takes."""

from __future__ import annotations

import pytest

from haulier.domain.job import JobState
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
