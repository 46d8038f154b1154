"""Who is let in: every route against every kind of caller, and how those are told apart."""

from __future__ import annotations

import asyncio
import json

import pytest
from authentication import CLOSED, HOST, ROOT, ask, door_of, needed

from haulier.domain.access import Access
from haulier.exceptions import StoreUnavailableError
from haulier.ports import JobFilter
from haulier.services.tokens import What, mint, presented
from haulier.web.app import create_app
from support import wait_until


@pytest.fixture
async def door(serving, records):
    async with door_of(serving, records) as door:
        yield door


JOBS = "/api/v1/jobs"
ADD = {"kind": "add", "payload": {"a": 1, "b": 2}}
LINES = {"content": json.dumps(ADD) + "\n"}
OUTSIDE = {
    JOBS: {"json": ADD},
    f"{JOBS}/many": {"json": {"jobs": [ADD]}},
    f"{JOBS}/stream": LINES,
    "/api/v1/batches": {"json": {"kind": "add"}},
}
"""What asks for a job of the kind `add`, by the routes that look after scopes themselves."""


class TestMatrix:
    """Each route there is against each kind of caller; what went wrong is told by route."""

    async def test_without_a_good_token_no_route_answers(self, door):
        revoked, token = await door.credentials.create_token(ROOT, "x", Access.ADMIN, None)
        await door.credentials.revoke(ROOT, revoked.id)
        _, expired = await door.credentials.create_token(ROOT, "x", Access.ADMIN, 1)
        link = await door.credentials.create_link(ROOT, "x", Access.ADMIN)
        shown = [None, "", token.text, expired.text, mint(What.TOKEN).text, link.text, "hunter2"]
        wrong = []
        for number, text in enumerate(shown):
            for place, (method, route) in enumerate(CLOSED):
                # From another address each: guesses are slowed down.
                source = f"2001:db8:{number}:{place:x}::1"
                async with door.client(text, source=source) as client:
                    answer = await ask(client, method, route)
                # Those that name a token count for it too.
                expected = {401, 429} if text and "_" in text else {401}
                told = answer.headers.get("www-authenticate", "Bearer")
                if answer.status_code not in expected or not told.startswith("Bearer"):
                    wrong.append((method, route.path, text, answer.status_code))
        assert len(CLOSED) > 40
        assert wrong == []

    async def test_a_role_below_is_refused_and_the_one_needed_is_not(self, door):
        wrong = []
        for access in Access:
            async with door.client(await door.token(access)) as client:
                for method, route in CLOSED:
                    if route.path.endswith("events/stream"):
                        continue
                    answer = await ask(client, method, route)
                    refused = answer.status_code == 403 and f"{needed(route)}" in answer.text
                    if answer.status_code == 401 or refused == access.allows(needed(route)):
                        wrong.append((str(access), method, route.path, answer.status_code))
        assert wrong == []

    async def test_what_is_outside_of_a_tokens_scope_is_not_there(self, door, jobs):
        """A job of another kind is a 404, as if it did not exist; what is about all is refused.

        Streams have tests of their own: here they would not end.
        """
        foreign = await jobs.enqueue("add", {"a": 1, "b": 2}, {})
        wrong = []
        for scope in ({"kinds": frozenset({"linger"})}, {"queues": frozenset({"elsewhere"})}):
            async with door.client(await door.token(Access.ADMIN, **scope)) as client:
                for method, route in CLOSED:
                    if route.path in ("/api/v1/session", "/api/v1/events/stream"):
                        continue
                    more = OUTSIDE.get(route.path, {}) if method == "POST" else {}
                    answer = await ask(client, method, route, ids={"job_id": foreign}, **more)
                    expected = 404 if {"job_id", "batch_id"} & set(route.param_convertors) else 403
                    if route.path == f"{JOBS}/stream":
                        # It tells the line at fault, as it does of all other faults.
                        expected = 422
                    if answer.status_code != expected:
                        wrong.append((method, route.path, answer.status_code))
        assert wrong == []
        assert (await jobs.store.get(foreign)).state == "pending"
        assert sum((await jobs.store.counts()).values()) == 1

    @pytest.mark.parametrize(
        "path", ["/", "/nothing", "/api/v1/openapi.json", "/docs", "/metrics/", "/api/v1/jobs/"]
    )
    async def test_what_is_no_route_tells_strangers_nothing(self, door, check, path):
        async with door.client() as client:
            for method in ("GET", "HEAD", "POST", "OPTIONS", "TRACE", "PUT"):
                answer = await client.request(method, path)
                assert answer.status_code == 401

    async def test_the_health_is_told_to_strangers_without_a_look_at_the_store(self, door, check):
        async with door.client() as client:
            answer = await client.get("/api/v1/health")
            assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
        async with door.client(await door.token(Access.VIEWER)) as client:
            assert (await client.get("/api/v1/health")).json()["version"] == "9.9"
        async with door.client("hunter2") as client:
            check.problem(await client.get("/api/v1/health"), 401)

    async def test_the_echo_is_open_where_proxies_need_it_and_nowhere_else(
        self, door, serving, records
    ):
        async with door.client(base_url="http://127.0.0.1") as client:
            assert (await client.get("/echo")).status_code == 200
        async with door.client() as client:
            assert (await client.get("/echo")).status_code == 401
        async with (
            door_of(serving, records, check_url="http://192.0.2.1/echo") as other,
            other.client(base_url="http://127.0.0.1") as client,
        ):
            assert (await client.get("/echo")).status_code == 401


