"""How a job is enqueued: the options that producers give, checked and put over the defaults."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any, TypedDict

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from haulier.domain.batch import LIMITS, BatchPolicy, FinishCallback
from haulier.domain.flow import After
from haulier.domain.ids import raw_id, text_id
from haulier.domain.job import LONGEST_DELAY, MICROSECOND, Priority
from haulier.domain.retry import RetryPolicy
from haulier.domain.unique import Conflict, Scope, Uniqueness
from haulier.exceptions import ConfigurationError, Problem, ValidationError
from haulier.services.flow import after_of
from haulier.services.ids import new_id
from haulier.services.names import check_name
from haulier.services.registry import TaskDefinition
from haulier.services.selection import MOST

HIGHEST_PRIORITY = 10_000
LONGEST_KEY = 200

IDEMPOTENCY_PERIOD = 24 * 3600 * MICROSECOND
"""How long an idempotency key is remembered: a day, unless its job is deleted before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unique:
    """Ask that no second job of the kind is there at the same time.

    `by` names what must be unique (an account, an URL), within the kind; None means the payload
    itself, without its secrets. `scope` is how long the name is held: while the job is `pending`,
    while it is `active` (pending or running), or for a `period` of so many seconds.

    `conflict` says what a second one leads to: `skip` (its producer gets the id of the first),
    `reject` (DuplicateJobError), or `replace`: one that is still pending gives way to the new one
    (with a delay this is a debounce), one that is running does not: DuplicateJobError.
    """

    by: str | None = None
    scope: Scope | str = Scope.ACTIVE
    period: float | None = None
    conflict: Conflict | str = Conflict.SKIP


class Options(TypedDict, total=False):
    """How a job is enqueued; what is left out comes from its task definition.

    delay: seconds to wait before it may run. run_at: a time-zone aware instant instead.
    priority: low, normal, high, urgent, or any integer from -10,000 to 10,000; higher goes first.
    key: the partition it belongs to (an account id, a host). job_id: a UUID made by the producer; a
    repeated enqueue of the same id changes nothing. unique: see Unique; a text means Unique(by=…).
    idempotency_key: enqueuing again with the same key within a day gives the same job, or
    IdempotencyConflictError if anything else of the request has changed.

    after: jobs that it waits for, by their ids; After(id, "run") lets it run also if that one fails
    or is cancelled, else it is cancelled too.

    For batches: concurrency (items that run at once), batch_size (items that one claim takes),
    max_failures (failed items after which the rest is cancelled).
    """

    queue: str | None
    priority: int | str | None
    delay: float | None
    run_at: datetime | None
    key: str | None
    retry: RetryPolicy | None
    job_id: str | None
    unique: Unique | str | None
    idempotency_key: str | None
    after: str | After | Sequence[str | After] | None
    concurrency: int | None
    batch_size: int | None
    max_failures: int | None


class BatchLimits(TypedDict, total=False):
    """Limits of a batch that change while it runs; None removes one, what is left out stays.

    concurrency: items that run at once. batch_size: items that one claim takes. max_failures:
    failed items after which the rest is cancelled.
    """

    concurrency: int | None
    batch_size: int | None
    max_failures: int | None


def checked_limits(changes: Mapping[str, Any]) -> dict[str, int | None]:
    """The limits as they were given; raises ValidationError for bad ones."""
    problems = [Problem(name, "is no limit of a batch") for name in changes if name not in LIMITS]
    for name in changes.keys() & LIMITS.keys():
        _limit(name, changes[name], LIMITS[name], problems, batch=True)
    if not changes:
        problems.append(Problem("limits", f"name at least one of {', '.join(LIMITS)}"))
    if problems:
        raise ValidationError("the limits were refused", problems)
    return dict(changes)


_OPTIONS = frozenset(Options.__annotations__)


