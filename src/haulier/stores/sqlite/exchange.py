"""The hot path: finished transitions in, newly claimed jobs out, one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import apsw

from haulier.domain.ids import raw_id, text_id
from haulier.domain.moves import Transition
from haulier.domain.worker import Demand, Exchange
from haulier.stores.codes import (
    RUNNING,
)
from haulier.stores.sqlite import flows
from haulier.stores.sqlite.claiming import (
    Asker,
    Boot,
    Claimed,
    anything_to_claim,
    claim,
    next_due,
)
from haulier.stores.sqlite.configuring import open_demands
from haulier.stores.sqlite.lanes import left_over
from haulier.stores.sqlite.moving import apply_all
from haulier.stores.sqlite.rows import (
    fetch,
)
from haulier.stores.sqlite.rules import rules_of

_CANCELS = f"SELECT id FROM jobs WHERE worker = ? AND cancel > 0 AND state = {RUNNING}"
# With the configuration, which has at most one row: all that an exchange has to know beforehand. A
# join would take three times as long.
_ALIVE = (
    "SELECT (SELECT version FROM configuration), (SELECT paused FROM configuration) "
    "FROM workers WHERE id = ? AND ended_at IS NULL AND boot = ? AND expires > ?"
)


@dataclass(frozen=True, slots=True)
class Result:
    """The answer, what is to drain, and what others may want to know.

    `settled`: a batch did, which may have brought a new job. `left_over`: there is room now for
    jobs that this worker did not take. `follow`: more follows for jobs that waited for others.
    """

    reply: Exchange
    settled: bool = False
    left_over: bool = False
    drain: list[bytes] = field(default_factory=list)
    follow: bool = False


def nothing_to_do(
    db: apsw.Connection, now: int, boot: Boot, worker_id: str, demands: Sequence[Demand]
) -> Result | None:
    """An empty answer if a claim would find nothing; None if it is worth a transaction.

    Without it, idle workers of several processes would wake each other by their empty commits.
    """
    worker = raw_id(worker_id)
    me = fetch(db, _ALIVE, (worker, *boot))
    if not me:
        return Result(Exchange(alive=False))
    version, paused = me[0]
    demands = open_demands(demands, paused)
    asker = Asker(now, boot, worker, rules_of(db))
    due = next_due(db, asker, demands)
    if due is not None and due <= now:
        return None
    if anything_to_claim(db, asker, demands):
        return None
    due_in = None if due is None else due - now
    return Result(Exchange(cancels=_cancels(db, worker), due_in=due_in, version=version or 0))


def exchange(
    db: apsw.Connection,
    now: int,
    boot: Boot,
    worker_id: str,
    finished: Sequence[Transition],
    demands: Sequence[Demand],
) -> Result:
    """Apply the transitions that still hold their lease, then claim what the demands ask for."""
    worker = raw_id(worker_id)
    me = fetch(db, _ALIVE, (worker, *boot))
    version, paused = me[0] if me else (None, None)
    demands = open_demands(demands, paused)
    asker = Asker(now, boot, worker, rules_of(db))
    # Applied before the claim, so that a finish callback is among what it finds.
    applied = apply_all(db, now, finished, asker.rules)
    followed = flows.follow(db, now) if finished else flows.Followed()
    claimed = Claimed([], more=False)
    wanted = sum(demand.slots for demand in demands)
    if me and wanted:
        claimed = claim(db, asker, demands)
    due = None
    if len(claimed.jobs) < wanted:
        due = now if claimed.more else next_due(db, asker, demands)
    reply = Exchange(
        jobs=tuple(claimed.jobs),
        lost=tuple(applied.lost),
        cancels=_cancels(db, worker),
        due_in=None if due is None else max(due - now, 0),
        alive=bool(me),
        version=(version or 0) if me else None,
    )
    left = applied.freed is not None and left_over(db, applied.freed)
    settled = applied.settled or followed.anything
    return Result(reply, settled, left, applied.drain, followed.more)


def _cancels(db: apsw.Connection, worker: bytes) -> tuple[str, ...]:
    return tuple(text_id(row[0]) for row in db.execute(_CANCELS, (worker,)))
