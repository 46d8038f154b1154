"""The addresses and shapes that the user documents promise, as their examples use them."""

from __future__ import annotations

import json

import pytest
from pydantic import BaseModel, ConfigDict

from haulier.domain.job import JobState
from haulier.domain.moves import Move
from haulier.runners.base import BaseTaskRunner, register_runner
from haulier.services.ids import new_id
from haulier.services.registry import define_task
from haulier.services.secrets import Secret
from haulier.web.routes.aliases import WORKFLOWS
from haulier.web.routes.starts import STARTS
from support import Hand

NOT_INSTALLED = "urn:haulier:problem:not-installed"


class Start(BaseModel):
    model_config = ConfigDict(extra="forbid")

    task_id: int | str | None = None
    accounts: list[str] = []
    options: dict[str, object] = {}


class Account(BaseModel):
    name: str


class Warmup(BaseTaskRunner[Start, Account]):
    """Looks a task up by its id, and takes options."""

    task_type, start_model, item_model = "warmup", Start, Account

    def expand(self, ctx, start):
        names = start.accounts or [f"account {start.task_id}"]
        return (Account(name=name) for name in names)

    def run_item(self, ctx, item):
        return item.name


class Count(BaseModel):
    count: int
    platform: str = "pds"


class Generate(BaseTaskRunner[Count, Account]):
    """Provisions accounts."""

    task_type, start_model, item_model = "accounts.generate", Count, Account

    def expand(self, ctx, start):
        return (Account(name=f"{start.platform} {n}") for n in range(start.count))

    def run_item(self, ctx, item):
        return item.name


async def auto_resolve_issue(
    issue_number: int,
    repo_full_name: str,
    api_key: Secret,
    create_pr: bool = True,
    max_attempts: int = 3,
) -> dict[str, object]:
    return {"success": True, "issueNumber": issue_number, "repoFullName": repo_full_name}


@pytest.fixture
def installed(registry):
    register_runner(registry, Warmup())
    register_runner(registry, Generate())
    registry.add(define_task(auto_resolve_issue))


class TestStarts:
    @pytest.mark.parametrize(("path", "kind"), [(path, kind) for path, kind, _ in STARTS])
    async def test_what_is_not_installed_says_so(self, client, check, path, kind):
        answer = await client.post(f"/api/v1/{path}/start", json={"task_id": 123})
        told = check.problem(answer, 501)
        assert told["type"] == NOT_INSTALLED
        assert kind in told["detail"]

    async def test_by_the_id_of_a_task_with_options(self, client, store, installed):
        body = {"task_id": 123, "options": {"concurrency": 4, "batch_size": 2, "headless": True}}
        answer = await client.post("/api/v1/warmup/start", json=body)
        assert answer.status_code == 202
        job_id = answer.json()["id"]
        assert json.loads((await store.get(job_id)).payload) == {
            "task_id": 123,
            "accounts": [],
            "options": {"headless": True},
        }
        status = (await client.get(f"/api/v1/jobs/{job_id}/status")).json()
        assert (status["id"], status["kind"], status["status"]) == (job_id, "warmup", "pending")
        assert status["limits"] == {"concurrency": 4, "batch_size": 2, "max_failures": None}

    async def test_with_the_input_itself_to_its_end(self, client, working, jobs, installed):
        body = {"input": {"accounts": ["a", "b"]}}
        job_id = (await client.post("/api/v1/warmup/start", json=body)).json()["id"]
        async with working():
            await jobs.wait(job_id, timeout=30)
        items = (await client.get(f"/api/v1/jobs/{job_id}/items")).json()["items"]
        assert [item["result"] for item in items] == ["a", "b"]

    @pytest.mark.parametrize(
        ("body", "field"),
        [
            ({"input": {"account": ["a"]}}, "account"),
            ({"options": {"concurrency": 0}}, "options.concurrency"),
            ({"options": {"speed": 3}}, "options.speed"),
            ({"task": 123}, "task"),
        ],
    )
    async def test_bad_input_is_refused(self, client, check, installed, body, field):
        answer = await client.post("/api/v1/warmup/start", json=body)
        assert [name for name, _ in check.refused(answer)] == [field]
        assert (await client.get("/api/v1/jobs")).json()["jobs"] == []

    async def test_a_start_is_repeated_with_its_key(self, client, installed):
        headers = {"Idempotency-Key": "k"}
        answers = [
            await client.post("/api/v1/warmup/start", json={"task_id": 1}, headers=headers)
            for _ in range(2)
        ]
        assert answers[0].json() == answers[1].json()
        other = await client.post("/api/v1/warmup/start", json={"task_id": 2}, headers=headers)
        assert other.status_code == 409

    @pytest.mark.parametrize("path", ["media-uniq", "proxy-diagnostics"])
    async def test_kinds_that_look_nothing_up_say_so(self, client, check, path):
        answer = await client.post(f"/api/v1/{path}/start", json={"task_id": 5})
        assert check.problem(answer, 501)["type"] == NOT_INSTALLED

    async def test_all_starts_take_the_same_options(self, client):
        body = {"proxies": ["http://127.0.0.1:1"], "options": {"concurrency": 4}, "batch_size": 2}
        answer = await client.post("/api/v1/proxy-diagnostics/start", json=body)
        status = (await client.get(answer.json()["status_url"])).json()
        assert status["limits"] == {"concurrency": 4, "batch_size": 2, "max_failures": None}


