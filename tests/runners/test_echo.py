from __future__ import annotations

import socket
import threading

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from haulier.runners import echo


@pytest.fixture
async def client():
    transport = httpx.ASGITransport(app=echo.app, client=("192.0.2.7", 4711))
    async with httpx.AsyncClient(transport=transport, base_url="http://echo.test") as client:
        yield client


@pytest.fixture(scope="module")
def url():
    server = uvicorn.Server(
        uvicorn.Config(echo.app, log_config=None, proxy_headers=False, ws="none", lifespan="on")
    )
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        # Connections wait in the backlog until the server takes them.
        listener.listen()
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


async def test_says_who_asked_and_how(client):
    answer = await client.get("/any/where?x=1", headers={"X-Test": "yes"})
    seen = answer.json()
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    assert (seen["remote"], seen["method"], seen["path"]) == ("192.0.2.7", "GET", "/any/where")
    assert seen["headers"]["x-test"] == "yes"
    assert seen["headers"]["host"] == "echo.test"


async def test_joins_repeated_headers_in_their_order(client):
    answer = await client.get("/", headers=[("Via", "1.1 first"), ("via", "1.1 second")])
    assert answer.json()["headers"]["via"] == "1.1 first, 1.1 second"


@pytest.mark.parametrize("name", ["Authorization", "Proxy-Authorization", "Cookie"])
async def test_names_credentials_without_their_value(client, name):
    answer = await client.get("/", headers={name: "canary-value"})
    assert answer.json()["headers"][name.lower()] == "******"
    assert "canary-value" not in answer.text


async def test_answers_head_without_a_body_but_with_its_length(client):
    answer = await client.head("/")
    assert answer.status_code == 200
    assert answer.content == b""
    assert int(answer.headers["content-length"]) > 0


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
async def test_answers_no_other_method(client, method):
    answer = await client.request(method, "/", content=b"body" if method == "POST" else None)
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET, HEAD"


async def test_can_be_mounted_in_another_application():
    app = Starlette(routes=[Mount("/echo", app=echo.app)])
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app), base_url="http://api.test"
    ) as client:
        assert (await client.get("/echo/")).json()["method"] == "GET"


async def test_does_not_believe_what_a_proxy_claims_about_its_client(url):
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(url, headers={"X-Forwarded-For": "203.0.113.9"})
    assert answer.json()["remote"] == "127.0.0.1"
    assert answer.json()["headers"]["x-forwarded-for"] == "203.0.113.9"


async def test_keeps_a_connection_open_for_more_requests(url):
    async with httpx.AsyncClient(trust_env=False) as client:
        paths = [(await client.get(f"{url}/{n}")).json()["path"] for n in range(3)]
    assert paths == ["/0", "/1", "/2"]


async def test_tells_null_when_the_server_knows_no_caller():
    sent = []
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "client": None}

    async def send(message):
        sent.append(message)

    await echo.app(scope, None, send)
    assert b'"remote":null' in sent[1]["body"]
