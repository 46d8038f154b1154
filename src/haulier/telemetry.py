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
webhooks not told              warning  error
store failed a request         warning  request, error
live streams failed            error
identity not checked           warning  error
store writer failed            error    store, error
store thread failed            error    store, error

What a library logs by Python's own means has its text as the event, and the field `logger`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

import structlog

from haulier.domain.redaction import is_secret_name, shown
from haulier.domain.sealed import MASK


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

    `scrub` masks secrets in texts; fields with names of secrets are masked as well. What libraries
    log by Python's own means, from warnings on, goes the same way, unless somebody has set up
    handlers for it.
    """

    def scrubbed(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        return {
            name: _scrubbed(shown(value), scrub) if not is_secret_name(name) else MASK
            for name, value in event.items()
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
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(_Onward(logging.WARNING))


def _scrubbed(value: Any, scrub: Callable[[str], str]) -> Any:
    """A field of an event as it may be written; what is no JSON is written as its repr."""
    if isinstance(value, bool | int | float | None):
        return value
    if isinstance(value, dict):
        return {scrub(str(name)): _scrubbed(item, scrub) for name, item in value.items()}
    if isinstance(value, list):
        return [_scrubbed(item, scrub) for item in value]
    return scrub(value if isinstance(value, str) else repr(value))


class _Onward(logging.Handler):
    """Hands what libraries log on, so that there is one way out and nothing goes past it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log the record as an event; never raises."""
        try:
            text = record.getMessage()
        except Exception:  # noqa: BLE001 - a library's mistake in its own format
            text = str(record.msg)
        log = structlog.get_logger("haulier.library").bind(logger=record.name)
        log.log(record.levelno, text, exc_info=record.exc_info)
