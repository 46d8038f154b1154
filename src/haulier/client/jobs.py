"""What can be asked about jobs and batches, and what is sent and read as a stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Literal, TypedDict
from uuid import UUID

from pydantic import BaseModel
from typing_extensions import Unpack

from haulier.client import answers
from haulier.client import call as make
from haulier.client.call import API, Call, Listing
from haulier.exceptions import Problem, ValidationError

STARTS = {
    "bulk_upload": "bulk-tasks",
    "bulk_login": "bulk-login",
    "warmup": "warmup",
    "avatar": "avatar",
    "bio": "bio",
    "follow": "follow",
    "cookie_robot": "cookie-robot",
    "proxy_diagnostics": "proxy-diagnostics",
    "media_uniq": "media-uniq",
}
"""Kinds, and where they are started."""

_OWN_BODY = ("media_uniq", "proxy_diagnostics")
"""Kinds whose input stands in the body itself."""


class Enqueue(TypedDict, total=False):
    """How a job is enqueued; what is left out comes from its kind. See docs/http.md."""

    queue: str | None
    priority: int | str | None
    delay: float | None
    run_at: datetime | None
    key: str | None
    id: str | UUID | None
    unique: str | Mapping[str, Any] | None
    after: Sequence[str | Mapping[str, Any]] | None
    concurrency: int | None
    batch_size: int | None
    max_failures: int | None


class OpenBatch(TypedDict, total=False):
    """How a batch is opened."""

    queue: str | None
    priority: int | str | None
    key: str | None
    on_finish: str | None
    id: str | UUID | None
    concurrency: int | None
    batch_size: int | None
    max_failures: int | None


class Limits(TypedDict, total=False):
    """Limits of a batch: None takes one away, what is left out stays."""

    concurrency: int | None
    batch_size: int | None
    max_failures: int | None


class Where(TypedDict, total=False):
    """Which jobs; all that is given must hold."""

    state: Sequence[str]
    kind: str | None
    queue: str | None
    key: str | None
    error_type: str | None
    batch: str | None


class Watching(TypedDict, total=False):
    """What a live stream shows; see docs/http.md."""

    topics: Sequence[str]
    batch: str | None
    job: str | None
    kind: str | None
    queue: str | None
    types: Sequence[str]


# ── Jobs ─────────────────────────────────────────────────────────────────────────────────────


def enqueue(
    kind: str,
    payload: Mapping[str, Any] | BaseModel | None = None,
    *,
    idempotency_key: str | None = None,
    **options: Unpack[Enqueue],
) -> Call[answers.Started]:
    """Enqueue a job of any registered kind.

    Without an `idempotency_key` of yours the client makes one, so that a repetition after a lost
    answer enqueues nothing twice.
    """
    document = make.job_body(kind, payload, options)
    return make.post("/jobs", answers.Started, document, key=idempotency_key or make.new_key())


def enqueue_many(
    jobs: Sequence[Mapping[str, Any]], *, idempotency_key: str | None = None
) -> Call[answers.ManyStarted]:
    """Enqueue up to 1,000 jobs, all or none: each as `{"kind": …, "payload": {…}, …}`."""
    body = {"jobs": [make.given_of(job) for job in jobs]}
    return make.post("/jobs/many", answers.ManyStarted, body, key=idempotency_key or make.new_key())


def start(
    kind: str,
    *,
    task_id: int | str | None = None,
    given: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    idempotency_key: str | None = None,
) -> Call[answers.Started]:
    """Start a bulk kind on a task of the catalog, or on the input `given`; the head job's id.

    The kind by its name or by that of its address: `bulk_upload` or `bulk-tasks`.
    """
    path = STARTS.get(kind, kind)
    if path not in STARTS.values():
        known = ", ".join(STARTS)
        raise ValidationError("no such start", [Problem("kind", f"must be one of {known}")])
    own = path in {STARTS[each] for each in _OWN_BODY}
    body: dict[str, Any] = {"task_id": task_id, "options": options}
    body |= (given or {}) if own else {"input": given}
    body = {name: value for name, value in body.items() if value is not None}
    key = idempotency_key or make.new_key()
    return make.post(f"/{path}/start", answers.Started, body, key=key)


def job(job_id: str) -> Call[answers.Job]:
    """Everything about one job, secrets masked."""
    return make.get(make.of_job(job_id), answers.Job, subject=job_id)


def status(job_id: str) -> Call[answers.JobStatus]:
    """How far a job or batch is; cheap also for a batch of a million items."""
    return make.get(make.of_job(job_id, "/status"), answers.JobStatus, subject=job_id)


def errors(job_id: str) -> Call[tuple[answers.FailureDetail, ...]]:
    """How the attempts of a job failed, the latest first."""
    return make.whole(
        make.of_job(job_id, "/errors"), "errors", answers.FailureDetail, subject=job_id
    )


def steps(job_id: str) -> Call[tuple[answers.Step, ...]]:
    """What a job has finished so far, in that order."""
    return make.whole(make.of_job(job_id, "/steps"), "steps", answers.Step, subject=job_id)


def lines(job_id: str) -> Call[tuple[answers.Line, ...]]:
    """The last log lines of a job, the oldest first."""
    return make.whole(make.of_job(job_id, "/lines"), "lines", answers.Line, subject=job_id)


def parents(job_id: str) -> Call[tuple[answers.Parent, ...]]:
    """What a job waits for or has waited for."""
    return make.whole(make.of_job(job_id, "/parents"), "parents", answers.Parent, subject=job_id)


def children(job_id: str, *, page: int = 100) -> Listing[answers.JobSummary]:
    """What waits for a job, or did."""
    params = {"limit": page}
    path = make.of_job(job_id, "/children")
    return make.listing(path, "children", answers.JobSummary, params, subject=job_id)


def jobs(
    *, role: Sequence[str] = (), page: int = 100, **where: Unpack[Where]
) -> Listing[answers.JobSummary]:
    """Single and head jobs, newest first, or items of a `batch`; `page`: jobs of one request."""
    params = {**make.query(where), **make.query({"role": role}), "limit": page}
    return make.listing("/jobs", "jobs", answers.JobSummary, params)


def job_records(
    *, role: Sequence[str] = (), page: int = 100, **where: Unpack[Where]
) -> Listing[answers.JobRecord]:
    """The same jobs with all there is to know of each, but for its payload."""
    params = {**make.query(where), **make.query({"role": role}), "limit": page, "full": "true"}
    return make.listing("/jobs", "jobs", answers.JobRecord, params)


def stop(job_id: str) -> Call[answers.StateChange]:
    """Cancel a pending job at once, tell a running one to stop; a batch with its items."""
    return make.post(make.of_job(job_id, "/stop"), answers.StateChange, subject=job_id)


def retry(job_id: str) -> Call[answers.StateChange]:
    """A failed or cancelled job becomes pending again; a pending one stays so."""
    return make.post(make.of_job(job_id, "/retry"), answers.StateChange, subject=job_id)


def delete(job_id: str) -> Call[None]:
    """Remove a job that does not run; a batch with its items."""
    return make.remove(make.of_job(job_id), job_id)


def stop_jobs(
    *, limit: int | None = None, dry_run: bool = False, **where: Unpack[Where]
) -> Call[answers.Count]:
    """Stop all jobs that a filter finds; with `dry_run` only count them."""
    return make.by_filter("stop", limit, where, dry_run=dry_run)


def retry_jobs(
    *, limit: int | None = None, dry_run: bool = False, **where: Unpack[Where]
) -> Call[answers.Count]:
    """Retry all failed jobs that a filter finds, cancelled ones only if it names them."""
    return make.by_filter("retry", limit, where, dry_run=dry_run)


def delete_jobs(
    *, limit: int | None = None, dry_run: bool = False, **where: Unpack[Where]
) -> Call[answers.Count]:
    """Delete all finished jobs that a filter finds."""
    return make.by_filter("delete", limit, where, dry_run=dry_run)


# ── Batches ──────────────────────────────────────────────────────────────────────────────────


def open_batch(
    kind: str, *, idempotency_key: str | None = None, **options: Unpack[OpenBatch]
) -> Call[answers.Started]:
    """Open a batch of items of a kind, to be filled and then sealed."""
    body = {"kind": kind, **make.given_of(options)}
    return make.post("/batches", answers.Started, body, key=idempotency_key or make.new_key())


def batch(batch_id: str) -> Call[answers.Batch]:
    """A batch from its counters."""
    return make.get(make.of_batch(batch_id), answers.Batch, subject=batch_id)


def batches(*, within: str | None = None, page: int = 100) -> Listing[answers.Batch]:
    """Batches, newest first; `within`: those that are items of that batch."""
    params = {**make.query({"within": within}), "limit": page}
    return make.listing("/batches", "batches", answers.Batch, params)


def items(batch_id: str, *, state: Sequence[str] = (), page: int = 100) -> Listing[answers.Item]:
    """The items of a batch in their order, with their results."""
    params = {**make.query({"state": state}), "limit": page}
    return make.listing(
        make.of_batch(batch_id, "/items"), "items", answers.Item, params, subject=batch_id
    )


def seal(batch_id: str) -> Call[answers.Batch]:
    """Say that a batch has all its items."""
    return make.post(make.of_batch(batch_id, "/seal"), answers.Batch, subject=batch_id)


def cancel_batch(batch_id: str) -> Call[answers.StateChange]:
    """Stop a batch with its items."""
    return make.post(make.of_batch(batch_id, "/cancel"), answers.StateChange, subject=batch_id)


def pause(batch_id: str) -> Call[answers.PauseChange]:
    """Let no more items of a batch start; those that run go on."""
    return make.post(make.of_job(batch_id, "/pause"), answers.PauseChange, subject=batch_id)


def resume(batch_id: str) -> Call[answers.PauseChange]:
    """Let the items of a paused batch start again."""
    return make.post(make.of_job(batch_id, "/resume"), answers.PauseChange, subject=batch_id)


def retry_failed(
    batch_id: str, *, error_type: str | None = None, limit: int | None = None
) -> Call[answers.Requeued]:
    """Run only the failed items of a batch again, or some of them."""
    body = make.given_of({"error_type": error_type, "limit": limit})
    path = make.of_job(batch_id, "/retry-failed")
    return make.post(path, answers.Requeued, body, subject=batch_id, repeatable=False)


def alter(batch_id: str, **limits: Unpack[Limits]) -> Call[answers.Batch]:
    """Change the limits of a batch; None takes one away."""
    return make.send(
        "PATCH", make.of_batch(batch_id), answers.Batch, dict(limits), subject=batch_id
    )


# ── What is read and sent as a stream ────────────────────────────────────────────────────────


def stream(
    path: str, *, on_bad: Literal["stop", "skip"], key: str | None, again: bool
) -> Call[answers.StreamTaken]:
    """The request around lines that are its body; `again`: they can be sent once more."""
    call = make.post(path, answers.StreamTaken, repeatable=False)
    # A key of ours is of use to nobody else: whoever makes lines anew needs one of theirs.
    key = key or (make.new_key() if again else None)
    return replace(call, params={"on_bad": on_bad}, key=key, again=again)


def jobs_stream() -> str:
    """Where jobs are taken line by line."""
    return "/jobs/stream"


def items_stream(batch_id: str) -> str:
    """Where the items of a batch are taken line by line."""
    return make.of_batch(batch_id, "/items")


def export(
    batch_id: str,
    *,
    form: Literal["ndjson", "csv"] = "ndjson",
    state: Sequence[str] = (),
    cursor: str | None = None,
) -> Call[bytes]:
    """All items of a batch, a line each; after a broken download, behind the row of a `cursor`."""
    params = {**make.query({"state": state, "cursor": cursor}), "format": form}
    return Call("GET", API + make.of_batch(batch_id, "/export"), bytes, params, subject=batch_id)


def live(**watching: Unpack[Watching]) -> Call[bytes]:
    """The stream of what happens."""
    params = {
        name: value if isinstance(value, str) else ",".join(value)
        for name, value in watching.items()
        if value and isinstance(value, str | Sequence)
    }
    return Call("GET", f"{API}/events/stream", bytes, params)
