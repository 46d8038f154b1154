"""`haulier webhook`: who is told of what happens."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import click

from haulier.cli.output import (
    TEXT,
    ago,
    allow_option,
    command_body,
    emit_json,
    emit_table,
    json_option,
)
from haulier.cli.recorded import records_of, records_options, this_user

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from haulier.domain.webhook import Webhook
    from haulier.services.webhooks import Webhooks

    Note = Callable[[str, str], Awaitable[None]]


@click.group()
def webhook() -> None:
    """Have a server told, by signed messages, of what happens to jobs and batches.

    \b
    haulier webhook add https://example.com/hooks --type 'batch.*' --type job.failed
    haulier webhook test ID

    `haulier serve` sends the messages.
    """


@webhook.command()
@click.argument("url", type=TEXT)
@click.option(
    "--type",
    "types",
    type=TEXT,
    multiple=True,
    help="job.failed, item.*, *; may be repeated.  [default: the ends of jobs and batches]",
)
@click.option("--kind", type=TEXT, help="Only of this kind.")
@click.option("--queue", type=TEXT, help="Only of this queue.")
@click.option("--batch", type=TEXT, metavar="ID", help="Only of this batch and its items.")
@click.option("--description", type=TEXT, help="What it is for.")
@allow_option
@records_options
@json_option
@command_body
async def add(
    url: str,
    types: tuple[str, ...],
    batch: str | None,
    allowed_hosts: tuple[str, ...],
    records: str | None,
    store: str | None,
    as_json: bool,
    **filters: str | None,
) -> None:
    """Add a webhook and print its secret, once: the receiver verifies with it what comes."""
    async with _webhooks(records, store, allowed_hosts, create=True) as (hooks, note):
        made, secret = await hooks.create(
            {"url": url, "types": list(types), "batch_id": batch, **filters},  # type: ignore[typeddict-item]
            by=this_user().who,
        )
        await note("webhook.create", made.id)
    if as_json:
        emit_json({**webhook_document(made), "secret": secret})
        return
    click.echo(secret)
    click.echo(f"Webhook {made.id} is told of what happens from now on.", err=True)


@webhook.command("list")
@records_options
@json_option
@command_body
async def list_webhooks(records: str | None, store: str | None, as_json: bool) -> None:
    """List all webhooks and how they stand."""
    from haulier.records.webhooks import WebhookRecords

    async with records_of(records, store) as opened:
        found = await WebhookRecords(opened).all()
    if as_json:
        emit_json({"webhooks": [webhook_document(each) for each in found]})
        return
    emit_table(
        ("ID", "URL", "TYPES", "LAST SUCCESS", "FAILURES", "STATE"),
        [
            (
                each.id,
                each.url,
                " ".join(each.types),
                "-" if each.succeeded_at is None else ago(each.succeeded_at),
                f"{each.failures}" if each.error is None else f"{each.failures}: {each.error}",
                "enabled" if each.disabled is None else f"disabled: {each.disabled}",
            )
            for each in found
        ],
    )


@webhook.command()
@click.argument("webhook_id", metavar="ID", type=TEXT)
@records_options
@command_body
async def remove(webhook_id: str, records: str | None, store: str | None) -> None:
    """Forget a webhook, its secret, and what it was still to be told."""
    async with _webhooks(records, store) as (hooks, note):
        await hooks.remove(webhook_id)
        await note("webhook.delete", webhook_id)
    click.echo(f"Webhook {webhook_id} is removed.", err=True)


@webhook.command()
@click.argument("webhook_id", metavar="ID", type=TEXT)
@records_options
@command_body
async def enable(webhook_id: str, records: str | None, store: str | None) -> None:
    """Tell a webhook again, of what happens from now on."""
    async with _webhooks(records, store) as (hooks, note):
        await hooks.change(webhook_id, {"enabled": True})
        await note("webhook.enable", webhook_id)
    click.echo(f"Webhook {webhook_id} is enabled.", err=True)


@webhook.command()
@click.argument("webhook_id", metavar="ID", type=TEXT)
@records_options
@command_body
async def rotate(webhook_id: str, records: str | None, store: str | None) -> None:
    """Give a webhook a new secret and print it, once; the old one is used beside it for a day."""
    async with _webhooks(records, store) as (hooks, note):
        secret = await hooks.rotate(webhook_id)
        await note("webhook.rotate", webhook_id)
    click.echo(secret)


@webhook.command()
@click.argument("webhook_id", metavar="ID", type=TEXT)
@records_options
@command_body
async def test(webhook_id: str, records: str | None, store: str | None) -> None:
    """Have a message of the type webhook.test sent; prints the id of its job."""
    async with _webhooks(records, store) as (hooks, note):
        job_id = await hooks.test(webhook_id)
        await note("webhook.test", webhook_id)
    click.echo(job_id)


@asynccontextmanager
async def _webhooks(
    records: str | None,
    store: str | None,
    allowed_hosts: tuple[str, ...] = (),
    *,
    create: bool = False,
) -> AsyncIterator[tuple[Webhooks, Note]]:
    """The webhooks, and how to write down in the audit log what was done to one."""
    from haulier.config import read_settings
    from haulier.container import build_app, guard_of
    from haulier.records.auditing import AuditLog
    from haulier.records.webhooks import WebhookRecords
    from haulier.services.audit import Entry
    from haulier.services.webhooks import Webhooks

    settings = read_settings(store=store, allowed_hosts=allowed_hosts or None)
    async with records_of(records, store, create=create) as opened, build_app(settings) as app:

        async def note(action: str, webhook_id: str) -> None:
            # Not its URL, which may hold a token of the receiver's.
            await AuditLog(opened).append([Entry(this_user(), action, {"id": webhook_id})])

        book = WebhookRecords(opened)
        yield Webhooks(app.store, app.jobs.sealer, book, guard_of(settings)), note


def webhook_document(webhook: Webhook) -> dict[str, Any]:
    """A webhook as JSON, the same as the API's."""
    from haulier.web.models.webhooks import WebhookView

    return WebhookView.of(webhook).model_dump(mode="json")
