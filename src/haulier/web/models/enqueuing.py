"""What new jobs are asked for with: one, many in one body, or line by line."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StrictFloat, WithJsonSchema
from typing_extensions import override

from haulier.domain.flow import MOST_PARENTS, After, Otherwise
from haulier.domain.job import Priority
from haulier.services.options import HIGHEST_PRIORITY, Options
from haulier.web.bodies import BatchBody, Moment, Taken, UniqueBody
from haulier.web.problems import FieldError

MOST_MANY = 1000
"""Jobs of one body: one transaction takes them all."""

PRIORITY: dict[str, Any] = {
    "title": "Priority",
    "description": "A name, or from -10,000 to 10,000; higher goes first.",
    "anyOf": [
        {"enum": [each.name.lower() for each in Priority]},
        {"type": "integer", "minimum": -HIGHEST_PRIORITY, "maximum": HIGHEST_PRIORITY},
        {"type": "null"},
    ],
}


class AfterBody(Taken):
    """A job or batch to wait for. If it fails: `cancel` this one, or `run` it."""

    id: UUID
    otherwise: Otherwise = Otherwise.CANCEL

    def as_option(self) -> After:
        """The same as the library takes it."""
        return After(str(self.id), self.otherwise)


def _after(given: UUID | AfterBody) -> After:
    return given.as_option() if isinstance(given, AfterBody) else After(str(given))


class EnqueueBody(BatchBody):
    """One job. What is left out comes from the kind's definition; limits are for bulk kinds."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"kind": "send", "payload": {"to": "ada@example.org"}, "priority": "high"},
                {"kind": "report", "after": ["0199b2d2-6c6e-7cc1-b8a4-6f2f3c1d8a10"]},
            ]
        }
    )

    kind: str = Field(max_length=200)
    payload: dict[str, Any] = Field(default_factory=dict)
    queue: str | None = Field(None, min_length=1, max_length=200)
    # What it may be is checked where the library's is: with the names in the reason.
    priority: Annotated[Any, WithJsonSchema(PRIORITY)] = None
    delay: StrictFloat | None = Field(None, ge=0, description="Seconds to wait before it may run.")
    run_at: Moment | None = Field(None, description="When it may run, instead of a delay.")
    key: str | None = Field(
        None, min_length=1, max_length=200, description="The partition it belongs to."
    )
    unique: UniqueBody | None = None
    after: list[UUID | AfterBody] = Field(
        default_factory=list,
        max_length=MOST_PARENTS,
        description="Jobs that it waits for: ids, or objects with `id` and `otherwise`.",
    )
    id: UUID | None = Field(None, description="Repeating a request with the same id is harmless.")

    @override
    def options(self, idempotency_key: str | None) -> Options:
        return {
            **super().options(idempotency_key),
            "queue": self.queue,
            "priority": self.priority,
            "delay": self.delay,
            "run_at": self.run_at,
            "key": self.key,
            "job_id": None if self.id is None else str(self.id),
            "unique": None if self.unique is None else self.unique.as_option(),
            "after": [_after(each) for each in self.after],
        }


class ManyBody(Taken):
    """Jobs that are enqueued together or, if one of them is at fault, not at all."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "jobs": [
                    {"kind": "send", "payload": {"to": "ada@example.org"}},
                    {"kind": "send", "payload": {"to": "grace@example.org"}, "delay": 60},
                ]
            }
        }
    )

    jobs: list[EnqueueBody] = Field(min_length=1, max_length=MOST_MANY)


class ManyStarted(BaseModel):
    """The ids of the jobs, in the order of the body."""

    ids: list[str]


class StreamQuery(Taken):
    """What a bad line leads to: nothing after it is taken, or it alone is left out and told."""

    on_bad: Literal["stop", "skip"] = Field(
        "stop", description="What a bad line leads to: the end, or being left out."
    )


class StreamTaken(BaseModel):
    """What became of a stream that was read to its end.

    `new` are those of the `taken` that were not there before. `errors` tells of lines that were
    `skipped`, at most the first hundred.
    """

    taken: int
    new: int
    skipped: int
    errors: list[FieldError]
