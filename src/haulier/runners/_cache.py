"""A small cache that threads share: bounded by weight, and no value is made twice at once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

ValueT = TypeVar("ValueT")


class _Slot(Generic[ValueT]):
    __slots__ = ("lock", "value", "weight")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.value: ValueT | None = None
        self.weight = 0


class SharedCache(Generic[ValueT]):
    """Keeps the values used last, as long as their weights add up to at most `limit`.

    Values are shared by all threads that ask: nobody may change them.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._slots: OrderedDict[Hashable, _Slot[ValueT]] = OrderedDict()
        self._weight = 0

    @property
    def weight(self) -> int:
        """What the kept values weigh together."""
        return self._weight

    def get(
        self, key: Hashable, make: Callable[[], ValueT], weigh: Callable[[ValueT], int]
    ) -> ValueT:
        """The value of a key, made by the first thread that asks while others wait for it.

        What `make` raises goes to the thread that called it; the next one in line tries anew.
        """
        with self._lock:
            slot = self._slots.setdefault(key, _Slot())
            self._slots.move_to_end(key)
        with slot.lock:
            if slot.value is None:
                try:
                    slot.value = make()
                except BaseException:
                    self._forget(key, slot)
                    raise
                self._keep(key, slot, weigh(slot.value))
            return slot.value

    def _forget(self, key: Hashable, slot: _Slot[ValueT]) -> None:
        with self._lock:
            if self._slots.get(key) is slot:
                del self._slots[key]

    def _keep(self, key: Hashable, slot: _Slot[ValueT], weight: int) -> None:
        with self._lock:
            # A thread that waited for a failed attempt holds a slot that was forgotten meanwhile.
            if self._slots.setdefault(key, slot) is not slot:
                return
            slot.weight = weight
            self._weight += weight
            # Slots still being filled weigh nothing yet; dropping one would make its value twice.
            full = [name for name, old in self._slots.items() if old.weight]
            for name in full:
                if self._weight <= self.limit:
                    break
                self._weight -= self._slots.pop(name).weight
