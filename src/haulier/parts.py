"""Parts of a store beside its jobs, each with a Protocol of its own; see ports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

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
