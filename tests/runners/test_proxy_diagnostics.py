from __future__ import annotations

import asyncio
import base64
import json
import logging
import socket
import ssl
import threading
from contextlib import contextmanager

import pydantic
import pytest
import trustme
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import from_json, to_json

from haulier.cli.demo_proxies import Behaviour, DeadPort, DemoProxy, Fault, demo_fleet
from haulier.domain.job import Job, JobState, Role
from haulier.exceptions import CancelJob, PermanentError
from haulier.runners import echo
from haulier.runners.base import BatchFinished, register_runner
from haulier.runners.proxy_diagnostics import (
    ProxyDiagnosticsItem,
    ProxyDiagnosticsStart,
    ProxyDiagnosticsTaskRunner,
    percentile,
)
from haulier.runners.proxy_input import ProxySpec, read_proxies
from haulier.services.outbound import Guard
from haulier.services.payload import decode, encode, encode_result
from haulier.services.registry import Registry
from haulier.services.secrets import Sealer
from support import wait_until

CANARY = "cAnArY-9f:41"
RUNNER = ProxyDiagnosticsTaskRunner(
    Guard(["127.0.0.0/8", "::1", "localhost", "255.255.255.255", "proxy.invalid"])
)
START, ITEM, FINISH = RUNNER.definitions()


@pytest.fixture
def check(make_context):
    """Runs the item of one proxy."""

    async def check(proxy, url, **settings):
        item = ProxyDiagnosticsItem(
            **{"proxy": proxy, "check_url": url, "tries": 2, "timeout": 10, **settings}
        )
        return await RUNNER.run_item(make_context(kind=ITEM.kind, payload=item), item)

    return check


def settled(number, state, result=None):
    return Job(
        id=f"item-{number}",
        seq=number + 2,
        kind=ITEM.kind,
        queue="default",
        payload=b"{}",
        state=state,
        role=Role.ITEM,
        batch_id="batch",
        position=number,
        result=None if result is None else encode_result(result),
    )


def spec(proxy, scheme="http", *, user=None, host="127.0.0.1"):
    username, password = user or (None, None)
    return ProxySpec(
        scheme=scheme, host=host, port=proxy.port, username=username, password=password
    )


async def site(scope, receive, send):
    """A target that is no echo server: its path says what it answers."""
    if scope["type"] != "http":
        return
    kind = scope["path"].removeprefix("/")
    status, headers = int(kind) if kind.isdigit() else 200, []
    body = {"big": b"x" * 300_000, "list": b"[1, 2]", "deep": b"[" * 60_000}.get(kind, b"")
    if kind == "endless":
        headers, body = [(b"content-length", b"1000000000000")], b"x" * 300_000
    if kind in {"forged", "crowded"}:
        names = {f"x-{n}": "" for n in range(100)} | {"a b": "", "c" * 100: ""}
        remote = "fe80::1%somebody" if kind == "forged" else "::ffff:192.0.2.1"
        body = json.dumps({"remote": remote, "headers": names}).encode()
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": kind == "endless"})
    while kind == "endless" and (await receive())["type"] != "http.disconnect":
        pass


@contextmanager
def serving(app, **tls):
    """A server in a thread of its own, so that many tests can use one."""
    config = uvicorn.Config(
        app, log_config=None, proxy_headers=False, ws="none", lifespan="off", **tls
    )
    server = uvicorn.Server(config)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        # Connections wait in the backlog until the server takes them.
        listener.listen()
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"{'https' if tls else 'http'}://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            # It waits for its connections: one that stays is one that a proxy or a probe forgot.
            thread.join(10)
            assert not thread.is_alive()


@pytest.fixture(scope="module")
def echo_url():
    with serving(echo.app) as url:
        yield url


@pytest.fixture(scope="module")
def secure_echo_url(authority):
    with serving(echo.app, **authority.server_files()) as url:
        yield url