class TestScope:
    async def test_jobs_within_are_seen_and_changed_as_ever(self, door, jobs):
        token = await door.token(Access.OPERATOR, kinds=frozenset({"add", "media_uniq"}))
        async with door.client(token) as client:
            body = {"kind": "add", "payload": {"a": 1, "b": 2}}
            made = await client.post(JOBS, json=body)
            assert made.status_code == 201
            url = f"{JOBS}/{made.json()['id']}"
            assert (await client.get(url)).status_code == 200
            assert (await client.get(f"{url}/status")).status_code == 200
            assert len((await client.get(JOBS, params={"kind": "add"})).json()["jobs"]) == 1
            assert (await client.post(f"{url}/stop")).status_code == 202
            assert (await client.post("/api/v1/media-uniq/start", json={})).status_code == 422
            assert (await client.get("/api/v1/session")).json()["kinds"] == ["add", "media_uniq"]

    async def test_what_others_made_is_not_told_by_waiting_for_it(self, door, check, jobs):
        foreign = await jobs.enqueue("linger", {}, {})
        own = await jobs.enqueue("add", {"a": 1, "b": 2}, {"after": [foreign]})
        token = await door.token(Access.OPERATOR, kinds=frozenset({"add"}))
        body = {"kind": "add", "payload": {"a": 1, "b": 2}}
        async with door.client(token) as client:
            for after in ([foreign], [{"id": foreign}]):
                check.problem(await client.post(JOBS, json=body | {"after": after}), 422)
            assert (await client.post(JOBS, json=body | {"after": [own]})).status_code == 201
            assert (await client.get(f"{JOBS}/{own}/parents")).json() == {"parents": []}

    async def test_nothing_is_made_or_listed_outside(self, door, check, jobs):
        token = await door.token(Access.OPERATOR, kinds=frozenset({"add"}), queues=frozenset({"q"}))
        body = {"kind": "add", "payload": {"a": 1, "b": 2}}
        async with door.client(token) as client:
            check.problem(await client.post(JOBS, json=body), 403)
            check.problem(await client.post(JOBS, json=body | {"queue": "other"}), 403)
            check.problem(await client.post(JOBS, json={"kind": "linger", "queue": "q"}), 403)
            for params in ({}, {"kind": "add"}, {"queue": "q"}, {"kind": "fail", "queue": "q"}):
                check.problem(await client.get(JOBS, params=params), 403)
            assert (await client.post(JOBS, json=body | {"queue": "q"})).status_code == 201
        assert len((await jobs.store.find(JobFilter(), limit=10)).jobs) == 1


