"""`haulier enqueue`: one job of any kind that is known here."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

import click

from haulier.cli.desk import Place, opened_server, place_options
from haulier.cli.jobs import tell_end
from haulier.cli.output import (
    batch_options,
    command_body,
    emit_json,
    json_option,
    line_options,
    payload_option,
)
from haulier.domain.flow import After, Otherwise
from haulier.domain.unique import Conflict, Scope
from haulier.exceptions import Problem, ValidationError

if TYPE_CHECKING:
    from haulier.domain.job import Job
    from haulier.services.options import Options, Unique


class Waits(Protocol):
    """An app, or a server."""

    async def wait(self, job_id: str, *, timeout: float | None = None) -> Job: ...


@click.command()
@click.argument("kind")
@payload_option
@line_options
@click.option("--delay", type=float, help="Seconds to wait before it may run.")
@click.option("--key", help="The partition it belongs to, such as an account.")
@click.option("--id", "job_id", help="A UUID of your own: repeating it enqueues nothing new.")
@click.option(
    "--idempotency-key",
    metavar="KEY",
    help="Repeating the command with the same KEY within a day gives the same job.",
)
@click.option("--unique", "by", metavar="NAME", help="At most one job of the kind with this NAME.")
@click.option(
    "--unique-payload", is_flag=True, help="At most one job of the kind with the payload."
)
@click.option(
    "--unique-scope",
    type=click.Choice([str(scope) for scope in Scope]),
    help="How long it stays unique.  [default: active]",
)
@click.option("--unique-period", type=float, metavar="SECONDS", help="For so long; scope period.")
@click.option(
    "--on-conflict",
    type=click.Choice([str(each) for each in Conflict if each is not Conflict.MATCH]),
    help="What a second job leads to; skip prints the id of the first.  [default: skip]",
)
@click.option(
    "--baggage",
    "carries",
    metavar="NAME=VALUE",
    multiple=True,
    help="What the job carries along, and with it what it enqueues; may be given several times.",
)
@click.option(
    "--after",
    metavar="JOB[:run]",
    multiple=True,
    help="A job to wait for, cancelled with it unless :run; may be given several times.",
)
@batch_options
@click.option("--app", "user_app", envvar="HAULIER_APP", help="module:attribute of your App.")
@click.option("--wait", is_flag=True, help="Wait until it is done; exit code 8 if it fails.")
@place_options
@json_option
@command_body
async def enqueue(
    kind: str,
    payload: str,
    user_app: str | None,
    wait: bool,
    carries: tuple[str, ...],
    place: Place,
    as_json: bool,
    **given: Any,
) -> int:
    """Enqueue one job of KIND and print its id.

    For a bulk kind this is its head job, which makes a batch; the batch has the same id.
    """
    options = _options(**given)
    if place.server is not None:
        if carries:
            reason = "is not told over HTTP: give --store"
            raise ValidationError("what does the job carry?", [Problem("--baggage", reason)])
        document = parsed(sys.stdin.read() if payload == "-" else payload)
        async with opened_server(place.server) as desk:
            new_id = await desk.enqueue(kind, document, options)
            return await _tell(desk, new_id, wait=wait, as_json=as_json)
    from haulier.config import read_settings
    from haulier.container import build_app
    from haulier.services.baggage import baggage

    app = build_app(read_settings(store=place.store), user_app)
    if payload != "-" and app.registry.get(kind).has_secrets:
        raise ValidationError(
            f"{kind} takes secrets, which the list of processes would show",
            [Problem("payload", "give it on standard input: --payload -")],
        )
    document = parsed(sys.stdin.read() if payload == "-" else payload)
    async with app:
        with baggage(**_values(carries)):
            new_id = await app.enqueue(kind, document, **options)
        return await _tell(app, new_id, wait=wait, as_json=as_json)


async def _tell(waits: Waits, new_id: str, *, wait: bool, as_json: bool) -> int:
    """Print the id, or wait and tell how it ended; the exit code."""
    if wait:
        return tell_end(await waits.wait(new_id), as_json=as_json)
    emit_json({"id": new_id}) if as_json else click.echo(new_id)
    return 0


def _options(*, priority: str | None, after: Sequence[str], **given: Any) -> Options:
    """The options of `App.enqueue`; it checks them itself."""
    number: int | str | None = priority
    with contextlib.suppress(ValueError):
        number = None if priority is None else int(priority)
    unique = _unique(
        **{
            name: given.pop(name)
            for name in ("by", "unique_payload", "unique_scope", "unique_period", "on_conflict")
        }
    )
    return cast("Options", {"priority": number, "unique": unique, "after": _after(after), **given})


def _after(texts: Sequence[str]) -> list[After]:
    """What `JOB` or `JOB:run` say; ids are checked with the other options."""
    split = [text.partition(":") for text in texts]
    wrong = [rule for _, _, rule in split if rule not in ("", *Otherwise)]
    if wrong:
        reason = f"{wrong[0][:60]!r} is neither cancel nor run"
        raise ValidationError("what is to be waited for?", [Problem("--after", reason)])
    return [After(job_id, Otherwise(rule or Otherwise.CANCEL)) for job_id, _, rule in split]


def _unique(
    *,
    by: str | None,
    unique_payload: bool,
    unique_scope: str | None,
    unique_period: float | None,
    on_conflict: str | None,
) -> Unique | None:
    from haulier.services.options import Unique

    if by is None and not unique_payload:
        for name, value in (
            ("--unique-scope", unique_scope),
            ("--unique-period", unique_period),
            ("--on-conflict", on_conflict),
        ):
            if value is not None:
                raise ValidationError(
                    "what is to be unique?", [Problem(name, "goes with --unique")]
                )
        return None
    if by is not None and unique_payload:
        raise ValidationError(
            "what is to be unique?", [Problem("--unique-payload", "is given beside --unique")]
        )
    return Unique(
        by=by,
        scope=unique_scope or (Scope.ACTIVE if unique_period is None else Scope.PERIOD),
        period=unique_period,
        conflict=on_conflict or Conflict.SKIP,
    )


def _values(carries: Sequence[str]) -> dict[str, str]:
    """What `NAME=VALUE` say; names are checked by the baggage itself."""
    split = [each.partition("=") for each in carries]
    wrong = [name for name, equals, _ in split if not equals]
    if wrong:
        problems = [Problem("--baggage", f"{name[:60]!r} is not NAME=VALUE") for name in wrong]
        raise ValidationError("the baggage was refused", problems)
    return {name: value for name, _, value in split}


def parsed(text: str) -> dict[str, Any]:
    """A payload as it is given on the command line; raises ValidationError for no JSON object."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        # A plain ValueError too: of a number with more digits than Python reads.
        raise ValidationError("the payload is not JSON", [Problem("payload", str(error))]) from None
    if not isinstance(document, dict):
        raise ValidationError(
            "the payload must be an object", [Problem("payload", 'use {"name": value}')]
        )
    return document
