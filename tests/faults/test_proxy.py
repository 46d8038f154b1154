"""The fault proxy itself: each of its faults is one, and goes away again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
import subprocess
import sys
import time

import pytest

from faults.proxy import HOST, PostgresDialect, Proxy, RedisDialect
from nursery import TESTS
from support import wait_until


@pytest.fixture
async def upper():
    """A server that answers each line in capitals; `lines` is what it was asked."""
    lines: list[bytes] = []
    open_ones: set[asyncio.StreamWriter] = set()

    async def serve(reader, writer) -> None:
        open_ones.add(writer)
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                lines.append(line)
                writer.write(line.upper())
        writer.close()
        open_ones.discard(writer)

    server = await asyncio.start_server(serve, HOST, 0)
    port = server.sockets[0].getsockname()[1]
    yield port, lines
    server.close()
    for writer in tuple(open_ones):
        writer.close()
    await wait_until(lambda: not open_ones)


@contextlib.asynccontextmanager
async def client(proxy: Proxy):
    reader, writer = await asyncio.open_connection(HOST, proxy.port)

    async def ask(text: bytes = b"hello\n", timeout: float = 5.0) -> bytes:
        writer.write(text)
        async with asyncio.timeout(timeout):
            return await reader.readline()

    try:
        yield ask
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def test_without_a_fault_everything_passes(upper):
    async with Proxy(upper[0]) as proxy:
        async with client(proxy) as ask, client(proxy) as ask_too:
            assert await ask() == b"HELLO\n"
            assert await ask_too(b"a" * 50_000 + b"\n") == b"A" * 50_000 + b"\n"
            assert proxy.connections == 2
        await wait_until(lambda: proxy.connections == 0)


async def test_it_refuses_and_accepts_again_at_the_same_port(upper):
    async with Proxy(upper[0]) as proxy, client(proxy) as ask:
        assert await ask() == b"HELLO\n"
        port = proxy.port
        await proxy.refuse()
        with pytest.raises(ConnectionError):
            assert await ask()
        with pytest.raises(ConnectionRefusedError):
            async with client(proxy):
                pass
        await proxy.heal()
        assert proxy.port == port
        async with client(proxy) as again:
            assert await again() == b"HELLO\n"


async def test_it_resets_what_is_open_and_nothing_else(upper):
    async with Proxy(upper[0]) as proxy, client(proxy) as ask:
        assert await ask() == b"HELLO\n"
        await proxy.reset()
        with pytest.raises(ConnectionResetError):
            await ask()
        async with client(proxy) as again:
            assert await again() == b"HELLO\n"


async def test_in_a_black_hole_nothing_arrives_until_it_closes(upper):
    port, lines = upper
    async with Proxy(port) as proxy, client(proxy) as ask:
        proxy.blackhole()
        with pytest.raises(TimeoutError):
            await ask(b"late\n", timeout=0.1)
        async with client(proxy) as new:
            with pytest.raises(TimeoutError):
                await new(timeout=0.1)
        assert lines == []
        await proxy.heal()
        assert await ask(b"early\n") == b"LATE\n"
        await wait_until(lambda: b"early\n" in lines)


async def test_a_hole_for_answers_alone_lets_requests_through(upper):
    port, lines = upper
    async with Proxy(port) as proxy, client(proxy) as ask:
        proxy.blackhole(requests=False)
        with pytest.raises(TimeoutError):
            await ask(b"served\n", timeout=0.1)
        assert lines == [b"served\n"]
        await proxy.heal()
        assert await ask(b"next\n") == b"SERVED\n"


async def test_it_delays(upper):
    async with Proxy(upper[0]) as proxy, client(proxy) as ask:
        proxy.delay(0.1)
        began = time.monotonic()
        assert await ask() == b"HELLO\n"
        assert time.monotonic() - began >= 0.2


async def test_it_cuts_in_the_middle_of_an_answer(upper):
    port, lines = upper
    async with Proxy(port) as proxy, client(proxy) as ask:
        proxy.cut(after=3)
        with contextlib.suppress(ConnectionError):
            assert await ask() in (b"HEL", b"")
        assert lines == [b"hello\n"]
        await proxy.heal()
        async with client(proxy) as again:
            assert await again() == b"HELLO\n"


def command(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words)


def message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


REDIS = [command(b"PING"), command(b"EVALSHA", b"abc", b"1", b"\r\n*3\r\n")]
POSTGRES = [
    struct.pack("!ii", 8, 80877103),
    message(b"", struct.pack("!i", 196608) + b"user\0haulier\0\0"),
    message(b"P", b"s1\0SELECT 1\0\0\0"),
    message(b"S", b""),
    message(b"B", b"\0s1\0\0\0\0\0\0\0"),
    message(b"Q", b"SELECT 2\0"),
]


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize(
    ("dialect", "sent", "found"),
    [
        (RedisDialect, REDIS, ["PING", "EVALSHA abc"]),
        (PostgresDialect, POSTGRES, ["SELECT 1", "SELECT 2"]),
    ],
)
def test_dialects_find_requests_however_they_are_split(dialect, sent, found, size):
    reader, data = dialect(), b"".join(sent)
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    assert [each for piece in pieces for each in reader.feed(piece)] == found


async def test_a_lost_answer_is_one_of_a_request_that_was_served(upper):
    class Lines:
        def feed(self, data: bytes) -> list[str]:
            return data.decode().split()

    port, lines = upper
    async with Proxy(port, Lines) as proxy, client(proxy) as ask:
        proxy.swallow(2, lambda request: request.startswith("w"))
        assert await ask(b"write\n") == b"WRITE\n"
        assert await ask(b"read\n") == b"READ\n"
        with contextlib.suppress(ConnectionError):
            assert await ask(b"written\n") == b""
        assert lines[-1] == b"written\n"
        assert proxy.swallowed == 1
        async with client(proxy) as again:
            assert await again(b"write\n") == b"WRITE\n"


async def test_it_can_be_a_process_of_its_own(upper):
    process = subprocess.Popen(
        [sys.executable, "-m", "faults.proxy", str(upper[0])],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def tell(text: str) -> str:
        process.stdin.write(text + "\n")
        process.stdin.flush()
        return process.stdout.readline()

    try:
        proxy = Proxy(0)
        proxy.port = int(await asyncio.to_thread(process.stdout.readline))
        async with client(proxy) as ask:
            assert await asyncio.to_thread(tell, "delay 0.1") == "done\n"
            began = time.monotonic()
            assert await ask() == b"HELLO\n"
            assert time.monotonic() - began >= 0.2
            assert await asyncio.to_thread(tell, "refuse") == "done\n"
            with pytest.raises(ConnectionError):
                assert await ask()
    finally:
        process.communicate(timeout=10)