class TestTokens:
    async def test_a_new_one_is_good_at_once_and_a_revoked_one_is_out_soon(self, door, check):
        async with door.client(await door.token()) as client:
            # Others are in memory now.
            assert (await client.get("/api/v1/queues")).status_code == 200
        token, minted = await door.credentials.create_token(ROOT, "x", Access.VIEWER, None)
        async with door.client(minted.text) as client:
            assert (await client.get("/api/v1/queues")).status_code == 200
            await door.credentials.revoke(ROOT, token.id)

            async def refused():
                return (await client.get("/api/v1/queues")).status_code == 401

            await wait_until(refused, 5.0)

    async def test_one_expires_while_it_is_in_use(self, door):
        _, minted = await door.credentials.create_token(ROOT, "x", Access.VIEWER, 1_500_000)
        async with door.client(minted.text) as client:
            assert (await client.get("/api/v1/queues")).status_code == 200

            async def refused():
                return (await client.get("/api/v1/queues")).status_code == 401

            await wait_until(refused, 5.0)

    async def test_streams_are_told_when_an_access_has_ended(self, door):
        token, minted = await door.credentials.create_token(ROOT, "x", Access.VIEWER, None)
        authority = door.api.state.authority
        identity, _ = await authority.recognise(What.TOKEN, minted.text, "192.0.2.7")
        assert identity == token.identity()
        assert await authority.still_valid(identity)
        await door.credentials.revoke(ROOT, token.id)

        async def over():
            return not await authority.still_valid(identity)

        await wait_until(over, 4.0)

    async def test_a_request_costs_no_question_to_the_records(self, door, monkeypatch):
        token = await door.token(Access.VIEWER)
        asked = []
        for name in ("version", "live"):
            original = getattr(door.credentials, name)

            async def counted(original=original, name=name):
                asked.append(name)
                return await original()

            monkeypatch.setattr(door.api.state.credentials, name, counted)
        async with door.client(token) as client:
            for _ in range(50):
                assert (await client.get("/api/v1/session")).status_code == 200
        assert asked.count("live") == 1

    async def test_when_the_records_fail_nobody_is_let_in_for_long(self, door, check, monkeypatch):
        token = await door.token(Access.VIEWER)
        authority = door.api.state.authority
        clock = [authority._clock()]
        monkeypatch.setattr(authority, "_clock", lambda: clock[0])

        async def fail():
            raise StoreUnavailableError("the records are away: /secret/path")

        async with door.client(token) as client:
            assert (await client.get("/api/v1/session")).status_code == 200
            monkeypatch.setattr(door.api.state.credentials, "version", fail)
            clock[0] += 2.0
            assert (await client.get("/api/v1/session")).status_code == 200
            clock[0] += 2.0
            answer = await client.get("/api/v1/session")
            check.problem(answer, 503)
            assert "/secret/path" not in answer.text
            assert answer.headers["retry-after"]

    async def test_the_last_use_is_written_down_seldom(self, door):
        _, minted = await door.credentials.create_token(ROOT, "x", Access.VIEWER, None)
        async with door.client(minted.text) as client:
            await client.get("/api/v1/session")

            async def used():
                return [each for each in await door.credentials.tokens() if each.last_used_at]

            [first] = await wait_until(used)
            for _ in range(5):
                await client.get("/api/v1/session")
        await door.told()
        assert await door.credentials.tokens() == [first]

    async def test_it_is_made_listed_and_revoked_over_the_api(self, door, check):
        async with door.client(await door.token()) as client:
            body = {"role": "viewer", "name": "ci", "expires": "2h", "kinds": ["add"]}
            made = await client.post("/api/v1/tokens", json=body)
            assert made.status_code == 201
            assert made.headers["cache-control"] == "no-store"
            text = made.json()["token"]
            assert presented(What.TOKEN, text)
            listed = (await client.get("/api/v1/tokens")).json()["tokens"]
            assert listed[0]["id"] == made.json()["id"]
            assert text.split("_")[2] not in str(listed)
            gone = await client.delete(f"/api/v1/tokens/{made.json()['id']}")
            assert gone.status_code == 204
            check.problem(await client.delete("/api/v1/tokens/nobody"), 404)
            for bad in (
                {"role": "king"}, {"expires": "3y"}, {"name": ""}, {"name": "a\nb"}, {"kinds": []},
                {"kinds": [""]}, {"digest": "x"},
            ):  # fmt: skip
                check.refused(await client.post("/api/v1/tokens", json=body | bad))
            assert len((await client.get("/api/v1/tokens")).json()["tokens"]) == 2

    async def test_odd_ways_to_show_a_token_are_refused(self, door):
        token = await door.token()
        good = ("authorization", f"Bearer {token}")
        for headers in (
            [("authorization", token)],
            [("authorization", f"Basic {token}")],
            [("authorization", f"Bearer {token}x")],
            [("authorization", f"Bearer {token[:-1]}")],
            [("authorization", "Bearer")],
            [("authorization", b"Bearer \xff\xfe")],
            [good, good],
        ):
            async with door.client() as client:
                assert (await client.get("/api/v1/session", headers=headers)).status_code == 401
        async with door.client() as client:
            for where in ("token", "access_token", "authorization"):
                answer = await client.get("/api/v1/session", params={where: token})
                assert answer.status_code == 401
            lower = {"authorization": f"bearer {token}"}
            assert (await client.get("/api/v1/session", headers=lower)).status_code == 200


