"""Webhooks and their deliveries, as models."""

from __future__ import annotations

import json
from typing import Self, cast
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StrictBool

from haulier.domain.job import Job, JobState
from haulier.domain.webhook import DEFAULT_TYPES, Webhook
from haulier.services.webhooks import LONGEST_TEXT, MOST_TYPES, WebhookFields
from haulier.web.bodies import MAX_PAGE, Taken
from haulier.web.schemas import Instant, Text

_TYPES = "Names such as `job.failed`, `item.*`, or `*`; the ends of jobs and batches if left out."


class WebhookChange(Taken):
    """What to change; what is left out stays as it is, and null takes a filter away."""

    model_config = ConfigDict(json_schema_extra={"example": {"enabled": True}})

    url: str | None = Field(None, max_length=2_000, description="http or https; public.")
    types: list[str] | None = Field(None, max_length=MOST_TYPES, description=_TYPES)
    kind: str | None = Field(None, max_length=LONGEST_TEXT, description="Only of this kind.")
    queue: str | None = Field(None, max_length=LONGEST_TEXT, description="Only of this queue.")
    batch: UUID | None = Field(None, description="Only of this batch and its items.")
    description: str | None = Field(None, max_length=LONGEST_TEXT)
    enabled: StrictBool | None = None

    def given(self) -> WebhookFields:
        """What was said, in the words of the service."""
        values = self.model_dump(exclude_unset=True)
        if "batch" in values:
            batch = values.pop("batch")
            values["batch_id"] = None if batch is None else str(batch)
        return cast("WebhookFields", values)


class WebhookBody(WebhookChange):
    """A webhook: where to send messages, and about what. Without a filter, about everything."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {"url": "https://example.com/hooks", "types": ["batch.*", "job.failed"]}
        }
    )

    url: str = Field(max_length=2_000, description="http or https; public.")


class WebhookView(BaseModel):
    """A webhook as it stands.

    `disabled`: why it is told nothing. `failures` counts those in a row, since `failing_since`;
    `error` is the last one.
    """

    id: str
    url: str
    types: list[str] = Field(examples=[list(DEFAULT_TYPES)])
    kind: str | None
    queue: str | None
    batch: str | None
    description: str
    enabled: bool
    disabled: str | None
    failures: int
    failing_since: Instant | None
    succeeded_at: Instant | None
    failed_at: Instant | None
    error: str | None
    created_at: Instant
    created_by: str

    @classmethod
    def of(cls, webhook: Webhook) -> Self:
        """What is shown of a webhook."""
        return cls(**_shown(webhook))


class NewWebhook(WebhookView):
    """A webhook that was just made, with its secret, which is shown this once."""

    secret: str = Field(description="Give it to the receiver, to verify what comes with.")


class NewSecret(BaseModel):
    """A webhook's new secret, which is shown this once."""

    id: str
    secret: str


class WebhookList(BaseModel):
    """All webhooks, the oldest first."""

    webhooks: list[WebhookView]


class DeliveryView(BaseModel):
    """One message. `webhook_id` is its header `webhook-id`; `status` that of the last good answer.

    `state` is that of its job: a pending one is tried again at `run_at`.
    """

    id: str
    webhook_id: str
    type: str
    state: JobState
    attempt: int
    status: int | None
    error: Text | None
    run_at: Instant
    created_at: Instant
    finished_at: Instant | None

    @classmethod
    def of(cls, job: Job) -> Self:
        """The delivery that a job is."""
        result = job.value if isinstance(job.value, dict) else {}
        return cls(
            id=job.id,
            webhook_id=f"msg_{job.id}",
            type=json.loads(job.payload)["type"],
            state=job.state,
            attempt=job.attempt,
            status=result.get("status"),
            error=None if job.error is None else job.error.message,
            run_at=job.run_at,
            created_at=job.created_at,
            finished_at=job.finished_at,
        )


class DeliveryList(BaseModel):
    """A page of deliveries, the latest first. `next` is the `cursor` of the following page."""

    deliveries: list[DeliveryView]
    next: str | None


class DeliveryQuery(Taken):
    """Which deliveries."""

    limit: int = Field(50, ge=1, le=MAX_PAGE, description="At most so many.")
    cursor: int | None = Field(
        None, ge=0, lt=2**63, description="The `next` of the page before; made by the server."
    )


def new_webhook(webhook: Webhook, secret: str) -> NewWebhook:
    """What is shown of one that was just made."""
    return NewWebhook(**_shown(webhook), secret=secret)


def _shown(webhook: Webhook) -> dict[str, object]:
    return {
        "id": webhook.id,
        "url": webhook.url,
        "types": list(webhook.types),
        "kind": webhook.kind,
        "queue": webhook.queue,
        "batch": webhook.batch_id,
        "description": webhook.description,
        "enabled": webhook.disabled is None,
        "disabled": webhook.disabled,
        "failures": webhook.failures,
        "failing_since": webhook.failing_since,
        "succeeded_at": webhook.succeeded_at,
        "failed_at": webhook.failed_at,
        "error": webhook.error,
        "created_at": webhook.created_at,
        "created_by": webhook.created_by,
    }
