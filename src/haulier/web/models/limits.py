"""Limits, and how keys stand under them, as models."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt

from haulier.domain.limits import Breaker, Circuit, LimitState, Rate
from haulier.exceptions import ValidationError
from haulier.services.limits import MOST_KEYS, LimitOptions, problem_of
from haulier.web.bodies import Taken
from haulier.web.schemas import Instant, View


class RateBody(Taken):
    """So many starts in `per` seconds; `burst` at once after a rest."""

    count: StrictInt
    per: StrictFloat = 1.0
    burst: StrictInt | None = None


class BreakerBody(Taken):
    """When it opens, and for how long; see the guide on limits."""

    failures: StrictFloat = 0.5
    least: StrictInt = 5
    window: StrictFloat = 60.0
    pause: StrictFloat = 30.0
    probes: StrictInt = 1


class LimitBody(Taken):
    """One of concurrency, rate and breaker, and which jobs it concerns; the rest is left out."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"rate": "30/m", "kind": "fetch", "per_key": True}}
    )

    concurrency: StrictInt | None = None
    rate: str | RateBody | None = Field(None, description='As text "30/m", "10/30s", or apart.')
    breaker: BreakerBody | None = None
    queue: str | None = None
    kind: str | None = None
    per_key: StrictBool = False

    def options(self) -> LimitOptions:
        """In the library's words; raises ValidationError."""
        try:
            return {
                "concurrency": self.concurrency,
                "rate": Rate(**self.rate.model_dump())
                if isinstance(self.rate, RateBody)
                else self.rate,
                "breaker": Breaker(**self.breaker.model_dump()) if self.breaker else None,
                "queue": self.queue,
                "kind": self.kind,
                "per_key": self.per_key,
            }
        except ValueError as error:
            raise ValidationError("the limit was refused", [problem_of(error)]) from None


class LimitView(BaseModel):
    """A limit, who changed it last, and when.

    `declared`: by a task's definition. `running`: jobs that count against a concurrency that is not
    per key.
    """

    name: str
    concurrency: int | None = None
    rate: RateBody | None = None
    breaker: BreakerBody | None = None
    queue: str | None = None
    kind: str | None = None
    per_key: bool
    running: int
    declared: bool
    changed_by: str
    changed_at: Instant

    @classmethod
    def of(cls, state: LimitState) -> Self:
        told: dict[str, Any] = {
            **state.limit.as_json(),
            "running": state.running,
            "declared": state.declared,
            "changed_by": state.changed_by,
            "changed_at": state.changed_at,
        }
        return cls.model_validate(told)


class LimitList(BaseModel):
    """All limits by name."""

    limits: list[LimitView]


class LimitChange(BaseModel):
    """Whether the limit is another one now than before."""

    name: str
    changed: bool


class KeyQuery(Taken):
    """Which keys of which limit that is per key."""

    name: str = Field(max_length=200, description="The limit.")
    limit: int = Field(100, ge=1, le=MOST_KEYS, description="At most so many.")
    after: str | None = Field(None, max_length=1000, description="The `next` of the page before.")


class KeyView(View):
    """How a key stands: `ready_at` where its next start is a matter of time."""

    key: str
    running: int
    ready_at: Instant | None
    circuit: Circuit | None
    succeeded: int
    failed: int


class KeyList(BaseModel):
    """Keys that have something to tell, in their order. `next` is the `after` of what follows."""

    keys: list[KeyView]
    next: str | None


class BreakerKey(Taken):
    """A key of a breaker."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"name": "fetch/breaker", "key": "shop.example"}}
    )

    name: str = Field(max_length=200, description="The limit that is a breaker.")
    key: str = Field(max_length=1000)


class BreakerChange(BaseModel):
    """Whether the breaker had counted anything of this key."""

    name: str
    key: str
    reset: bool
