"""What operators change while everything runs, kept in Redis."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from haulier.domain.configuration import KEPT_CHANGES, Alteration, Configuration, checked
from haulier.domain.transfer import ConfigurationRecord, Records
from haulier.stores.configuring import Kept, configuration_of, paused_text
from haulier.stores.redis.history import History
from haulier.stores.redis.packing import Arg, optional
from haulier.stores.redis.records import Writer
from haulier.stores.watching import Change


class _Write(Protocol):
    def __call__(self, verb: str, *args: Any, change: Change) -> Awaitable[Any]: ...


def kept_of(name: bytes, raw: bytes) -> Kept:
    """A setting behind its name and what is kept under it: version, when, by whom, the text."""
    numbers, by, text = raw.decode().split("\n")
    version, at = numbers.split()
    return Kept(name.decode(), text, int(version), by, int(at))


def raw_of(kept: Kept) -> str:
    """What is kept under the name of a setting."""
    return f"{kept.version} {kept.at}\n{kept.by}\n{kept.text}"


def alteration_of(raw: bytes) -> Alteration:
    version, at, *rest = json.loads(raw)
    return Alteration(version, int(at), *rest)


# ── Copies ───────────────────────────────────────────────────────────────────────────────────


async def read_copied(history: History) -> Records:
    """The configuration as a copy takes it."""
    version, pairs = await history.script("configuration")
    if not version:
        return Records(())
    settings = tuple(sorted(map(kept_of, pairs[::2], pairs[1::2])))
    raw = await history.call("LRANGE", history.key("alterations"), 0, -1)
    return Records((ConfigurationRecord(version, settings, tuple(map(alteration_of, raw))),))


def write_copied(writer: Writer, records: Sequence[ConfigurationRecord]) -> None:
    for record in records:
        writer.add("HSET", "history", "configured", record.version)
        kept = [Kept._make(each) for each in record.settings]
        paused = paused_text(each.name for each in kept)
        if paused is not None:
            writer.add("HSET", "history", "paused", paused)
        for each in kept:
            writer.add("HSET", "settings", each.name, raw_of(each))
        for version, at, *rest in record.alterations:
            text = json.dumps([version, str(at), *rest], separators=(",", ":"))
            writer.add("RPUSH", "alterations", text)


class RedisConfigurable:
    """The part of a Redis store that keeps its configuration."""

    def __init__(self, history: History, write: _Write) -> None:
        self._history = history
        self._write = write

    async def configuration(self) -> Configuration:
        version, pairs = await self._history.script("configuration")
        names_and_values = zip(pairs[::2], pairs[1::2], strict=True)
        return configuration_of(version, (kept_of(*pair) for pair in names_and_values))

    async def configure(
        self,
        values: Mapping[str, Any],
        *,
        unset: Iterable[str] = (),
        by: str,
        expected: int | None = None,
    ) -> Configuration:
        texts = checked(values, unset, by)
        packed: list[Arg] = [by, optional(expected), KEPT_CHANGES, len(texts)]
        for name, text in texts.items():
            packed += (name, text or "")
        # All workers are woken: a queue may go on, and each is to hear of the new version.
        await self._write("configure", *packed, change=Change.READY)
        return await self.configuration()

    async def noted(self) -> list[str]:
        """The paused queues as exchanges see them."""
        paused = await self._history.call("HGET", self._history.key("history"), "paused")
        return json.loads(paused) if paused else []

    async def history(self, limit: int = 50) -> list[Alteration]:
        rows = await self._history.call(
            "LRANGE", self._history.key("alterations"), 0, max(limit, 1) - 1
        )
        return [alteration_of(row) for row in rows]
