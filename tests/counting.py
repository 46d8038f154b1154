"""A bulk kind whose items only tell what they carry along."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from haulier import BaseTaskRunner


class Start(BaseModel):
    count: int


class Item(BaseModel):
    n: int


class Counting(BaseTaskRunner[Start, Item]):
    task_type, start_model, item_model = "counting", Start, Item

    def expand(self, ctx: Any, start: Start) -> Iterator[Item]:
        return (Item(n=n) for n in range(start.count))

    async def run_item(self, ctx: Any, item: Item) -> Any:
        return ctx.baggage

    async def finish(self, ctx: Any, start: Start, finished: Any) -> Any:
        return ctx.baggage
