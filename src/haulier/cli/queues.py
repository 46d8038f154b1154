"""`haulier queues`: what waits where, and whether anybody would take it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from haulier.cli.config import change, change_options
from haulier.cli.desk import Desk, Place, opened_desk, place_options
from haulier.cli.output import (
    TEXT,
    command_body,
    emit_json,
    emit_table,
    json_option,
)
from haulier.domain.configuration import paused, weight
from haulier.domain.job import JobState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from haulier.domain.batch import Batch
    from haulier.domain.job import Job
    from haulier.domain.routing import QueueLine, Unroutable

    Lost = dict[tuple[str, str], Unroutable]


@click.group(invoke_without_command=True)
@place_options
@json_option
@click.pass_context
def queues(ctx: click.Context, place: Place, as_json: bool) -> None:
    """Show how many jobs of each kind wait and run, and how many live workers serve them.

    Jobs that no live worker would take are shown as unroutable: their kind is not known to any, or
    none that knows it listens to their queue. They wait; they are not failed. Those of a paused
    queue wait until it is resumed.
    """
    if ctx.invoked_subcommand is None:
        _show_queues(place=place, as_json=as_json)
    elif any(
        ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
        for name in ("store", "server", "as_json")
    ):
        raise click.UsageError(f"write the options behind {ctx.invoked_subcommand}")


@command_body
async def _show_queues(place: Place, as_json: bool) -> None:
    async with opened_desk(place) as opened:
        told = await opened.queues()
    lines, alive = told.lines, told.alive
    if as_json:
        paused = sorted(told.paused)
        emit_json({"workers": alive, "queues": [asdict(line) for line in lines], "paused": paused})
        return
    if lines:
        emit_table(
            ("QUEUE", "KIND", "WAIT", "RUN", "DONE", "FAILED", "WORKERS", "NOTE"),
            [
                (
                    *(line.queue, line.kind, str(line.pending), str(line.running)),
                    *(str(line.completed), str(line.failed), str(line.workers)),
                    _note(line),
                )
                for line in lines
            ],
        )
    else:
        click.echo("No jobs.", err=True)
    for queue in sorted(told.paused - {line.queue for line in lines}):
        click.echo(f"The queue {queue} is paused; no jobs wait in it.", err=True)
    if not alive:
        click.echo("No live worker. Start one:  haulier worker MODULE:APP", err=True)


def _note(line: QueueLine) -> str:
    notes = ["paused"] if line.paused else []
    notes += [f"weight {line.weight}"] if line.weight is not None else []
    notes += [f"unroutable: {line.unroutable}"] if line.unroutable else []
    return ", ".join(notes)


@queues.command()
@click.argument("names", metavar="QUEUE...", nargs=-1, required=True, type=TEXT)
@change_options
@place_options
@json_option
@command_body
async def pause(names: tuple[str, ...], **options: Any) -> None:
    """Let no more jobs of these queues start; those that run go on.

    It takes effect on all workers at once, however many jobs wait.
    """
    await change(values=dict.fromkeys(map(paused, names), True), unset=(), **options)


@queues.command()
@click.argument("names", metavar="QUEUE...", nargs=-1, required=True, type=TEXT)
@change_options
@place_options
@json_option
@command_body
async def resume(names: tuple[str, ...], **options: Any) -> None:
    """Let the jobs of paused queues start again."""
    await change(values={}, unset=tuple(map(paused, names)), **options)


@queues.command("weight")
@click.argument("name", metavar="QUEUE", type=TEXT)
@click.argument("number", metavar="WEIGHT", type=TEXT)
@change_options
@place_options
@json_option
@command_body
async def weigh(name: str, number: str, **options: Any) -> None:
    """Give a queue a weight (1 to 1000) for all workers, or take it away with `none`.

    Of queues that are full, a worker takes jobs as they weigh. Without a weight here, those count
    that the worker was started with.
    """
    if number == "none":
        await change(values={}, unset=(weight(name),), **options)
        return
    value = int(number) if number.isascii() and number.isdigit() else number
    await change(values={weight(name): value}, unset=(), **options)


async def lost_lines(desk: Desk, waiting: Iterable[object]) -> Lost:
    """The lines whose waiting jobs no live worker would take; asked only if any of these waits."""
    if not any(waiting):
        return {}
    lines = (await desk.queues()).lines
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
