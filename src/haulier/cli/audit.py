"""`haulier audit`: who did what."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import click

from haulier.cli.output import TEXT, command_body, emit_json, emit_table, instant, json_option
from haulier.cli.recorded import records_of, records_options
from haulier.exceptions import Problem, ValidationError

if TYPE_CHECKING:
    from haulier.services.audit import Logged, Verdict

_SOUND = re.compile(r"([0-9]{1,18}):([0-9a-f]{64})")


@click.command()
@click.option("--verify", is_flag=True, help="Look whether the log is as it was written.")
@click.option(
    "--expect",
    type=TEXT,
    metavar="SEQ:DIGEST",
    help="With --verify: what it printed at an earlier time has to be in the log still.",
)
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@records_options
@json_option
@command_body
async def audit(
    verify: bool,
    expect: str | None,
    limit: int,
    records: str | None,
    store: str | None,
    as_json: bool,
) -> int:
    """Print who did what, the latest last.

    --verify recomputes the chain of digests and exits with 1 where it is broken. Keep the line that
    it prints in another place and give it to --expect later: that also shows a log that was written
    anew from its beginning.
    """
    from haulier.records.auditing import AuditLog

    expected = _expected(expect)
    if expected and not verify:
        raise click.UsageError("--expect belongs to --verify")
    async with records_of(records, store) as opened:
        log = AuditLog(opened)
        if verify:
            return _tell(await log.verify(expected), as_json=as_json)
        found = list(reversed(await log.latest(limit)))
    if as_json:
        emit_json({"entries": [entry_document(each) for each in found]})
    else:
        emit_table(
            ("SEQ", "AT", "WHO", "BY", "FROM", "ACTION", "STATUS", "WHAT"),
            [_line(each) for each in found],
        )
    return 0


def _expected(text: str | None) -> tuple[int, bytes] | None:
    if text is None:
        return None
    found = _SOUND.fullmatch(text)
    if found is None:
        raise ValidationError(
            "the option was refused", [Problem("expect", "is what --verify printed: SEQ:DIGEST")]
        )
    return int(found[1]), bytes.fromhex(found[2])


def _tell(verdict: Verdict, *, as_json: bool) -> int:
    mark = f"{verdict.seq}:{verdict.digest.hex()}"
    if as_json:
        emit_json({"sound": verdict.fault is None, "fault": verdict.fault, "mark": mark})
    elif verdict.fault is None:
        click.echo(mark)
        click.echo(f"The log is as it was written: {verdict.seq} entries.", err=True)
    else:
        click.echo(f"The log is broken: {verdict.fault}. It is sound up to {mark}", err=True)
    return 0 if verdict.fault is None else 1


def _line(found: Logged) -> tuple[str, ...]:
    entry = found.entry
    return (
        *(str(found.seq), instant(entry.at) or "", entry.actor.who, entry.actor.credential),
        *(entry.actor.source, entry.action, "" if entry.status is None else str(entry.status)),
        " ".join(f"{name}={_short(value)}" for name, value in entry.target.items()),
    )


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def entry_document(found: Logged) -> dict[str, Any]:
    """An entry of the log as JSON."""
    entry = found.entry
    return {
        "seq": found.seq,
        "at": instant(entry.at),
        "who": entry.actor.who,
        "credential": entry.actor.credential,
        "source": entry.actor.source,
        "action": entry.action,
        "target": entry.target,
        "status": entry.status,
        "request": entry.actor.request,
        "digest": found.digest.hex(),
    }