@pytest.fixture(scope="module")
def site_url():
    with serving(site) as url:
        yield url


class Authority:
    """A certificate authority and the certificates that it issues."""

    def __init__(self, folder):
        self._ca = trustme.CA()
        self._folder = folder
        self.file = str(folder / "ca.pem")
        self._ca.cert_pem.write_to_path(self.file)

    def server_context(self, *names):
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._ca.issue_cert(*(names or ("127.0.0.1",))).configure_cert(tls)
        return tls

    def server_files(self, *names):
        path = self._folder / "server.pem"
        cert = self._ca.issue_cert(*(names or ("127.0.0.1",)))
        cert.private_key_and_cert_chain_pem.write_to_path(path)
        return {"ssl_certfile": str(path), "ssl_keyfile": str(path)}


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.mark.parametrize("scheme", ["http", "socks5"])
@pytest.mark.parametrize("user", [None, ("ann", CANARY)])
async def test_finds_a_working_proxy_healthy(check, echo_url, scheme, user):
    username, password = user or (None, None)
    behaviour = Behaviour(username=username, password=password, exit_address="127.0.0.7")
    async with DemoProxy(behaviour) as proxy:
        result = await check(spec(proxy, scheme, user=user), echo_url, tries=4)
    assert (result.verdict, result.reachable, result.error, result.detail) == (
        "healthy",
        True,
        None,
        None,
    )
    assert (result.tries, result.ok) == (4, 4)
    assert result.proxy == f"{scheme}://127.0.0.1:{proxy.port}"
    assert result.has_credentials is (user is not None)
    assert result.exit_address == "127.0.0.7"
    assert (result.anonymity, result.added_headers, result.credentials_leaked) == (
        "elite",
        [],
        False,
    )
    assert result.forwards is (True if scheme == "http" else None)


async def test_times_each_phase_that_took_place(check, make_context, authority, secure_echo_url):
    async with DemoProxy(Behaviour(tls=authority.server_context())) as proxy:
        result = await check(spec(proxy, "https"), secure_echo_url, ca_file=authority.file, tries=3)
    assert result.verdict == "healthy"
    spans = result.timings
    parts = [
        spans.connect_ms,
        spans.proxy_tls_ms,
        spans.tunnel_ms,
        spans.tls_ms,
        spans.first_byte_ms,
    ]
    assert all(0 < part.p50 <= part.p95 for part in parts)
    assert spans.total_ms.p95 > max(part.p50 for part in parts)
    assert (result.exit_address, result.anonymity, result.forwards) == ("127.0.0.1", None, None)


@pytest.mark.parametrize("scheme", ["http", "https", "socks5"])
@pytest.mark.parametrize("target", ["http", "https"])
async def test_every_scheme_reaches_every_target(
    check, make_context, authority, echo_url, secure_echo_url, scheme, target
):
    tls = authority.server_context() if scheme == "https" else None
    url = secure_echo_url if target == "https" else echo_url
    behaviour = Behaviour(tls=tls, username="ann", password=CANARY)
    async with DemoProxy(behaviour) as proxy:
        result = await check(spec(proxy, scheme, user=("ann", CANARY)), url, ca_file=authority.file)
    assert (result.verdict, result.exit_address) == ("healthy", "127.0.0.1")
    assert (result.timings.proxy_tls_ms is not None) is (scheme == "https")
    assert (result.timings.tls_ms is not None) is (target == "https")
    assert result.forwards is (
        True if (scheme, target) in {("http",) * 2, ("https", "http")} else None
    )


async def test_reaches_a_proxy_and_a_target_by_name(check, echo_url):
    async with DemoProxy() as proxy:
        url = echo_url.replace("127.0.0.1", "localhost")
        result = await check(spec(proxy, "socks5", host="localhost"), url)
    assert result.verdict == "healthy"


