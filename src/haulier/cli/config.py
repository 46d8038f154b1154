"""`haulier config`: what all workers of a store go by, changed while they run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from haulier.cli.desk import Place, opened_desk, place_options
from haulier.cli.output import (
    TEXT,
    ago,
    by_option,
    command_body,
    emit_json,
    emit_table,
    instant,
    json_option,
)
from haulier.domain.configuration import EXPLAINED

if TYPE_CHECKING:
    from collections.abc import Callable

    from haulier.domain.configuration import Alteration, Configuration

_WIDTH = max(map(len, EXPLAINED))
_NAMES = "\b\n" + "\n".join(f"{name:{_WIDTH}}  {what}" for name, what in EXPLAINED.items())


def change_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Who changes a configuration, and which one."""
    for decorate in (
        click.option(
            "--expect",
            "expected",
            type=click.IntRange(0),
            metavar="VERSION",
            help="Only if the configuration still has this version.",
        ),
        by_option,
    ):
        function = decorate(function)
    return function


@click.group()
def config() -> None:
    """Change what all workers of a store go by, while they run.

    What is set here comes before the environment, the command line and the code of workers. They
    take it over within a moment.
    """


@config.command("list")
@place_options
@json_option
@command_body
async def list_settings(place: Place, as_json: bool) -> None:
    """Show what is set, by whom and since when."""
    async with opened_desk(place) as opened:
        show(await opened.configuration(), as_json=as_json)


@config.command("set", epilog=_NAMES)
@click.argument("pairs", metavar="NAME=VALUE...", nargs=-1, required=True, type=TEXT)
@change_options
@place_options
@json_option
@command_body
async def set_values(
    pairs: tuple[str, ...], by: str | None, expected: int | None, place: Place, as_json: bool
) -> None:
    """Set settings, all of them or none. A value is JSON, or a plain word."""
    values = dict(map(_pair, pairs))
    await change(place, values, (), by=by, expected=expected, as_json=as_json)


@config.command("unset")
@click.argument("names", nargs=-1, required=True, type=TEXT)
@change_options
@place_options
@json_option
@command_body
async def unset_values(
    names: tuple[str, ...], by: str | None, expected: int | None, place: Place, as_json: bool
) -> None:
    """Take settings away, so that workers go by their own environment and code again."""
    await change(place, {}, names, by=by, expected=expected, as_json=as_json)


@config.command("history")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 1000))
@place_options
@json_option
@command_body
async def show_history(limit: int, place: Place, as_json: bool) -> None:
    """Show who changed what and when, the latest first."""
    async with opened_desk(place) as opened:
        found = await opened.alterations(limit)
    if as_json:
        emit_json({"changes": list(map(_change_document, found))})
    elif found:
        emit_table(
            ("VERSION", "WHEN", "BY", "SETTING", "BEFORE", "AFTER"),
            [
                (str(c.version), ago(c.at), c.by, c.name, c.before or "-", c.after or "-")
                for c in found
            ],
        )
    else:
        click.echo("Nothing was ever changed.", err=True)


async def change(
    place: Place,
    values: dict[str, Any],
    unset: tuple[str, ...],
    *,
    by: str | None,
    expected: int | None = None,
    as_json: bool,
) -> None:
    """Make one change and show what is set then."""
    from haulier.services.who import who

    async with opened_desk(place) as opened:
        told = await opened.configure(values, unset=unset, by=who(by), expected=expected)
    show(told, as_json=as_json)


def show(told: Configuration, *, as_json: bool) -> None:
    """What is set, on standard output."""
    if as_json:
        settings = {
            name: {**each._asdict(), "changed_at": instant(each.changed_at)}
            for name, each in told.settings.items()
        }
        emit_json({"version": told.version, "settings": settings})
    elif told.settings:
        emit_table(
            ("SETTING", "VALUE", "VERSION", "BY", "SINCE"),
            [
                (name, json.dumps(s.value), str(s.version), s.changed_by, ago(s.changed_at))
                for name, s in told.settings.items()
            ],
        )
    else:
        click.echo("Nothing is set: workers go by their environment and code.", err=True)


def _change_document(change: Alteration) -> dict[str, Any]:
    return {
        **change._asdict(),
        "at": instant(change.at),
        "before": _value(change.before),
        "after": _value(change.after),
        "set": change.after is not None,
    }


def _value(text: str | None) -> Any:
    return None if text is None else json.loads(text)


def _pair(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise click.UsageError(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
