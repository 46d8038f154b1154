"""`haulier queues`: what waits where, and whether anybody would take it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from haulier.cli.output import (
    command_body,
    emit_json,
    emit_table,
    existing_store,
    json_option,
    store_option,
)
from haulier.domain.job import JobState
from haulier.domain.routing import lines_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from haulier.domain.batch import Batch
    from haulier.domain.job import Job
    from haulier.domain.routing import Unroutable
    from haulier.ports import JobStore

    Lost = dict[tuple[str, str], Unroutable]


@click.command()
@store_option
@json_option
@command_body
async def queues(store: str | None, as_json: bool) -> None:
    """Show how many jobs of each kind wait and run, and how many live workers serve them.

    Jobs that no live worker would take are shown as unroutable: their kind is not known to any, or
    none that knows it listens to their queue. They wait; they are not failed.
    """
    async with existing_store(store) as opened:
        counts, workers = await opened.counts(), await opened.workers()
    lines, alive = lines_of(counts, workers), sum(worker.alive for worker in workers)
    if as_json:
        emit_json({"workers": alive, "queues": [asdict(line) for line in lines]})
        return
    if lines:
        emit_table(
            ("QUEUE", "KIND", "WAIT", "RUN", "DONE", "FAILED", "WORKERS", "NOTE"),
            [
                (
                    *(line.queue, line.kind, str(line.pending), str(line.running)),
                    *(str(line.completed), str(line.failed), str(line.workers)),
                    f"unroutable: {line.unroutable}" if line.unroutable else "",
                )
                for line in lines
            ],
        )
    else:
        click.echo("No jobs.", err=True)
    if not alive:
        click.echo("No live worker. Start one:  haulier worker MODULE:APP", err=True)


async def lost_lines(store: JobStore, waiting: Iterable[object]) -> Lost:
    """The lines whose waiting jobs no live worker would take; asked only if any of these waits."""
    if not any(waiting):
        return {}
    lines = lines_of(await store.counts(), await store.workers())
    return {(line.queue, line.kind): line.unroutable for line in lines if line.unroutable}


def why_lost(job: Job, lost: Lost) -> Unroutable | None:
    """Why a job waits in vain, None if it does not."""
    return lost.get((job.queue, job.kind)) if job.state is JobState.PENDING else None


def why_batch_lost(batch: Batch, lost: Lost) -> Unroutable | None:
    """The same of a batch: of its head that is to be expanded, or of its items."""
    if batch.state.final:
        return None
    own = lost.get((batch.queue, batch.kind)) if waits(batch) else None
    return own or (lost.get((batch.queue, f"{batch.kind}.item")) if batch.counts.pending else None)


def waits(batch: Batch) -> bool:
    """Whether anything of a batch is pending."""
    return batch.state is JobState.PENDING or batch.counts.pending > 0
