"""Which jobs a command is about: ids, or a filter."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

import click

from haulier.cli.output import TEXT, states_of
from haulier.domain.job import JobState
from haulier.exceptions import Problem, ValidationError
from haulier.ports import JobFilter
from haulier.services.selection import MOST

F = TypeVar("F", bound=Callable[..., Any])


def filter_options(states: Collection[JobState], *, items: bool = True) -> Callable[[F], F]:
    """The options that make a filter; `items` says whether those of a batch can be meant."""
    batch = click.option("--batch", "batch_id", help="The items of this batch; else none are.")
    options = [
        click.option(
            "--state",
            "states",
            multiple=True,
            type=click.Choice([str(state) for state in JobState if state in states]),
            help="Only jobs in this state; may be repeated.",
        ),
        click.option("--kind", type=TEXT, help="Only this kind."),
        click.option("--queue", type=TEXT, help="Only this queue."),
        click.option("--key", type=TEXT, help="Only this partition, such as an account."),
        click.option(
            "--error",
            "error_type",
            type=TEXT,
            metavar="CLASS",
            help="Only those whose last error is a CLASS.",
        ),
        *([batch] if items else []),
    ]

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def selection_options(states: Collection[JobState], *, items: bool = True) -> Callable[[F], F]:
    """Job ids, or the options of a filter: what `ids_or_filter` reads."""

    def decorate(function: F) -> F:
        for option in (
            click.option("--all", "everything", is_flag=True, help="All jobs, without a filter."),
            click.option(
                "--limit",
                type=click.IntRange(1, MOST),
                help="At most so many of those that a filter finds, the oldest first.",
            ),
        ):
            function = option(function)
        function = filter_options(states, items=items)(function)
        return click.argument("job_ids", nargs=-1, metavar="[JOB_ID]...")(function)

    return decorate


def ids_or_filter(
    job_ids: Sequence[str], limit: int | None, *, everything: bool, given: dict[str, Any]
) -> JobFilter | None:
    """The filter that was given instead of ids; raises ValidationError for both or neither."""
    where = filter_of(**given)
    filtered = where != JobFilter() or everything
    if job_ids and (filtered or limit is not None):
        raise ValidationError(
            "give ids or a filter, not both", [Problem("JOB_ID", "is given beside a filter")]
        )
    if not job_ids and not filtered:
        raise ValidationError(
            "which jobs?", [Problem("JOB_ID", "give ids, a filter such as --kind, or --all")]
        )
    return None if job_ids else where


def filter_of(
    *,
    states: Sequence[str] = (),
    kind: str | None = None,
    queue: str | None = None,
    key: str | None = None,
    error_type: str | None = None,
    batch_id: str | None = None,
) -> JobFilter:
    """The filter that the options of `filter_options` make."""
    return JobFilter(
        states=states_of(states),
        kind=kind,
        queue=queue,
        key=key,
        error_type=error_type,
        batch_id=batch_id,
    )