@dataclass(frozen=True, slots=True)
class Plan:
    """Checked options, ready to be put on any number of jobs."""

    queue: str
    priority: int
    run_at: int | None
    delay: int
    key: str | None
    retry: RetryPolicy | None
    unique: Unique | None = None
    idempotency_key: str | None = None
    concurrency: int | None = None
    batch_size: int | None = None
    max_failures: int | None = None
    after: tuple[After, ...] | None = None

    @property
    def named(self) -> bool:
        """Whether its jobs have unique names."""
        return self.unique is not None or self.idempotency_key is not None

    def batch_policy(self, finish: FinishCallback | None) -> BatchPolicy:
        """How a batch with these options is worked on."""
        return BatchPolicy(
            finish=finish,
            concurrency=self.concurrency,
            batch_size=self.batch_size,
            max_failures=self.max_failures,
        )

    def _request(self, definition: TaskDefinition, body: str, finish_kind: str | None) -> str:
        """The same text for the same request.

        Options that were not given are left out: one that a later version adds changes nothing.
        """
        given = [
            f"{field.name}={value!r}"
            for field in fields(self)
            if (value := getattr(self, field.name)) is not None
        ]
        if finish_kind is not None:
            given.append(f"{finish_kind=}")
        return "\n".join([definition.kind, *given, body])

    def names(
        self,
        definition: TaskDefinition,
        payload: BaseModel,
        also: Iterable[BaseModel] = (),
        *,
        finish_kind: str | None = None,
    ) -> tuple[Uniqueness, ...]:
        """The unique names of a job with this payload.

        `also` are the items of its batch, `finish_kind` is the kind of its callback if the request
        names it.
        """
        if not self.named:
            return ()
        body = _canonical(payload, *also)
        names = []
        if self.idempotency_key is not None:
            digest = hashlib.sha256(self._request(definition, body, finish_kind).encode()).digest()
            names.append(
                Uniqueness(
                    f"idempotency:{self.idempotency_key}",
                    Scope.PERIOD,
                    Conflict.MATCH,
                    IDEMPOTENCY_PERIOD,
                    digest,
                )
            )
        if self.unique is not None:
            by = self.unique.by
            if by is None:
                by = "#" + hashlib.sha256(body.encode()).hexdigest()
            names.append(
                Uniqueness(
                    f"unique:{definition.kind}:{by}",
                    Scope(self.unique.scope),
                    Conflict(self.unique.conflict),
                    round((self.unique.period or 0) * MICROSECOND),
                )
            )
        return tuple(names)


def _canonical(*payloads: BaseModel) -> str:
    """The same text for the same values. Secrets are masked: they do not count."""
    trees = [to_jsonable_python(payload, round_trip=True) for payload in payloads]
    return json.dumps(trees, sort_keys=True, separators=(",", ":"))


def job_id_of(options: Options) -> str:
    job_id = options.get("job_id")
    if job_id is None:
        return new_id()
    try:
        # In one spelling: it is the name that items derive theirs from.
        return text_id(raw_id(str(job_id)))
    except ValueError:
        raise ValidationError(
            "options were refused", [Problem("job_id", "is not a UUID")]
        ) from None


def plan_of(definition: TaskDefinition, options: Options, *, batch: bool) -> Plan:
    """The options over the definition's defaults; raises ValidationError for bad values.

    `batch` says whether they are a batch's.
    """
    problems = [Problem(name, "is no option") for name in options if name not in _OPTIONS]
    limits: dict[str, Any] = {
        "concurrency": _limit("concurrency", options.get("concurrency"), 1, problems, batch=batch),
        "batch_size": _limit("batch_size", options.get("batch_size"), 1, problems, batch=batch),
        "max_failures": _limit(
            "max_failures", options.get("max_failures"), 0, problems, batch=batch
        ),
    }
    plan = Plan(
        queue=_queue(options.get("queue"), definition.queue, problems),
        priority=_priority(options.get("priority"), definition.priority, problems),
        delay=_delay(options.get("delay"), problems),
        run_at=_run_at(options.get("run_at"), problems),
        key=_key("key", options.get("key"), problems),
        retry=_retry(options.get("retry"), problems),
        unique=_unique(options.get("unique"), problems),
        idempotency_key=_key("idempotency_key", options.get("idempotency_key"), problems),
        after=after_of(options.get("after"), problems) or None,
        **limits,
    )
    if plan.run_at is not None and plan.delay:
        problems.append(Problem("run_at", "cannot be given together with delay"))
    if problems:
        raise ValidationError(f"{definition.kind}: the options were refused", problems)
    return plan


