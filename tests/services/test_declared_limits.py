"""Limits as an app's code declares them, and as an operator changes them through the library."""

from __future__ import annotations

import asyncio
import getpass
import socket

import pytest
from pydantic import BaseModel

from haulier import (
    App,
    BaseTaskRunner,
    Breaker,
    Circuit,
    ConfigurationError,
    JobStateError,
    Limit,
    LimitNotFoundError,
    Rate,
    TaskLimit,
    ValidationError,
)
from haulier.testing import memory_store
from support import wait_until

HERE = f"{getpass.getuser()}@{socket.gethostname()}"


def new_app() -> App:
    return App(memory_store())


def bad_limits() -> list:
    return [
        ([TaskLimit(concurrency=0)], "concurrency: must be an integer from 1"),
        ([TaskLimit(concurrency=True)], "concurrency: must be an integer from 1"),
        ([TaskLimit(concurrency=1.5)], "concurrency: must be an integer from 1"),
        (["0/m"], "rate: count must be an integer from 1"),
        (["often"], 'rate: must look like "30/m"'),
        (["30/0s"], "rate: per must be seconds from"),
        ([TaskLimit(rate=5)], "rate: must be a Rate"),
        ([TaskLimit(breaker=0.5)], "breaker: must be a Breaker"),
        ([TaskLimit()], "limit: give one of concurrency, rate and breaker"),
        ([TaskLimit(concurrency=1, rate="1/s")], "limit: give one of"),
        ([TaskLimit(concurrency=1, per_key=1)], "per_key: must be true or false"),
        ([TaskLimit(concurrency=1, name="a b")], "name: must be 1 to 200 letters"),
        ([TaskLimit(concurrency=1), TaskLimit(concurrency=2)], "two are called"),
        ([5], "5 is no TaskLimit and no rate"),
    ]


class TestDeclaring:
    """What `@app.task(limits=…)` and `app.limit` say."""

    @pytest.mark.parametrize(("limits", "reason"), bad_limits())
    def test_what_is_no_limit_is_refused_when_the_task_is_defined(self, limits, reason):
        app = new_app()
        with pytest.raises(ConfigurationError, match=f"(?s)'fetch': limits: .*({reason})"):

            @app.task(limits=limits)
            async def fetch() -> None: ...

        assert "fetch" not in app.registry
        assert app.registry.limits() == ()

    def test_names_come_from_the_kind(self):
        app = new_app()

        @app.task(
            kind="web.fetch",
            limits=[
                "30/m",
                TaskLimit(rate=Rate(5), per_key=True),
                TaskLimit(concurrency=9),
                TaskLimit(concurrency=1, per_key=True),
                TaskLimit(concurrency=2, per_key=True, name="two"),
                TaskLimit(breaker=Breaker(least=9)),
            ],
        )
        async def fetch() -> None: ...

        assert app.registry.limits() == (
            Limit(name="web.fetch/rate", rate=Rate(30, 60.0), kind="web.fetch"),
            Limit(name="web.fetch/key-rate", rate=Rate(5), kind="web.fetch", per_key=True),
            Limit(name="web.fetch/concurrency", concurrency=9, kind="web.fetch"),
            Limit(name="web.fetch/key-concurrency", concurrency=1, kind="web.fetch", per_key=True),
            Limit(name="web.fetch/two", concurrency=2, kind="web.fetch", per_key=True),
            Limit(
                name="web.fetch/breaker", breaker=Breaker(least=9), kind="web.fetch", per_key=True
            ),
        )

    def test_a_text_alone_is_one_rate(self):
        app = new_app()

        @app.task(limits="5/s")
        async def fetch() -> None: ...

        assert [limit.rate for limit in app.registry.limits()] == [Rate(5)]

    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            ({"concurrency": 0}, "concurrency: must be an integer"),
            ({"rate": "x"}, "rate: must look like"),
            ({"concurrency": 1, "kind": "not a kind"}, "kind: is not a dotted name"),
            ({"concurrency": 1, "queue": 7}, "queue: is not a dotted name"),
            ({"concurrencies": 1}, "concurrencies: is no option"),
            ({}, "give one of"),
        ],
    )
    def test_a_wide_one_that_is_none_is_refused(self, options, reason):
        app = new_app()
        with pytest.raises(ConfigurationError, match=reason):
            app.limit("wide", **options)
        assert app.registry.limits() == ()

    def test_a_name_is_declared_once(self):
        app = new_app()
        app.limit("fetch/rate", rate="1/s")
        with pytest.raises(ConfigurationError, match="'fetch/rate' is declared twice"):

            @app.task(limits=["1/s"])
            async def fetch() -> None: ...

        with pytest.raises(ConfigurationError, match="declared twice"):
            app.limit("fetch/rate", concurrency=1)

    def test_those_of_a_bulk_kind_are_for_its_items(self):
        class Nothing(BaseModel): ...

        class Bulk(BaseTaskRunner[Nothing, Nothing]):
            task_type, start_model, item_model, limits = "bulk", Nothing, Nothing, ("9/m",)

            def expand(self, ctx, start):
                return ()

            async def run_item(self, ctx, item): ...

        app = new_app()
        app.add_runner(Bulk())
        assert [(limit.name, limit.kind) for limit in app.registry.limits()] == [
            ("bulk.item/rate", "bulk.item")
        ]


