"""Webhooks: who is told of what happens, and whether it arrives."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from starlette.exceptions import HTTPException

from haulier.services.webhooks import Webhooks
from haulier.web.access import ADMIN, Caller
from haulier.web.models.webhooks import (
    DeliveryList,
    DeliveryQuery,
    DeliveryView,
    NewSecret,
    NewWebhook,
    WebhookBody,
    WebhookChange,
    WebhookList,
    WebhookView,
    new_webhook,
)
from haulier.web.problems import problem_responses
from haulier.web.routes.common import PREFIX, started, token
from haulier.web.schemas import Started

router = APIRouter(prefix=PREFIX, tags=["webhooks"])


def _webhooks(request: Request) -> Webhooks:
    webhooks: Webhooks | None = request.app.state.webhooks
    if webhooks is None:
        raise HTTPException(501, "This server was started without records")
    return webhooks


Hooks = Annotated[Webhooks, Depends(_webhooks)]
Id = Annotated[str, Path(max_length=200, description="The id of the webhook.")]


@router.get(
    "/webhooks",
    summary="List webhooks",
    dependencies=[ADMIN],
    responses=problem_responses(),
)
async def list_webhooks(hooks: Hooks) -> WebhookList:
    """All of them with how they stand; never their secrets."""
    return WebhookList(webhooks=[WebhookView.of(each) for each in await hooks.book.all()])


@router.post(
    "/webhooks",
    status_code=201,
    summary="Add a webhook",
    dependencies=[ADMIN],
    responses=problem_responses(400, 413, 415, 422),
)
async def add_webhook(
    hooks: Hooks, caller: Caller, body: WebhookBody, response: Response
) -> NewWebhook:
    """It is told of what happens from now on. The answer has its secret, this once."""
    webhook, secret = await hooks.create(body.given(), by=caller.name)
    response.headers["Location"] = f"{PREFIX}/webhooks/{webhook.id}"
    response.headers["Cache-Control"] = "no-store"
    return new_webhook(webhook, secret)


@router.get(
    "/webhooks/{webhook_id}",
    summary="Show a webhook",
    dependencies=[ADMIN],
    responses=problem_responses(404),
)
async def show_webhook(hooks: Hooks, webhook_id: Id) -> WebhookView:
    """How it stands; never its secret."""
    return WebhookView.of(await hooks.book.get(webhook_id))


@router.patch(
    "/webhooks/{webhook_id}",
    summary="Change a webhook",
    dependencies=[ADMIN],
    responses=problem_responses(400, 404, 413, 415, 422),
)
async def change_webhook(hooks: Hooks, webhook_id: Id, body: WebhookChange) -> WebhookView:
    """Only what is given. One that is enabled again goes on with what happens from then on."""
    return WebhookView.of(await hooks.change(webhook_id, body.given()))


@router.delete(
    "/webhooks/{webhook_id}",
    status_code=204,
    summary="Delete a webhook",
    dependencies=[ADMIN],
    responses=problem_responses(404),
)
async def delete_webhook(hooks: Hooks, webhook_id: Id) -> None:
    """Its secret goes with it, and messages that have not arrived are cancelled."""
    await hooks.remove(webhook_id)


@router.post(
    "/webhooks/{webhook_id}/rotate",
    summary="Give a webhook a new secret",
    dependencies=[ADMIN],
    responses=problem_responses(404),
)
async def rotate_secret(hooks: Hooks, webhook_id: Id, response: Response) -> NewSecret:
    """For a day messages are signed with the old one as well, so that none is refused."""
    secret = await hooks.rotate(webhook_id)
    response.headers["Cache-Control"] = "no-store"
    return NewSecret(id=webhook_id, secret=secret)


@router.post(
    "/webhooks/{webhook_id}/test",
    status_code=202,
    summary="Send a test message",
    dependencies=[ADMIN],
    responses=problem_responses(404),
)
async def test_webhook(hooks: Hooks, webhook_id: Id, response: Response) -> Started:
    """A message of the type `webhook.test`, also to one that is disabled."""
    return started(await hooks.test(webhook_id), response)


@router.get(
    "/webhooks/{webhook_id}/deliveries",
    summary="List the last messages of a webhook",
    dependencies=[ADMIN],
    responses=problem_responses(404, 422),
)
async def list_deliveries(
    hooks: Hooks, webhook_id: Id, query: Annotated[DeliveryQuery, Query()]
) -> DeliveryList:
    """With their states and errors; those that arrived are kept for a week."""
    page = await hooks.deliveries(webhook_id, limit=query.limit, cursor=query.cursor)
    return DeliveryList(
        deliveries=[DeliveryView.of(job) for job in page.jobs], next=token(page.next)
    )
