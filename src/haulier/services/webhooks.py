"""Webhooks: kept in a book, told of events by jobs of the engine itself.

A message is sent at least once: its job's id follows from webhook and event, so that who looks at
an event again enqueues nothing new, and the cursor of a webhook is put forward only after its jobs
are in the store.
"""

from __future__ import annotations

import base64
import json
import os
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, TypedDict

import httpx
from pydantic import BaseModel

from haulier.domain.event import Event
from haulier.domain.ids import derived_id, text_id_of
from haulier.domain.job import NewJob
from haulier.domain.retention import DAY, Keep, Retention
from haulier.domain.retry import RetryPolicy
from haulier.domain.webhook import (
    DEFAULT_TYPES,
    KIND,
    QUEUE,
    TEST,
    Webhook,
    body_of,
    label_of,
    message_of,
    type_of,
    unknown_types,
)
from haulier.exceptions import (
    CancelJob,
    ForbiddenAddressError,
    JobExecutionError,
    PermanentError,
    Problem,
    ValidationError,
    WebhookNotFoundError,
)
from haulier.ports import JobFilter, JobStore, Page
from haulier.services.calling import guarded_client
from haulier.services.context import Context
from haulier.services.ids import new_id
from haulier.services.jobs import JobManager
from haulier.services.options import Plan, plan_of
from haulier.services.outbound import Guard
from haulier.services.registry import Registry, define_task
from haulier.services.secrets import Sealer, Secret
from haulier.webhooks import PREFIX, sign

RETRY = RetryPolicy(max_attempts=16, delay=10.0, cap=6 * 3600.0)
"""Up to 16 attempts over about a day, at first seconds apart, at last hours."""

GIVE_UP_AFTER = 3 * DAY
"""Seconds of failures without one success after which a webhook is disabled."""

ROTATION = DAY
"""Seconds for which an old secret is used beside the new one."""

ANSWER_SECONDS = 15.0
PAGE = 500
SECRET_BYTES = 32
LONGEST_TEXT = 200
MOST_TYPES = 50

_ANY_ID = "00000000-0000-7000-8000-000000000000"

_SAID_OFTEN = 5.0
"""Seconds within which a success is written down once."""


class DeliveryError(JobExecutionError):
    """A message did not arrive. `retry_after`: seconds that the receiver asked to wait."""

    def __init__(self, message: str, retry_after: str | None = None) -> None:
        self.retry_after = retry_after
        super().__init__(message)


class Delivery(BaseModel):
    """The payload of a delivery: the body is made once, so that every attempt sends the same."""

    webhook: str
    type: str
    body: str


class WebhookFields(TypedDict, total=False):
    """What may be said of a webhook; what is left out has its default, or stays as it is."""

    url: str
    types: Sequence[str] | None
    kind: str | None
    queue: str | None
    batch_id: str | None
    description: str | None
    enabled: bool | None


class Book(Protocol):
    """Where webhooks are kept. Raises WebhookNotFoundError for an id that none has."""

    async def add(self, webhook: Webhook, sealed: str) -> None: ...

    async def all(self) -> list[Webhook]: ...

    async def get(self, webhook_id: str) -> Webhook: ...

    async def sealed_secret(self, webhook_id: str) -> str: ...

    async def change(self, webhook_id: str, values: Mapping[str, Any]) -> Webhook: ...

    async def remove(self, webhook_id: str) -> None: ...

    async def move_on(self, cursors: Mapping[str, str]) -> None:
        """Put the cursors of webhooks forward, by their ids."""
        ...

    async def succeeded(self, webhook_id: str) -> None: ...

    async def failed(self, webhook_id: str, error: str) -> Webhook: ...

    async def disable(self, webhook_id: str, why: str) -> None: ...

    async def take_turn(self, owner: str, seconds: float) -> bool:
        """Whether it is this one's turn to tell webhooks, for so many seconds from now."""
        ...

    async def end_turn(self, owner: str) -> None: ...


