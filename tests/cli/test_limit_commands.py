"""`haulier limits`: each word by its exit code, its table and its JSON."""

from __future__ import annotations

import asyncio
import getpass
import socket

import pytest

from haulier import Breaker, Circuit, Limit, Rate
from haulier.domain.moves import Move
from haulier.stores import open_store
from processes import haulier, haulier_json
from support import Hand, works

STORE = ("--store", "sqlite:///jobs.db")
USAGE, NOT_FOUND, CONFLICT = 2, 3, 4
HERE = f"{getpass.getuser()}@{socket.gethostname()}"


@pytest.fixture
async def store(tmp_path):
    async with open_store(f"sqlite:///{tmp_path}/jobs.db") as store:
        yield store


@pytest.fixture
def ask(tmp_path):
    async def ask(*arguments):
        return await asyncio.to_thread(haulier, tmp_path, "limits", *arguments, *STORE)

    return ask


@pytest.fixture
def answer(tmp_path):
    async def answer(*arguments):
        return await asyncio.to_thread(haulier_json, tmp_path, "limits", *arguments, *STORE)

    return answer


@pytest.mark.parametrize(
    ("arguments", "limit"),
    [
        (["--per-key", "--concurrency", "1"], Limit(name="l", concurrency=1, per_key=True)),
        (
            ["--kind", "fetch", "--queue", "slow", "--rate", "30/m", "--burst", "5"],
            Limit(name="l", rate=Rate(30, 60.0, burst=5), kind="fetch", queue="slow"),
        ),
        (["--breaker"], Limit(name="l", breaker=Breaker(), per_key=True)),
        (
            [
                *("--per-key", "--breaker", "--failures", "0.25", "--least", "7"),
                *("--window", "90", "--pause", "9.5", "--probes", "2"),
            ],
            Limit(
                name="l",
                breaker=Breaker(failures=0.25, least=7, window=90.0, pause=9.5, probes=2),
                per_key=True,
            ),
        ),
    ],
)
async def test_set_puts_what_it_says(store, answer, arguments, limit):
    document = await answer("set", "l", *arguments)
    assert document == {**limit.as_json(), "changed": True}
    (state,) = await store.limits().list()
    assert (state.limit, state.changed_by, state.declared) == (limit, HERE, False)
    document = await answer("set", "l", *arguments, "--by", "ada")
    assert document["changed"] is False


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["l", "--concurrency", "0"], "concurrency: must be an integer"),
        (["l", "--concurrency", "many"], "--concurrency"),
        (["l", "--rate", "often"], "rate: must look like"),
        (["l", "--rate", "0/m"], "rate: must be an integer"),
        (["l", "--rate", "1/m", "--burst", "0"], "burst: must be an integer"),
        (["l", "--burst", "3", "--concurrency", "1"], "burst: goes with --rate"),
        (["l", "--breaker", "--failures", "0"], "failures: must be a share"),
        (["l", "--breaker", "--failures", "nan"], "failures: must be a share"),
        (["l", "--breaker", "--pause", "-1"], "pause: must be seconds"),
        (["l", "--concurrency", "1", "--least", "3"], "least: goes with --breaker"),
        (["l"], "give one of concurrency, rate and breaker"),
        (["l", "--concurrency", "1", "--rate", "1/s"], "give one of"),
        (["l", "--concurrency", "1", "--kind", "a b"], "kind: is not a dotted name"),
        (["l", "--concurrency", "1", "--queue", ""], "queue: is not a dotted name"),
        (["l", "--concurrency", "1", "--by", ""], "by: must be a text"),
        (["two words", "--concurrency", "1"], "name: must be"),
        (["half \udcff", "--concurrency", "1"], "UTF-8"),
    ],
)
async def test_bad_ones_are_refused_by_field_and_nothing_is_put(store, ask, arguments, told):
    done = await ask("set", *arguments)
    assert done.returncode == USAGE, done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert await store.limits().list() == []


async def test_list_shows_all_with_who_and_when(store, ask, answer):
    assert (await answer("list"))["limits"] == []
    limits = store.limits()
    await limits.put(Limit(name="all", concurrency=3), by="ada")
    await limits.put(Limit(name="api", rate=Rate.parse("30/m"), kind="work"), by="bob")
    await limits.put(Limit(name="work/breaker", breaker=Breaker(), per_key=True), by="ci")
    await store.insert(works(2))
    await (await Hand.enlist(store)).claim(1)
    all_of_them, api, breaker = (await answer("list"))["limits"]
    assert all_of_them["running"] == 1
    assert (api["rate"], api["kind"]) == ({"count": 30, "per": 60.0, "burst": None}, "work")
    assert breaker["changed_by"] == "ci"
    assert breaker["changed_at"].endswith("Z")
    text = (await ask("list")).stdout
    assert "3 at once" in text
    assert "30/m" in text
    assert "breaker: 50% of 5 in 1.0 min, then 30.0 s" in text
    assert "each key of all jobs" in text


async def test_keys_of_a_breaker_are_shown_and_it_is_reset(store, ask, answer):
    breaker = Breaker(least=2, pause=3600.0)
    await store.limits().put(Limit(name="hosts", breaker=breaker, per_key=True), by="ada")
    await store.insert([*works(3, key="a"), *works(1, key="b")])
    hand = await Hand.enlist(store)
    for job in await hand.claim(9):
        if job.key == "a":
            await hand.hand_in(job, Move.FAIL)
    document = await answer("keys", "hosts")
    assert [(key["key"], key["circuit"]) for key in document["keys"]] == [
        ("a", Circuit.OPEN),
        ("b", Circuit.CLOSED),
    ]
    assert document["keys"][0]["ready_at"] is not None
    assert [key["key"] for key in (await answer("keys", "hosts", "--after", "a"))["keys"]] == ["b"]
    assert "open" in (await ask("keys", "hosts")).stdout
    assert await answer("reset", "hosts", "a") == {"name": "hosts", "key": "a", "reset": True}
    assert (await answer("reset", "hosts", "z"))["reset"] is False
    assert [key["key"] for key in (await answer("keys", "hosts"))["keys"]] == ["b"]


async def test_what_is_not_there(store, ask, answer):
    await store.limits().put(Limit(name="all", concurrency=3, per_key=True), by="ada")
    for arguments in (["keys", "none"], ["reset", "none", "a"], ["delete", "none"]):
        assert (await ask(*arguments)).returncode == NOT_FOUND
    assert (await ask("reset", "all", "a")).returncode == CONFLICT
    assert await answer("delete", "all") == {"name": "all", "deleted": True}
    assert await store.limits().list() == []


def test_a_store_that_is_not_there_is_not_made(tmp_path):
    for arguments in (["list"], ["set", "l", "--concurrency", "1"]):
        assert haulier(tmp_path, "limits", *arguments, *STORE).returncode == USAGE
    assert not (tmp_path / "jobs.db").exists()
