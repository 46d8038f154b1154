from __future__ import annotations
import asyncio, json, time, contextlib
from collections.abc import Iterator
import pytest, redis
from structlog.testing import capture_logs
import servers
from haulier.domain.ids import uuid7
from haulier.domain.job import MICROSECOND, JobState, OnLost, Role
from haulier.domain.moves import Move
from haulier.domain.unique import Scope, Uniqueness, Conflict
from haulier.domain.worker import Note
from haulier.domain.batch import BatchPolicy
from haulier.exceptions import *
from haulier.ports import JobFilter
from haulier.stores.redis import RedisStore
from haulier.stores.redis.address import Address
from haulier.stores.redis.inbox import RefusedError, read
from support import Hand, RedisPrefix, filled_batch, move, wait_until, work, works, head, items
from haulier.services.ids import new_id

SECRET="s3cret"
@pytest.fixture
def home(tmp_path):
    with servers.or_skip():
        return RedisPrefix("redis", tmp_path)
@pytest.fixture
def client(home):
    with redis.Redis.from_url(home.server, decode_responses=True) as opened:
        yield opened
@pytest.fixture
def server():
    with servers.or_skip(), servers.private("redis") as started:
        yield started

@pytest.mark.parametrize("text", [
    '{"kind":"work","payload":{},"delay":1' + "0"*400 + '}',
    '{"kind":"work","payload":{"x":1e999}}',
    '{"kind":"work","payload":{},"retry":{"delay":1' + "0"*400 + ',"cap":1' + "0"*400 +'}}',
    '{"kind":"work","payload":{},"run_at":"0001-01-01T00:00:00+23:59"}',
    '{"kind":"work","payload":{},"run_at":"9999-12-31T23:59:59-23:59"}',
    '{"kind":"work","payload":{},"on_lost":[]}',
    '{"kind":"work","payload":{},"retry":{"retry_on":[5]}}',
    '{"kind":"work","payload":{},"retry":{"retry_on":5}}',
    '{"kind":"work","payload":{},"retry":{"function":"x"}}',
    '{"kind":"work","payload":{},"retry":{"jitter":"x"}}',
    '{"kind":"work","payload":{},"retry":{"delay":true}}',
    '{"kind":"work","payload":{},"retry":{"retry_on":["\\ud800"]}}',
    '{"kind":"work","payload":{},"retry":{"backoff":[]}}',
    '{"\\ud800":1}',
])
def test_inbox(text):
    try:
        job = read(text.encode(), "default", new_id)
    except RefusedError as e:
        print("refused", e)
    else:
        json.loads(job.payload, parse_constant=lambda x: 1/0)
        if job.retry: job.retry.delay_for(3, .5); from haulier.stores.codes import retry_to_text; retry_to_text(job.retry).encode()
        print(job)

async def test_alone_starvation(store, hand, clock):
    b = await filled_batch(store, 1005)
    for _ in range(2):
        h = await Hand.enlist(store)
        clock.advance(5)
        n=0
        got = await h.claim(1005)
        print(len(got))
        assert len(got)>0 
        await store.retire(h.id)
    h = await Hand.enlist(store)
    # all alone now
    await store.pause(b)
    other = (await store.insert([job := work("bulk")]))
    for _ in range(2):
        h = await Hand.enlist(store)
        clock.advance(5)
        assert [j.id for j in await h.claim(10)] == [job.id]
        await store.retire(h.id)
    clock.advance(60)
    h = await Hand.enlist(store)
    for _ in range(12):
        r = await h.exchange(slots=1)
        if r.jobs: break
        assert r.due_in == 0
    assert [j.id for j in r.jobs] == [job.id]

async def test_full(server):
    with capture_logs():
        async with RedisStore(server.url) as store:
            hand = await Hand.enlist(store)
            await store.insert(works(50))
            b = await filled_batch(store, 1, sealed=False)
            c = redis.Redis(port=server.port)
            c.config_set("maxmemory", "1mb")
            errs=[]
            for name, call in {"enlist": lambda: Hand.enlist(store), "seal": lambda: store.seal(b), "pause": lambda: store.pause(b)}.items():
                try: await call()
                except StoreFullError as e: errs.append(name)
            print(errs)
            assert not errs

async def test_full_regress(server):
    with capture_logs():
        async with RedisStore(server.url) as store:
            await store.insert(works(50))
            c = redis.Redis(port=server.port)
            c.hset("haulier:history", "last", 10)
            c.config_set("maxmemory", "1mb")
            hand = Hand(store, ["default"], ["work"])
            await store.sweep()
            assert store.losses

@pytest.mark.parametrize("url", ["redis://u:s3cret#x@h/0", "redis://:s3cret/x@h/0", "redis://:s3cret?x@h/0", "redis://h/0?sentinel_password=s3cret", "redis://u:s3cret@h:x", "redis://u:a@s3cret@h/x", "redis://u:[s3cret@h/x"])
def test_leak(url):
    with pytest.raises(ConfigurationError) as c:
        Address.of(url)
    print(c.value)
    assert "s3cret" not in str(c.value)

async def test_surrogate_note(store, hand):
    await store.insert([work()])
    job = await hand.claim_one()
    await store.note([Note(job.id, job.lease, message="x\ud800")])

async def test_pausing_hides(store, hand, client, home):
    b = await filled_batch(store, 3000)
    await store.insert([job := work()])
    # the pauser dies after the first script
    await store._write("switch", b, 1)
    reply = await hand.exchange(slots=1)
    print(reply.due_in, len(reply.jobs))
    assert reply.jobs or reply.due_in is not None

async def test_stale_worker(store):
    "Same lease number, another worker"
    a, b = await Hand.enlist(store), await Hand.enlist(store)
    await store.insert([work()])
    job = await a.claim_one()
    fake = job._replace(worker=b.id)
    assert not await b.hand_in(fake, Move.COMPLETE)

async def test_stale_worker2(store):
    a, b = await Hand.enlist(store), await Hand.enlist(store)
    await store.insert([work()])
    job = await a.claim_one()
    fake = job._replace(worker=b.id)
    assert not await b.hand_in(fake, Move.FAIL)
    
async def test_weird_names(store, hand, client, home):
    u = Uniqueness('a"\\/\x00é\u2028|x' , Scope.ACTIVE, Conflict.REJECT)
    await store.insert([work(unique=(u,))])
    with pytest.raises(DuplicateJobError):
        await store.insert([work(unique=(u,))])
    (j,) = await hand.claim(1)
    await hand.hand_in(j, Move.COMPLETE)
    assert client.hlen(home.prefix+"uniques") == 0

async def test_check_inbox(store, client, home):
    client.rpush(home.prefix+"inbox:other", "x")
    found = {f.name if hasattr(f,'name') else f: f for f in await store.check()}
    print(found)
    assert any("1 entries wait" in str(f) for f in found.values())
