"""Which kinds this process knows: task definitions, and the payload models made from functions."""

from __future__ import annotations

import difflib
import inspect
import math
import typing
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypedDict

from pydantic import BaseModel, ConfigDict, create_model
from pydantic.errors import PydanticUserError

from haulier.domain.batch import FinishCallback
from haulier.domain.job import OnLost, Role
from haulier.domain.names import is_dotted
from haulier.domain.retention import Removal, Retention
from haulier.domain.retry import RetryPolicy
from haulier.exceptions import ConfigurationError, InvalidTaskTypeError, Problem
from haulier.services.code import Code, code_of
from haulier.services.context import Context
from haulier.services.middleware import Middleware
from haulier.services.secrets import SCHEMA_FORMAT

if TYPE_CHECKING:
    from haulier.domain.schedule import Cadence, Schedule

MAX_PAYLOAD = 256 * 1024


LONGEST_RUN = 86_400.0
"""Seconds after which a job is stopped that was given no hard timeout: one that hangs would hold
its slot for ever."""


class Executor(StrEnum):
    """Where a task runs: on the worker's event loop, in one of its threads, or in a process."""

    ASYNC = "async"
    THREAD = "thread"
    PROCESS = "process"


Expand = Callable[[Context, Any], Iterable[BaseModel]]

Upcast = Callable[[dict[str, Any]], dict[str, Any]]
"""Takes a stored payload of one version, as plain JSON values, and returns it as the next one."""

LATEST_VERSION = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskDefinition:
    """One kind: how its payload is checked, what runs it, and its defaults.

    `call` takes the context and the validated payload model. `per_worker` is the most jobs of this
    kind that one worker process runs at once, None means as many as the worker has slots.
    `timeout` (seconds) asks the task to stop, `hard_timeout` stops it; None means no timeout and
    `LONGEST_RUN`. `on_lost` and `retention` say what becomes of a job whose worker died, and how
    long a finished one is kept. `version` is that of the payloads enqueued from now on; `upcasts`
    bring those of each older version to the next one. `code` is where a child process finds the
    function.
    `expand` instead of `call` makes this the kind of a head job: it yields the payloads of the
    batch's items, whose kind is `item_kind`; `finish_kind` runs when the batch has settled.
    """

    kind: str
    model: type[BaseModel]
    executor: Executor
    call: Callable[[Context, Any], Any] | None = None
    expand: Expand | None = None
    item_kind: str | None = None
    finish_kind: str | None = None
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    queue: str = "default"
    priority: int = 0
    per_worker: int | None = None
    version: int = 1
    upcasts: dict[int, Upcast] = field(default_factory=dict)
    max_payload: int = MAX_PAYLOAD
    has_secrets: bool = False
    timeout: float | None = None
    hard_timeout: float | None = None
    on_lost: OnLost = OnLost.RETRY
    retention: Retention = field(default_factory=Retention)
    code: Code | None = None

    def __post_init__(self) -> None:
        _check_timeouts(self.kind, self.timeout, self.hard_timeout)
        if not _is_version(self.version):
            raise ConfigurationError(
                f"task {self.kind!r}: version must be an integer from 1 to {LATEST_VERSION:,}"
            )
        try:
            object.__setattr__(self, "on_lost", OnLost(self.on_lost))
        except ValueError as error:
            raise ConfigurationError(f"task {self.kind!r}: on_lost: {error}") from None

    @property
    def role(self) -> Role:
        """The role of jobs of this kind that are enqueued on their own."""
        return Role.HEAD if self.expand else Role.SINGLE

    def own_finish(self, queue: str) -> FinishCallback | None:
        """The finish callback of a bulk kind's head; like its items on the head's queue."""
        if self.finish_kind is None:
            return None
        return FinishCallback(kind=self.finish_kind, queue=queue)

    @property
    def role_as_item(self) -> Role:
        """What a job of this kind is for in a batch."""
        return Role.INNER if self.expand else Role.ITEM


def _is_version(value: Any) -> bool:
    return type(value) is int and 1 <= value <= LATEST_VERSION