class TestJobs:
    """The four addresses of job management."""

    async def test_from_start_to_deletion(self, client, check, installed):
        started = await client.post("/api/v1/warmup/start", json={"task_id": 1})
        path = f"/api/v1/jobs/{started.json()['id']}"
        [listed] = (await client.get("/api/v1/jobs")).json()["jobs"]
        assert listed["id"] == started.json()["id"]
        assert (await client.get(f"{path}/status")).json()["status"] == "pending"
        stopped = await client.post(f"{path}/stop")
        assert stopped.json()["state"] == "cancelled"
        assert (await client.delete(path)).status_code == 204
        check.problem(await client.get(f"{path}/status"), 404)


class TestAccounts:
    async def test_the_example_is_refused_until_it_is_installed(self, client, check):
        body = {"count": 1, "priority": "high"}
        answer = await client.post("/api/accounts/generate", json=body)
        assert check.problem(answer, 501)["type"] == NOT_INSTALLED

    async def test_the_example(self, client, store, installed):
        body = {"count": 1, "priority": "high"}
        answer = await client.post("/api/accounts/generate", json=body)
        assert answer.status_code == 202
        job = await store.get(answer.json()["id"])
        assert (job.kind, job.priority) == ("accounts.generate", 10)
        assert json.loads(job.payload) == {"count": 1, "platform": "pds"}

    @pytest.mark.parametrize(
        ("body", "field"),
        [({"count": 0}, "count"), ({"count": 1, "priority": "soon"}, "priority")],
    )
    async def test_bad_input_is_refused(self, client, check, installed, body, field):
        answer = await client.post("/api/accounts/generate", json=body)
        assert [name for name, _ in check.refused(answer)] == [field]


ISSUE = {
    "issueNumber": 7,
    "repoFullName": "owner/name",
    "apiKey": "c4n4ry-api-key",
    "options": {"createPR": False, "maxAttempts": 2, "priority": "urgent"},
}


class TestWorkflow:
    @pytest.mark.parametrize("name", [name for name, _, _ in WORKFLOWS])
    async def test_what_is_not_installed_says_so(self, client, check, name):
        answer = await client.post(f"/api/workflow/{name}", json=ISSUE)
        assert check.problem(answer, 501)["type"] == NOT_INSTALLED

    async def test_enqueue_and_status(self, client, store, installed):
        job_id = new_id()
        body = {**ISSUE, "jobId": job_id}
        answer = await client.post("/api/workflow/autoResolveIssue", json=body)
        assert answer.status_code == 202
        told = answer.json()
        assert (told["jobId"], told["status"], told["progress"]) == (job_id, "pending", 0)
        assert (told["result"], told["error"]) == (None, None)
        assert told["createdAt"] == told["updatedAt"]
        assert (await client.get(f"/api/jobs/{job_id}")).json() == told
        assert (await store.get(job_id)).priority == 100
        again = await client.post("/api/workflow/autoResolveIssue", json=body)
        assert again.json()["jobId"] == job_id
        assert "c4n4ry" not in answer.text + (await client.get(f"/api/v1/jobs/{job_id}")).text

    async def test_it_runs_to_its_result(self, client, jobs, working, installed):
        answer = await client.post("/api/workflow/autoResolveIssue", json=ISSUE)
        job_id = answer.json()["jobId"]
        async with working():
            await jobs.wait(job_id, timeout=30)
        told = (await client.get(f"/api/jobs/{job_id}")).json()
        assert (told["status"], told["progress"]) == ("completed", 100)
        assert told["result"] == {
            "success": True,
            "issueNumber": 7,
            "repoFullName": "owner/name",
        }
        assert told["updatedAt"] > told["createdAt"]

    async def test_a_failure_is_told_as_text(self, client, store, jobs):
        job_id = await jobs.enqueue("fail", {"reason": "x"}, {})
        hand = await Hand.enlist(store, kinds=["fail"])
        await hand.hand_in(await hand.claim_one(), Move.FAIL)
        told = (await client.get(f"/api/jobs/{job_id}")).json()
        assert told["status"] == "failed"
        assert isinstance(told["error"], str)

    async def test_cancel(self, client, check, jobs):
        job_id = await jobs.enqueue("add", {"a": 1, "b": 2}, {})
        answer = await client.post(f"/api/jobs/{job_id}/cancel")
        assert answer.json() == {"jobId": job_id, "status": JobState.CANCELLED}
        check.problem(await client.post(f"/api/jobs/{new_id()}/cancel"), 404)

    async def test_bad_input_is_refused(self, client, check, installed):
        body = {**ISSUE, "issueNumber": "seven"}
        answer = await client.post("/api/workflow/autoResolveIssue", json=body)
        assert [name for name, _ in check.refused(answer)] == ["issue_number"]
