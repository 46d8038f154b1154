"""What can be asked about everything that operators look at and change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, TypedDict

from typing_extensions import Unpack

from haulier.client import answers
from haulier.client import call as make
from haulier.client.call import Call, Listing


class Cadence(TypedDict, total=False):
    """When a schedule ticks (`cron` and `zone`, or `every` and `start`), and what it enqueues."""

    payload: Mapping[str, Any]
    cron: str | None
    zone: str | None
    every: float | None
    start: datetime | None
    missed: str
    overlap: str
    queue: str | None
    priority: int | str | None
    key: str | None
    concurrency: int | None
    batch_size: int | None
    max_failures: int | None


class LimitSetting(TypedDict, total=False):
    """One of concurrency, rate and breaker, and which jobs it concerns."""

    concurrency: int | None
    rate: str | Mapping[str, Any] | None
    breaker: Mapping[str, Any] | None
    queue: str | None
    kind: str | None
    per_key: bool


def queues() -> Call[answers.Queues]:
    """How many jobs of each kind wait and run, and who works on them."""
    return make.get("/queues", answers.Queues)


def pause_queue(queue: str) -> Call[answers.QueueSetting]:
    """Let no more jobs of a queue start."""
    return make.post(f"/queues/{make.segment(queue)}/pause", answers.QueueSetting)


def resume_queue(queue: str) -> Call[answers.QueueSetting]:
    """Let the jobs of a paused queue start again."""
    return make.post(f"/queues/{make.segment(queue)}/resume", answers.QueueSetting)


def weigh_queue(queue: str, weight: int | None) -> Call[answers.QueueSetting]:
    """Give a queue its share of what workers take; None takes it away."""
    path = f"/queues/{make.segment(queue)}/weight"
    return make.send("PUT", path, answers.QueueSetting, {"weight": weight})


def workers() -> Call[tuple[answers.Worker, ...]]:
    """The workers that the store knows."""
    return make.whole("/workers", "workers", answers.Worker)


def limits() -> Call[tuple[answers.Limit, ...]]:
    """All limits by name."""
    return make.whole("/limits", "limits", answers.Limit)


def set_limit(name: str, **limit: Unpack[LimitSetting]) -> Call[answers.LimitChange]:
    """Add a limit, or put it in place of the one of its name."""
    return make.send(
        "PUT", make.of_limit(name), answers.LimitChange, make.given_of(limit), subject=name
    )


def delete_limit(name: str) -> Call[None]:
    """Take a limit away."""
    return make.remove(make.of_limit(name), name)


def limit_keys(name: str, *, page: int = 100) -> Listing[answers.LimitKey]:
    """How keys stand under a limit that is per key."""
    params = {"name": name, "limit": page}
    return make.listing("/limit-keys", "keys", answers.LimitKey, params, by="after", subject=name)


def reset_breaker(name: str, key: str) -> Call[answers.BreakerChange]:
    """Close the breaker of a key."""
    body = {"name": name, "key": key}
    return make.post("/breakers/reset", answers.BreakerChange, body, subject=name)


def schedules(*, page: int = 100) -> Listing[answers.Schedule]:
    """All schedules by name."""
    params = {"limit": page}
    return make.listing("/schedules", "schedules", answers.Schedule, params, by="after")


def schedule(name: str) -> Call[answers.Schedule]:
    """One schedule."""
    return make.get(make.of_schedule(name), answers.Schedule, subject=name)


def set_schedule(name: str, kind: str, **cadence: Unpack[Cadence]) -> Call[answers.Schedule]:
    """Make a schedule, or change all of the one with this name."""
    body = {"kind": kind, **make.given_of(cadence)}
    return make.send("PUT", make.of_schedule(name), answers.Schedule, body, subject=name)


def delete_schedule(name: str) -> Call[None]:
    """Remove a schedule; its jobs stay."""
    return make.remove(make.of_schedule(name), name)


def pause_schedule(name: str) -> Call[answers.Schedule]:
    """Let a schedule tick no more."""
    return make.post(make.of_schedule(name, "/pause"), answers.Schedule, subject=name)


def resume_schedule(name: str) -> Call[answers.Schedule]:
    """Let a schedule tick again."""
    return make.post(make.of_schedule(name, "/resume"), answers.Schedule, subject=name)


def run_schedule(name: str) -> Call[answers.Started]:
    """Enqueue the job of a schedule now."""
    path = make.of_schedule(name, "/run")
    return make.post(path, answers.Started, subject=name, repeatable=False)


def ticks(
    name: str, *, before: datetime | None = None, limit: int = 50
) -> Call[tuple[answers.Tick, ...]]:
    """The last ticks of a schedule and what became of them, the latest first."""
    params = {**make.query({"before": before}), "limit": limit}
    return make.whole(make.of_schedule(name, "/ticks"), "ticks", answers.Tick, params, subject=name)


def configuration() -> Call[answers.Configuration]:
    """What is set for all workers of the store."""
    return make.get("/configuration", answers.Configuration)


def configure(
    values: Mapping[str, Any] | None = None,
    *,
    unset: Sequence[str] = (),
    expected: int | None = None,
) -> Call[answers.Configuration]:
    """Set and unset, all or none; with `expected` only if that is still the version."""
    body: dict[str, Any] = {"set": dict(values or {}), "unset": list(unset)}
    if expected is not None:
        body["expected"] = expected
    path, answer = "/configuration", answers.Configuration
    return make.send("PATCH", path, answer, body, repeatable=expected is None)


def alterations(*, limit: int = 50) -> Call[tuple[answers.Alteration, ...]]:
    """Who changed what in the configuration, the latest first."""
    return make.whole("/configuration/changes", "changes", answers.Alteration, {"limit": limit})


# ── What happens, and how it is ──────────────────────────────────────────────────────────────


def history(*, after: str | None = None, page: int = 1000) -> Listing[answers.Event]:
    """What happened to jobs, in order, up to now: from the oldest event kept, or `after` one."""
    params = {**make.query({"after": after}), "limit": page}
    return make.listing("/events", "events", answers.Event, params, by="after")


def health() -> Call[answers.Health]:
    """How the service is."""
    return make.get("/health", answers.Health)


def metrics() -> Call[answers.JobMetrics]:
    """Figures of all jobs that are kept."""
    return make.get("/metrics", answers.JobMetrics)


def prometheus() -> Call[str]:
    """All figures, as Prometheus reads them."""
    return Call("GET", "/metrics", bytes.decode)
