"""`haulier events`: what happens to jobs, one line an event."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import click

from haulier.cli.desk import Desk, Place, opened_desk, place_options
from haulier.cli.output import command_body, instant
from haulier.domain.event import OF_NOBODY, RESET, Event

NOW = "now"
WIDEST_TYPE = len("cancel_requested")
USUAL_KIND = 12


@click.command()
@click.option(
    "--after", metavar="CURSOR", help=f"Go on after this event; '{NOW}' skips what has happened."
)
@click.option("--follow", "following", is_flag=True, help="Wait for further events until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document a line.")
@place_options
@command_body
async def events(after: str | None, following: bool, as_json: bool, place: Place) -> int:
    """Print what happens to jobs, one line an event, in order.

    Begins with the oldest event that is kept. At the end it says with which cursor to go on.
    """
    async with opened_desk(place) as opened:
        last = await opened.last_event()
        cursor = last if after == NOW else after
        found = opened.follow(cursor) if following else _up_to(opened, cursor, last)
        try:
            async with aclosing(found):
                async for event in found:
                    cursor = event.cursor
                    click.echo(json.dumps(_document(event)) if as_json else _line(event))
        except asyncio.CancelledError:
            # Ctrl-C is how following ends.
            if not following:
                raise
    if cursor is not None and not as_json:
        click.echo(f"What comes next:  haulier events --after {cursor}", err=True)
    return 0


async def _up_to(desk: Desk, cursor: str | None, last: str) -> AsyncGenerator[Event, None]:
    """Events after a cursor up to the one that was the last: a busy store has no end."""
    end = int(last.rpartition(":")[2])
    while found := await desk.events(after=cursor):
        for event in found:
            if event.seq > end:
                return
            yield event
        cursor = found[-1].cursor


def _document(event: Event) -> dict[str, Any]:
    return {"cursor": event.cursor, **event._asdict(), "at": instant(event.at)}


def _line(event: Event) -> str:
    if event.type == RESET:
        return f"{event.type}: events between this one and the last you saw are kept no longer"
    if event.type in OF_NOBODY:
        return f"{instant(event.at)}  {event.type:{WIDEST_TYPE}}  {event.setting}  by {event.by}"
    told = [f"attempt {event.attempt}"] if event.attempt else []
    told += [f"batch {event.batch_id}"] if event.batch_id else []
    told += [f"worker {event.worker}"] if event.worker else []
    told += [event.error_type] if event.error_type else []
    told += [event.setting] if event.setting else []
    told += [f"by {event.by}"] if event.by else []
    what = f"{instant(event.at)}  {event.type:{WIDEST_TYPE}}  {event.job_id}"
    return f"{what}  {event.kind:{USUAL_KIND}}  {', '.join(told)}".rstrip()
