"""Settings, queues and workers, as models."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictInt
from pydantic_core import from_json

from haulier.domain.configuration import KEPT_CHANGES, MOST_AT_ONCE, Configuration
from haulier.domain.shares import MOST
from haulier.web.bodies import Taken
from haulier.web.schemas import Instant, View

JsonText = Annotated[Any, BeforeValidator(lambda text: None if text is None else from_json(text))]


class WeightBody(Taken):
    """The weight of a queue; null takes it away."""

    model_config = ConfigDict(json_schema_extra={"example": {"weight": 5}})

    weight: StrictInt | None = Field(ge=1, le=MOST)


class QueueSetting(BaseModel):
    """How a queue is set now, and in which version of the configuration."""

    queue: str
    paused: bool
    weight: int | None
    version: int

    @classmethod
    def of(cls, queue: str, now: Configuration) -> Self:
        return cls(
            queue=queue,
            paused=queue in now.paused,
            weight=now.weights.get(queue),
            version=now.version,
        )


class ConfigurationBody(Taken):
    """Settings to set and to take away, all or none; `expected`: only if that is the version."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {"set": {"log.level": "debug"}, "unset": ["queues.bulk.paused"]}
        }
    )

    set: dict[str, Any] = Field(default_factory=dict, max_length=MOST_AT_ONCE)
    unset: list[str] = Field(default_factory=list, max_length=MOST_AT_ONCE)
    expected: StrictInt | None = Field(None, ge=0)


class SettingView(View):
    """What a setting is, the version that set it, who and when."""

    value: Any
    version: int
    changed_by: str
    changed_at: Instant


class ConfigurationView(BaseModel):
    """All settings that operators have set for all workers of the store."""

    version: int
    settings: dict[str, SettingView]

    @classmethod
    def of(cls, now: Configuration) -> Self:
        settings = {
            name: SettingView.model_validate(setting) for name, setting in now.settings.items()
        }
        return cls(version=now.version, settings=settings)


class AlterationQuery(Taken):
    """How many changes."""

    limit: int = Field(50, ge=1, le=KEPT_CHANGES, description="At most so many.")


class AlterationView(View):
    """One setting that was changed; null where it was not set."""

    version: int
    at: Instant
    by: str
    name: str
    before: JsonText
    after: JsonText


class AlterationList(BaseModel):
    """The last changes of settings, the latest first."""

    changes: list[AlterationView]


class WorkerView(View):
    """A worker incarnation. `alive`: it has renewed itself within its ttl."""

    id: str
    host: str
    pid: int
    queues: tuple[str, ...]
    kinds: tuple[str, ...]
    slots: int
    started_at: Instant
    renewed_at: Instant
    alive: bool


class WorkerList(BaseModel):
    """The workers that the store knows."""

    workers: list[WorkerView]