def _check_timeouts(kind: str, soft: float | None, hard: float | None) -> None:
    for name, seconds in (("timeout", soft), ("hard_timeout", hard)):
        if seconds is None:
            continue
        number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
        if not number or not math.isfinite(seconds) or seconds <= 0:
            raise ConfigurationError(f"task {kind!r}: {name} must be a number of seconds above 0")
    longest = LONGEST_RUN if hard is None else hard
    if soft is not None and soft > longest:
        raise ConfigurationError(
            f"task {kind!r}: timeout ({soft:g} s) must not be above hard_timeout ({longest:g} s)"
        )


class TaskOptions(TypedDict, total=False):
    """What may be said of a task beside its function; what is left out has its default.

    kind: its name, by default the function's. model: the payload, by default made of the function's
    parameters. retry: which failures are tried again, how often and when. queue, priority: where
    its jobs wait. per_worker: the most jobs of this kind that one worker process runs at once.
    version: that of its payload, counted from 1; raise it, and give an upcast, when payloads that
    are stored already could not be read any more. executor: "process" for a plain function that is
    to run in a process of its own.
    timeout: seconds after which the job gets JobTimeoutError. hard_timeout: seconds after which it
    is stopped, 24 h unless told. on_lost: "retry", or "fail" for a job that must not run again when
    its worker died. retention: how long its finished jobs are kept; in short remove_on_complete
    and remove_on_fail (True: at once, False: never, a number: all but the latest so many, or
    {"age": seconds, "count": jobs}). schedule: when to enqueue it by itself, a Cron or an Interval,
    in short a cron expression in UTC or seconds; `app.schedule` can say more.
    """

    kind: str | None
    model: type[BaseModel] | None
    retry: RetryPolicy | None
    queue: str
    priority: int
    per_worker: int | None
    version: int
    executor: Executor | str | None
    timeout: float | None
    hard_timeout: float | None
    on_lost: OnLost | str
    retention: Retention | None
    remove_on_complete: Removal | None
    remove_on_fail: Removal | None
    schedule: Cadence | str | float | timedelta | None


def task_from(function: Callable[..., Any], options: TaskOptions) -> TaskDefinition:
    """The definition of a task; raises ConfigurationError for what cannot be one."""
    given: dict[str, Any] = {**options}
    if unknown := given.keys() - TaskOptions.__annotations__:
        raise ConfigurationError(f"a task has no option {', '.join(sorted(unknown))}")
    # Declared by the app, once the kind is known.
    given.pop("schedule", None)
    short = {name: given.pop(name, None) for name in ("remove_on_complete", "remove_on_fail")}
    given["retry"] = given.get("retry") or RetryPolicy()
    try:
        given["retention"] = Retention.of(given.get("retention"), **short)
    except ValueError as error:
        raise ConfigurationError(f"task {function.__name__!r}: retention: {error}") from None
    return define_task(function, **given)


