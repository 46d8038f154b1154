"""What the API takes, as models. Durations are seconds."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    Tag,
    model_validator,
)
from typing_extensions import override

from haulier.domain.job import JobState, Role
from haulier.domain.unique import Scope
from haulier.ports import JobFilter
from haulier.runners.media_spec import ImageWatermark, PlatformSpec, TextWatermark
from haulier.services.options import Options, Unique
from haulier.services.orchestrator import StartOptions
from haulier.services.selection import MOST

MAX_PAGE = 500
_DATE = re.compile(r"\d{4}-")


def _written_out(value: Any) -> Any:
    # A bare number would pass for seconds or milliseconds since 1970, whichever looks likelier.
    if not isinstance(value, str) or not _DATE.match(value):
        raise ValueError("give it as ISO 8601")
    return value


Moment = Annotated[AwareDatetime, BeforeValidator(_written_out)]
"""An instant as text, with its offset from UTC."""


class Taken(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)


class PageQuery(Taken):
    state: list[JobState] = Field(default_factory=list, description="Only jobs in these states.")
    limit: int = Field(50, ge=1, le=MAX_PAGE, description="At most so many.")
    cursor: int | None = Field(
        None, ge=0, lt=2**63, description="The `next` of the page before; made by the server."
    )


class ItemQuery(PageQuery):
    """Which items of a batch."""


class JobQuery(PageQuery):
    """Which jobs. Without `role`: the items of a `batch` that is named, else all but items."""

    kind: str | None = Field(None, max_length=200, description="Only of this kind.")
    queue: str | None = Field(None, max_length=200, description="Only in this queue.")
    key: str | None = Field(None, max_length=200, description="Only with this key.")
    error_type: str | None = Field(None, max_length=200, description="The class of the last error.")
    batch: UUID | None = Field(None, description="Only items of this batch.")
    role: list[Role] = Field(default_factory=list, description="Only jobs of these roles.")
    full: bool = Field(False, description="All there is to know of each, but for the payload.")


class EventQuery(Taken):
    """Which events: those that follow `after`; without it, from the oldest that is kept."""

    after: str | None = Field(None, max_length=100, description="The `next` of the page before.")
    limit: int = Field(100, ge=1, le=1000, description="At most so many.")


class SelectionBody(Taken):
    """Which jobs an operation is about. At least one criterion must be given.

    Single jobs and batches are meant, or the items of the `batch` that is named.
    """

    kind: str | None = Field(None, max_length=200)
    queue: str | None = Field(None, max_length=200)
    key: str | None = Field(None, max_length=200)
    error_type: str | None = Field(None, max_length=200, description="The class of the last error.")
    limit: StrictInt | None = Field(
        None, ge=1, le=MOST, description="At most so many, the oldest first."
    )
    dry_run: StrictBool = Field(False, description="Only count them.")

    @model_validator(mode="after")
    def _some_criterion(self) -> Self:
        if self.where() == JobFilter():
            raise ValueError("give at least one criterion")
        return self

    def where(self) -> JobFilter:
        """What was asked for, as a filter."""
        batch: UUID | None = getattr(self, "batch", None)
        return JobFilter(
            states=frozenset(JobState(state) for state in getattr(self, "state", ())) or None,
            kind=self.kind,
            queue=self.queue,
            key=self.key,
            error_type=self.error_type,
            batch_id=None if batch is None else str(batch),
        )


class StopBody(SelectionBody):
    """Which jobs are to stop."""

    model_config = ConfigDict(json_schema_extra={"example": {"kind": "send", "state": ["pending"]}})

    state: list[Literal["pending", "running"]] = Field(default_factory=list)
    batch: UUID | None = None


class RetryBody(SelectionBody):
    """Which jobs are to run again; cancelled ones only if `state` names them."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"queue": "mail", "error_type": "TimeoutError", "limit": 100}}
    )

    state: list[Literal["failed", "cancelled"]] = Field(default_factory=list)
    batch: UUID | None = None


class DeleteBody(SelectionBody):
    """Which finished jobs are to be removed, batches with their items."""

    model_config = ConfigDict(json_schema_extra={"example": {"kind": "send", "dry_run": True}})

    state: list[Literal["completed", "failed", "cancelled"]] = Field(default_factory=list)