async def test_pays_no_attention_to_proxies_of_the_environment(check, echo_url, monkeypatch):
    with DeadPort() as dead:
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{dead.port}")
        async with DemoProxy() as proxy:
            assert (await check(spec(proxy), echo_url)).verdict == "healthy"


@pytest.mark.parametrize("path", ["204", "200", "big", "endless", "list", "deep"])
async def test_a_target_that_is_no_echo_server_does_as_well(check, site_url, path):
    async with DemoProxy() as proxy:
        result = await check(spec(proxy), f"{site_url}/{path}")
    assert (result.verdict, result.ok, result.forwards) == ("healthy", 2, True)
    assert result.timings.total_ms is not None
    assert (result.exit_address, result.anonymity, result.added_headers) == (None, None, None)


async def test_takes_nothing_but_addresses_and_header_names_from_an_answer(check, site_url):
    async with DemoProxy() as proxy:
        result = await check(spec(proxy), f"{site_url}/forged")
    assert result.verdict == "healthy"
    assert (result.exit_address, result.anonymity) == (None, None)


async def test_takes_a_limited_number_of_header_names_from_an_answer(check, site_url):
    async with DemoProxy() as proxy:
        result = await check(spec(proxy, "socks5"), f"{site_url}/crowded")
    assert result.exit_address == "192.0.2.1"
    assert len(result.added_headers) == 32
    assert all(name.startswith("x-") for name in result.added_headers)


async def test_an_answer_to_connect_may_come_in_pieces(check, echo_url):
    async with DemoProxy(Behaviour(piecemeal=True)) as proxy:
        assert (await check(spec(proxy), echo_url)).verdict == "healthy"


@pytest.mark.parametrize(
    ("headers", "anonymity", "added"),
    [
        ((), "elite", []),
        ((("Via", "1.1 demo"),), "anonymous", ["via"]),
        ((("Cache-Control", "max-age=0"),), "anonymous", ["cache-control"]),
        ((("X-Forwarded-For", "{client}"),), "transparent", ["x-forwarded-for"]),
        ((("Forwarded", "for={client}"), ("Via", "x")), "transparent", ["forwarded", "via"]),
        ((("X-Real-IP", "{client}"),), "transparent", ["x-real-ip"]),
        ((("Client-IP", "{client}"),), "transparent", ["client-ip"]),
    ],
)
async def test_tells_what_a_forwarding_proxy_reveals(check, echo_url, headers, anonymity, added):
    async with DemoProxy(Behaviour(headers=headers)) as proxy:
        result = await check(spec(proxy), echo_url)
    assert (result.anonymity, result.added_headers) == (anonymity, added)
    assert result.credentials_leaked is False


async def test_notices_credentials_that_are_passed_on(check, echo_url):
    behaviour = Behaviour(username="ann", password=CANARY, leak_credentials=True)
    async with DemoProxy(behaviour) as proxy:
        result = await check(spec(proxy, user=("ann", CANARY)), echo_url)
    assert result.credentials_leaked is True
    assert (result.anonymity, result.added_headers) == ("anonymous", [])


async def test_tells_of_a_proxy_that_forwards_but_opens_no_tunnel(check, echo_url):
    async with DemoProxy(Behaviour(fault=Fault.REFUSE_TUNNEL)) as proxy:
        result = await check(spec(proxy), echo_url)
    assert (result.verdict, result.error, result.forwards) == ("dead", "tunnel_refused", True)
    assert result.anonymity == "elite"


