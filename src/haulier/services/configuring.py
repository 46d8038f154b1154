"""Changing what workers go by while they run: queues by name, and all other settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from haulier.domain.configuration import Alteration, Configuration, paused, weight
from haulier.ports import JobStore
from haulier.services.selection import check_limit
from haulier.services.who import who


class Queues:
    """What is done to whole queues; every change takes effect on all workers at once.

    `by` is who does it, as the history will say: by default the user of this process, and its host.
    """

    def __init__(self, store: JobStore) -> None:
        self._store = store

    async def paused(self) -> frozenset[str]:
        """The queues that are paused."""
        return (await self._store.configurable().configuration()).paused

    async def weights(self) -> dict[str, int]:
        """The weights that queues were given here; they come before those of workers."""
        return (await self._store.configurable().configuration()).weights

    async def pause(self, *queues: str, by: str | None = None) -> Configuration:
        """Let no more jobs of these queues start; those that run go on."""
        values = dict.fromkeys(map(paused, queues), True)
        return await self._store.configurable().configure(values, by=who(by))

    async def resume(self, *queues: str, by: str | None = None) -> Configuration:
        """Let the jobs of paused queues start again."""
        return await self._store.configurable().configure({}, unset=map(paused, queues), by=who(by))

    async def weigh(
        self, queue: str, number: int | None, *, by: str | None = None
    ) -> Configuration:
        """Give a queue a weight (1 to 1000) that comes before what workers say; None: take it away.

        When a worker's queues are all full, each gives it as many jobs as it weighs.
        """
        name = weight(queue)
        values, unset = ({}, [name]) if number is None else ({name: number}, [])
        return await self._store.configurable().configure(values, unset=unset, by=who(by))


class WorkerSettings:
    """What operators have set for all workers of a store, with who and when.

    It comes before the environment and the code of workers. Those that run go by a change within a
    moment. `by` is who makes it, by default the user of this process, and its host.
    """

    def __init__(self, store: JobStore) -> None:
        self._store = store

    async def get(self) -> Configuration:
        """What is set now."""
        return await self._store.configurable().configuration()

    async def change(
        self,
        values: Mapping[str, Any] | None = None,
        *,
        unset: Iterable[str] = (),
        by: str | None = None,
        expected: int | None = None,
    ) -> Configuration:
        """Set settings and take others away, all or none; what is set then.

        With `expected`, only if that is still the version: JobStateError otherwise. Raises
        ValidationError that names each setting at fault.
        """
        return await self._store.configurable().configure(
            values or {}, unset=unset, by=who(by), expected=expected
        )

    async def history(self, *, limit: int = 50) -> list[Alteration]:
        """The last changes, the latest first."""
        check_limit(limit, least=1)
        return await self._store.configurable().history(limit)
