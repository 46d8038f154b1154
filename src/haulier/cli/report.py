"""What a finished bulk run is told as: a summary, a table, the failures by class."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import click

from haulier.cli.output import batch_document, duration, emit_fields, emit_table
from haulier.domain.job import MICROSECOND, JobState
from haulier.ports import JobFilter, pages

if TYPE_CHECKING:
    from haulier.app import App
    from haulier.domain.batch import Batch
    from haulier.domain.job import Job

ROWS_SHOWN = 50
FAILURES_SHOWN = 10
PROXY_HEADINGS = (
    "PROXY",
    "VERDICT",
    "OK",
    "CONNECT",
    "FIRST BYTE",
    "TOTAL",
    "p95",
    "EXIT",
    "HEADERS",
    "WHY",
)
"""Times are medians over the tries, but for the last, which is the 95th percentile of the total."""


async def run_document(app: App, batch_id: str) -> dict[str, Any]:
    """A finished run as JSON: the batch, and what its finish callback made of it."""
    batch = await app.batch(batch_id)
    callback = await app.get(batch.finish_job) if batch.finish_job else None
    return {"batch": batch_document(batch), "summary": callback.value if callback else None}


async def show_renditions(app: App, batch_id: str) -> None:
    """The summary of a media_uniq run."""
    batch = await app.batch(batch_id)
    callback = await app.get(batch.finish_job) if batch.finish_job else None
    size = moved = 0
    accounts: set[str] = set()
    async for job in _items(app, batch_id, JobState.COMPLETED):
        accounts.add(job.value["account"])
        size += job.value["bytes"]
        moved = max(moved, job.value["distance_to_geometry"])
    click.secho("\nRenditions", bold=True)
    emit_fields(
        [
            ("completed", f"{batch.counts.completed} of {batch.counts.total}"),
            ("failed", batch.counts.failed or None),
            ("accounts", len(accounts)),
            ("size", f"{size / 1e6:.1f} MB"),
            ("encoding + watermark moved", f"at most {moved} of 64 hash bits"),
            ("took", _took(batch)),
            ("manifest", callback.value.get("manifest") if callback and callback.value else None),
        ]
    )
    await _show_failures(app, batch)


async def show_proxies(app: App, batch_id: str) -> None:
    """The report of a proxy_diagnostics run, one line a proxy."""
    batch = await app.batch(batch_id)
    rows: list[tuple[str, ...]] = []
    verdicts: Counter[str] = Counter()
    async for job in _items(app, batch_id, JobState.COMPLETED):
        found = job.value
        verdicts[found["verdict"]] += 1
        if len(rows) < ROWS_SHOWN:
            rows.append(_proxy_row(found))
    click.secho("\nProxies", bold=True)
    emit_table(
        PROXY_HEADINGS,
        rows,
    )
    if batch.counts.completed > ROWS_SHOWN:
        click.echo(f"… all of them:  haulier batches export {batch_id} --format csv")
    click.echo(
        "  ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common())
        + f"   took {_took(batch)}"
    )
    await _show_failures(app, batch)


def _proxy_row(found: dict[str, Any]) -> tuple[str, ...]:
    timings = found["timings"]
    return (
        found["proxy"],
        found["verdict"],
        f"{found['ok']}/{found['tries']}",
        _milliseconds(timings["connect_ms"], "p50"),
        _milliseconds(timings["first_byte_ms"], "p50"),
        _milliseconds(timings["total_ms"], "p50"),
        _milliseconds(timings["total_ms"], "p95"),
        found["exit_address"] or "-",
        found["anonymity"] or "-",
        found["error"] or "",
    )


def _milliseconds(timing: dict[str, float] | None, which: str) -> str:
    return f"{timing[which]:.1f} ms" if timing else "-"


async def _show_failures(app: App, batch: Batch) -> None:
    """The failed items by error class, with one sentence each."""
    if not batch.counts.failed:
        return
    classes: Counter[str] = Counter()
    examples: dict[str, str] = {}
    async for job in _items(app, batch.id, JobState.FAILED):
        if job.error is not None:
            classes[job.error.type] += 1
            examples.setdefault(job.error.type, job.error.message.splitlines()[0])
    click.secho("\nFailed items", fg="red", bold=True)
    for name, count in classes.most_common(FAILURES_SHOWN):
        click.echo(f"{count:>6}  {name}: {examples[name]}")
    click.echo(f"Run only these again:  haulier batches retry-failed {batch.id}")


def _took(batch: Batch) -> str:
    if batch.finished_at is None:
        return "-"
    seconds = (batch.finished_at - batch.created_at) / MICROSECOND
    rate = batch.rate(batch.finished_at)
    return duration(seconds) + (f" ({rate:.1f} items/s)" if rate else "")


def _items(app: App, batch_id: str, state: JobState) -> AsyncIterator[Job]:
    """The items of a batch in one state, in their order."""
    return pages(app.store, JobFilter(batch_id=batch_id, states=frozenset({state})))