class TestWorkersDeclare:
    """A worker that starts puts what its app declares into the store."""

    async def test_before_it_runs_anything(self):
        app, at_once, most = new_app(), 0, 0
        app.limit("all", concurrency=2)

        @app.task(limits=[TaskLimit(concurrency=1, per_key=True)])
        async def work() -> None:
            nonlocal at_once, most
            at_once += 1
            most = max(most, at_once)
            await asyncio.sleep(0.001)
            at_once -= 1

        async with app:
            ids = [i for k in "abcd" for i in await app.enqueue_many(work, [{}] * 5, key=k)]
            async with app.working():
                for job_id in ids:
                    await app.result(job_id, timeout=30)
            found = await app.limits.all()
        assert most == 2
        assert [(state.limit.name, state.declared, state.changed_by) for state in found] == [
            ("all", True, HERE),
            ("work/key-concurrency", True, HERE),
        ]

    async def test_producers_do_not(self):
        app = new_app()

        @app.task(limits=["1/s"])
        async def work() -> None: ...

        async with app:
            await app.enqueue(work)
            assert await app.limits.all() == []

    async def test_what_an_operator_changed_stays(self):
        app = new_app()

        @app.task(limits=["1/h"])
        async def work(number: int) -> None: ...

        async with app:
            async with app.working():
                await app.result(await app.enqueue(work, {"number": 1}), timeout=30)
            assert await app.limits.set("work/rate", rate="1000/s", kind="work", by="ada")
            async with app.working():
                ids = await app.enqueue_many(work, [{"number": number} for number in range(20)])
                for job_id in ids:
                    await app.result(job_id, timeout=30)
            (state,) = await app.limits.all()
            assert (state.limit.rate, state.declared) == (Rate(1000), False)
            assert state.changed_by == "ada"
            await app.limits.delete("work/rate")
            async with app.working():
                await app.result(await app.enqueue(work, {"number": 1}), timeout=30)
            assert await app.limits.all() == []


class TestChanging:
    """`app.limits`."""

    async def test_set_list_and_delete(self):
        async with new_app() as app:
            assert await app.limits.set("api", rate="30/m", kind="fetch")
            assert not await app.limits.set("api", rate="30/m", kind="fetch", by="bob")
            assert await app.limits.set("api", concurrency=5, by="bob")
            (state,) = await app.limits.all()
            assert state.limit == Limit(name="api", concurrency=5)
            assert state.changed_by == "bob"
            await app.limits.delete("api")
            assert await app.limits.all() == []
            with pytest.raises(LimitNotFoundError, match="api"):
                await app.limits.delete("api")

    @pytest.mark.parametrize(
        ("name", "options", "field"),
        [
            ("l", {"concurrency": 0}, "concurrency"),
            ("l", {"concurrency": 10**7}, "concurrency"),
            ("l", {"rate": "30 a minute"}, "rate"),
            ("l", {"rate": "0/s"}, "rate"),
            ("l", {"concurrency": 1, "kind": "no kind"}, "kind"),
            ("l", {"concurrency": 1, "queue": "no queue"}, "queue"),
            ("l", {"concurrency": 1, "per_key": "yes"}, "per_key"),
            ("l", {"concurrency": 1, "breaker": Breaker()}, "limit"),
            ("l", {"concurrency": 1, "by": ""}, "by"),
            ("l", {"concurrency": 1, "by": "a\nb"}, "by"),
            ("l", {"burst": 1, "rate": "1/s"}, "burst"),
            ("", {"concurrency": 1}, "name"),
            ("two words", {"concurrency": 1}, "name"),
            (None, {"concurrency": 1}, "name"),
        ],
    )
    async def test_bad_ones_are_refused_with_the_field(self, name, options, field):
        async with new_app() as app:
            with pytest.raises(ValidationError) as caught:
                await app.limits.set(name, **options)
            assert [problem.field for problem in caught.value.problems] == [field]
            assert await app.limits.all() == []

    async def test_keys(self):
        async with new_app() as app:
            with pytest.raises(LimitNotFoundError):
                await app.limits.keys("none")
            with pytest.raises(ValidationError, match="limit"):
                await app.limits.keys("none", limit=0)

    async def test_a_breaker_is_seen_and_reset(self):
        app, broken, ran = new_app(), True, []
        app.limit("host", breaker=Breaker(least=2, pause=3600.0))

        @app.task
        async def fetch() -> None:
            ran.append(1)
            if broken:
                raise LookupError("the host is away")

        async with app:
            async with app.working():
                ids = [await app.enqueue(fetch, key="host-1") for _ in range(4)]

                async def opened() -> bool:
                    keys = await app.limits.keys("host")
                    return any(state.circuit is Circuit.OPEN for state in keys)

                await wait_until(opened)
                broken = False
                assert len(ran) >= 2
                with pytest.raises(LimitNotFoundError):
                    await app.limits.reset("other", "host-1")
                assert await app.limits.reset("host", "host-1")
                assert not await app.limits.reset("host", "host-2")
                for job_id in ids:
                    await app.jobs.wait(job_id, timeout=30)
            await app.limits.set("host", concurrency=1)
            with pytest.raises(JobStateError):
                await app.limits.reset("host", "host-1")