class Webhooks:
    """Webhooks from the operator's side, and how they are told.

    `give_up_after` is in seconds. `tls` verifies receivers, by default with public authorities.
    """

    def __init__(
        self,
        store: JobStore,
        sealer: Sealer,
        book: Book,
        guard: Guard,
        *,
        retry: RetryPolicy = RETRY,
        give_up_after: float = GIVE_UP_AFTER,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.book = book
        self._guard = guard
        self._sealer = sealer
        self._give_up_after = give_up_after
        self._tls = tls
        self._said: dict[str, float] = {}
        # A registry of its own: nobody else can enqueue what is to be signed.
        registry = Registry()
        self._definition = define_task(
            self._deliver, kind=KIND, queue=QUEUE, retry=retry, retention=_RETENTION
        )
        registry.add(self._definition)
        self.jobs = JobManager(store, registry, sealer)

    # ── The operator's side ──────────────────────────────────────────────────────────────────

    async def create(self, fields: WebhookFields, *, by: str) -> tuple[Webhook, str]:
        """A new webhook, told of what happens from now on, and its secret, which is shown once.

        Raises ValidationError that names each field at fault.
        """
        values = self._checked({"url": "", **fields})
        enabled = values.pop("enabled", None) is not False
        secret = new_secret()
        webhook = Webhook(
            id=new_id(),
            created_at=time.time_ns() // 1000,
            created_by=by,
            after=await self.jobs.store.last_event(),
            disabled=None if enabled else DISABLED_BY_HAND,
            **{
                "types": DEFAULT_TYPES,
                "kind": None,
                "queue": None,
                "batch_id": None,
                "description": "",
                **values,
            },
        )
        await self.book.add(webhook, self._sealed(webhook.id, [(secret, None)]))
        return webhook, secret

    async def change(self, webhook_id: str, fields: WebhookFields) -> Webhook:
        """Change what is given. One that was disabled and is enabled goes on with what happens now.

        Raises WebhookNotFoundError and ValidationError.
        """
        before = await self.book.get(webhook_id)
        values = self._checked(fields)
        enabled = values.pop("enabled", None)
        if enabled is False and before.disabled is None:
            values["disabled"] = DISABLED_BY_HAND
        if enabled and before.disabled is not None:
            values |= {"disabled": None, "failures": 0, "failing_since": None, "error": None}
            values["after"] = await self.jobs.store.last_event()
        return await self.book.change(webhook_id, values)

    async def rotate(self, webhook_id: str) -> str:
        """A new secret, which is shown once. For a day messages are signed with the old one too.

        Raises WebhookNotFoundError.
        """
        secret, now = new_secret(), time.time()
        [old, *_] = await self._secrets(webhook_id)
        await self._keep_secrets(webhook_id, [(secret, None), (old, now + ROTATION)])
        return secret

    async def _secrets(self, webhook_id: str) -> list[str]:
        """What to sign with, the newest first."""
        sealed = await self.book.sealed_secret(webhook_id)
        kept = json.loads(self._sealer.open_text(sealed, _place(webhook_id)))
        return [secret for secret, until in kept if until is None or until > time.time()]

    def _sealed(self, webhook_id: str, secrets: Sequence[tuple[str, float | None]]) -> str:
        return self._sealer.seal_text(json.dumps(secrets), _place(webhook_id))

    async def _keep_secrets(
        self, webhook_id: str, secrets: Sequence[tuple[str, float | None]]
    ) -> None:
        await self.book.change(webhook_id, {"secret": self._sealed(webhook_id, secrets)})

    async def remove(self, webhook_id: str) -> None:
        """Forget a webhook and what it was still to be told; raises WebhookNotFoundError."""
        await self.book.remove(webhook_id)
        await self.jobs.cancel_all(JobFilter(kind=KIND, queue=QUEUE, key=webhook_id))

    async def test(self, webhook_id: str) -> str:
        """Send a message of the type `webhook.test`, also to one that is disabled; its job's id."""
        webhook = await self.book.get(webhook_id)
        body = body_of(TEST, time.time_ns() // 1000, {"webhook": webhook.id})
        delivery = Delivery(webhook=webhook.id, type=TEST, body=body)
        job = self._job(self._plan(webhook), new_id(), delivery)
        await self.jobs.store.insert([job])
        return job.id

    async def deliveries(
        self, webhook_id: str, *, limit: int = 50, cursor: int | None = None
    ) -> Page:
        """The jobs of the last deliveries, the latest first; raises WebhookNotFoundError."""
        await self.book.get(webhook_id)
        where = JobFilter(kind=KIND, queue=QUEUE, key=webhook_id)
        return await self.jobs.store.find(where, limit=limit, cursor=cursor)

    def _checked(self, fields: WebhookFields) -> dict[str, Any]:
        """The fields as they are kept; None stands for the default."""
        values: dict[str, Any] = {**fields}
        problems = [Problem(name, why) for name, why in self._faults(values)]
        if problems:
            raise ValidationError("the webhook was refused", problems)
        if "types" in values:
            values["types"] = tuple(dict.fromkeys(values["types"] or DEFAULT_TYPES))
        if "description" in values:
            values["description"] = values["description"] or ""
        if values.get("batch_id") is not None:
            values["batch_id"] = text_id_of(values["batch_id"])
        return values

    def _faults(self, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        if "url" in values:
            try:
                self._guard.check_url(values["url"] or "")
            except ForbiddenAddressError as error:
                yield "url", str(error)
        types = values.get("types") or ()
        if len(types) > MOST_TYPES:
            yield "types", f"are more than {MOST_TYPES}"
        elif unknown := unknown_types(types):
            yield "types", f"has {len(unknown)} that are no types of events"
        for name in ("kind", "queue", "description"):
            text = values.get(name) or ""
            if len(text) > LONGEST_TEXT:
                yield name, f"is longer than {LONGEST_TEXT} characters"
            elif not text.isprintable():
                yield name, "holds control characters"
        try:
            text_id_of(values.get("batch_id") or _ANY_ID)
        except ValueError:
            yield "batch_id", "is no id"

    # ── From events to deliveries ────────────────────────────────────────────────────────────

    async def events(self, after: str) -> list[Event]:
        """The events that follow a cursor, a page of them."""
        return await self.jobs.store.events(after=after, limit=PAGE)

    async def enqueue(self, events: Sequence[Event], webhooks: Sequence[Webhook]) -> int:
        """Enqueue a delivery of each event to each webhook that wants it; how many there are."""
        plans = {each.id: self._plan(each) for each in webhooks}
        jobs = [
            self._job(
                plans[webhook.id],
                derived_id(webhook.id, label_of(event)),
                Delivery(webhook=webhook.id, type=name, body=message_of(event, name)),
            )
            for event in events
            if (name := type_of(event)) is not None
            for webhook in webhooks
            if webhook.wants(event, name)
        ]
        size = self.jobs.store.chunk
        for start in range(0, len(jobs), size):
            await self.jobs.store.insert(jobs[start : start + size])
        return len(jobs)

    def _plan(self, webhook: Webhook) -> Plan:
        # As its key: webhooks take turns, so that a slow one keeps none from its messages.
        return plan_of(self._definition, {"key": webhook.id}, batch=False)

    def _job(self, plan: Plan, job_id: str, delivery: Delivery) -> NewJob:
        (job,) = self.jobs.new_jobs(self._definition, plan, [job_id], [delivery])
        return job

    # ── One delivery ─────────────────────────────────────────────────────────────────────────

    async def _deliver(self, ctx: Context, delivery: Delivery) -> dict[str, Any]:
        """Send one message; raises DeliveryError to be tried again."""
        try:
            webhook = await self.book.get(delivery.webhook)
            secrets = await self._secrets(webhook.id)
        except WebhookNotFoundError:
            raise CancelJob("the webhook was deleted") from None
        if webhook.disabled is not None and delivery.type != TEST:
            raise CancelJob(f"the webhook is disabled: {webhook.disabled}")
        # As secrets of this job: should anything tell of them, they are masked.
        revealed = [Secret(each).reveal() for each in secrets]
        status, wait = await self._post(webhook, f"msg_{ctx.job.id}", revealed, delivery)
        if not 200 <= status <= 299:
            error = f"the receiver answered with status {status}"
            if status == httpx.codes.GONE:
                await self.book.disable(webhook.id, "the receiver said that it is gone (410)")
                raise PermanentError(error)
            raise await self._failed(webhook, error, wait)
        await self._succeeded(webhook)
        return {"type": delivery.type, "status": status}

    async def _post(
        self, webhook: Webhook, message_id: str, secrets: Sequence[str], delivery: Delivery
    ) -> tuple[int, str | None]:
        """The status of the answer, and how long it asks to wait; of its body nothing is read."""
        body, timestamp = delivery.body.encode(), int(time.time())
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "haulier-webhook",
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": " ".join(
                sign(secret, message_id, timestamp, body) for secret in secrets
            ),
        }
        if self._tls is None:
            self._tls = httpx.create_ssl_context(trust_env=False)
        try:
            async with (
                guarded_client(self._guard, verify=self._tls, total=ANSWER_SECONDS) as client,
                client.stream("POST", webhook.url, content=body, headers=headers) as answer,
            ):
                return answer.status_code, answer.headers.get("retry-after")
        except ForbiddenAddressError as error:
            raise await self._failed(webhook, str(error)) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            # By its class: the text may have the URL, which may hold a token of the receiver's.
            why = f"the receiver could not be reached: {type(error).__name__}"
            raise await self._failed(webhook, why) from None

    async def _succeeded(self, webhook: Webhook) -> None:
        now = time.monotonic()
        # Written down when it changes something, else now and then: there may be thousands.
        if webhook.failures or now - self._said.get(webhook.id, -_SAID_OFTEN) >= _SAID_OFTEN:
            self._said[webhook.id] = now
            await self.book.succeeded(webhook.id)

    async def _failed(
        self, webhook: Webhook, why: str, retry_after: str | None = None
    ) -> DeliveryError:
        """Note a failure; the error to raise for it."""
        try:
            now = await self.book.failed(webhook.id, why)
        except WebhookNotFoundError:
            return DeliveryError(why)
        since = now.failing_since
        if since is not None and time.time() - since / 1_000_000 >= self._give_up_after:
            days = self._give_up_after / DAY
            await self.book.disable(webhook.id, f"nothing arrived for {days:g} days: {why}")
        return DeliveryError(why, retry_after)


DISABLED_BY_HAND = "it was disabled by hand"

_RETENTION = Retention(completed=Keep(age=7 * DAY), failed=Keep(age=30 * DAY))


def new_secret() -> str:
    """A new secret in the form of Standard Webhooks."""
    return PREFIX + base64.b64encode(os.urandom(SECRET_BYTES)).decode()


def _place(webhook_id: str) -> str:
    return f"webhook/{webhook_id}"
