"""`haulier jobs`: one by one, what they are and what becomes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from haulier.cli.output import (
    EXIT_CODES,
    STATE_NAMES,
    TOP_ROLES,
    ago,
    command_body,
    duration,
    emit_fields,
    emit_json,
    emit_table,
    existing_store,
    instant,
    job_document,
    json_option,
    states_of,
    store_option,
)
from haulier.domain.job import MICROSECOND, Job, JobState, Role
from haulier.exceptions import JobNotFoundError, JobStateError
from haulier.ports import JobFilter

if TYPE_CHECKING:
    from collections.abc import Sequence


@click.group()
def jobs() -> None:
    """List, show, watch, cancel and retry jobs."""


@jobs.command("list")
@click.option("--state", "states", multiple=True, type=click.Choice(STATE_NAMES))
@click.option("--kind", help="Only this kind.")
@click.option("--queue", help="Only this queue.")
@click.option("--batch", "batch_id", help="The items of this batch; else items are left out.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 1000))
@click.option("--cursor", type=int, help="Go on after the page that named this cursor.")
@store_option
@json_option
@command_body
async def list_jobs(
    states: Sequence[str],
    kind: str | None,
    queue: str | None,
    batch_id: str | None,
    limit: int,
    cursor: int | None,
    store: str | None,
    as_json: bool,
) -> None:
    """List jobs, the newest first."""
    where = JobFilter(
        states=states_of(states),
        kind=kind,
        queue=queue,
        batch_id=batch_id,
        roles=None if batch_id else TOP_ROLES,
    )
    async with existing_store(store) as opened:
        page = await opened.find(where, limit=limit, cursor=cursor, payloads=False)
    if as_json:
        documents = [job_document(job) for job in page.jobs]
        for document in documents:
            del document["payload"]
        emit_json({"jobs": documents, "next": page.next})
        return
    if not page.jobs:
        click.echo("No such jobs. Enqueue one:  haulier enqueue KIND --payload '{…}'", err=True)
        return
    emit_table(
        ("ID", "KIND", "STATE", "ATTEMPT", "CREATED", "TOOK", "NOTE"),
        [
            (
                job.id,
                job.kind,
                _view(job),
                str(job.attempt),
                ago(job.created_at),
                _took(job),
                _note(job),
            )
            for job in page.jobs
        ],
    )
    if page.next is not None:
        click.echo(f"More:  --cursor {page.next}", err=True)


@jobs.command("show")
@click.argument("job_id")
@store_option
@json_option
@command_body
async def show(job_id: str, store: str | None, as_json: bool) -> None:
    """Show all that is known of one job."""
    async with existing_store(store) as opened:
        job = await opened.get(job_id)
    document = job_document(job)
    if as_json:
        emit_json(document)
        return
    error = document.pop("error")
    emit_fields(document.items())
    if error:
        click.echo(f"\n{click.style(error['type'], fg='red', bold=True)}: {error['message']}")
        click.echo(error["traceback"], nl=False)


@jobs.command("watch")
@click.argument("job_id")
@click.option("--timeout", type=float, help="Give up after so many seconds.")
@store_option
@json_option
@command_body
async def watch(job_id: str, timeout: float | None, store: str | None, as_json: bool) -> int:
    """Wait until a job is done, with a progress bar. Exit code 8 if it did not complete."""
    return await watch_until_done(job_id, timeout, store, as_json=as_json)


async def watch_until_done(
    job_id: str, timeout: float | None, store: str | None, *, as_json: bool
) -> int:
    """Wait for a job or batch and tell how it ended; the exit code."""
    from haulier.app import App

    async with existing_store(store) as opened:
        return tell_end(await App(opened).wait(job_id, timeout=timeout), as_json=as_json)


def tell_end(job: Job, *, as_json: bool) -> int:
    """Say how a job or batch ended; the exit code."""
    if as_json:
        emit_json(job_document(job))
    else:
        click.echo(f"{job.kind} {job.id} {job.state} {_note(job)}".rstrip())
    failed_items = job.role is Role.HEAD and job.value and job.value.get("failed")
    done = job.state is JobState.COMPLETED and not failed_items
    return EXIT_CODES["ok" if done else "unsuccessful"]


@jobs.command("cancel")
@click.argument("job_ids", nargs=-1, required=True)
@store_option
@json_option
@command_body
async def cancel(job_ids: Sequence[str], store: str | None, as_json: bool) -> None:
    """Stop jobs: pending ones at once, running ones as soon as they heed it."""
    async with existing_store(store) as opened:
        states = await opened.cancel(job_ids)
    _report(job_ids, states, as_json=as_json)


@jobs.command("retry")
@click.argument("job_ids", nargs=-1, required=True)
@store_option
@json_option
@command_body
async def retry(job_ids: Sequence[str], store: str | None, as_json: bool) -> None:
    """Make failed or cancelled jobs pending again, with fresh attempts."""
    async with existing_store(store) as opened:
        states = await opened.requeue(job_ids)
    _report(job_ids, states, as_json=as_json)
    for job_id, state in states.items():
        if state is not JobState.PENDING:
            raise JobStateError(f"job {job_id} is {state}: nothing to retry")


def _report(asked: Sequence[str], states: dict[str, JobState], *, as_json: bool) -> None:
    if as_json:
        emit_json({"jobs": [{"id": job_id, "state": state} for job_id, state in states.items()]})
    else:
        for job_id, state in states.items():
            requested = " (asked to stop)" if state is JobState.RUNNING else ""
            click.echo(f"{job_id}  {state}{requested}")
    for job_id in asked:
        if job_id not in states:
            raise JobNotFoundError(job_id)


def _view(job: Job) -> str:
    """The state as people see it: pending has views of its own."""
    if job.state is JobState.PENDING and job.attempt:
        return "retrying"
    if job.state is JobState.RUNNING and job.cancel_requested:
        return "stopping"
    return job.state


def _took(job: Job) -> str:
    if job.started_at is None or job.finished_at is None:
        return "-"
    return duration((job.finished_at - job.started_at) / MICROSECOND)


def _note(job: Job) -> str:
    if job.error is not None:
        return (
            f"{job.error.type}: {job.error.message.splitlines()[0] if job.error.message else ''}"[
                :60
            ]
        )
    if job.state is JobState.RUNNING:
        return job.message or (f"{job.progress} %" if job.progress is not None else "")
    if job.state is JobState.PENDING and job.run_at > job.created_at:
        return f"due {instant(job.run_at)}"
    if job.role is Role.HEAD and job.value:
        return f"{job.value['completed']} of {job.value['total']} completed"
    return ""
