"""Browsers: signed in by a link, told from other sites' pages, and signed out."""

from __future__ import annotations

from http.cookies import SimpleCookie

import pytest
from authentication import ROOT, door_of

from haulier.domain.access import Access
from haulier.services.tokens import What, mint
from support import wait_until

SESSION = "/api/v1/session"
CSRF = {"haulier-request": "1"}
LOCAL = "http://localhost:8470"


@pytest.fixture
async def door(serving, records):
    async with door_of(serving, records) as door:
        yield door


async def sign_in(door, client, access=Access.ADMIN):
    link = await door.credentials.create_link(ROOT, "ann", access)
    return await client.post(SESSION, json={"link": link.text})


def cookie_of(answer):
    [(name, morsel)] = SimpleCookie(answer.headers["set-cookie"]).items()
    return name, morsel


class TestSigningIn:
    async def test_at_a_public_name_the_cookie_is_bound_to_host_and_tls(self, door):
        async with door.client() as client:
            answer = await sign_in(door, client)
        assert answer.status_code == 201
        name, morsel = cookie_of(answer)
        assert name == "__Host-haulier"
        assert (morsel["secure"], morsel["httponly"], morsel["path"]) == (True, True, "/")
        assert morsel["samesite"].lower() == "strict"
        assert morsel["domain"] == ""
        assert answer.headers["cache-control"] == "no-store"
        assert morsel.value.split("_")[2] not in answer.text

    async def test_on_a_loopback_name_it_has_another_name_that_needs_no_tls(self, door):
        async with door.client(base_url=LOCAL) as client:
            name, morsel = cookie_of(await sign_in(door, client))
            assert (name, morsel["secure"]) == ("haulier-session-8470", "")
            assert morsel["httponly"] is True
            me = (await client.get(SESSION)).json()
        assert (me["name"], me["role"]) == ("ann", "admin")
        assert me["credential"].startswith("session:")

    async def test_a_link_is_good_once(self, door, check):
        link = await door.credentials.create_link(ROOT, "ann", Access.VIEWER)
        async with door.client(base_url=LOCAL) as client, door.client(base_url=LOCAL) as thief:
            assert (await client.post(SESSION, json={"link": link.text})).status_code == 201
            check.problem(await thief.post(SESSION, json={"link": link.text}), 401)
            check.problem(await thief.get("/api/v1/jobs"), 401)

    async def test_what_is_no_link_is_refused_and_guessing_slowed_down(self, door, check):
        token = await door.token()
        async with door.client() as client:
            for text in (token, "x", mint(What.LINK).text, mint(What.SESSION).text):
                check.problem(await client.post(SESSION, json={"link": text}), 401)
            for body in ({}, {"link": ""}, {"link": 5}, {"link": "x" * 500}, {"link": "x", "y": 1}):
                check.refused(await client.post(SESSION, json=body))
            codes = [
                (await client.post(SESSION, json={"link": "x"})).status_code for _ in range(20)
            ]
            assert codes[-1] == 429
            # Whoever has a good one gets in all the same.
            assert (await sign_in(door, client)).status_code == 201

    async def test_the_page_holds_no_secret_and_runs_its_own_script_alone(self, door):
        async with door.client() as client:
            page = await client.get("/login")
        assert page.status_code == 200
        assert page.headers["content-type"].startswith("text/html")
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "'unsafe-inline'" not in policy
        assert "script-src 'sha256-" in policy
        assert page.headers["referrer-policy"] == "no-referrer"
        assert "location.hash" in page.text

    async def test_a_page_of_another_site_cannot_sign_anybody_in(self, door, check):
        link = await door.credentials.create_link(ROOT, "mallory", Access.VIEWER)
        for headers in ({"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}):
            async with door.client(base_url=LOCAL) as client:
                answer = await client.post(SESSION, json={"link": link.text}, headers=headers)
                check.problem(answer, 403)


class TestForgery:
    """What a page of another site can have a signed-in browser do: nothing."""

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"haulier-request": ""},
            CSRF | {"origin": "http://evil.example"},
            CSRF | {"origin": "null"},
            CSRF | {"origin": "http://localhost:9999"},
            CSRF | {"origin": "http://localhost:8470.evil.example"},
            CSRF | {"sec-fetch-site": "cross-site"},
            CSRF | {"sec-fetch-site": "same-site"},
        ],
    )
    async def test_nothing_is_changed(self, door, check, jobs, headers):
        job_id = await jobs.enqueue("add", {"a": 1, "b": 2}, {})
        async with door.client(base_url=LOCAL) as client:
            await sign_in(door, client)
            for method, path in (
                ("POST", f"/api/v1/jobs/{job_id}/stop"),
                ("DELETE", f"/api/v1/jobs/{job_id}"),
                ("DELETE", SESSION),
                ("POST", "/api/v1/tokens"),
            ):
                check.problem(await client.request(method, path, headers=headers), 403)
        assert (await jobs.store.get(job_id)).state == "pending"
        assert await door.credentials.tokens() == []

    async def test_our_own_page_may_change_things(self, door, jobs):
        job_id = await jobs.enqueue("add", {"a": 1, "b": 2}, {})
        headers = CSRF | {"origin": LOCAL, "sec-fetch-site": "same-origin"}
        async with door.client(base_url=LOCAL) as client:
            await sign_in(door, client)
            answer = await client.post(f"/api/v1/jobs/{job_id}/stop", headers=headers)
            assert answer.status_code == 202

    async def test_not_even_reading_is_done_for_another_sites_page(self, door, check):
        async with door.client(base_url=LOCAL) as client:
            await sign_in(door, client)
            for headers in ({"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}):
                check.problem(await client.get("/api/v1/jobs", headers=headers), 403)

    async def test_a_cookie_that_somebody_put_beside_ours_is_not_taken(self, door, check):
        async with door.client(base_url=LOCAL) as client:
            _, morsel = cookie_of(await sign_in(door, client))
        other = mint(What.SESSION).text
        name = "haulier-session-8470"
        for cookie in (
            f"{name}={other}; {name}={morsel.value}",
            f"{name}={morsel.value}; {name}={other}",
            f"{name}={other}",
            f"{name}=",
            f"__Host-haulier={morsel.value}",
        ):
            async with door.client(base_url=LOCAL) as client:
                check.problem(await client.get("/api/v1/jobs", headers={"cookie": cookie}), 401)

    async def test_a_tokens_text_is_no_cookie_and_a_cookies_no_token(self, door):
        async with door.client(base_url=LOCAL) as client:
            _, morsel = cookie_of(await sign_in(door, client))
        async with door.client(morsel.value, base_url=LOCAL) as client:
            assert (await client.get("/api/v1/jobs")).status_code == 401
        headers = {"cookie": f"haulier-session-8470={await door.token()}"}
        async with door.client(base_url=LOCAL) as client:
            assert (await client.get("/api/v1/jobs", headers=headers)).status_code == 401


class TestSigningOut:
    async def test_the_session_is_over_and_the_cookie_gone(self, door):
        async with door.client(base_url=LOCAL) as client:
            _, morsel = cookie_of(await sign_in(door, client))
            answer = await client.delete(SESSION, headers=CSRF)
            assert answer.status_code == 204
            assert cookie_of(answer)[1]["max-age"] == "0"
            kept = {"cookie": f"haulier-session-8470={morsel.value}"}

            async def over():
                return (await client.get("/api/v1/jobs", headers=kept)).status_code == 401

            await wait_until(over, 5.0)
        assert (await door.credentials.sessions())[0].revoked_by == "ann"

    async def test_an_admin_sees_sessions_and_ends_them(self, door):
        async with door.client(base_url=LOCAL) as browser, door.client(await door.token()) as admin:
            await sign_in(door, browser, Access.VIEWER)
            [found] = (await admin.get("/api/v1/sessions")).json()["sessions"]
            assert (found["name"], found["role"], found["state"]) == ("ann", "viewer", "active")
            assert found["source"] == "192.0.2.7"
            assert (await admin.delete(f"/api/v1/tokens/{found['id']}")).status_code == 204

            async def over():
                return (await browser.get("/api/v1/jobs")).status_code == 401

            await wait_until(over, 5.0)

    async def test_a_session_lasts_as_long_as_its_link_says(self, door):
        link = await door.credentials.create_link(
            ROOT, "ann", Access.VIEWER, session_lasting=1_500_000
        )
        async with door.client(base_url=LOCAL) as client:
            await client.post(SESSION, json={"link": link.text})
            cookies = {"cookie": "; ".join(f"{k}={v}" for k, v in client.cookies.items())}
            client.cookies.clear()
            assert (await client.get("/api/v1/jobs", headers=cookies)).status_code == 200

            async def over():
                return (await client.get("/api/v1/jobs", headers=cookies)).status_code == 401

            await wait_until(over, 5.0)


async def test_web_sockets_are_opened_by_our_own_pages_and_by_tokens_alone(door):
    token = await door.token(Access.VIEWER)
    async with door.client(base_url=LOCAL) as client:
        _, morsel = cookie_of(await sign_in(door, client))
    cookie = {"cookie": f"haulier-session-8470={morsel.value}"}
    bearer = {"authorization": f"Bearer {token}"}
    refused = [
        {},
        cookie,
        cookie | {"origin": "http://evil.example"},
        cookie | {"origin": "null"},
        cookie | {"origin": "http://localhost"},
        cookie | {"origin": "http://localhost:84700"},
        cookie | {"origin": "http://localhost:8470/"},
        bearer | {"origin": "http://evil.example"},
        bearer | {"host": "evil.example"},
        {"authorization": "Bearer hunter2"},
    ]
    seen = []

    async def inner(scope, receive, send):
        seen.append(scope["haulier.identity"].name)
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close"})

    guard = door.api.build_middleware_stack()
    while not hasattr(guard, "_authority"):
        guard = guard.app
    guard._app = inner
    codes = [await shake_hands(guard, headers) for headers in refused]
    assert codes == [401, 403, 403, 403, 403, 403, 403, 403, 421, 401]
    assert seen == []
    for headers in (cookie | {"origin": LOCAL}, bearer, bearer | {"origin": LOCAL}):
        assert await shake_hands(guard, headers) == 101
    assert seen == ["ann", "the viewer", "the viewer"]


async def shake_hands(guard, headers):
    """The status of an upgrade; 101 where it was accepted."""
    named = {"host": "localhost:8470"} | headers
    scope = {
        "type": "websocket",
        "path": "/api/v1/ws",
        "headers": [(name.encode(), value.encode()) for name, value in named.items()],
        "client": ("127.0.0.1", 4),
        "server": ("127.0.0.1", 8470),
        "extensions": {"websocket.http.response": {}},
    }
    told = []

    async def receive():
        return {"type": "websocket.connect"}

    async def send(message):
        told.append(message)

    await guard(scope, receive, send)
    if told[0]["type"] == "websocket.accept":
        return 101
    return told[0]["status"]
