"""Health, the figures that scripts know, and those that Prometheus reads."""

from __future__ import annotations

import dataclasses
import re

import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel

from haulier.domain.moves import Move
from haulier.exceptions import PermanentError
from haulier.runners.base import BaseTaskRunner, register_runner
from haulier.web.meter import Meter
from support import Hand, wait_until


class Start(BaseModel):
    count: int


class Account(BaseModel):
    n: int


class Upload(BaseTaskRunner[Start, Account]):
    """Every third upload fails."""

    task_type, start_model, item_model = "bulk_upload", Start, Account

    def expand(self, ctx, start):
        return (Account(n=n) for n in range(start.count))

    def run_item(self, ctx, item):
        if item.n % 3 == 2:
            raise PermanentError("no")
        return item.n


def figures(answer):
    """Each sample by its name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def figure(answer, name, **labels):
    return figures(answer).get((name, frozenset(labels.items())))


FAIL = {"queue": "default", "kind": "fail"}


class TestHealth:
    async def test_what_waits_is_told_by_its_age(self, client, jobs):
        told = (await client.get("/api/v1/health")).json()
        assert (told["live"], told["ready"]) == (True, True)
        assert "oldest_ready_seconds" not in told
        assert told["sweep_lag_seconds"] == 0
        assert set(told["versions"]) == {"python", "fastapi", "uvicorn", "pydantic", "apsw"}
        await jobs.enqueue("linger", {}, {})
        told = (await client.get("/api/v1/health")).json()
        assert 0 <= told["oldest_ready_seconds"] < 60

    async def test_jobs_of_a_lost_worker_that_nobody_swept(self, client, jobs, store, monkeypatch):
        await jobs.enqueue("fail", {"reason": "x"}, {})
        hand = await Hand.enlist(store, kinds=["fail"])
        await hand.claim_one()
        workers = await store.workers()

        async def lost():
            since = workers[0].renewed_at - 60_000_000
            return [dataclasses.replace(workers[0], alive=False, renewed_at=since)]

        monkeypatch.setattr(store, "workers", lost)
        told = (await client.get("/api/v1/health")).json()
        assert told["status"] == "degraded"
        assert 45 <= told["sweep_lag_seconds"] < 105


class TestFigures:
    async def test_by_the_names_that_scripts_know(self, client, jobs, registry, working):
        register_runner(registry, Upload())
        head = await jobs.enqueue("bulk_upload", {"count": 6}, {})
        failed = await jobs.enqueue("fail", {"reason": "x"}, {})
        await jobs.enqueue("linger", {}, {"delay": 60})
        async with working():
            for job_id in (head, failed):
                await jobs.wait(job_id, timeout=30)
        assert (await client.get("/api/v1/metrics")).json() == {
            "total_jobs": 4,
            "completed_jobs": 2,
            "failed_jobs": 1,
            "total_accounts_processed": 6,
            "total_uploads_success": 4,
            "total_uploads_failed": 2,
            "jobs_by_type": {"bulk_upload": 1, "bulk_upload.finish": 1, "fail": 1, "linger": 1},
            "running_jobs_count": 0,
        }


class TestPrometheus:
    @pytest.fixture
    async def hand(self, store):
        return await Hand.enlist(store, kinds=["fail"])

    async def scrape(self, client):
        answer = await client.get("/metrics")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/plain; version=")
        return answer

    async def seen(self, client, name, value, **labels):
        """Events are followed a moment later."""

        async def there():
            return figure(await self.scrape(client), name, **labels) == value

        await wait_until(there)

    async def test_what_is_there(self, client, jobs, hand):
        await jobs.enqueue("fail", {"reason": "x"}, {})
        answer = await self.scrape(client)
        assert figure(answer, "haulier_jobs", **FAIL, role="single", state="pending") == 1
        assert figure(answer, "haulier_workers") == 1
        assert figure(answer, "haulier_slots") == 100
        assert 0 <= figure(answer, "haulier_oldest_ready_seconds", queue="default") < 60
        await hand.claim_one()
        answer = await self.scrape(client)
        assert figure(answer, "haulier_jobs", **FAIL, role="single", state="running") == 1
        assert figure(answer, "haulier_oldest_ready_seconds", queue="default") is None

    async def test_what_happens_is_counted_from_the_first_scrape_on(self, client, jobs, hand):
        await jobs.enqueue("fail", {"reason": "before"}, {})
        await self.scrape(client)
        await jobs.enqueue("fail", {"reason": "after"}, {})
        await self.seen(client, "haulier_jobs_enqueued_total", 1, **FAIL)
        for _ in range(2):
            await hand.hand_in(await hand.claim_one(), Move.RETRY, delay=0)
            await hand.hand_in(await hand.claim_one(), Move.COMPLETE)
        await self.seen(client, "haulier_jobs_ended_total", 2, **FAIL, state="completed")
        answer = await self.scrape(client)
        assert figure(answer, "haulier_retries_total", **FAIL) == 2
        assert figure(answer, "haulier_job_run_seconds_count", **FAIL) == 4
        assert figure(answer, "haulier_job_wait_seconds_count", **FAIL) == 1
        assert figure(answer, "haulier_job_run_seconds_bucket", **FAIL, le="+Inf") == 4

    async def test_nobody_counts_once_nobody_asks(self, store):
        meter = Meter(idle=0.01)
        await meter.scrape(store)
        following = meter._following
        await wait_until(following.done)
        assert b"haulier_workers 0.0" in await meter.scrape(store)
        assert meter._following is not following
        await meter.close()

    async def test_names_are_well_formed(self, client):
        names = {name for name, _ in figures(await self.scrape(client))}
        assert names
        assert all(re.fullmatch(r"haulier_[a-z_]+", name) for name in names)
