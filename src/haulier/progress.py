"""A progress bar on a terminal, for a job or a batch that is waited for."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from haulier.domain.batch import Batch
from haulier.domain.job import Job


def bars(console: Console | None = None, *, hidden: bool = False) -> Progress:
    """Bars as all commands draw them, each with a note; on standard error unless told."""
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:>6.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console or Console(stderr=True),
        transient=False,
        disable=hidden,
    )


class ProgressBar:
    """Shows what `JobManager.wait` sees, on standard error. Several may share one console."""

    def __init__(self, console: Console | None = None) -> None:
        self._bars = bars(console)
        self._by_job: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def show(self, job: Job, batch: Batch | None) -> None:
        """Draw the present state of a job or its batch."""
        if job.id not in self._by_job:
            self._by_job[job.id] = self._bars.add_task(job.kind, total=100, note="")
        bar = self._by_job[job.id]
        if batch is None:
            done = 100 if job.state.final else job.progress or 0
            self._bars.update(bar, completed=done, total=100, note=job.message or job.state)
            return
        counts = batch.counts
        note = f"[red]{counts.failed} failed[/red]" if counts.failed else ""
        total = counts.total if batch.sealed or counts.total else 1
        self._bars.update(bar, completed=counts.done, total=total, note=note)
