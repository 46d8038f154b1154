"""The guard before connections for users, and the HTTP client behind it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address

import httpx
import pytest
import trustme

from haulier.exceptions import ConfigurationError, ForbiddenAddressError
from haulier.services.calling import AnswerTooLargeError, guarded_client
from haulier.services.outbound import Guard, system_aliases, system_resolve

PUBLIC = "93.184.216.34"


@dataclass
class Names:
    """A resolver whose answers change from one question to the next; the last one stays."""

    answers: dict[str, list[list[str]]]
    asked: list[str] = field(default_factory=list)

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        known = self.answers.get(host)
        if known is None:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return known.pop(0) if len(known) > 1 else known[0]


@dataclass
class Site:
    """A server on loopback that keeps what it is asked."""

    port: int = 0
    requests: list[tuple[str, dict[str, str], str]] = field(default_factory=list)
    answer: Callable[[str], tuple[int, dict[str, str], bytes]] = lambda path: (200, {}, b"ok")
    pause: float = 0.0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                path = head[0].split(" ")[1]
                self.requests.append((head[0], headers, body.decode()))
                status, more, content = self.answer(path)
                more = {"Content-Length": str(len(content)), **more}
                lines = "".join(f"{name}: {value}\r\n" for name, value in more.items())
                writer.write(f"HTTP/1.1 {status} X\r\n{lines}\r\n".encode())
                for at in range(0, len(content), 1000) if self.pause else ():
                    writer.write(content[at : at + 1000])
                    await writer.drain()
                    await asyncio.sleep(self.pause)
                if not self.pause:
                    writer.write(content)
                    await writer.drain()


@asynccontextmanager
async def site(tls: ssl.SSLContext | None = None, **settings) -> AsyncIterator[Site]:
    found = Site(**settings)
    running: set[asyncio.Task[None]] = set()

    async def serve(reader, writer):
        running.add(asyncio.current_task())
        try:
            await found.serve(reader, writer)
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    found.port = server.sockets[0].getsockname()[1]
    try:
        yield found
    finally:
        server.close()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await server.wait_closed()
        await asyncio.sleep(0)


def redirect(status: int, to: str) -> Callable[[str], tuple[int, dict[str, str], bytes]]:
    return lambda path: (status, {"Location": to}, b"gone")


# ── The guard ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "answers",
    [
        ["127.0.0.1"],
        [PUBLIC, "10.0.0.1"],
        [PUBLIC, "::1"],
        ["::ffff:8.8.8.8"],
        ["fe80::1%2"],
        ["169.254.169.254"],
    ],
)
async def test_a_name_with_any_forbidden_address_is_refused(answers):
    guard = Guard(resolve=Names({"evil.example": [answers]}))
    with pytest.raises(ForbiddenAddressError) as refused:
        await guard.addresses("evil.example", 80)
    # Which of our addresses a name has is not told.
    assert not any(answer in str(refused.value) for answer in answers)


async def test_a_public_name_is_resolved_once_and_gives_its_addresses():
    names = Names({"a.example": [[PUBLIC, "2606:4700::1111"], ["127.0.0.1"]]})
    assert await Guard(resolve=names).addresses("A.example", 80) == [PUBLIC, "2606:4700::1111"]
    assert names.asked == ["a.example"]


async def test_an_allowed_network_or_name_is_exempt_and_nothing_else():
    names = Names({"a.example": [["10.1.1.1"]], "db.lan": [["192.168.0.1"]]})
    guard = Guard(["10.0.0.0/8", "db.lan:80"], resolve=names)
    assert await guard.addresses("a.example", 80) == ["10.1.1.1"]
    assert await guard.addresses("10.2.2.2", 81) == ["10.2.2.2"]
    assert await guard.addresses("db.lan", 80) == ["192.168.0.1"]
    for host, port in (("db.lan", 81), ("192.168.0.1", 80), ("012.0.0.1", 80)):
        with pytest.raises(ForbiddenAddressError):
            await guard.addresses(host, port)


async def test_ports_of_haulier_need_an_entry_with_the_port():
    guard = Guard(["127.0.0.0/8"], own_ports=[8470])
    guard.check_host("127.0.0.1", 8471)
    for host in ("127.0.0.1", "127.9.9.9"):
        with pytest.raises(ForbiddenAddressError, match="haulier itself"):
            guard.check_host(host, 8470)
    Guard(["127.0.0.1:8470"], own_ports=[8470]).check_host("127.0.0.1", 8470)


async def test_this_machines_own_public_addresses_are_not_for_users():
    mine = frozenset({ip_address(PUBLIC)})
    names = Names({"me.example": [[PUBLIC]]})
    guard = Guard(resolve=names, own_addresses=lambda: mine)
    with pytest.raises(ForbiddenAddressError, match="this machine"):
        await guard.addresses("me.example", 443)
    assert ip_address("127.0.0.1") in system_aliases()


async def test_a_name_that_cannot_be_resolved_is_no_matter_of_the_guard():
    with pytest.raises(OSError, match="no such name"):
        await Guard(resolve=Names({})).addresses("gone.example", 80)
    assert "127.0.0.1" in await system_resolve("127.0.0.1", 80)


def test_a_bad_entry_is_the_operators_mistake():
    with pytest.raises(ConfigurationError, match="allowed_hosts"):
        Guard(["http://a"])


# ── The client ───────────────────────────────────────────────────────────────────────────────


SPELLINGS = """
127.0.0.1 localhost 127.1 2130706433 0x7f.1 0177.0.0.1 [::ffff:127.0.0.1] [::1] 0 ①②⑦.⓪.⓪.①
evil.example localhost. user@127.0.0.1 0.0.0.0
"""


@pytest.mark.parametrize(
    "host",
    SPELLINGS.split(),
)
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_the_tripwire_is_never_hit(host, scheme):
    guard = Guard(resolve=Names({"evil.example": [["127.0.0.1"]]}))
    async with site() as tripwire, guarded_client(guard) as client:
        with pytest.raises((ForbiddenAddressError, httpx.InvalidURL)):
            await client.get(f"{scheme}://{host}:{tripwire.port}/")
    assert tripwire.requests == []


async def test_a_name_that_changes_after_the_check_is_connected_to_where_it_was_checked():
    """DNS rebinding: what is dialled is an address that was checked, not the name."""
    async with site() as good, site() as tripwire:
        names = Names({"re.example": [["127.0.0.2"], ["127.0.0.1"]]})
        guard = Guard([f"127.0.0.1:{good.port}"], resolve=names)
        async with guarded_client(guard) as client:
            with pytest.raises(ForbiddenAddressError):
                await client.get(f"http://re.example:{good.port}/")
            assert (await client.get(f"http://re.example:{good.port}/")).text == "ok"
            with pytest.raises(ForbiddenAddressError):
                await client.get(f"http://re.example:{tripwire.port}/")
        assert len(names.asked) == 3
    assert [headers["host"] for _, headers, _ in good.requests] == [f"re.example:{good.port}"]
    assert tripwire.requests == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "to",
    [
        "http://127.0.0.1:{port}/",
        "//127.1:{port}/",
        "http://2130706433:{port}/",
        "http://inner.example:{port}/",
        "http://user:pw@127.0.0.1:{port}/",
        "file:///etc/passwd",
        "gopher://127.0.0.1:{port}/",
    ],
)
async def test_each_redirect_is_checked_again(status, to):
    async with site() as tripwire, site() as outer:
        outer.answer = redirect(status, to.format(port=tripwire.port))
        names = Names({"inner.example": [["127.0.0.1"]]})
        guard = Guard([f"127.0.0.1:{outer.port}"], resolve=names)
        async with guarded_client(guard, follow_redirects=True) as client:
            with pytest.raises((ForbiddenAddressError, httpx.UnsupportedProtocol)):
                await client.post(f"http://127.0.0.1:{outer.port}/", content="body")
    assert tripwire.requests == []
    assert len(outer.requests) == 1


async def test_a_chain_of_redirects_ends_after_five_and_is_not_followed_unless_asked():
    async with site() as outer:
        outer.answer = redirect(302, "/again")
        guard = Guard([f"127.0.0.1:{outer.port}"])
        async with guarded_client(guard) as client:
            assert (await client.get(f"http://127.0.0.1:{outer.port}/")).status_code == 302
        assert len(outer.requests) == 1
        async with guarded_client(guard, follow_redirects=True) as client:
            with pytest.raises(httpx.TooManyRedirects):
                await client.get(f"http://127.0.0.1:{outer.port}/")
        assert len(outer.requests) == 1 + 6


async def test_nothing_secret_goes_along_to_another_origin():
    async with site() as first, site() as second:
        first.answer = redirect(307, f"http://127.0.0.1:{second.port}/there")
        guard = Guard(["127.0.0.1"])
        headers = {
            "X-Api-Key": "k",
            "Cookie": "a=b",
            "Proxy-Authorization": "p",
            "Accept": "text/x",
        }
        options = {"follow_redirects": True, "auth": ("user", "password"), "headers": headers}
        async with guarded_client(guard, **options) as client:
            answer = await client.post(f"http://127.0.0.1:{first.port}/", json={"a": 1})
        assert (answer.text, len(answer.history)) == ("ok", 1)
        assert first.requests[0][1].keys() >= {"x-api-key", "cookie", "authorization"}
        _, seen, body = second.requests[0]
        assert json.loads(body) == {"a": 1}
        assert seen.keys() <= {
            "host",
            "accept",
            "accept-encoding",
            "user-agent",
            "content-type",
        } | {"content-length"}
        assert seen["accept"] == "text/x"
        assert seen["host"] == f"127.0.0.1:{second.port}"


async def test_within_one_origin_credentials_stay():
    async with site() as one:
        one.answer = lambda path: (
            (200, {}, b"ok") if path == "/b" else (302, {"Location": "/b"}, b"")
        )
        options = {"follow_redirects": True, "headers": {"X-Api-Key": "k"}, "auth": ("u", "p")}
        async with guarded_client(Guard(["127.0.0.1"]), **options) as client:
            assert (await client.get(f"http://127.0.0.1:{one.port}/a")).text == "ok"
        assert one.requests[1][1]["x-api-key"] == "k"
        assert one.requests[1][1]["authorization"] == one.requests[0][1]["authorization"]


async def test_the_environments_proxies_are_not_used(monkeypatch):
    async with site() as proxy, site() as target:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        async with guarded_client(Guard([f"127.0.0.1:{target.port}"])) as client:
            assert (await client.get(f"http://127.0.0.1:{target.port}/")).text == "ok"
    assert proxy.requests == []


async def test_an_answer_is_limited_in_size_time_and_packing():
    async with site() as server:
        url = f"http://127.0.0.1:{server.port}/"
        guard = Guard(["127.0.0.1"])
        server.answer = lambda path: (200, {}, b"x" * 5000)
        async with guarded_client(guard, max_answer=4999) as client:
            with pytest.raises(AnswerTooLargeError):
                await client.get(url)
        async with guarded_client(guard, max_answer=5000) as client:
            assert len((await client.get(url)).content) == 5000
        server.pause = 0.2
        async with guarded_client(guard, total=0.3) as client:
            with pytest.raises(httpx.ReadTimeout, match="in all"):
                await client.get(url)
        server.pause = 0
        server.answer = lambda path: (200, {"Content-Encoding": "gzip"}, b"\x1f\x8b")
        async with guarded_client(guard) as client:
            with pytest.raises(httpx.DecodingError, match="compressed"):
                await client.get(url)
        assert {headers["accept-encoding"] for _, headers, _ in server.requests} == {"identity"}


async def test_tls_is_spoken_to_the_name_and_not_to_the_address():
    authority = trustme.CA()
    trusted, serving = ssl.create_default_context(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.configure_trust(trusted)
    authority.issue_cert("hooks.example").configure_cert(serving)
    names = Names({"hooks.example": [["127.0.0.1"]], "other.example": [["127.0.0.1"]]})
    guard = Guard(["127.0.0.1"], resolve=names)
    async with site(serving) as server, guarded_client(guard, verify=trusted) as client:
        assert (await client.get(f"https://hooks.example:{server.port}/")).text == "ok"
        for host in ("other.example", "127.0.0.1"):
            with pytest.raises(httpx.ConnectError, match=r"(?i)certificate"):
                await client.get(f"https://{host}:{server.port}/")
        spoofed = client.build_request(
            "GET",
            f"https://other.example:{server.port}/",
            extensions={"sni_hostname": "hooks.example"},
        )
        with pytest.raises(httpx.ConnectError, match=r"(?i)certificate"):
            await client.send(spoofed)


async def test_errors_of_the_network_are_those_of_httpx():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        async with guarded_client(Guard(["127.0.0.1"], resolve=Names({}))) as client:
            with pytest.raises(httpx.ConnectError):
                await client.get(f"http://127.0.0.1:{closed.getsockname()[1]}/")
            with pytest.raises(httpx.ConnectError, match="no address"):
                await client.get("http://gone.example/")


@pytest.mark.parametrize("option", ["transport", "proxy", "mounts", "trust_env"])
def test_no_option_leads_around_the_guard(option):
    with pytest.raises(TypeError, match="around the guard"):
        guarded_client(Guard(), **{option: None})


async def test_an_answer_can_be_streamed():
    async with site() as server, guarded_client(Guard(["127.0.0.1"])) as client:
        server.answer = lambda path: (200, {}, b"x" * 3000)
        async with client.stream("GET", f"http://127.0.0.1:{server.port}/") as answer:
            assert sum([len(part) async for part in answer.aiter_bytes()]) == 3000
