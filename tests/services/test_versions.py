"""Stored payloads of another version than the code reads."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel

from haulier import (
    App,
    BaseTaskRunner,
    ConfigurationError,
    PermanentError,
    Secret,
    Snooze,
    ValidationError,
)
from haulier.services.payload import decode, encode, validate
from haulier.services.registry import define_task
from haulier.services.secrets import Sealer
from haulier.testing import memory_store

JOB = "01234567-89ab-7def-8123-456789abcdef"
SEALER = Sealer(lambda: bytes(range(32)))


class Strict(BaseModel, strict=True):
    pair: tuple[int, int]


class Login(BaseModel):
    password: Secret


def read(definition, tree: Any, version: int | None) -> Any:
    return decode(definition, json.dumps(tree).encode(), JOB, SEALER, version)


@pytest.fixture
def app() -> App:
    return App(memory_store())


class TestUpcasts:
    def test_a_chain_leads_to_the_present_version(self, app):
        @app.task(version=3)
        async def greet(first: str, last: str, times: int) -> None: ...

        @app.upcast(greet, from_version=1)
        def split(old: dict[str, Any]) -> dict[str, Any]:
            first, last = old["name"].split()
            return {"first": first, "last": last}

        @app.upcast(greet, from_version=2)
        def count(old: dict[str, Any]) -> dict[str, Any]:
            return {**old, "times": 1}

        definition = app.registry.get("greet")
        from_one = read(definition, {"name": "Ada Lovelace"}, 1)
        assert from_one.model_dump() == {"first": "Ada", "last": "Lovelace", "times": 1}
        from_two = read(definition, {"first": "Ada", "last": "L"}, 2)
        assert from_two.model_dump() == {"first": "Ada", "last": "L", "times": 1}
        now = read(definition, {"first": "Ada", "last": "L", "times": 2}, 3)
        assert now.times == 2

    def test_json_is_read_as_json_also_after_an_upcast(self, app):
        @app.task(version=2)
        async def task(value: Strict) -> None: ...

        app.upcast("task", from_version=1)(lambda old: {"pair": old["both"]})
        assert read(app.registry.get("task"), {"both": [1, 2]}, 1).pair == (1, 2)

    def test_what_comes_out_is_checked(self, app):
        @app.task(version=2)
        async def task(n: int) -> None: ...

        app.upcast(task, from_version=1)(lambda old: {"n": "many"})
        with pytest.raises(ValidationError) as refused:
            read(app.registry.get("task"), {}, 1)
        assert [problem.field for problem in refused.value.problems] == ["n"]

    def test_one_that_is_missing_is_told_with_field_and_reason(self, app):
        @app.task(version=3)
        async def task(n: int) -> None: ...

        app.upcast(task, from_version=1)(lambda old: old)
        reason = "version: is 1, this process reads 3 and has no upcast from version 2"
        with pytest.raises(PermanentError, match=reason):
            read(app.registry.get("task"), {"n": 1}, 1)

    def test_one_that_raises_is_told_by_its_name(self, app):
        @app.task(version=2)
        async def task(n: int) -> None: ...

        app.upcast(task, from_version=1)(lambda old: old["nothing"])
        reason = "version: the upcast from version 1 raised KeyError: 'nothing'"
        with pytest.raises(PermanentError, match=reason):
            read(app.registry.get("task"), {"n": 1}, 1)

    def test_a_newer_one_is_put_off(self):
        def task(n: int) -> None: ...

        with pytest.raises(Snooze):
            read(define_task(task), {"n": 1}, 2)


class TestSecrets:
    def test_they_move_with_their_field_and_stay_sealed(self, app):
        def old(password: Secret, host: str) -> None: ...

        @app.task(kind="old", version=2)
        async def new(login: Login, host: str) -> None: ...

        seen: list[str] = []

        @app.upcast(new, from_version=1)
        def nest(payload: dict[str, Any]) -> dict[str, Any]:
            seen.append(str(payload))
            return {"login": {"password": payload.pop("password")}, **payload}

        was = define_task(old)
        given = validate(was, {"password": "s3cr3t-canary", "host": "h"})
        data = encode(was, given, JOB, SEALER)
        payload = decode(app.registry.get("old"), data, JOB, SEALER, 1)
        assert (payload.login.password.reveal(), payload.host) == ("s3cr3t-canary", "h")
        assert "s3cr3t" not in seen[0]

    def test_a_plain_field_may_become_one_and_one_may_go(self, app):
        def old(token: str, password: Secret) -> None: ...

        @app.task(kind="old", version=2)
        async def new(token: Secret) -> None: ...

        @app.task(kind="older", version=2)
        async def without(token: str) -> None: ...

        for task in (new, without):
            app.upcast(task, from_version=1)(lambda tree: {"token": tree["token"]})
        was = define_task(old)
        data = encode(was, validate(was, {"token": "t", "password": "p"}), JOB, SEALER)
        assert decode(app.registry.get("old"), data, JOB, SEALER, 1).token.reveal() == "t"
        assert decode(app.registry.get("older"), data, JOB, SEALER, 1).token == "t"


class TestDefinitions:
    @pytest.mark.parametrize("version", [0, -1, 1.0, "2", True, None, 1_000_001])
    def test_a_version_that_is_none_is_refused(self, app, version):
        async def task() -> None: ...

        with pytest.raises(ConfigurationError, match="version must be an integer from 1"):
            app.task(version=version)(task)

    @pytest.mark.parametrize("version", [0, 2, 3, "1", True])
    def test_an_upcast_from_no_older_version_is_refused(self, app, version):
        @app.task(version=2)
        async def task() -> None: ...

        with pytest.raises(ConfigurationError, match="from_version must be an integer from 1"):
            app.upcast(task, from_version=version)(lambda old: old)

    def test_a_second_one_or_one_of_an_unknown_kind_is_refused(self, app):
        @app.task(version=2)
        async def task() -> None: ...

        app.upcast(task, from_version=1)(lambda old: old)
        with pytest.raises(ConfigurationError, match="from version 1: is there already"):
            app.upcast(task, from_version=1)(lambda old: old)
        with pytest.raises(ConfigurationError, match=r"'other' .* the kind is not known"):
            app.upcast("other", from_version=1)(lambda old: old)

    async def test_a_job_is_stored_with_its_version(self, app):
        class Start(BaseModel):
            n: int

        class Bulk(BaseTaskRunner[Start, Start]):
            task_type, start_model, item_model = "bulk", Start, Start
            version, item_version = 4, 5

            def expand(self, ctx, start):
                return [start]

            async def run_item(self, ctx, item): ...

        @app.task(version=3)
        async def task() -> None: ...

        app.add_runner(Bulk())
        async with app:
            assert (await app.get(await app.enqueue(task))).version == 3
            assert (await app.get(await app.enqueue("bulk", {"n": 1}))).version == 4
            (only,) = await app.enqueue_many("bulk.item", [{"n": 1}])
            assert (await app.get(only)).version == 5

    async def test_a_finish_callback_has_none(self, app):
        @app.task
        async def task() -> None: ...

        @app.task(version=2)
        async def notify(batch_id: str, state: str, counts: dict[str, int]) -> None: ...

        async with app:
            with pytest.raises(ConfigurationError, match="notify has a version"):
                await app.enqueue_batch(task, [{}], on_finish=notify)
