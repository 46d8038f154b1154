"""`haulier limits`: how many run at once, how often one starts, and circuit breakers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from haulier.cli.desk import Place, opened_desk, place_options
from haulier.cli.output import (
    TEXT,
    ago,
    by_option,
    command_body,
    duration,
    emit_json,
    emit_table,
    instant,
    json_option,
)
from haulier.exceptions import Problem, ValidationError

if TYPE_CHECKING:
    from haulier.domain.limits import Breaker, KeyState, Limit, LimitState, Rate


@click.group()
def limits() -> None:
    """List, set and delete limits while everything runs; see how keys stand under them.

    \b
    haulier limits set accounts --per-key --concurrency 1
    haulier limits set api --kind fetch --rate 30/m --burst 5
    haulier limits set hosts --breaker --failures 0.5 --least 5 --window 60 --pause 30
    """


@limits.command("list")
@place_options
@json_option
@command_body
async def list_limits(place: Place, as_json: bool) -> None:
    """List all limits, and who changed each of them last."""
    async with opened_desk(place) as opened:
        found = await opened.limits().all()
    if as_json:
        emit_json({"limits": [_document(state) for state in found]})
        return
    if not found:
        click.echo("No limits. Set one:  haulier limits set --help", err=True)
        return
    emit_table(
        ("NAME", "LIMIT", "OF", "RUNNING", "CHANGED", "BY"),
        [
            (
                state.limit.name,
                _in_words(state.limit),
                _of(state.limit),
                "-"
                if state.limit.concurrency is None or state.limit.per_key
                else f"{state.running}",
                ago(state.changed_at),
                f"{state.changed_by} (declared)" if state.declared else state.changed_by,
            )
            for state in found
        ],
    )


@limits.command("set")
@click.argument("name", type=TEXT)
@click.option("--concurrency", type=int, metavar="N", help="At most N jobs run at once.")
@click.option("--rate", metavar="RATE", help="At most so many start: 30/m, 5/s, 100/h, 10/30s.")
@click.option(
    "--burst", type=int, metavar="N", help="With --rate: N may start at once after a rest."
)
@click.option("--breaker", is_flag=True, help="Jobs of a key wait while too many of them fail.")
@click.option("--failures", type=float, metavar="SHARE", help="--breaker: opens at it.  [0.5]")
@click.option("--least", type=int, metavar="N", help="--breaker: of N attempts or more.  [5]")
@click.option("--window", type=float, metavar="SECONDS", help="--breaker: that ended within.  [60]")
@click.option("--pause", type=float, metavar="SECONDS", help="--breaker: how long it opens.  [30]")
@click.option("--probes", type=int, metavar="N", help="--breaker: N try it after that.  [1]")
@click.option("--queue", metavar="NAME", help="Only of this queue.")
@click.option("--kind", metavar="NAME", help="Only of this kind.")
@click.option("--per-key", is_flag=True, help="The jobs of each key by themselves.")
@by_option
@place_options
@json_option
@command_body
async def set_limit(name: str, by: str | None, place: Place, as_json: bool, **said: Any) -> None:
    """Add a limit, or put it in place of the one of its NAME: one of concurrency, rate and breaker.

    It takes effect at once; jobs that run already count against it.
    """
    from haulier.services.limits import limit_from

    words: Any = {word: said[word] for word in ("concurrency", "queue", "kind", "per_key")}
    words |= {"rate": _rate(said), "breaker": _breaker(said)}
    limit = limit_from(name, **words)
    async with opened_desk(place) as opened:
        changed = await opened.limits().set(name, by=by, **words)
    if as_json:
        emit_json({**limit.as_json(), "changed": changed})
    else:
        was = "" if changed else "  (it was so before)"
        click.echo(f"{limit.name}  {_in_words(limit)}, {_of(limit)}{was}")


@limits.command("keys")
@click.argument("name", type=TEXT)
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, 1000))
@click.option("--after", type=TEXT, metavar="KEY", help="Go on after this key.")
@place_options
@json_option
@command_body
async def show_keys(name: str, limit: int, after: str | None, place: Place, as_json: bool) -> None:
    """Show how keys stand under a limit that is per key: those with something to tell."""
    async with opened_desk(place) as opened:
        found = await opened.limits().keys(name, limit=limit, cursor=after)
    if as_json:
        emit_json({"name": name, "keys": [_key_document(state) for state in found]})
        return
    if not found:
        click.echo("No key has anything to tell.", err=True)
        return
    emit_table(
        ("KEY", "RUNNING", "CIRCUIT", "SUCCEEDED", "FAILED", "NEXT START"),
        [
            (
                state.key,
                str(state.running),
                "-" if state.circuit is None else state.circuit.replace("_", "-"),
                "-" if state.circuit is None else str(state.succeeded),
                "-" if state.circuit is None else str(state.failed),
                "-" if state.ready_at is None else ago(state.ready_at),
            )
            for state in found
        ],
    )


@limits.command("reset")
@click.argument("name", type=TEXT)
@click.argument("key", type=TEXT)
@by_option
@place_options
@json_option
@command_body
async def reset_breaker(name: str, key: str, by: str | None, place: Place, as_json: bool) -> None:
    """Close the breaker NAME of a KEY, and forget what it has counted."""
    async with opened_desk(place) as opened:
        done = await opened.limits().reset(name, key, by=by)
    if as_json:
        emit_json({"name": name, "key": key, "reset": done})
    else:
        click.echo(f"{name}  {key}  {'closed' if done else 'had counted nothing'}")


@limits.command("delete")
@click.argument("name", type=TEXT)
@by_option
@place_options
@json_option
@command_body
async def delete_limit(name: str, by: str | None, place: Place, as_json: bool) -> None:
    """Delete a limit: it holds nothing back any more. A declared one stays away."""
    async with opened_desk(place) as opened:
        await opened.limits().delete(name, by=by)
    if as_json:
        emit_json({"name": name, "deleted": True})
    else:
        click.echo(f"{name}  deleted")


# ── Words to limits, and back ────────────────────────────────────────────────────────────────


def _rate(said: dict[str, Any]) -> Rate | None:
    from haulier.domain.limits import Rate

    if said["rate"] is None:
        _refuse_without("--rate", said, ("burst",))
        return None
    try:
        return Rate.parse(said["rate"], said["burst"])
    except ValueError as error:
        field, _, reason = str(error).partition(" ")
        problem = Problem("burst" if field == "burst" else "rate", reason)
        raise ValidationError("the limit was refused", [problem]) from None


def _breaker(said: dict[str, Any]) -> Breaker | None:
    from haulier.domain.limits import Breaker
    from haulier.services.limits import problem_of

    names = ("failures", "least", "window", "pause", "probes")
    if not said["breaker"]:
        _refuse_without("--breaker", said, names)
        return None
    try:
        return Breaker(**{name: said[name] for name in names if said[name] is not None})
    except ValueError as error:
        raise ValidationError("the limit was refused", [problem_of(error)]) from None


def _refuse_without(option: str, said: dict[str, Any], names: tuple[str, ...]) -> None:
    problems = [Problem(name, f"goes with {option}") for name in names if said[name] is not None]
    if problems:
        raise ValidationError("the limit was refused", problems)


def _in_words(limit: Limit) -> str:
    if limit.concurrency is not None:
        return f"{limit.concurrency} at once"
    if limit.rate is not None:
        return str(limit.rate)
    breaker = limit.breaker
    assert breaker is not None
    return (
        f"breaker: {breaker.failures:.0%} of {breaker.least} in {duration(breaker.window)}, "
        f"then {duration(breaker.pause)}"
    )


def _of(limit: Limit) -> str:
    told = [f"queue {limit.queue}"] if limit.queue else []
    told += [f"kind {limit.kind}"] if limit.kind else []
    return ("each key of " if limit.per_key else "") + (", ".join(told) or "all jobs")


def _document(state: LimitState) -> dict[str, Any]:
    return {
        **state.limit.as_json(),
        "running": state.running,
        "declared": state.declared,
        "changed_by": state.changed_by,
        "changed_at": instant(state.changed_at),
    }


def _key_document(state: KeyState) -> dict[str, Any]:
    return {
        "key": state.key,
        "running": state.running,
        "ready_at": instant(state.ready_at),
        "circuit": state.circuit,
        "succeeded": state.succeeded,
        "failed": state.failed,
    }
