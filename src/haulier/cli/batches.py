"""`haulier batches`: bulk jobs as one object."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from haulier.cli.desk import Desk, Place, opened_desk, place_options
from haulier.cli.filling import create, limit, seal
from haulier.cli.jobs import watch_until_done
from haulier.cli.output import (
    STATE_NAMES,
    TEXT,
    ago,
    batch_document,
    command_body,
    duration,
    emit_fields,
    emit_json,
    emit_table,
    json_option,
    states_of,
    tell_batch,
)
from haulier.cli.queues import lost_lines, waits, why_batch_lost
from haulier.exceptions import JobNotFoundError
from haulier.services.export import COLUMNS, csv_lines
from haulier.services.selection import MOST

if TYPE_CHECKING:
    from collections.abc import Sequence

    from haulier.domain.batch import Batch


@click.group()
def batches() -> None:
    """List, watch, pause, cancel, retry and export batches."""


batches.add_command(create)
batches.add_command(limit)
batches.add_command(seal)


@batches.command("list")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 500))
@click.option("--within", metavar="BATCH_ID", help="Only those that are items of that batch.")
@click.option("--open", "only_open", is_flag=True, help="Only those that are not sealed yet.")
@place_options
@json_option
@command_body
async def list_batches(
    limit: int, within: str | None, only_open: bool, place: Place, as_json: bool
) -> None:
    """List batches, the newest first."""
    async with opened_desk(place) as opened:
        found = await _found(opened, limit, within, only_open=only_open)
        lost = await lost_lines(opened, map(waits, found))
    if as_json:
        emit_json(
            {"batches": [batch_document(batch, why_batch_lost(batch, lost)) for batch in found]}
        )
        return
    if not found:
        click.echo("No batches yet. Start one:  haulier run media-uniq --help", err=True)
        return
    emit_table(
        ("ID", "KIND", "STATE", "DONE", "FAILED", "CREATED", "ETA", "LIMITS"),
        [
            (
                batch.id,
                batch.kind,
                "unroutable" if why_batch_lost(batch, lost) else _view(batch),
                f"{batch.counts.done}/{batch.counts.total}",
                str(batch.counts.failed),
                ago(batch.created_at),
                duration(batch_document(batch)["eta"]),
                _limits(batch),
            )
            for batch in found
        ],
    )


@batches.command("show")
@click.argument("batch_id")
@place_options
@json_option
@command_body
async def show(batch_id: str, place: Place, as_json: bool) -> None:
    """Show a batch: its counters, limits, rate and ETA."""
    async with opened_desk(place) as opened:
        batch = await opened.batch(batch_id)
        lost = await lost_lines(opened, [waits(batch)])
    document = batch_document(batch, why_batch_lost(batch, lost))
    if as_json:
        emit_json(document)
        return
    document["state"] = batch.state if _view(batch) == batch.state else _in_words(batch)
    for name in ("cancel_requested", "paused"):
        del document[name]
    document["sealed"] = None if batch.sealed else "not yet: items are still being added"
    if batch.open:
        document["sealed"] += f"; to end it: haulier batches seal|cancel {batch.id}"
    if document["rate"] is not None:
        document["rate"] = f"{document['rate']:.1f} items/s"
    document["eta"] = None if document["eta"] is None else duration(document["eta"])
    emit_fields(document.items())


async def _found(reader: Desk, limit: int, within: str | None, *, only_open: bool) -> list[Batch]:
    if not only_open:
        return await reader.batches(limit=limit, within=within)
    found: list[Batch] = []
    cursor = None
    while len(found) < limit and (
        page := await reader.batches(limit=500, cursor=cursor, within=within)
    ):
        found += [batch for batch in page if batch.open]
        cursor = page[-1].id
    return found[:limit]


def _view(batch: Batch) -> str:
    """The state as people see it: paused, open and stopping are views of pending and running."""
    if batch.state.final:
        return batch.state
    if batch.cancel_requested:
        return "stopping"
    if batch.paused:
        return "paused"
    return "open" if batch.open else batch.state


def _in_words(batch: Batch) -> str:
    if batch.cancel_requested:
        return f"{batch.state}, asked to stop"
    return f"{batch.state}, {'paused' if batch.paused else 'open'}"


def _limits(batch: Batch) -> str:
    told = [
        words.format(limit)
        for words, limit in (
            ("{} at once", batch.concurrency),
            ("{} a claim", batch.batch_size),
            ("{} may fail", batch.max_failures),
        )
        if limit is not None
    ]
    return ", ".join(told) or "-"


@batches.command("watch")
@click.argument("batch_id")
@click.option("--timeout", type=float, help="Give up after so many seconds.")
@place_options
@json_option
@command_body
async def watch(batch_id: str, timeout: float | None, place: Place, as_json: bool) -> int:
    """Wait until a batch is done, with a progress bar. Exit code 8 if any item failed."""
    return await watch_until_done(batch_id, timeout, place, as_json=as_json)


@batches.command("cancel")
@click.argument("batch_id")
@place_options
@json_option
@command_body
async def cancel(batch_id: str, place: Place, as_json: bool) -> None:
    """Stop a batch: its pending items at once, its running ones as soon as they heed it."""
    async with opened_desk(place) as opened:
        if not await opened.cancel([batch_id]):
            raise JobNotFoundError(batch_id)
        batch = await opened.batch(batch_id)
    counts = batch.counts
    told = f"{counts.cancelled} cancelled, {counts.running} asked to stop"
    tell_batch(batch, told, as_json=as_json)


@batches.command("pause")
@click.argument("batch_id")
@place_options
@json_option
@command_body
async def pause(batch_id: str, place: Place, as_json: bool) -> None:
    """Let no more items of a batch start; those that run go on."""
    async with opened_desk(place) as opened:
        await opened.pause(batch_id)
        batch = await opened.batch(batch_id)
    tell_batch(batch, f"paused, {batch.counts.running} still running", as_json=as_json)


@batches.command("resume")
@click.argument("batch_id")
@place_options
@json_option
@command_body
async def resume(batch_id: str, place: Place, as_json: bool) -> None:
    """Let the items of a paused batch start again."""
    async with opened_desk(place) as opened:
        await opened.resume(batch_id)
        batch = await opened.batch(batch_id)
    tell_batch(batch, f"resumed, {batch.counts.pending} to go", as_json=as_json)


@batches.command("retry-failed")
@click.argument("batch_id")
@click.option(
    "--error",
    "error_type",
    type=TEXT,
    metavar="CLASS",
    help="Only those whose last error is a CLASS.",
)
@click.option(
    "--limit", type=click.IntRange(1, MOST), help="At most so many, the first ones first."
)
@place_options
@json_option
@command_body
async def retry_failed(
    batch_id: str, error_type: str | None, limit: int | None, place: Place, as_json: bool
) -> None:
    """Run only the failed items of a batch again, and of those within it."""
    async with opened_desk(place) as opened:
        count = await opened.retry_failed(batch_id, error_type=error_type, limit=limit)
    if as_json:
        emit_json({"id": batch_id, "requeued": count})
    else:
        click.echo(f"{batch_id}  {count} item{'' if count == 1 else 's'} requeued")


@batches.command("export")
@click.argument("batch_id")
@click.option("--format", "form", type=click.Choice(["csv", "jsonl"]), default="jsonl")
@click.option("--state", "states", multiple=True, type=click.Choice(STATE_NAMES))
@place_options
@command_body
async def export(batch_id: str, form: str, states: Sequence[str], place: Place) -> None:
    """Write every item of a batch to standard output, one per line, in their order."""
    async with opened_desk(place) as opened:
        if form == "csv":
            click.echo(",".join(COLUMNS))
        async for rows in opened.rows(batch_id, states_of(states) or ()):
            if form == "csv":
                click.echo(csv_lines(rows), nl=False)
            else:
                for row in rows:
                    click.echo(json.dumps(row))
