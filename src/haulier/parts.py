"""Parts of a store beside its jobs, each with a Protocol of its own; see ports."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from haulier.domain.configuration import Alteration, Configuration
from haulier.domain.limits import KeyState, Limit, LimitState
from haulier.domain.transfer import Mark, Numbers, Record, Records, Section, Standing

if TYPE_CHECKING:
    # It needs time zones and cron, which take longer to load than short commands may.
    from haulier.domain.schedule import Due, Firing, Schedule
    from haulier.domain.tick import Tick


class Schedules(Protocol):
    """The part of a store that keeps schedules and makes each of their ticks happen once.

    What to do about a schedule is decided outside, from what was read of it; here it is done if the
    schedule is still the same, by its revision. So any number of workers may tick at once.
    """

    async def find(self, *, after: str = "", limit: int = 100) -> list[Schedule]:
        """Schedules in the order of their names, those that follow the name `after`."""
        ...

    async def get(self, name: str) -> Schedule:
        """The schedule; raises ScheduleNotFoundError."""
        ...

    async def put(self, schedule: Schedule, event: str) -> bool:
        """Keep a schedule and append an event of this type; whether it was done.

        It is not done if the revision that is kept is not that of the given one, 0 if there is
        none. The revision rises by one, `changed_at` becomes the store's time, `last_job` stays.
        """
        ...

    async def delete(self, name: str, *, by: str) -> None:
        """Remove a schedule and its ticks, not its jobs; raises ScheduleNotFoundError.

        `by` is who does it: the event tells.
        """
        ...

    async def due(self, limit: int = 100) -> Due:
        """What is due; never waits for a writer."""
        ...

    async def fire(self, firings: Sequence[Firing]) -> list[tuple[Tick, ...] | None]:
        """Record ticks, enqueue their jobs and move on, in one transaction; what became of each.

        None for a firing whose schedule has another revision by now: nothing was done for it. A
        tick that is recorded already is not done again. Of each schedule the last KEPT_TICKS ticks
        are kept, and those whose jobs are not done.
        """
        ...

    async def ticks(self, name: str, *, before: int | None = None, limit: int = 50) -> list[Tick]:
        """The ticks of a schedule that are kept, the latest first, those before an instant."""
        ...

    async def tick_of(self, job_id: str) -> Tick | None:
        """The tick that a job was enqueued for, while it is kept."""
        ...


class Limiting(Protocol):
    """The part of a store that is told of limits. All take effect in the transaction of the call.

    A limit admits before the claim: a job that has no room under one of its limits stands in no
    line that a worker sees. It takes all its slots and tokens with its claim, and gives its slots
    back with whatever ends its run, so that none can leak. Keys are served in turn, each by the
    order of its own jobs; a more urgent job goes first as everywhere.
    """

    async def put(self, limit: Limit, *, by: str, declared: bool = False) -> bool:
        """Add a limit, or put it in place of the one of its name; whether anything changed.

        Jobs that run already count against it. `declared` says that a task's definition asks for
        it: then nothing is done if that was declared before, so that what an operator has changed
        since stays, and a limit that was deleted stays away.
        """
        ...

    async def drop(self, name: str, *, by: str) -> bool:
        """Delete a limit; False if there is none of that name."""
        ...

    async def keys(
        self, name: str, *, limit: int = 100, cursor: str | None = None
    ) -> list[KeyState]:
        """How keys stand under a limit that is per key, by key; `cursor` is the last one seen.

        Only those that have something to tell: running jobs, a rate that is not at rest, attempts
        within the breaker's window. Raises JobNotFoundError if there is no such limit.
        """
        ...

    async def reset(self, name: str, key: str, *, by: str) -> bool:
        """Close the breaker of a key, and forget what it counted; False if it had counted nothing.

        Raises JobNotFoundError if there is no such limit, JobStateError if it is no breaker.
        """
        ...

    async def list(self) -> list[LimitState]:
        """All limits by name."""
        ...


class Configurable(Protocol):
    """The part of a store that keeps what operators change while everything runs.

    A change takes effect in its transaction: from then on no worker gets a job of a queue that is
    paused. Workers are told the version with the answer to their next exchange or renewal, and are
    woken for it.
    """

    async def configuration(self) -> Configuration:
        """What is set now; never waits for a writer."""
        ...

    async def configure(
        self,
        values: Mapping[str, Any],
        *,
        unset: Iterable[str] = (),
        by: str,
        expected: int | None = None,
    ) -> Configuration:
        """Set settings to JSON values and take others away, all or none; what is set then.

        What changes nothing makes no version. Otherwise each setting that changed has an event
        `configured`, and a place in the history. Raises ValidationError that names each setting at
        fault, and JobStateError if the version is not the `expected` one.
        """
        ...

    async def history(self, limit: int = 50) -> list[Alteration]:
        """The last changes, the latest first; at most KEPT_CHANGES."""
        ...


class Transferable(Protocol):
    """The part of a store that copies speak to. What is read here is what `advance` inserts.

    While a store has a mark, its other verbs obey it. A draining or frozen one gives no jobs to
    workers. In one that is frozen, moved or receiving nothing can be changed: StoreFrozenError,
    which those that were moved or receive also answer an exchange with.
    """

    async def standing(self) -> Standing:
        """How the store stands."""
        ...

    async def freeze(self, mark: Mark) -> Standing:
        """Mark a store that is open or draining as draining, or if it is idle as frozen.

        Otherwise nothing is done; returns how it stands then.
        """
        ...

    async def receive(self, mark: Mark) -> Standing:
        """Mark a store that is open and empty as receiving; returns how it stands then."""
        ...

    async def read(self, section: Section, after: str | None = None) -> Records:
        """A page of a section, a few megabytes at most, in an order that stays the same."""
        ...

    async def advance(
        self,
        was: Mark,
        now: Mark,
        records: Sequence[Record] = (),
        *,
        numbers: Numbers | None = None,
    ) -> None:
        """Insert records as they are, set the numbers if given, and replace one mark by the next.

        In one transaction. If the mark is `now` already, nothing is done; raises JobStateError if
        it is neither.
        """
        ...

    async def thaw(self) -> None:
        """Open the store again.

        One that receives is emptied. One that was frozen or moved gets a new epoch, since its
        history may go on elsewhere.
        """
        ...
