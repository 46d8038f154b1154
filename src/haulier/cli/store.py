"""`haulier store`: copy one into another, look at its health."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import click

from haulier.cli.output import (
    DEFAULT_STORE,
    EXIT_CODES,
    command_body,
    duration,
    emit_json,
    emit_table,
    existing_store,
    json_option,
    store_option,
)
from haulier.domain.finding import Finding, Level
from haulier.domain.transfer import Section
from haulier.exceptions import ConfigurationError
from haulier.services.urls import shown

if TYPE_CHECKING:
    from rich.progress import TaskID

    from haulier.services.transfer import Copied

FROM_ENVIRONMENT = "env:"
_COLOURS = {Level.OK: "green", Level.WARNING: "yellow", Level.PROBLEM: "red"}


@click.group()
def store() -> None:
    """Copy a store into another one, open it again, look at its health."""


@store.command("copy")
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@click.option(
    "--wait",
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="Give workers no more jobs, and wait so long for running ones to finish.",
)
@click.option("--keep-source", is_flag=True, help="Open the source again when the copy is done.")
@json_option
@command_body
async def copy_store(
    source: str, target: str, wait: float | None, keep_source: bool, as_json: bool
) -> None:
    """Move everything from one store into a new one, of any kind.

    FROM and TO are store URLs, or env:NAME for the value of an environment variable, which other
    users of the machine cannot see. Stop the workers first, or use --wait. Nothing can be changed
    in FROM meanwhile; afterwards it refuses all work. Run the same command again after it was
    broken off: it goes on.
    """
    from haulier.services.transfer import End, copy
    from haulier.stores import open_store

    source, target = _url(source), _url(target)
    began = time.monotonic()
    async with existing_store(source) as there, open_store(_shared(target)) as new:
        with _Bars(hidden=as_json) as bars, _hint_to_go_on(bars):
            done = await copy(
                End(there, shown(source)),
                End(new, shown(target)),
                wait=wait,
                keep_source=keep_source,
                progress=bars.show,
            )
    _tell(done, shown(source), shown(target), time.monotonic() - began, as_json=as_json)


@store.command("thaw")
@click.argument("url", metavar="STORE")
@click.option("--force", is_flag=True, help="Also one that was moved: its jobs are elsewhere too.")
@json_option
@command_body
async def thaw_store(url: str, force: bool, as_json: bool) -> None:
    """Give up a copy that was broken off, or open a store again that was moved.

    The source of a copy takes jobs again; what a target was given so far is removed from it.
    """
    from haulier.services.transfer import End, thaw

    url = _url(url)
    async with existing_store(url) as opened:
        stage = await thaw(End(opened, shown(url)), force=force)
    if as_json:
        emit_json({"store": shown(url), "was": stage or "open"})
    elif stage is None:
        click.echo(f"{shown(url)}  was open already")
    else:
        click.echo(f"{shown(url)}  was {stage}, is open")


@store.command("check")
@click.option("--strict", is_flag=True, help="Exit code 1 for warnings too.")
@store_option
@json_option
@command_body
async def check_store(strict: bool, store: str | None, as_json: bool) -> int:
    """Look at a store's health: reach, rights, durability, speed, and what waits.

    Exit code 1 if there is a problem.
    """
    url = store or DEFAULT_STORE
    async with existing_store(url) as opened:
        findings = await opened.check()
    levels = {finding.level for finding in findings}
    if as_json:
        emit_json({"store": shown(url), "findings": [_document(each) for each in findings]})
    else:
        emit_table(
            ("LEVEL", "CHECK", "FOUND"),
            [(each.level, each.name, each.what) for each in findings],
        )
        for each in findings:
            if each.advice:
                level = click.style(each.level, fg=_COLOURS[each.level], bold=True)
                click.echo(f"\n{level}  {each.name}: {each.advice}", err=True)
    bad = Level.PROBLEM in levels or (strict and Level.WARNING in levels)
    return EXIT_CODES["failed" if bad else "ok"]


def _document(finding: Finding) -> dict[str, Any]:
    return {
        "name": finding.name,
        "level": finding.level,
        "what": finding.what,
        "advice": finding.advice or None,
    }


def _url(text: str) -> str:
    """The URL itself, or that of an environment variable."""
    if not text.startswith(FROM_ENVIRONMENT):
        return text
    name = text.removeprefix(FROM_ENVIRONMENT)
    value = os.environ.get(name)
    if not value:
        raise ConfigurationError(f"the environment variable {name} is not set")
    return value


def _shared(url: str) -> str:
    """A URL of a store that is still there when this process ends."""
    if url.removeprefix("sqlite:").strip("/") in ("", ":memory:"):
        raise ConfigurationError("a store in memory is gone when this command ends")
    return url


def _tell(done: Copied, source: str, target: str, seconds: float, *, as_json: bool) -> None:
    if as_json:
        emit_json(
            {
                "from": source,
                "to": target,
                "copied": {
                    section: {
                        "records": done.tallies[section].count,
                        "digest": f"{done.tallies[section].digest:064x}",
                    }
                    for section in Section
                },
                "jobs": done.states,
                "resumed": done.resumed,
                "source": "open" if done.kept else "moved",
                "seconds": round(seconds, 3),
            }
        )
        return
    counts = ", ".join(f"{done.tallies[section].count} {section}" for section in Section)
    click.echo(f"{counts}: the same in both, by count and digest ({duration(seconds)})")
    if done.kept:
        click.echo(f"{source}  is open again, with a history of its own", err=True)
    else:
        click.echo(f"Work goes on with:  haulier worker --store {target}", err=True)


@contextlib.contextmanager
def _hint_to_go_on(bars: _Bars) -> Iterator[None]:
    """Say what to do about a copy that breaks off in the middle."""
    try:
        yield
    except BaseException:
        if bars.begun:
            click.echo("Nothing is lost: the same command goes on where it was.", err=True)
        raise


class _Bars:
    """How far a copy is, on standard error: a bar for each section, twice."""

    def __init__(self, *, hidden: bool) -> None:
        from haulier.progress import bars

        self._bars = bars(hidden=hidden)
        self._tasks: dict[tuple[str, Section], TaskID] = {}
        self.begun = False

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def show(self, what: str, section: Section, done: int, total: int) -> None:
        """Draw one step; a section without records has no bar."""
        self.begun = True
        key = (what, section)
        if key not in self._tasks and total:
            self._tasks[key] = self._bars.add_task(f"{what} {section}", note="", total=total)
        if total:
            self._bars.update(self._tasks[key], completed=done)
