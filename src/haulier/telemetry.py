"""Logs: structured events on standard error, without secrets.

event                          level    fields
renewal failed                 warning  error
exchange failed                warning  worker, error, times
hook failed                    error    job, kind, hook, error
lease lost                     warning  job, kind, lease, dropped
payload too new                warning  job, kind, reason
incarnation lost               error    worker, jobs
released jobs of lost workers  warning  jobs
sweep failed                   warning  error
prune failed                   warning  error
job abandoned                  warning  job, kind, why
progress not stored            warning  error
configuration not read         warning  error
could not sign off             warning  worker, error
store failed at start          error    error
worker process started         info     pid, worker
worker process ended           warning  pid, worker, exit, restart_in
worker process killed          error    pid
could not release jobs         warning  worker, error
worker stopping                info     grace
request failed                 error    request, method, path
store failed a request         warning  request, error
live streams failed            error
identity not checked           warning  error
store writer failed            error    store, error
store thread failed            error    store, error
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

import structlog


@dataclass(slots=True)
class _Threshold:
    """The level that the process was told at its start, and the one that comes before it."""

    own: int = logging.INFO
    instead: int | None = None


_threshold = _Threshold()


def override_level(level: str | None) -> None:
    """Log from this level on, whatever `configure_logging` was told; None: as it was told."""
    found = logging.getLevelNamesMapping()
    _threshold.instead = None if level is None else found[level.upper()]


def _filtered(_: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    least = _threshold.own if _threshold.instead is None else _threshold.instead
    if logging.getLevelNamesMapping().get(method.upper(), logging.CRITICAL) < least:
        raise structlog.DropEvent
    return event


def configure_logging(
    level: str, style: str, scrub: Callable[[str], str] = lambda text: text
) -> None:
    """Send log events to standard error: readable (`console`), or one JSON object a line (`json`).

    `scrub` masks the secrets that the running job has revealed.
    """

    def scrubbed(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        return {
            name: scrub(value) if isinstance(value, str) else value for name, value in event.items()
        }

    _threshold.own = logging.getLevelNamesMapping()[level.upper()]
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if style == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            _filtered,
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            scrubbed,
            renderer,
        ],
        # Loggers are cached, so the level that counts is looked up with each event.
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
