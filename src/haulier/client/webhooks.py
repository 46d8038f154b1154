"""What can be asked about webhooks: who is told of what happens, and how that went."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TypedDict

from pydantic import Field
from typing_extensions import Unpack

from haulier.client import call as make
from haulier.client.answers import Answer, Started
from haulier.client.call import Call, Listing
from haulier.domain.job import JobState


class Webhook(Answer):
    """A webhook as it stands. `disabled`: why it is told nothing; `error` is the last one."""

    id: str
    url: str
    types: tuple[str, ...]
    kind: str | None
    queue: str | None
    batch: str | None
    description: str
    enabled: bool
    disabled: str | None
    failures: int
    failing_since: datetime | None
    succeeded_at: datetime | None
    failed_at: datetime | None
    error: str | None
    created_at: datetime
    created_by: str


class NewWebhook(Webhook):
    """A new webhook. Its `secret` is told this once, and not shown."""

    secret: str = Field(repr=False)


class NewSecret(Answer):
    """A webhook's new secret, told this once, and not shown."""

    id: str
    secret: str = Field(repr=False)


class Delivery(Answer):
    """One message. A pending one is tried again at `run_at`."""

    id: str
    webhook_id: str
    type: str
    state: JobState
    attempt: int
    status: int | None
    error: str | None
    run_at: datetime
    created_at: datetime
    finished_at: datetime | None


class About(TypedDict, total=False):
    """What a webhook is told, and where."""

    url: str
    types: Sequence[str]
    kind: str | None
    queue: str | None
    batch: str | None
    description: str
    enabled: bool


def webhooks() -> Call[tuple[Webhook, ...]]:
    """All webhooks, the oldest first."""
    return make.whole("/webhooks", "webhooks", Webhook)


def webhook(webhook_id: str) -> Call[Webhook]:
    """One webhook."""
    return make.get(_of(webhook_id), Webhook, subject=webhook_id)


def add_webhook(**about: Unpack[About]) -> Call[NewWebhook]:
    """Tell an URL of what happens from now on."""
    return make.post("/webhooks", NewWebhook, dict(about), repeatable=False)


def change_webhook(webhook_id: str, **about: Unpack[About]) -> Call[Webhook]:
    """Change what is given; None takes a filter away."""
    path = _of(webhook_id)
    return make.send("PATCH", path, Webhook, dict(about), subject=webhook_id)


def delete_webhook(webhook_id: str) -> Call[None]:
    """Tell it no more."""
    return make.remove(_of(webhook_id), webhook_id)


def rotate_secret(webhook_id: str) -> Call[NewSecret]:
    """Give a webhook another secret; for a day the old one signs as well."""
    path = _of(webhook_id, "/rotate")
    return make.post(path, NewSecret, subject=webhook_id, repeatable=False)


def try_webhook(webhook_id: str) -> Call[Started]:
    """Send it a message of the type `webhook.test`; the job that does."""
    path = _of(webhook_id, "/test")
    return make.post(path, Started, subject=webhook_id, repeatable=False)


def deliveries(webhook_id: str, *, page: int = 100) -> Listing[Delivery]:
    """What it was told, the latest first."""
    path = _of(webhook_id, "/deliveries")
    return make.listing(path, "deliveries", Delivery, {"limit": page}, subject=webhook_id)


def _of(webhook_id: str, rest: str = "") -> str:
    return f"/webhooks/{make.segment(webhook_id)}{rest}"