class Registry:
    """The kinds that this process knows, by name. Filled at start, never from data."""

    def __init__(self) -> None:
        self._definitions: dict[str, TaskDefinition] = {}
        self._missing: dict[str, str] = {}
        self._middleware: list[tuple[Middleware, frozenset[str] | None]] = []
        self.schedules: dict[str, Schedule] = {}
        """Those that code declares, by name."""

    def missing(self, kind: str, remedy: str) -> None:
        """Remember that a kind exists but lacks a library, and what to do about it."""
        self._missing[kind] = remedy

    def add(self, definition: TaskDefinition) -> None:
        """Make a kind known; raises ConfigurationError for a bad or taken name."""
        check_name("kind", definition.kind)
        check_name("queue", definition.queue)
        if definition.kind in self._definitions:
            raise ConfigurationError(f"the kind {definition.kind!r} is registered twice")
        self._definitions[definition.kind] = definition

    def upcast(self, kind: str, from_version: int, function: Upcast) -> None:
        """Bring stored payloads of a version to the next one.

        Raises ConfigurationError unless the kind is known and of a later version, and if there is
        such an upcast already.
        """
        definition = self._definitions.get(kind)
        what = f"upcast of {kind[:60]!r} from version {from_version!r}"
        if definition is None:
            raise ConfigurationError(f"{what}: the kind is not known; define its task first")
        if not _is_version(from_version) or from_version >= definition.version:
            raise ConfigurationError(
                f"{what}: from_version must be an integer from 1 to below the task's version, "
                f"which is {definition.version}"
            )
        if from_version in definition.upcasts:
            raise ConfigurationError(f"{what}: is there already")
        definition.upcasts[from_version] = function

    def put_around(self, middleware: Middleware, kinds: frozenset[str] | None = None) -> None:
        """Run a middleware's hooks around jobs of these kinds, of all if None; inside earlier ones.

        Raises ConfigurationError for what is no Middleware.
        """
        if not isinstance(middleware, Middleware):
            raise ConfigurationError(f"{middleware!r} is not an instance of a Middleware")
        self._middleware.append((middleware, kinds))

    def layers(self) -> dict[str, tuple[Middleware, ...]]:
        """The middleware around each kind that has one, the outermost first.

        Raises ConfigurationError if one is for a kind that is not known.
        """
        for middleware, kinds in self._middleware:
            if unknown := sorted((kinds or frozenset()) - self._definitions.keys()):
                name = type(middleware).__name__
                raise ConfigurationError(f"{name} is for the unknown kind {unknown[0][:60]!r}")
        found = {
            kind: tuple(each for each, kinds in self._middleware if kinds is None or kind in kinds)
            for kind in self._definitions
        }
        return {kind: layers for kind, layers in found.items() if layers}

    def get(self, kind: str) -> TaskDefinition:
        """The definition of a kind; raises InvalidTaskTypeError with the nearest known names."""
        try:
            return self._definitions[kind]
        except KeyError:
            raise self._unknown(kind) from None

    def _unknown(self, kind: str) -> InvalidTaskTypeError:
        if kind in self._missing:
            reason = f"is not installed: {self._missing[kind]}"
            return InvalidTaskTypeError(f"kind {kind!r} {reason}", [Problem("kind", reason)])
        near = difflib.get_close_matches(kind, list(self._definitions), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return InvalidTaskTypeError(
            f"unknown kind {kind[:60]!r}{hint}",
            [Problem("kind", f"no task is registered as {kind[:60]!r}")],
        )

    def __contains__(self, kind: object) -> bool:
        return kind in self._definitions

    def __iter__(self) -> Iterator[TaskDefinition]:
        return iter(self._definitions.values())


def check_name(what: str, name: str) -> None:
    """Refuse a kind or queue name that is not a dotted name of at most 200 characters."""
    if not is_dotted(name):
        raise ConfigurationError(
            f"{what} {name[:60]!r} is not a dotted name of letters, digits and underscores"
        )


def define_task(
    function: Callable[..., Any],
    *,
    kind: str | None = None,
    model: type[BaseModel] | None = None,
    executor: Executor | str | None = None,
    **defaults: Any,
) -> TaskDefinition:
    """A task definition from a function: its name, its payload model, and where it runs.

    The payload is, in this order: the given model; the one parameter annotated with a pydantic
    model; or a model made of all parameters. A parameter annotated `Context` is filled by the
    worker. Raises ConfigurationError for a signature that JSON cannot call, and for an executor
    that cannot run the function.
    """
    context_parameter, parameters = _parameters(function)
    name = kind or function.__name__
    whole = _whole_model(parameters) if model is None else _takes_model(function, parameters, model)
    payload_model = model or (whole[1] if whole else _made_model(function, parameters))
    taken_whole = whole[0] if whole else None

    def call(ctx: Context, payload: BaseModel) -> Any:
        arguments: dict[str, Any]
        arguments = {taken_whole: payload} if taken_whole else {**payload.__dict__}
        if context_parameter:
            arguments[context_parameter] = ctx
        return function(**arguments)

    return TaskDefinition(
        kind=name,
        model=payload_model,
        executor=(chosen := executor_for(name, function, executor)),
        call=call,
        has_secrets=holds_secrets(payload_model),
        code=code_of(function, model) if chosen is Executor.PROCESS else None,
        **defaults,
    )


def executor_for(
    kind: str, function: Callable[..., Any], wanted: Executor | str | None
) -> Executor:
    """Where a function runs: as wanted if it can, else raises ConfigurationError."""
    is_async = inspect.iscoroutinefunction(function)
    try:
        chosen = Executor(wanted) if wanted else Executor.ASYNC if is_async else Executor.THREAD
    except ValueError as error:
        raise ConfigurationError(f"task {kind!r}: executor: {error}") from None
    if is_async is not (chosen is Executor.ASYNC):
        what = "a coroutine" if is_async else "a plain"
        raise ConfigurationError(
            f"task {kind!r}: {what} function cannot run in the executor {chosen.value!r}"
        )
    return chosen


def holds_secrets(model: type[BaseModel]) -> bool:
    """Whether a payload model has a Secret anywhere in it."""
    try:
        return SCHEMA_FORMAT in str(model.model_json_schema())
    except PydanticUserError:
        # A type without a JSON schema: take the careful path.
        return True


def _parameters(function: Callable[..., Any]) -> tuple[str | None, dict[str, inspect.Parameter]]:
    """The name of the context parameter, if any, and all other parameters with resolved types."""
    try:
        hints = typing.get_type_hints(function, include_extras=True)
        signature = inspect.signature(function)
    except (NameError, TypeError, ValueError) as error:
        raise ConfigurationError(f"task {function!r}: {error}") from error
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigurationError(
            f"task {function.__name__!r}: a task returns its result, it cannot yield"
        )
    context: str | None = None
    parameters: dict[str, inspect.Parameter] = {}
    for name, parameter in signature.parameters.items():
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL):
            raise ConfigurationError(
                f"task {function.__name__!r}: parameter {name!r} cannot be given by name"
            )
        if parameter.kind is parameter.VAR_KEYWORD:
            raise ConfigurationError(
                f"task {function.__name__!r}: '**{name}' hides what the payload holds; name it"
            )
        hint = hints.get(name, Any)
        if hint is Context:
            if context is not None:
                raise ConfigurationError(
                    f"task {function.__name__!r}: {context!r} and {name!r} are both its Context"
                )
            context = name
        elif name.startswith("_"):
            raise ConfigurationError(
                f"task {function.__name__!r}: {name!r} begins with an underscore, "
                "which no field of a payload can"
            )
        else:
            parameters[name] = parameter.replace(annotation=hint)
    return context, parameters


