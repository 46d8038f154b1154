"""`haulier enqueue`: one job of any kind that is known here."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from haulier.cli.jobs import tell_end
from haulier.cli.output import command_body, emit_json, json_option, store_option
from haulier.exceptions import Problem, ValidationError


@click.command()
@click.argument("kind")
@click.option(
    "--payload",
    default="{}",
    help="The payload as a JSON object; '-' reads it from standard input.",
)
@click.option("--queue", help="Another queue than the task's own.")
@click.option("--priority", type=int, help="Higher goes first; 0 is normal.")
@click.option("--delay", type=float, help="Seconds to wait before it may run.")
@click.option("--key", help="The partition it belongs to, such as an account.")
@click.option("--id", "job_id", help="A UUID of your own: repeating it enqueues nothing new.")
@click.option("--app", "user_app", envvar="HAULIER_APP", help="module:attribute of your App.")
@click.option("--wait", is_flag=True, help="Wait until it is done; exit code 8 if it fails.")
@store_option
@json_option
@command_body
async def enqueue(
    kind: str,
    payload: str,
    queue: str | None,
    priority: int | None,
    delay: float | None,
    key: str | None,
    job_id: str | None,
    user_app: str | None,
    wait: bool,
    store: str | None,
    as_json: bool,
) -> int:
    """Enqueue one job of KIND and print its id."""
    from haulier.config import read_settings
    from haulier.container import build_app

    app = build_app(read_settings(store=store), user_app)
    if payload != "-" and app.registry.get(kind).has_secrets:
        raise ValidationError(
            f"{kind} takes secrets, which the list of processes would show",
            [Problem("payload", "give it on standard input: --payload -")],
        )
    document = _parsed(sys.stdin.read() if payload == "-" else payload)
    async with app:
        new_id = await app.enqueue(
            kind, document, queue=queue, priority=priority, delay=delay, key=key, job_id=job_id
        )
        if wait:
            return tell_end(await app.wait(new_id), as_json=as_json)
    emit_json({"id": new_id}) if as_json else click.echo(new_id)
    return 0


def _parsed(text: str) -> dict[str, Any]:
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