def _retry(value: Any, problems: list[Problem]) -> RetryPolicy | None:
    if value is None:
        return None
    if not isinstance(value, RetryPolicy):
        problems.append(Problem("retry", "must be a RetryPolicy"))
        return None
    try:
        value.as_dict()
    except ValueError as error:
        problems.append(Problem("retry", str(error)))
    return value


def _limit(
    name: str, value: Any, least: int, problems: list[Problem], *, batch: bool
) -> int | None:
    if value is None:
        return None
    if not batch:
        problems.append(Problem(name, "is for batches"))
    elif type(value) is not int or not least <= value <= MOST:
        problems.append(Problem(name, f"must be an integer from {least} to {MOST:,}"))
    else:
        return value
    return None


def _unique(value: Any, problems: list[Problem]) -> Unique | None:
    if value is None:
        return None
    unique = Unique(by=value) if isinstance(value, str) else value
    if not isinstance(unique, Unique):
        problems.append(Problem("unique", "must be a text or a Unique"))
        return None
    before = len(problems)
    _key("unique.by", unique.by, problems)
    scopes = [str(scope) for scope in Scope]
    conflicts = [str(each) for each in Conflict if each is not Conflict.MATCH]
    if unique.scope not in scopes:
        problems.append(Problem("unique.scope", f"must be one of {', '.join(scopes)}"))
    if unique.conflict not in conflicts:
        problems.append(Problem("unique.conflict", f"must be one of {', '.join(conflicts)}"))
    if (unique.scope == Scope.PERIOD) != (unique.period is not None):
        problems.append(Problem("unique.period", "goes with the scope period, and only with it"))
    elif unique.period is not None and not _is_seconds(unique.period):
        problems.append(Problem("unique.period", "must be seconds from 0 up to ten years"))
    if len(problems) > before:
        return None
    # In one spelling, as it counts for an idempotency key.
    return replace(unique, scope=Scope(unique.scope), conflict=Conflict(unique.conflict))


def _is_seconds(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and 0 <= value <= LONGEST_DELAY


def _queue(value: Any, default: str, problems: list[Problem]) -> str:
    if value is None:
        return default
    try:
        check_name("queue", value)
    except (ConfigurationError, TypeError):
        problems.append(Problem("queue", "is not a dotted name of letters, digits and underscores"))
    return str(value)


def _priority(value: Any, default: int, problems: list[Problem]) -> int:
    if value is None:
        return default
    named = Priority.__members__.get(value.upper()) if isinstance(value, str) else None
    number = value if named is None else int(named)
    if isinstance(number, bool) or not isinstance(number, int) or abs(number) > HIGHEST_PRIORITY:
        names = ", ".join(each.name.lower() for each in Priority)
        reason = f"must be {names}, or an integer within ±{HIGHEST_PRIORITY:,}"
        problems.append(Problem("priority", reason))
        return default
    return int(number)


def _delay(value: Any, problems: list[Problem]) -> int:
    """Microseconds."""
    if value is None:
        return 0
    if not _is_seconds(value):
        problems.append(Problem("delay", "must be seconds from 0 up to ten years"))
        return 0
    return round(float(value) * MICROSECOND)


def _run_at(value: Any, problems: list[Problem]) -> int | None:
    """Microseconds UTC."""
    if value is None:
        return None
    if not isinstance(value, datetime) or value.tzinfo is None:
        problems.append(Problem("run_at", "must be a date and time with its time zone"))
        return None
    return round(value.timestamp() * MICROSECOND)


def _key(name: str, value: Any, problems: list[Problem]) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not 1 <= len(value) <= LONGEST_KEY:
        problems.append(Problem(name, f"must be a text of 1 to {LONGEST_KEY} characters"))
    elif any("\ud800" <= character <= "\udfff" for character in value):
        problems.append(Problem(name, "holds half a character (a lone surrogate)"))
    return str(value)