class TestThrottle:
    async def test_guessing_is_slowed_down_and_a_good_token_is_not_kept_out(self, door, check):
        token = await door.token(Access.VIEWER)
        async with door.client(mint(What.TOKEN).text) as guesser, door.client(token) as good:
            answers = [(await guesser.get("/api/v1/jobs")).status_code for _ in range(30)]
            assert answers[:10] == [401] * 10
            assert set(answers[12:]) == {429}
            refused = await guesser.get("/api/v1/jobs")
            check.problem(refused, 429)
            assert int(refused.headers["retry-after"]) >= 1
            assert (await good.get("/api/v1/jobs")).status_code == 200
        async with door.client("hunter2", source="192.0.2.8") as other:
            assert (await other.get("/api/v1/jobs")).status_code == 401

    async def test_guesses_at_one_token_from_many_addresses_count_together(self, door):
        token = await door.token(Access.VIEWER)
        _, public, _, _ = token.split("_")
        forged = forge(public)
        codes = []
        for number in range(30):
            async with door.client(forged, source=f"198.51.100.{number}") as client:
                codes.append((await client.get("/api/v1/jobs")).status_code)
        assert codes[0] == 401
        assert codes[-1] == 429
        async with door.client(token) as good:
            assert (await good.get("/api/v1/jobs")).status_code == 200

    async def test_ten_thousand_guesses_do_not_reach_the_records(self, door, monkeypatch):
        await door.token()
        asked = 0
        original = door.api.state.credentials.version

        async def counted():
            nonlocal asked
            asked += 1
            return await original()

        monkeypatch.setattr(door.api.state.credentials, "version", counted)
        authority = door.api.state.authority
        began = asyncio.get_running_loop().time()
        for _ in range(10_000):
            identity, _ = await authority.recognise(
                What.TOKEN, mint(What.TOKEN).text, "2001:db8::1"
            )
            assert identity is None
        seconds = asyncio.get_running_loop().time() - began
        assert asked < 30 + 2 * seconds


def forge(public):
    """A token with the id of a real one, in the right form, and another secret."""
    from haulier.services import tokens

    body = f"hlr_{public}_{'x' * 32}"
    return f"{body}_{tokens._checksum(body)}"


class TestHosts:
    @pytest.mark.parametrize(
        ("host", "status"),
        [
            ("jobs.example", 200),
            ("JOBS.example:8470", 200),
            ("localhost", 200),
            ("127.0.0.1:8470", 200),
            ("evil.example", 421),
            ("jobs.example.evil.example", 421),
            ("xjobs.example", 421),
            ("jobs.example@evil.example", 421),
            ("192.0.2.99", 421),
            ("", 421),
        ],
    )
    async def test_it_answers_by_its_own_names(self, door, host, status):
        async with door.client(await door.token()) as client:
            answer = await client.get("/api/v1/session", headers={"host": host})
        assert answer.status_code == status

    async def test_it_answers_by_the_address_that_it_was_reached_at(self, door):
        token = await door.token()
        async with door.client(token, base_url="http://192.0.2.99") as client:
            assert (await client.get("/api/v1/session")).status_code == 200

    async def test_without_tokens_only_a_loopback_address_and_name_will_do(self, serving, records):
        async with door_of(serving, records, no_token=True) as door:
            for base, status in (
                ("http://127.0.0.1", 200),
                ("http://localhost:8470", 200),
                (HOST, 401),
                ("http://192.0.2.99", 401),
            ):
                async with door.client(base_url=base) as client:
                    assert (await client.get("/api/v1/session")).status_code == status
            async with door.client(base_url="http://192.0.2.99") as client:
                forged = await client.get("/api/v1/session", headers={"host": "localhost"})
                assert forged.status_code == 401
            async with door.client("hunter2", base_url="http://127.0.0.1") as client:
                assert (await client.get("/api/v1/session")).status_code == 401

    async def test_without_records_nobody_has_a_token(self, jobs, options, check):
        import dataclasses

        import httpx

        closed = create_app(jobs=jobs, options=dataclasses.replace(options, no_token=False))
        headers = {"authorization": f"Bearer {mint(What.TOKEN).text}"}
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app=closed), base_url="http://localhost", headers=headers
        ) as client:
            check.problem(await client.get("/api/v1/jobs"), 401)


async def test_the_document_says_how_to_show_a_token(door):
    async with door.client(await door.token(Access.VIEWER)) as client:
        document = (await client.get("/api/v1/openapi.json")).json()
    schemes = document["components"]["securitySchemes"]
    assert schemes["token"]["scheme"] == "bearer"
    assert schemes["session"]["in"] == "cookie"
    assert document["security"] == [{"token": []}, {"session": []}]
    paths = document["paths"]
    assert {} in paths["/api/v1/health"]["get"]["security"]
    assert paths["/api/v1/session"]["post"]["security"] == []
    assert "security" not in paths["/api/v1/jobs"]["post"]