class RetryFailedBody(Taken):
    """Which failed items of a batch: those with such an error, and at most so many."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"error_type": "TimeoutError", "limit": 100}}
    )

    error_type: str | None = Field(None, max_length=200, description="The class of the last error.")
    limit: StrictInt | None = Field(None, ge=1, le=MOST, description="The first ones first.")


class UniqueBody(Taken):
    """No second job of the kind with this name, or without `by`: with this payload.

    It holds the name while it is `pending` or `active`, or for a `period` of so many seconds.
    `conflict` says what the second one leads to: `skip` answers with the id of the first, `reject`
    with 409, `replace` cancels the first if it is still pending, else answers 409.
    """

    by: str | None = Field(None, min_length=1, max_length=200)
    scope: Scope = Scope.ACTIVE
    period: StrictFloat | None = Field(None, ge=0, description="Seconds; for the scope `period`.")
    conflict: Literal["skip", "replace", "reject"] = "skip"

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, given: Any) -> Any:
        return {"by": given} if isinstance(given, str) else given

    def as_option(self) -> Unique:
        return Unique(by=self.by, scope=self.scope, period=self.period, conflict=self.conflict)


class BatchBody(Taken):
    """How a batch is worked on; what is left out does not limit."""

    concurrency: StrictInt | None = Field(
        None, ge=1, description="The most items that run at once, over all workers."
    )
    batch_size: StrictInt | None = Field(
        None, ge=1, description="The most items that one worker claims at a time."
    )
    max_failures: StrictInt | None = Field(
        None, ge=0, description="When more items have failed, the rest is cancelled."
    )

    def options(self, idempotency_key: str | None) -> Options:
        """The options of enqueue that were asked for."""
        return {
            "idempotency_key": idempotency_key,
            "concurrency": self.concurrency,
            "batch_size": self.batch_size,
            "max_failures": self.max_failures,
        }


RelativePath = Annotated[str, Field(min_length=1, max_length=1024)]


class TextWatermarkBody(TextWatermark):
    """A text watermark; its font is a file below the media folder."""

    font: RelativePath | None = None


class ImageWatermarkBody(ImageWatermark):
    """An image watermark; the image is a file below the media folder."""

    image: RelativePath


def _watermark_kind(value: Any) -> str:
    given = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    return "image" if "image" in given else "text"


WatermarkBody = Annotated[
    Annotated[TextWatermarkBody, Tag("text")] | Annotated[ImageWatermarkBody, Tag("image")],
    Discriminator(_watermark_kind),
]
"""Told apart by what is given, so that a fault is told of the one that is meant."""


class _BulkBody(BatchBody):
    """A start: with the input itself, or a task of the catalog; `options` as the other kinds'."""

    task_id: StrictInt | str | None = None
    start_options: StartOptions = Field(StartOptions(), alias="options")

    @override
    def options(self, idempotency_key: str | None) -> Options:
        own = {name: value for name, value in super().options(None).items() if value is not None}
        limits: Options = {**self.start_options.limits(), **own}  # type: ignore[typeddict-item]
        return {**limits, "idempotency_key": idempotency_key}


class MediaUniqBody(_BulkBody):
    """Renditions of every source for every account, given as a list or as CSV text.

    Sources are pictures, or folders of them, below the server's media folder; the output is a
    folder below its output folder.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "accounts": ["ada", "grace"],
                "sources": ["sea.png"],
                "output": "spring",
                "spec": "square",
                "concurrency": 4,
            }
        }
    )

    accounts: list[str] | None = None
    accounts_csv: str | None = Field(None, description="A column `account`, or one name a line.")
    sources: list[RelativePath] = Field(default_factory=list, max_length=10_000)
    output: RelativePath | None = None
    spec: str | PlatformSpec = "square"
    watermark: WatermarkBody | None = None


class ProxyDiagnosticsBody(_BulkBody):
    """Proxies to check, given as a list of lines or as CSV text."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {"proxies": ["http://proxy.example:3128"], "tries": 3, "timeout": 5.0}
        }
    )

    proxies: list[str] | None = Field(
        None, description="Each `scheme://user:password@host:port` or `host:port:user:password`."
    )
    proxies_csv: str | None = Field(
        None, description="Columns scheme, host, port, username and password, or such lines."
    )
    tries: StrictInt = Field(5, ge=1, le=50)
    timeout: StrictFloat = Field(5.0, ge=0.1, le=60, description="Seconds that one try may take.")