@pytest.mark.parametrize(
    ("fault", "scheme", "error", "detail"),
    [
        (Fault.REFUSE_AUTH, "http", "auth_refused", "asks for credentials"),
        (Fault.REFUSE_TUNNEL, "http", "tunnel_refused", "status 403"),
        (Fault.REFUSE_TUNNEL, "socks5", "tunnel_refused", "not allowed by its rules"),
        (Fault.CLOSE, "http", "connection_lost", "closed while opening the tunnel"),
        (Fault.CLOSE, "socks5", "connection_lost", "closed while opening the tunnel"),
        (Fault.DROP_TUNNEL, "http", "connection_lost", "closed while waiting for the target"),
        (Fault.DROP_TUNNEL, "socks5", "connection_lost", "closed while waiting for the target"),
        (Fault.GARBAGE, "http", "bad_response", "not HTTP"),
        (Fault.GARBAGE, "socks5", "bad_response", "not SOCKS5"),
    ],
)
async def test_classifies_what_a_proxy_does_wrong(check, echo_url, fault, scheme, error, detail):
    async with DemoProxy(Behaviour(fault=fault)) as proxy:
        result = await check(spec(proxy, scheme), echo_url)
    assert (result.verdict, result.reachable, result.error) == ("dead", False, error)
    assert detail in result.detail
    assert result.timings.connect_ms is not None
    assert result.timings.total_ms is None


async def test_a_port_that_refuses(check, echo_url):
    with DeadPort() as dead:
        result = await check(spec(dead), echo_url, tries=3)
    assert (result.error, result.tries, result.ok) == ("dial_refused", 3, 0)
    assert result.timings.connect_ms is None


async def test_a_machine_that_does_not_answer(check, echo_url):
    # Linux drops what comes to a full backlog, which is how a firewall that drops looks.
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        proxy = ProxySpec(host="127.0.0.1", port=full.getsockname()[1])
        result = await check(proxy, echo_url, timeout=0.2)
    assert (result.error, result.detail) == (
        "dial_timeout",
        "Nothing within 0.2 s while connecting to the proxy.",
    )


async def test_an_address_that_cannot_be_dialled(check, echo_url):
    result = await check(ProxySpec(host="255.255.255.255", port=9), echo_url, tries=1)
    assert result.error == "dial_failed"


@pytest.mark.parametrize("scheme", ["http", "https", "socks5"])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "rebound.example", "10.0.0.1"])
async def test_a_proxy_that_is_not_public_is_not_dialled(make_context, echo_url, scheme, host):
    async def resolve(name, port):
        return ["93.184.216.34", "127.0.0.1"]

    runner = ProxyDiagnosticsTaskRunner(Guard(resolve=resolve))
    async with DemoProxy(Behaviour()) as proxy:
        item = ProxyDiagnosticsItem(
            proxy=spec(proxy, scheme, host=host), check_url=echo_url, tries=5, timeout=5
        )
        result = await runner.run_item(make_context(kind=ITEM.kind, payload=item), item)
        assert (result.verdict, result.error, result.tries) == ("dead", "forbidden", 1)
        assert "not allowed here" in result.detail
        assert proxy.connections == 0


async def test_a_proxys_name_is_looked_up_once_and_the_address_dialled(make_context, echo_url):
    """A name that leads elsewhere when it is looked up again (DNS rebinding) gains nothing."""
    answers = [["127.0.0.1"], ["10.0.0.1"]]

    async def resolve(name, port):
        return answers.pop(0)

    async with DemoProxy(Behaviour()) as proxy:
        guard = Guard([f"127.0.0.1:{proxy.port}"], resolve=resolve)
        runner = ProxyDiagnosticsTaskRunner(guard)
        item = ProxyDiagnosticsItem(
            proxy=spec(proxy, "socks5", host="re.example"), check_url=echo_url, tries=2, timeout=5
        )
        result = await runner.run_item(make_context(kind=ITEM.kind, payload=item), item)
        assert (result.ok, result.error, proxy.connections) == (1, "forbidden", 1)
    assert answers == []


