"""`haulier token`: who may use the HTTP API, and by what they are recognised."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from haulier.cli.output import (
    TEXT,
    ago,
    command_body,
    emit_json,
    emit_table,
    instant,
    json_option,
)
from haulier.cli.recorded import records_of, records_options, this_user
from haulier.domain.access import Access

if TYPE_CHECKING:
    from haulier.domain.access import Session, Token

ROLES = click.Choice([str(each) for each in Access])
DEFAULT_URL = "http://127.0.0.1:8470"


@click.group()
def token() -> None:
    """Make, list and revoke what the HTTP API recognises people and programs by."""


@token.command()
@click.option("--role", type=ROLES, required=True, help="What its bearer may do.")
@click.option("--name", type=TEXT, help="Whose it is, for the audit log.  [default: you]")
@click.option(
    "--expires",
    type=TEXT,
    default="90d",
    show_default=True,
    help="How long it is good: 90s, 15min, 12h, 30d, 2w, or never.",
)
@click.option(
    "--kind", "kinds", type=TEXT, multiple=True, help="Only jobs of this kind; several times."
)
@click.option("--queue", "queues", type=TEXT, multiple=True, help="Only jobs of this queue.")
@records_options
@json_option
@command_body
async def create(
    role: str,
    name: str | None,
    expires: str,
    kinds: tuple[str, ...],
    queues: tuple[str, ...],
    records: str | None,
    store: str | None,
    as_json: bool,
) -> None:
    """Make a token and print it, once: only its digest is kept.

    viewer: look. operator: also start, stop, retry and delete work. admin: also change who may, and
    what holds for everybody. A token with kinds or queues sees and changes only jobs of these.
    """
    from haulier.records.credentials import Credentials
    from haulier.services.tokens import check_name, check_scope, lifetime

    actor = this_user()
    lasting = lifetime(expires)
    checked = check_name(actor.who if name is None else name)
    scope = {"kinds": check_scope("kind", kinds), "queues": check_scope("queue", queues)}
    async with records_of(records, store, create=True) as opened:
        made, minted = await Credentials(opened).create_token(
            actor, checked, Access(role), lasting, **scope
        )
    if as_json:
        emit_json({**token_document(made), "token": minted.text})
        return
    click.echo(minted.text)
    until = f"until {instant(made.expires_at)}" if made.expires_at else "for ever"
    click.echo(
        f"Token {made.id} of {made.name}: {made.access}, good {until}. It is shown this once.",
        err=True,
    )


@token.command("list")
@click.option("--all", "every", is_flag=True, help="Also those that are good no longer.")
@records_options
@json_option
@command_body
async def list_tokens(every: bool, records: str | None, store: str | None, as_json: bool) -> None:
    """List the tokens, the newest first, without what is secret in them."""
    from haulier.records.credentials import Credentials, now

    async with records_of(records, store) as opened:
        found = await Credentials(opened).tokens()
    at = now()
    shown = [each for each in found if every or each.state(at) == "active"]
    if as_json:
        emit_json({"tokens": [token_document(each) for each in shown]})
        return
    if not shown:
        click.echo("No tokens. Make one:  haulier token create --role operator", err=True)
        return
    emit_table(
        ("ID", "NAME", "ROLE", "STATE", "SCOPE", "EXPIRES", "USED", "MADE BY"),
        [
            (
                *(each.id, each.name, str(each.access), each.state(at), _scope(each)),
                *(ago(each.expires_at) if each.expires_at else "never", ago(each.last_used_at)),
                each.created_by,
            )
            for each in shown
        ],
    )


@token.command()
@click.argument("public_id", metavar="ID", type=TEXT)
@records_options
@json_option
@command_body
async def revoke(public_id: str, records: str | None, store: str | None, as_json: bool) -> None:
    """End a token or a session for good, on all servers within 5 s, open streams included."""
    from haulier.records.credentials import Credentials

    async with records_of(records, store) as opened:
        what, _ = await Credentials(opened).revoke(this_user(), public_id)
    if as_json:
        emit_json({"id": public_id, "revoked": what})
        return
    click.echo(f"The {what} {public_id} is revoked.", err=True)


@token.command()
@click.option("--role", type=ROLES, default="admin", show_default=True)
@click.option("--name", type=TEXT, help="Who signs in, for the audit log.  [default: you]")
@click.option("--url", default=DEFAULT_URL, show_default=True, help="Where the browser finds us.")
@click.option("--expires", type=TEXT, default="10min", show_default=True, help="Of the link.")
@click.option("--session", "session", type=TEXT, default="12h", show_default=True)
@records_options
@json_option
@command_body
async def link(
    role: str,
    name: str | None,
    url: str,
    expires: str,
    session: str,
    records: str | None,
    store: str | None,
    as_json: bool,
) -> None:
    """Print a link that signs one browser in, once, for as long as --session says.

    What is secret in it stands behind the `#`, which browsers send to nobody.
    """
    from haulier.exceptions import Problem, ValidationError
    from haulier.records.credentials import Credentials
    from haulier.services.tokens import check_name, lifetime

    actor = this_user()
    checked = check_name(actor.who if name is None else name)
    lasting, lasts = lifetime(expires), lifetime(session)
    if lasting is None or lasts is None:
        raise ValidationError(
            "the link was refused", [Problem("expires", "links and sessions do not last for ever")]
        )
    async with records_of(records, store, create=True) as opened:
        minted = await Credentials(opened).create_link(
            actor,
            checked,
            Access(role),
            lasting=lasting,
            session_lasting=lasts,
        )
    address = f"{url.rstrip('/')}/login#{minted.text}"
    if as_json:
        emit_json({"id": minted.id, "url": address})
        return
    click.echo(address)


@token.command("sessions")
@click.option("--all", "every", is_flag=True, help="Also those that are over.")
@records_options
@json_option
@command_body
async def list_sessions(every: bool, records: str | None, store: str | None, as_json: bool) -> None:
    """List the browsers that are signed in; `haulier token revoke` signs one out."""
    from haulier.records.credentials import Credentials, now

    async with records_of(records, store) as opened:
        found = await Credentials(opened).sessions()
    at = now()
    shown = [each for each in found if every or each.state(at) == "active"]
    if as_json:
        emit_json({"sessions": [session_document(each) for each in shown]})
        return
    if not shown:
        click.echo("Nobody is signed in.", err=True)
        return
    emit_table(
        ("ID", "NAME", "ROLE", "STATE", "FROM", "SINCE", "EXPIRES", "USED"),
        [
            (
                *(each.id, each.name, str(each.access), each.state(at), each.source),
                *(ago(each.created_at), ago(each.expires_at), ago(each.last_used_at)),
            )
            for each in shown
        ],
    )


def token_document(found: Token) -> dict[str, Any]:
    """A token as JSON; the token itself is not in it."""
    return {
        "id": found.id,
        "name": found.name,
        "role": str(found.access),
        "state": found.state(time.time_ns() // 1000),
        "kinds": None if found.kinds is None else sorted(found.kinds),
        "queues": None if found.queues is None else sorted(found.queues),
        "created_at": instant(found.created_at),
        "created_by": found.created_by,
        "expires_at": instant(found.expires_at),
        "last_used_at": instant(found.last_used_at),
        "revoked_at": instant(found.revoked_at),
        "revoked_by": found.revoked_by,
    }


def session_document(found: Session) -> dict[str, Any]:
    """A session as JSON."""
    return {
        "id": found.id,
        "name": found.name,
        "role": str(found.access),
        "state": found.state(time.time_ns() // 1000),
        "source": found.source,
        "created_at": instant(found.created_at),
        "expires_at": instant(found.expires_at),
        "last_used_at": instant(found.last_used_at),
        "revoked_at": instant(found.revoked_at),
        "revoked_by": found.revoked_by,
    }


def _scope(found: Token) -> str:
    parts = [f"kind {each}" for each in sorted(found.kinds or ())]
    parts += [f"queue {each}" for each in sorted(found.queues or ())]
    return ", ".join(parts) or "all"