def _whole_model(
    parameters: Mapping[str, inspect.Parameter],
) -> tuple[str, type[BaseModel]] | None:
    """The only parameter, if it takes a pydantic model: then that model is the payload."""
    if len(parameters) != 1:
        return None
    ((name, parameter),) = parameters.items()
    hint = parameter.annotation
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return name, hint
    return None


def _takes_model(
    function: Callable[..., Any],
    parameters: Mapping[str, inspect.Parameter],
    model: type[BaseModel],
) -> tuple[str, type[BaseModel]] | None:
    """With a model given: one parameter takes it whole, several take its fields by name."""
    whole = _whole_model(parameters)
    if whole and whole[1] is model:
        return whole
    missing = set(model.model_fields) ^ set(parameters)
    if missing:
        raise ConfigurationError(
            f"task {function.__name__!r}: {', '.join(sorted(missing))} is not both "
            f"a parameter and a field of {model.__name__}"
        )
    return None


def _made_model(
    function: Callable[..., Any], parameters: Mapping[str, inspect.Parameter]
) -> type[BaseModel]:
    fields: dict[str, Any] = {
        name: (
            parameter.annotation,
            ... if parameter.default is parameter.empty else parameter.default,
        )
        for name, parameter in parameters.items()
    }
    try:
        with warnings.catch_warnings():
            # A parameter may be called `json` or `copy`: the fields are never read as attributes.
            warnings.filterwarnings("ignore", "Field name .* shadows an attribute")
            return create_model(
                f"{function.__name__}_payload",
                __config__=ConfigDict(
                    extra="forbid", allow_inf_nan=False, hide_input_in_errors=True
                ),
                **fields,
            )
    except (PydanticUserError, NameError, ValueError) as error:
        raise ConfigurationError(f"task {function.__name__!r}: {error}") from error
