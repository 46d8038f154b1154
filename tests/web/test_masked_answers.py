"""No answer repeats a secret, also one that nobody has marked as such."""

from __future__ import annotations

import json

from haulier.domain.retry import RetryPolicy
from haulier.services.registry import define_task

CANARY = "k4nary-7f3a-s3cr3t"


async def sign_in(user: str, password: str, proxy: str) -> dict[str, str]:
    if user == "bad":
        raise ConnectionError(f"http://ann:{password}@host/, Authorization: Basic {password}")
    return {"session_token": password, "proxy": proxy, "user": user}


async def test_fields_and_urls_are_masked_wherever_a_job_is_shown(client, jobs, registry, working):
    registry.add(define_task(sign_in, retry=RetryPolicy.never()))
    seen = []
    async with working():
        for user in ("good", "bad"):
            payload = {"user": user, "password": CANARY, "proxy": f"socks5://u:{CANARY}@h:1"}
            answer = await client.post("/api/v1/jobs", json={"kind": "sign_in", "payload": payload})
            job_id = answer.json()["id"]
            await jobs.wait(job_id)
            for path in ("", "/status", "/errors", "/lines", "/steps"):
                answer = await client.get(f"/api/v1/jobs/{job_id}{path}")
                assert answer.status_code == 200
                seen.append(answer.text)
    seen.append((await client.get("/api/v1/jobs")).text)
    assert CANARY not in "".join(seen)
    shown = json.loads(seen[0])
    assert shown["payload"] == {
        "user": "good",
        "password": "******",
        "proxy": "socks5://******@h:1",
    }
    assert shown["result"] == {
        "session_token": "******",
        "proxy": "socks5://******@h:1",
        "user": "good",
    }
    assert json.loads(seen[5])["error"]["type"] == "ConnectionError"
    # The library gives what is there.
    stored = await jobs.store.get(shown["id"])
    assert json.loads(stored.payload)["password"] == CANARY
    assert stored.value["session_token"] == CANARY
