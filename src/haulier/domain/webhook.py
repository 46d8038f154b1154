"""Webhooks: which events they are told, and how they stand. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from haulier.domain import event as events
from haulier.domain.event import Event
from haulier.domain.job import Role
from haulier.domain.moves import Move

KIND = "haulier.webhook"
QUEUE = "haulier.webhooks"
"""Deliveries are jobs of this kind, in a queue of their own."""

TEST = "webhook.test"
RESET = "events.reset"
"""Told to every webhook: events are missing, because the store keeps them no longer."""

_OBJECTS = {
    Role.SINGLE: "job",
    Role.HEAD: "batch",
    Role.INNER: "batch",
    Role.ITEM: "item",
}
_VERBS = {
    events.INSERTED: "enqueued",
    Move.CLAIM: "started",
    Move.COMPLETE: "completed",
    Move.SETTLE: "completed",
    Move.FAIL: "failed",
    Move.LOSE_LAST: "failed",
    Move.GIVE_UP: "failed",
    Move.RETRY: "retried",
    Move.LOSE: "lost",
    Move.CANCEL: "cancelled",
    Move.DROP: "cancelled",
    Move.ABANDON: "cancelled",
    Move.REQUEUE: "requeued",
    Move.REOPEN: "requeued",
    events.PAUSED: "paused",
    events.RESUMED: "resumed",
    events.DELETED: "deleted",
}
VERBS = tuple(dict.fromkeys(_VERBS.values()))
OBJECTS = ("job", "batch", "item")
ENDS = ("completed", "failed", "cancelled")
DEFAULT_TYPES = tuple(f"{what}.{verb}" for what in ("job", "batch") for verb in ENDS)
TYPES = frozenset(f"{what}.{verb}" for what in OBJECTS for verb in VERBS)


def type_of(event: Event) -> str | None:
    """What an event is called to receivers: `job.completed`; None if they are not told of it."""
    if event.type == events.RESET:
        return RESET
    if event.type in events.OF_SCHEDULES or event.kind == KIND:
        # Deliveries have events too: to tell of them would never end.
        return None
    verb = _VERBS.get(event.type)
    return None if verb is None else f"{_OBJECTS[event.role]}.{verb}"


def unknown_types(types: Iterable[str]) -> list[str]:
    """Those of the given types that are none; `item.*` and `*` stand for several."""
    known = {*TYPES, "*", *(f"{what}.*" for what in OBJECTS)}
    return [each for each in types if each not in known]


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """Where events are sent, and which. Instants are microseconds, UTC.

    `types` has names, `job.*` or `*`; kind, queue and batch restrict further. `after` is the cursor
    of the last event that was looked at for it. `disabled`: why it is told nothing, None if it is.
    """

    id: str
    url: str
    types: tuple[str, ...]
    kind: str | None
    queue: str | None
    batch_id: str | None
    description: str
    created_at: int
    created_by: str
    after: str
    disabled: str | None = None
    failures: int = 0
    failing_since: int | None = None
    succeeded_at: int | None = None
    failed_at: int | None = None
    error: str | None = None

    def wants(self, event: Event, name: str) -> bool:
        """Whether this event, which receivers know by that name, is one of those it is told."""
        if name == RESET:
            return True
        if not {name, f"{name.partition('.')[0]}.*", "*"} & set(self.types):
            return False
        return (
            (self.kind is None or event.kind == self.kind)
            and (self.queue is None or event.queue == self.queue)
            and (self.batch_id is None or self.batch_id in (event.batch_id, event.job_id))
        )


def label_of(event: Event) -> str:
    """What makes the delivery of an event the same one, however often it is enqueued."""
    return event.cursor if event.type != events.RESET else f"{event.cursor}:{RESET}"


def message_of(event: Event, name: str) -> str:
    """The body that is sent: JSON with `type`, `timestamp` and `data`.

    It tells what happened to which job, and neither payload, result nor error: whoever receives it
    asks for these by the API, with a token of their own.
    """
    data: dict[str, Any] = {"cursor": event.cursor}
    if name != RESET:
        data |= {
            "id": event.job_id,
            "kind": event.kind,
            "queue": event.queue,
            "batch_id": event.batch_id,
            "attempt": event.attempt,
            "error_type": event.error_type,
        }
    return body_of(name, event.at, data)


def body_of(name: str, at: int, data: Mapping[str, Any]) -> str:
    """The body of a message about something that happened at an instant."""
    instant = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at)
    timestamp = instant.isoformat(timespec="microseconds").replace("+00:00", "Z")
    return json.dumps({"type": name, "timestamp": timestamp, "data": data}, separators=(",", ":"))
