"""`haulier jobs`: one by one or by a filter, what they are and what becomes of them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from haulier.cli.desk import Place, opened_desk, place_options
from haulier.cli.output import (
    EXIT_CODES,
    ago,
    command_body,
    duration,
    emit_fields,
    emit_json,
    emit_table,
    error_document,
    instant,
    job_document,
    json_option,
    line_document,
    parent_document,
    step_document,
    view_of,
)
from haulier.cli.queues import lost_lines, why_lost
from haulier.cli.selecting import filter_of, filter_options, ids_or_filter, selection_options
from haulier.domain.job import MICROSECOND, Job, JobError, JobState
from haulier.exceptions import JobNotFoundError, JobStateError
from haulier.services import selection

if TYPE_CHECKING:
    from collections.abc import Sequence

    from haulier.domain.flow import Parent
    from haulier.domain.line import Line
    from haulier.domain.routing import Unroutable
    from haulier.domain.step import Step
    from haulier.ports import Page

LONGEST_NOTE = 80

CHILDREN = 20
"""Of the jobs that wait for one, so many are shown."""


@click.group()
def jobs() -> None:
    """List, show, watch, cancel, retry and delete jobs."""


@jobs.command("list")
@filter_options(list(JobState))
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 1000))
@click.option(
    "--cursor",
    type=click.IntRange(0, 2**63 - 1),
    help="Go on after the page that named this cursor.",
)
@place_options
@json_option
@command_body
async def list_jobs(
    limit: int, cursor: int | None, place: Place, as_json: bool, **given: Any
) -> None:
    """List jobs, the newest first.

    Jobs that failed for good stay until they are retried, deleted or too old: `--state failed` is
    what other systems call the dead letters.

    Pending ones are shown as unroutable (no live worker would take them), scheduled (due later),
    retrying (after a failed attempt), parked (their batch is paused or at its limit) or waiting
    (for other jobs), running ones that were told to stop as stopping.
    """
    where = filter_of(**given)
    if where.batch_id is None:
        where = replace(where, roles=selection.TOP)
    async with opened_desk(place) as opened:
        page = await opened.find(where, limit=limit, cursor=cursor)
        lost = await lost_lines(opened, (job.state is JobState.PENDING for job in page.jobs))
    if as_json:
        documents = [job_document(job, why_lost(job, lost)) for job in page.jobs]
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
                view_of(job, why_lost(job, lost)),
                str(job.attempt),
                ago(job.created_at),
                _took(job),
                why_lost(job, lost) or _note(job),
            )
            for job in page.jobs
        ],
    )
    if page.next is not None:
        click.echo(f"More:  --cursor {page.next}", err=True)


@jobs.command("show")
@click.argument("job_id")
@click.option("--tracebacks", is_flag=True, help="Also those of earlier attempts.")
@place_options
@json_option
@command_body
async def show(job_id: str, tracebacks: bool, place: Place, as_json: bool) -> None:
    """Show all that is known of one job: its steps, its log, and how its attempts failed."""
    async with opened_desk(place) as opened:
        job = await opened.get(job_id)
        errors = await opened.errors(job_id)
        lost = await lost_lines(opened, [job.state is JobState.PENDING])
        steps, lines = await opened.steps(job_id), await opened.lines(job_id)
        parents = await opened.parents(job_id)
        children = await opened.children(job_id, limit=CHILDREN)
        of = await opened.origin(job_id)
    origin = {"schedule": of.schedule, "tick": instant(of.tick)}
    if as_json:
        beside = {
            **origin,
            "parents": [parent_document(parent) for parent in parents],
            "children": [{"id": each.id, "state": each.state} for each in children.jobs],
            "more_children": children.next is not None,
            "steps": [step_document(step) for step in steps],
            "lines": [line_document(line) for line in lines],
            "errors": [error_document(error) for error in errors],
        }
        emit_json({**job_document(job, why_lost(job, lost)), **beside})
        return
    emit_fields({**_fields(job, why_lost(job, lost)), **origin}.items())
    _show_flow(parents, children)
    _show_way(steps, lines)
    if job.error is not None:
        click.echo()
        _show_error(job.error)
    earlier = [error for error in errors if job.error is None or error.lease != job.error.lease]
    if earlier:
        click.secho("\nEarlier attempts", bold=True)
        if tracebacks:
            for error in earlier:
                click.echo(f"{instant(error.at)}  {_by(error)}")
                _show_error(error)
        else:
            emit_table(
                ("AT", "ATTEMPT", "WORKER", "ERROR"),
                [
                    (
                        str(instant(error.at)),
                        str(error.attempt),
                        error.worker or "-",
                        _in_a_line(error),
                    )
                    for error in earlier
                ],
            )


def _fields(job: Job, lost: Unroutable | None) -> dict[str, Any]:
    """What `show` prints of a job, one field a line; what says nothing is left out."""
    fields = job_document(job, lost)
    for name in (
        "view",
        "unroutable",
        "error",
        "parked",
        "waiting",
        "cancel_requested",
        "cancel_heard",
        "result_expired",
    ):
        del fields[name]
    view = view_of(job, lost)
    if view == "stopping":
        heard = "its worker has told it" if job.cancel_heard else "not heard of it yet"
        fields["state"] = f"{job.state}, asked to stop, {heard}"
    elif view != job.state:
        fields["state"] = f"{job.state}, {view}" + (f": {lost}" if lost else "")
    fields["unique"] = "yes" if job.unique else None
    fields["lost"] = job.lost or None
    fields["payload"] = json.dumps(fields["payload"], ensure_ascii=False)
    if job.result_expired:
        fields["result"] = "expired: it is kept no longer"
    elif job.result is not None:
        fields["result"] = json.dumps(job.value, ensure_ascii=False)
    return fields


def _show_flow(parents: Sequence[Parent], children: Page) -> None:
    """What the job waits for, or has waited for, and what waits for it."""
    if parents:
        click.secho("\nAfter", bold=True)
        emit_table(
            ("JOB", "STATE", "IF IT FAILS"),
            [
                (
                    each.job_id,
                    each.state if each.ended else f"{each.state}, waited for",
                    each.otherwise,
                )
                for each in parents
            ],
        )
    if children.jobs:
        click.secho("\nBefore", bold=True)
        rows = [(each.id, each.kind, view_of(each)) for each in children.jobs]
        emit_table(("JOB", "KIND", "STATE"), rows)
        if children.next is not None:
            click.echo("…")


def _show_way(steps: Sequence[Step], lines: Sequence[Line]) -> None:
    """What the job has finished and said on its way."""
    if steps:
        click.secho("\nFinished steps", bold=True)
        rows = [(str(instant(step.at)), step.name, _cut(step.result.decode())) for step in steps]
        emit_table(("AT", "STEP", "RESULT"), rows)
    if lines:
        click.secho("\nLog", bold=True)
    for line in lines:
        # What others have sent may be in it: it must not command the terminal.
        shown = (each if each.isprintable() or each in "\n\t" else "\ufffd" for each in line.text)
        click.echo(f"{instant(line.at)}  {''.join(shown)}")


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_NOTE else f"{text[: LONGEST_NOTE - 1]}…"


def _show_error(error: JobError) -> None:
    click.echo(f"{click.style(error.type, fg='red', bold=True)}: {error.message}")
    if error.traceback:
        click.echo(error.traceback.rstrip("\n"))


def _by(error: JobError) -> str:
    return f"attempt {error.attempt}" + (f", worker {error.worker}" if error.worker else "")


@jobs.command("watch")
@click.argument("job_id")
@click.option("--timeout", type=float, help="Give up after so many seconds.")
@place_options
@json_option
@command_body
async def watch(job_id: str, timeout: float | None, place: Place, as_json: bool) -> int:
    """Wait until a job is done, with a progress bar. Exit code 8 if it did not complete."""
    return await watch_until_done(job_id, timeout, place, as_json=as_json)


async def watch_until_done(
    job_id: str, timeout: float | None, place: Place, *, as_json: bool
) -> int:
    """Wait for a job or batch and tell how it ended; the exit code."""
    async with opened_desk(place) as opened:
        return tell_end(await opened.wait(job_id, timeout=timeout), as_json=as_json)


def tell_end(job: Job, *, as_json: bool) -> int:
    """Say how a job or batch ended; the exit code."""
    if as_json:
        emit_json(job_document(job))
    else:
        click.echo(f"{job.kind} {job.id} {job.state} {_note(job)}".rstrip())
    failed_items = job.role.heads and job.value and job.value.get("failed")
    done = job.state is JobState.COMPLETED and not failed_items
    return EXIT_CODES["ok" if done else "unsuccessful"]


@jobs.command("cancel")
@selection_options(selection.CANCELLABLE)
@place_options
@json_option
@command_body
async def cancel(
    job_ids: Sequence[str],
    limit: int | None,
    everything: bool,
    place: Place,
    as_json: bool,
    **given: Any,
) -> None:
    """Stop jobs: pending ones at once, running ones as soon as they heed it.

    Either those with the given ids, or all that a filter finds.
    """
    where = ids_or_filter(job_ids, limit, everything=everything, given=given)
    async with opened_desk(place) as opened:
        if where is not None:
            count = await opened.cancel_all(where, limit=limit)
            _tell_count(count, "cancelled or asked to stop", as_json=as_json)
            return
        states = await opened.cancel(job_ids)
    _report(job_ids, states, as_json=as_json)


@jobs.command("retry")
@selection_options(selection.RETRYABLE)
@place_options
@json_option
@command_body
async def retry(
    job_ids: Sequence[str],
    limit: int | None,
    everything: bool,
    place: Place,
    as_json: bool,
    **given: Any,
) -> None:
    """Make failed or cancelled jobs pending again, with fresh attempts.

    Either those with the given ids, or all failed ones that a filter finds (cancelled ones only
    if it names them).
    """
    where = ids_or_filter(job_ids, limit, everything=everything, given=given)
    async with opened_desk(place) as opened:
        if where is not None:
            count = await opened.retry_all(where, limit=limit)
            _tell_count(count, "requeued", as_json=as_json)
            return
        states = await opened.requeue(job_ids)
    _report(job_ids, states, as_json=as_json)
    for job_id, state in states.items():
        if state in selection.RETRYABLE:
            raise JobStateError(f"job {job_id} stays {state}: another holds its unique name")
        if state is not JobState.PENDING:
            raise JobStateError(f"job {job_id} is {state}: nothing to retry")


@jobs.command("delete")
@selection_options(selection.DELETABLE, items=False)
@place_options
@json_option
@command_body
async def delete(
    job_ids: Sequence[str],
    limit: int | None,
    everything: bool,
    place: Place,
    as_json: bool,
    **given: Any,
) -> None:
    """Delete jobs with all that is known of them; a batch goes with its items.

    Either those with the given ids (none may be running), or all finished ones that a filter finds.
    """
    where = ids_or_filter(job_ids, limit, everything=everything, given=given)
    async with opened_desk(place) as opened:
        if where is not None:
            count = await opened.delete_all(where, limit=limit)
            _tell_count(count, "deleted", as_json=as_json)
            return
        deleted, errors = [], []
        for job_id in job_ids:
            try:
                await opened.delete(job_id)
                deleted.append(job_id)
            except (JobNotFoundError, JobStateError) as refusal:
                errors.append(refusal)
    if as_json:
        emit_json({"deleted": deleted})
    else:
        for job_id in deleted:
            click.echo(f"{job_id}  deleted")
    for error in errors:
        raise error


def _tell_count(count: int, what: str, *, as_json: bool) -> None:
    if as_json:
        emit_json({"count": count})
    else:
        click.echo(f"{count} job{'' if count == 1 else 's'} {what}")


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


def _took(job: Job) -> str:
    if job.started_at is None or job.finished_at is None:
        return "-"
    return duration((job.finished_at - job.started_at) / MICROSECOND)


def _note(job: Job) -> str:
    if job.error is not None:
        return _in_a_line(job.error)
    if job.state is JobState.RUNNING:
        return job.message or (f"{job.progress} %" if job.progress is not None else "")
    if job.state is JobState.PENDING and job.run_at > job.created_at:
        return f"due {instant(job.run_at)}" + (f", {job.message}" if job.message else "")
    if job.role.heads and job.value:
        return f"{job.value['completed']} of {job.value['total']} completed"
    return ""


def _in_a_line(error: JobError) -> str:
    first, _, _ = error.message.partition("\n")
    return _cut(f"{error.type}: {first}")
