"""What the mark of a copy means for the other verbs of a store: the same in all stores."""

from __future__ import annotations

from haulier.domain.transfer import Mark, Stage
from haulier.exceptions import JobStateError, StoreFrozenError

PAGE_RECORDS = 500
PAGE_BYTES = 4 << 20
"""A page of records ends when it has so many records, or so many bytes of payloads and results."""

CLOSED = frozenset({Stage.FROZEN, Stage.MOVED, Stage.RECEIVING})
"""Stages in which nothing of a store may change."""

_WHY = {
    Stage.FROZEN: "is being copied to {peer}: nothing new is taken until that is done",
    Stage.MOVED: "was moved to {peer}: the work goes on there",
    Stage.RECEIVING: "is being filled from {peer}: it opens when all is there",
}


def refusal(text: str) -> StoreFrozenError:
    """The error for a write to a store with such a mark."""
    mark = Mark.from_text(text)
    return StoreFrozenError(f"the store {_WHY[mark.stage].format(peer=mark.peer)}")


def may_freeze(mark: Mark | None) -> bool:
    """Whether a store with this mark can be marked as draining or frozen."""
    return mark is None or mark.stage in (Stage.DRAINING, Stage.RECEIVED)


def check_replaced(there: Mark | None, was: Mark, now: Mark) -> bool:
    """Whether a step of a copy is still to be done; JobStateError if it is another copy's turn."""
    if there == now:
        return False
    if there != was:
        raise JobStateError("another run of `haulier store copy` has gone on with this copy")
    return True
