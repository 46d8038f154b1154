"""What the contexts of running jobs reach through: the worker's own notes, steps and store."""

from __future__ import annotations

from concurrent.futures import Future

from pydantic import BaseModel

from haulier.domain.flow import Parent
from haulier.domain.job import Job
from haulier.domain.step import Step
from haulier.domain.tick import Tick
from haulier.domain.worker import Note
from haulier.ports import JobReader
from haulier.services.jobs import JobManager
from haulier.services.payload import decode
from haulier.worker.notes import Notes
from haulier.worker.steps import StepKeeper


class WorkerRuntime:
    """The Runtime of jobs that run in this process, and of those whose child processes ask it."""

    def __init__(self, manager: JobManager, notes: Notes, steps: StepKeeper) -> None:
        self._manager = manager
        self._notes = notes
        self._steps = steps

    @property
    def reader(self) -> JobReader:
        return self._manager.store

    def payload_of(self, job: Job) -> BaseModel:
        definition = self._manager.registry.get(job.kind)
        return decode(definition, job.payload, job.id, self._manager.sealer, job.version)

    def report(self, note: Note) -> None:
        self._notes.take(note)

    def steps_of(self, job: Job) -> Future[list[Step]]:
        return self._steps.steps_of(job)

    def parents_of(self, job: Job) -> Future[list[Parent]]:
        return self._steps.parents_of(job)

    def tick_of(self, job: Job) -> Future[Tick | None]:
        return self._steps.tick_of(job)

    def keep(self, step: Step) -> Future[bool]:
        return self._steps.keep(step)
