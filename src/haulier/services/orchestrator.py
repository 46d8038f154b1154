"""Starting bulk kinds by the id of a task in the catalog, or with the input inline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt

from haulier.exceptions import ResourceNotAvailableError
from haulier.services.jobs import JobManager
from haulier.services.options import Options

TaskId = int | str


class StartOptions(BaseModel):
    """How a bulk kind is to be run; what is left out comes from its runner or does not limit.

    concurrency: items at once, over all workers. batch_size: items that one claim takes.
    max_failures: when more have failed, the rest is cancelled. headless, upload_method: for runners
    that open a browser, or know several ways to upload; others do not get them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    concurrency: StrictInt | None = Field(None, ge=1)
    batch_size: StrictInt | None = Field(None, ge=1)
    max_failures: StrictInt | None = Field(None, ge=0)
    headless: StrictBool | None = None
    upload_method: str | None = Field(None, min_length=1, max_length=100)

    def limits(self) -> Options:
        """What is the engine's."""
        return {
            "concurrency": self.concurrency,
            "batch_size": self.batch_size,
            "max_failures": self.max_failures,
        }

    def settings(self) -> dict[str, Any]:
        """What is the runner's."""
        return self.model_dump(include={"headless", "upload_method"}, exclude_none=True)


class WorkerOrchestrator:
    """Starts bulk kinds. The id that it returns is the head job's: it stands for the batch."""

    def __init__(self, jobs: JobManager) -> None:
        self._jobs = jobs

    async def start(
        self,
        kind: str,
        *,
        task_id: TaskId | None = None,
        given: Mapping[str, Any] | None = None,
        options: StartOptions | None = None,
        enqueue: Options | None = None,
    ) -> str:
        """Enqueue the head job of a kind; returns its id.

        Its payload is what is `given`, with `task_id` and, for runners that take them, `options`.
        Raises ResourceNotAvailableError if no runner of the kind is installed, or if it cannot look
        tasks up; ValidationError for what the runner does not take.
        """
        self.check_installed(kind)
        chosen = options or StartOptions()
        fields = self._jobs.registry.get(kind).model.model_fields
        payload = dict(given or {})
        if task_id is not None:
            if "task_id" not in fields:
                raise ResourceNotAvailableError(
                    f"{kind} cannot look up a task by its id here: give the input itself"
                )
            payload["task_id"] = task_id
        if "options" in fields and chosen.settings():
            payload["options"] = chosen.settings()
        return await self._jobs.enqueue(kind, payload, {**chosen.limits(), **(enqueue or {})})

    def check_installed(self, kind: str) -> None:
        """Raise ResourceNotAvailableError if there is no runner of this kind."""
        if kind not in self._jobs.registry:
            raise ResourceNotAvailableError(f"no runner of the kind {kind} is installed here")
