"""The plug-in seam for bulk kinds: what the items are, what one item does, what the end does.

A runner stands behind three kinds. Its `task_type` is the kind of the head job, whose payload is
the start model. The head's `expand` yields one payload per item; items are jobs of the kind
`<task_type>.item` and go through `run_item`. When the last one is settled, `<task_type>.finish`
runs `finish` once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Iterable, Sequence
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel

from haulier.domain.job import JobState, OnLost
from haulier.domain.retention import Retention
from haulier.domain.retry import RetryPolicy
from haulier.exceptions import ConfigurationError
from haulier.services.code import code_of_runner
from haulier.services.context import Context
from haulier.services.limits import TaskLimit, limits_of_task
from haulier.services.registry import (
    Executor,
    Registry,
    TaskDefinition,
    executor_for,
    holds_secrets,
)

StartT = TypeVar("StartT", bound=BaseModel)
ItemT = TypeVar("ItemT", bound=BaseModel)

MAX_START = 16 * 1024 * 1024
"""A head job's payload may hold the whole input of a batch, so it may be larger than others."""


class BatchFinished(BaseModel):
    """What a finish callback is told: which batch, how it ended, and its counts."""

    batch_id: str
    state: JobState
    counts: dict[str, int]


class BaseTaskRunner(ABC, Generic[StartT, ItemT]):
    """One bulk kind. Subclass it, name the models, and register an instance.

    `run_item` may be a coroutine function (runs on the event loop) or a plain one (runs in a
    thread, or in a process with `executor = "process"`: then the class is at the top level of its
    module, and each process makes an instance of its own). `per_worker` is the most items that one
    worker process runs at once. `timeout`, `hard_timeout`, `on_lost` and `limits` are those of an
    item, `retention` that of the batch: see `TaskOptions`. `version` is that of the start model,
    `item_version` that of the item model; upcasts are for the kinds `task_type` and
    `<task_type>.item`.

    With `item_kind` the items are jobs of that kind: of a task, or of another bulk kind, which then
    are batches within this one. `item_model` is not used then, nor `run_item`.
    """

    task_type: ClassVar[str]
    start_model: ClassVar[type[BaseModel]]
    item_model: ClassVar[type[BaseModel]]
    retry: ClassVar[RetryPolicy] = RetryPolicy()
    queue: ClassVar[str] = "default"
    version: ClassVar[int] = 1
    item_version: ClassVar[int] = 1
    per_worker: ClassVar[int | None] = None
    executor: ClassVar[Executor | str | None] = None
    timeout: ClassVar[float | None] = None
    hard_timeout: ClassVar[float | None] = None
    on_lost: ClassVar[OnLost] = OnLost.RETRY
    retention: ClassVar[Retention] = Retention()
    item_kind: ClassVar[str | None] = None
    limits: ClassVar[Sequence[TaskLimit | str]] = ()

    @abstractmethod
    def expand(self, ctx: Context, start: StartT) -> Iterable[ItemT]:
        """Yield the items, in an order that is the same each time. Runs in a thread.

        Called again from the beginning after a crash: items inserted before are not doubled.
        Raise for an input that cannot be worked on: the head fails, its items are cancelled.
        """

    def run_item(self, ctx: Context, item: ItemT) -> Any | Awaitable[Any]:
        """Do one item; what it returns is kept as the item's result. May run more than once."""
        del ctx, item
        raise TypeError(f"{type(self).__qualname__} does no items: it has no run_item")

    async def finish(self, ctx: Context, start: StartT, finished: BatchFinished) -> Any:
        """Called once the batch has settled; `ctx.items(finished.batch_id)` has the results."""
        del ctx, start, finished

    def definitions(self) -> list[TaskDefinition]:
        """The kinds of this runner, as the registry takes them."""
        if self.item_kind and self.limits:
            raise ConfigurationError(
                f"{self.task_type}: limits are for items of its own; {self.item_kind} has its own"
            )
        if self.item_kind:
            return [self._head(self.item_kind), self._finish()]
        own = f"{self.task_type}.item"
        return [self._head(own), self._item(own), self._finish()]

    def _head(self, item_kind: str) -> TaskDefinition:
        return TaskDefinition(
            kind=self.task_type,
            model=self.start_model,
            executor=Executor.ASYNC,
            expand=self.expand,
            item_kind=item_kind,
            finish_kind=f"{self.task_type}.finish",
            retry=self.retry,
            queue=self.queue,
            version=self.version,
            max_payload=MAX_START,
            retention=self.retention,
            has_secrets=holds_secrets(self.start_model),
        )

    def _item(self, kind: str) -> TaskDefinition:
        if type(self).run_item is BaseTaskRunner.run_item:
            raise ConfigurationError(f"{self.task_type} needs run_item, or an item_kind")
        executor = executor_for(kind, self.run_item, self.executor)
        return TaskDefinition(
            kind=kind,
            model=self.item_model,
            executor=executor,
            call=self.run_item,
            retry=self.retry,
            queue=self.queue,
            per_worker=self.per_worker,
            version=self.item_version,
            has_secrets=holds_secrets(self.item_model),
            timeout=self.timeout,
            hard_timeout=self.hard_timeout,
            on_lost=self.on_lost,
            retention=self.retention,
            limits=limits_of_task(kind, self.limits),
            code=code_of_runner(self) if executor is Executor.PROCESS else None,
        )

    def _finish(self) -> TaskDefinition:
        async def finish(ctx: Context, finished: BatchFinished) -> Any:
            start = await ctx.payload_of(finished.batch_id)
            return await self.finish(ctx, start, finished)  # type: ignore[arg-type]

        return TaskDefinition(
            kind=f"{self.task_type}.finish",
            model=BatchFinished,
            executor=Executor.ASYNC,
            call=finish,
            queue=self.queue,
        )


def register_runner(registry: Registry, runner: BaseTaskRunner[Any, Any]) -> None:
    """Make the kinds of a runner known."""
    for definition in runner.definitions():
        registry.add(definition)
