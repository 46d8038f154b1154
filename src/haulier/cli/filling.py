"""`haulier batches create`, `seal`: batches whose items come line by line."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from haulier.cli.desk import Place, opened_desk, place_options
from haulier.cli.jobs import tell_end
from haulier.cli.output import (
    TEXT,
    batch_options,
    by_option,
    command_body,
    emit_json,
    json_option,
    line_options,
    store_option,
    tell_batch,
)
from haulier.exceptions import Problem, ValidationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from haulier.app import App
    from haulier.services.ndjson import Line

_STANDARD_INPUT = "-"


@click.command("create")
@click.argument("kind")
@click.option(
    "--ndjson",
    "source",
    required=True,
    metavar="FILE|-",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    help="The items: a JSON object per line; '-' reads standard input.",
)
@click.option(
    "--on-bad",
    type=click.Choice(["stop", "skip"]),
    default="stop",
    show_default=True,
    help="What a bad line leads to. stop: a FILE is checked before anything starts; of standard "
    "input what was added is cancelled. skip: the line is told and left out.",
)
@click.option("--keep-open", is_flag=True, help="Whatever stops us, leave the batch open.")
@click.option("--no-seal", is_flag=True, help="Leave the batch open at the end of the input too.")
@click.option("--on-finish", metavar="KIND", type=TEXT, help="What is enqueued when it has ended.")
@line_options
@click.option("--key", help="The partition its items belong to, such as a host.")
@click.option(
    "--id", "job_id", help="A UUID of your own: the same input again goes on with that batch."
)
@batch_options
@click.option("--app", "user_app", envvar="HAULIER_APP", help="module:attribute of your App.")
@click.option("--wait", is_flag=True, help="Wait until it is done; exit code 8 if any item failed.")
@store_option
@json_option
@command_body
async def create(
    kind: str,
    source: str,
    on_bad: str,
    keep_open: bool,
    no_seal: bool,
    on_finish: str | None,
    user_app: str | None,
    wait: bool,
    store: str | None,
    as_json: bool,
    **given: Any,
) -> int:
    """Make a batch of items of KIND, one per line of the input, and print its id.

    Memory stays flat, however long the input is; items run as soon as they are added.
    """
    from haulier.config import read_settings
    from haulier.container import build_app
    from haulier.services.payload import validate

    app = build_app(read_settings(store=store), user_app)
    definition = app.jobs.item_definition(kind)
    if no_seal and wait:
        raise ValidationError(
            "an open batch does not end", [Problem("--wait", "is given beside --no-seal")]
        )
    reader = _Reader(source, skip=on_bad == "skip", check=lambda item: validate(definition, item))
    reader.look_ahead()
    async with app:
        batch_id, added, new = await _fill(
            app, kind, reader, on_finish, keep_open=keep_open, no_seal=no_seal, **given
        )
        if wait:
            return tell_end(await app.wait(batch_id), as_json=as_json)
    if as_json:
        emit_json({"id": batch_id, "added": added, "new": new, "skipped": reader.skipped})
    else:
        click.echo(batch_id)
    return 0


class _LeaveOpenError(Exception):
    """The input has ended, and the batch is to stay open."""


async def _fill(
    app: App,
    kind: str,
    reader: _Reader,
    on_finish: str | None,
    *,
    keep_open: bool,
    no_seal: bool,
    priority: str | None,
    **given: Any,
) -> tuple[str, int, int]:
    number: int | str | None = priority
    with contextlib.suppress(ValueError):
        number = None if priority is None else int(priority)
    batch = app.open_batch(
        kind, on_finish=on_finish, keep_open=keep_open or no_seal, priority=number, **given
    )
    new = 0
    with contextlib.suppress(_LeaveOpenError):
        async with batch:
            try:
                new = await batch.add(reader.items())
            except BaseException as error:
                if no_seal and not keep_open and isinstance(error, ValidationError):
                    await app.cancel(batch.id)
                raise
            if no_seal:
                raise _LeaveOpenError
    return batch.id, batch.added, new


class _Reader:
    """The items of the input; counts those that were `skipped`."""

    def __init__(
        self, source: str, *, skip: bool, check: Callable[[dict[str, Any]], object]
    ) -> None:
        self._source = source
        self._skip = skip
        self._check = check
        self.skipped = 0

    def look_ahead(self) -> None:
        """See that nothing in a file is bad; only what can be read twice."""
        from haulier.services.ndjson import check_all

        with self._opened() as stream:
            if not self._skip and self._source != _STANDARD_INPUT and stream.seekable():
                check_all(stream, self._check)

    def items(self) -> Iterator[dict[str, Any]]:
        """The good items; a bad line is told, or ends it."""
        from haulier.services.ndjson import lines, refused

        with self._opened() as stream:
            for line in lines(stream, self._check):
                if not line.problems:
                    yield line.item
                elif self._skip:
                    self.skipped += 1
                    _tell(line)
                else:
                    raise refused([line])

    def _opened(self) -> contextlib.AbstractContextManager[BinaryIO]:
        if self._source == _STANDARD_INPUT:
            return contextlib.nullcontext(sys.stdin.buffer)
        return Path(self._source).open("rb")


def _tell(line: Line) -> None:
    for problem in line.problems:
        field = f"{problem.field}: " if problem.field else ""
        click.echo(f"line {line.number} was skipped: {field}{problem.reason}", err=True)


def _limit(name: str, text: str | None) -> dict[str, int | None]:
    """A limit from the command line, if it was given."""
    if text is None:
        return {}
    if text == "none":
        return {name: None}
    try:
        return {name: int(text)}
    except ValueError:
        problem = Problem(f"--{name.replace('_', '-')}", "must be a number, or none")
        raise ValidationError("the limits were refused", [problem]) from None


@click.command("limit")
@click.argument("batch_id")
@click.option("--concurrency", metavar="N|none", help="Items that run at once, over all workers.")
@click.option("--batch-size", metavar="N|none", help="Items that are claimed at a time.")
@click.option(
    "--max-failures", metavar="N|none", help="When more items have failed, cancel the rest."
)
@by_option
@place_options
@json_option
@command_body
async def limit(
    batch_id: str, by: str | None, place: Place, as_json: bool, **given: str | None
) -> None:
    """Change limits of a batch while it runs; 'none' removes one."""
    from haulier.services.options import checked_limits
    from haulier.services.who import who

    changes: dict[str, int | None] = {}
    for name, text in given.items():
        changes |= _limit(name, text)
    checked = checked_limits(changes)
    async with opened_desk(place) as opened:
        await opened.alter_batch(batch_id, checked, by=who(by))
        batch = await opened.batch(batch_id)
    told = ", ".join(
        f"{name.replace('_', ' ')} {'none' if value is None else value}"
        for name, value in sorted(checked.items())
    )
    tell_batch(batch, f"{told}; {batch.counts.running} running", as_json=as_json)


@click.command("seal")
@click.argument("batch_id")
@place_options
@json_option
@command_body
async def seal(batch_id: str, place: Place, as_json: bool) -> None:
    """Declare that an open batch has all its items, when its producer cannot any more."""
    async with opened_desk(place) as opened:
        await opened.seal(batch_id)
        batch = await opened.batch(batch_id)
    tell_batch(batch, f"sealed with {batch.counts.total} items", as_json=as_json)