async def test_a_name_that_does_not_resolve(check, echo_url, monkeypatch):
    def unknown(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    result = await check(ProxySpec(host="proxy.invalid", port=9), echo_url, tries=1)
    assert (result.error, result.detail) == ("dns_failed", "The proxy's name does not resolve.")


@pytest.mark.parametrize("scheme", ["http", "socks5"])
@pytest.mark.parametrize("user", [None, ("ann", "wrong"), ("bob", CANARY)])
async def test_stops_after_the_credentials_were_refused(check, echo_url, scheme, user):
    async with DemoProxy(Behaviour(username="ann", password=CANARY)) as proxy:
        result = await check(spec(proxy, scheme, user=user), echo_url, tries=5)
    assert (result.verdict, result.error, result.tries) == ("dead", "auth_refused", 1)
    assert proxy.connections == 1
    assert ("refused the credentials" if user else "asks for credentials") in result.detail


@pytest.mark.parametrize("scheme", ["http", "socks5"])
async def test_a_target_that_the_proxy_cannot_reach(check, scheme):
    with DeadPort() as dead:
        async with DemoProxy() as proxy:
            result = await check(spec(proxy, scheme), f"http://127.0.0.1:{dead.port}/")
    assert result.error == "tunnel_refused"
    assert ("status 502" if scheme == "http" else "refused by the target") in result.detail


@pytest.mark.parametrize(
    ("fault", "doing"), [("proxy", "opening the tunnel"), ("target", "waiting for the target's")]
)
async def test_silence_is_cut_off(check, echo_url, fault, doing):
    async with DemoProxy(Behaviour(fault=Fault.HANG)) as hanging, DemoProxy() as proxy:
        if fault == "proxy":
            result = await check(spec(hanging), echo_url, timeout=0.2)
        else:
            result = await check(spec(proxy), f"http://127.0.0.1:{hanging.port}/", timeout=0.2)
    assert (result.error, result.tries) == ("timeout", 2)
    assert doing in result.detail


@pytest.mark.parametrize(("fault", "scheme"), [(Fault.HANG, "https"), (Fault.HANG, "http")])
async def test_silence_in_a_handshake_is_cut_off(check, authority, fault, scheme):
    async with DemoProxy(Behaviour(fault=fault)) as hanging, DemoProxy() as proxy:
        if scheme == "https":
            asked = check(spec(hanging, "https"), "http://127.0.0.1:9/", timeout=0.2)
            doing = "handshake with the proxy"
        else:
            asked = check(spec(proxy), f"https://127.0.0.1:{hanging.port}/", timeout=0.2)
            doing = "handshake with the target"
        result = await asked
    assert result.error == "timeout"
    assert doing in result.detail


@pytest.mark.parametrize("names", [("other.test",), None])
async def test_a_proxy_whose_certificate_is_not_for_it(
    check, make_context, authority, echo_url, names
):
    tls = authority.server_context(*(names or ()))
    async with DemoProxy(Behaviour(tls=tls)) as proxy:
        # The right name and no trust, or trust and the wrong name.
        result = await check(
            spec(proxy, "https"), echo_url, ca_file=authority.file if names else None
        )
        lenient = await check(spec(proxy, "https"), echo_url, verify_tls=False)
    assert result.error == "proxy_tls_failed"
    assert "certificate is not trusted" in result.detail
    assert lenient.verdict == "healthy"


async def test_a_proxy_that_speaks_no_tls(check, echo_url):
    async with DemoProxy(Behaviour(fault=Fault.GARBAGE)) as proxy:
        result = await check(spec(proxy, "https"), echo_url)
    assert result.error == "proxy_tls_failed"


async def test_a_proxy_that_closes_instead_of_a_handshake(check, echo_url):
    async with DemoProxy(Behaviour(fault=Fault.CLOSE)) as proxy:
        result = await check(spec(proxy, "https"), echo_url)
    assert result.error == "proxy_tls_failed"


@pytest.fixture(scope="module", params=["no trust", "wrong name"])
def suspect(request, authority, tmp_path_factory):
    """An https echo server, and an authority by which its certificate is no good."""
    folder = tmp_path_factory.mktemp("suspect")
    issuer = Authority(folder)
    name = "127.0.0.1" if request.param == "no trust" else "other.test"
    trusted = authority if request.param == "no trust" else issuer
    with serving(echo.app, **issuer.server_files(name)) as url:
        yield url, trusted


@pytest.mark.parametrize("scheme", ["http", "https", "socks5"])
async def test_a_target_whose_certificate_is_not_for_it(check, make_context, scheme, suspect):
    url, trusted = suspect
    tls = trusted.server_context() if scheme == "https" else None
    async with DemoProxy(Behaviour(tls=tls)) as proxy:
        result = await check(spec(proxy, scheme), url, ca_file=trusted.file)
        lenient = await check(spec(proxy, scheme), url, verify_tls=False)
    assert result.error == "target_tls_failed"
    assert "target's certificate is not trusted" in result.detail
    assert lenient.verdict == "healthy"


async def test_a_target_that_speaks_no_tls(check, echo_url):
    async with DemoProxy() as proxy:
        result = await check(spec(proxy), echo_url.replace("http:", "https:"))
    assert result.error in {"target_tls_failed", "connection_lost"}


@pytest.mark.parametrize("status", [301, 404, 500])
async def test_an_answer_that_is_no_success(check, site_url, status):
    async with DemoProxy() as proxy:
        result = await check(spec(proxy), f"{site_url}/{status}")
    assert result.error == "bad_response"
    assert result.timings.first_byte_ms is not None


async def test_an_answer_that_is_not_http(check):
    async with DemoProxy(Behaviour(fault=Fault.GARBAGE)) as target, DemoProxy() as proxy:
        result = await check(spec(proxy), f"http://127.0.0.1:{target.port}/")
    assert (result.error, result.detail) == ("bad_response", "The answer is not HTTP.")


@pytest.mark.parametrize(
    ("scheme", "password"), [("socks5", "pässword"), ("socks5", "x" * 256), ("http", "p€ss")]
)
async def test_credentials_that_the_protocol_cannot_carry(check, echo_url, scheme, password):
    async with DemoProxy() as proxy:
        result = await check(spec(proxy, scheme, user=("ann", password)), echo_url)
    assert (result.error, result.tries, result.verdict) == ("unsupported", 1, "dead")
    assert password not in result.model_dump_json()


async def test_a_proxy_that_fails_now_and_then_is_degraded(check, echo_url):
    async with DemoProxy(Behaviour(fault=Fault.CLOSE, fault_every=3)) as proxy:
        result = await check(spec(proxy), echo_url, tries=4)
    assert (result.verdict, result.reachable, result.tries, result.ok) == ("degraded", True, 4, 3)
    assert result.error == "connection_lost"
    assert result.detail.startswith("1 of 4 tries failed. The connection was closed")


@pytest.mark.parametrize("scheme", ["http", "https", "socks5"])
@pytest.mark.parametrize("fault", [None, *Fault, "dead port", "wrong password"])
async def test_a_password_is_nowhere_to_be_seen(
    make_context, authority, echo_url, scheme, fault, caplog, capfd
):
    caplog.set_level(logging.DEBUG)
    wrong = fault == "wrong password"
    behaviour = Behaviour(
        username="ann",
        password="other" if wrong else CANARY,
        tls=authority.server_context() if scheme == "https" else None,
        fault=fault if isinstance(fault, Fault) else None,
        says=CANARY,
    )
    with DeadPort() as dead:
        async with DemoProxy(behaviour) as proxy:
            aim = dead if fault == "dead port" else proxy
            start = {
                "proxies": [
                    {
                        "scheme": scheme,
                        "host": "127.0.0.1",
                        "port": aim.port,
                        "username": "ann",
                        "password": CANARY,
                    }
                ],
                "check_url": echo_url,
                "tries": 1,
                "timeout": 0.5,
                "ca_file": authority.file,
            }
            (item,) = as_a_worker_gets_them(make_context, start)
            ctx = make_context(kind=ITEM.kind, payload=item)
            result = await RUNNER.run_item(ctx, item)
    seen = "".join(
        [
            encode_result(result).decode(),
            repr(result),
            repr(item),
            repr(ctx._runtime.notes),
            caplog.text,
            *capfd.readouterr(),
        ]
    )
    assert CANARY not in seen
    assert base64.b64encode(f"ann:{CANARY}".encode()).decode() not in seen
    assert (result.verdict == "healthy") is (fault is None)


def as_a_worker_gets_them(make_context, start):
    """The items of a start payload after the store had both, their secrets sealed."""
    sealer = Sealer(lambda: b"k" * 32)
    stored = encode(START, ProxyDiagnosticsStart(**start), "head", sealer)
    assert CANARY.encode() not in stored
    items = list(
        RUNNER.expand(make_context(kind=START.kind), decode(START, stored, "head", sealer))
    )
    sealed = [encode(ITEM, item, str(n), sealer) for n, item in enumerate(items)]
    assert CANARY.encode() not in b"".join(sealed)
    return [decode(ITEM, data, str(n), sealer) for n, data in enumerate(sealed)]


@pytest.mark.parametrize(
    "change",
    [
        {"tries": 0},
        {"check_url": "ftp://h"},
        {"check_url": None},
        {"colour": "red"},
        {"timeout": float("nan")},
    ],
)
def test_a_refused_start_shows_no_password(change):
    proxy = {"host": "h", "port": 1, "username": "u", "password": CANARY}
    fields = {"check_url": "http://h/", **change, "proxies": [proxy]}
    given = {name: value for name, value in fields.items() if value is not None}
    with pytest.raises(pydantic.ValidationError) as caught:
        ProxyDiagnosticsStart(**given)
    assert CANARY not in f"{caught.value} {caught.value!r}"


def test_makes_one_item_per_proxy_in_order(make_context):
    proxies = read_proxies("h1:1\nsocks5://u:p@h2:2\nh3:3\n")
    start = ProxyDiagnosticsStart(proxies=proxies, check_url="https://h/", tries=7, timeout=2)
    ctx = make_context(kind=START.kind)
    items = list(RUNNER.expand(ctx, start))
    assert [item.proxy for item in items] == proxies
    assert {(item.check_url, item.tries, item.timeout) for item in items} == {("https://h/", 7, 2)}
    assert [proxy.line for proxy in proxies] == [1, 2, 3]


@pytest.mark.parametrize("content", [None, "no certificate"])
async def test_a_bad_authority_file_is_refused_before_any_item(make_context, tmp_path, content):
    path = tmp_path / "ca.pem"
    if content:
        path.write_text(content)
    fields = {"check_url": "https://127.0.0.1:9/", "ca_file": str(path)}
    ctx = make_context(kind=START.kind)
    proxy = ProxySpec(host="127.0.0.1", port=9)
    with pytest.raises(PermanentError, match="ca_file"):
        list(RUNNER.expand(ctx, ProxyDiagnosticsStart(proxies=[proxy], **fields)))
    with pytest.raises(PermanentError, match="ca_file"):
        await RUNNER.run_item(ctx, ProxyDiagnosticsItem(proxy=proxy, **fields))


async def test_reports_progress_and_stops_when_cancelled(make_context, echo_url):
    ctx = make_context(kind=ITEM.kind)
    async with DemoProxy() as proxy:
        item = ProxyDiagnosticsItem(proxy=spec(proxy), check_url=echo_url, tries=4)
        await RUNNER.run_item(ctx, item)
        ctx._control.cancelled = True
        with pytest.raises(CancelJob):
            await RUNNER.run_item(ctx, item)
        assert proxy.connections == 5
    assert [note.progress for note in ctx._runtime.notes] == [0, 25, 50, 75]


async def test_leaves_no_connection_open_when_it_is_interrupted(check, authority):
    async with DemoProxy(Behaviour(fault=Fault.HANG)) as hanging, DemoProxy() as proxy:
        running = asyncio.create_task(
            check(spec(proxy), f"https://127.0.0.1:{hanging.port}/", timeout=60)
        )
        await wait_until(lambda: hanging.connections)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running


async def test_diagnoses_a_whole_fleet_as_planned_and_sums_it_up(make_context, echo_url):
    ctx = make_context(kind=START.kind)
    async with demo_fleet(20) as fleet:
        start = ProxyDiagnosticsStart(
            proxies=read_proxies(fleet.as_text()), check_url=echo_url, tries=3, timeout=20
        )
        items = [
            item.model_copy(update={"timeout": 0.2}) if member.plan.kind == "hanging" else item
            for member, item in zip(fleet.members, RUNNER.expand(ctx, start), strict=True)
        ]
        results = await asyncio.gather(*(RUNNER.run_item(ctx, item) for item in items))
    planned = [(member.plan.kind, member.plan.verdict) for member in fleet.members]
    found = [
        (member.plan.kind, result.verdict)
        for member, result in zip(fleet.members, results, strict=True)
    ]
    assert found == planned
    kinds = {
        member.plan.kind: result for member, result in zip(fleet.members, results, strict=True)
    }
    assert kinds["transparent"].anonymity == "transparent"
    assert kinds["anonymous"].anonymity == "anonymous"
    assert kinds["wrong password"].error == "auth_refused"
    done = [settled(n, JobState.COMPLETED, result) for n, result in enumerate(results)]
    done.append(settled(20, JobState.CANCELLED))
    ctx = make_context(kind=FINISH.kind, items=done)
    finished = BatchFinished(batch_id="batch", state=JobState.COMPLETED, counts={})
    summary = await RUNNER.finish(ctx, start, finished)
    assert summary["proxies"] == 21
    assert summary["verdicts"] == {"healthy": 16, "degraded": 1, "dead": 3}
    assert summary["errors"] == {
        "dial_refused": 1,
        "auth_refused": 1,
        "connection_lost": 1,
        "timeout": 1,
    }
    assert summary["unfinished"] == 1
    assert summary["fastest"]["p50_ms"] <= summary["slowest"]["p50_ms"]
    assert summary["slowest"]["proxy"] == kinds["slow"].proxy
    assert from_json(to_json(summary)) == summary


async def test_sums_up_a_batch_without_results(make_context):
    ctx = make_context(kind=FINISH.kind, items=[settled(0, JobState.FAILED)])
    finished = BatchFinished(batch_id="batch", state=JobState.COMPLETED, counts={})
    summary = await RUNNER.finish(ctx, None, finished)
    assert (summary["unfinished"], summary["fastest"], summary["errors"]) == (1, None, {})


def test_is_registered_as_three_kinds():
    registry = Registry()
    register_runner(registry, RUNNER)
    assert {definition.kind for definition in registry} == {
        "proxy_diagnostics",
        "proxy_diagnostics.item",
        "proxy_diagnostics.finish",
    }
    assert (ITEM.executor, ITEM.per_worker) == ("async", 64)
    assert START.has_secrets
    assert ITEM.has_secrets


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([15, 20, 35, 40, 50], 5, 15),
        ([15, 20, 35, 40, 50], 30, 20),
        ([15, 20, 35, 40, 50], 40, 20),
        ([50, 15, 40, 20, 35], 50, 35),
        ([15, 20, 35, 40, 50], 100, 50),
        ([7], 50, 7),
        ([1, 2], 50, 1),
    ],
)
def test_the_nearest_rank_percentile(values, percent, expected):
    assert percentile(values, percent) == expected


@given(st.lists(st.floats(allow_nan=False), min_size=1), st.integers(min_value=1, max_value=100))
def test_a_percentile_is_one_of_the_values_with_enough_below_it(values, percent):
    found = percentile(values, percent)
    assert found in values
    assert sum(value <= found for value in values) * 100 >= percent * len(values)
