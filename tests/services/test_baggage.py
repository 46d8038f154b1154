"""Baggage as producers bind it: what may be in it, and which jobs carry it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counting import Counting
from haulier import App, JobFilter, ValidationError, baggage
from haulier.services.baggage import NAME, RESERVED, baggage_of, baggage_text, carried
from haulier.testing import memory_store, run_until_idle


@pytest.fixture
def app() -> App:
    app = App(memory_store())
    app.add_runner(Counting())

    @app.task
    async def task() -> None: ...

    return app


async def carried_by(app: App, job_id: str) -> dict[str, Any]:
    return baggage_of((await app.get(job_id)).baggage)


class TestBinding:
    def test_blocks_add_to_each_other_and_end(self):
        assert carried() is None
        with baggage(a="1", b=2):
            with baggage(b=3, c=True):
                assert baggage_of(carried()) == {"a": "1", "b": 3, "c": True}
                with baggage(a=None, b=None, c=None):
                    assert carried() is None
            assert baggage_of(carried()) == {"a": "1", "b": 2}
        assert carried() is None

    async def test_it_belongs_to_the_task_that_bound_it(self):
        async def other() -> str | None:
            return carried()

        before = asyncio.create_task(other())
        with baggage(a=1):
            assert await asyncio.create_task(other()) == '{"a":1}'
        assert await before is None

    @pytest.mark.parametrize(
        ("values", "reason"),
        [
            ({"a": ["x"]}, "baggage.a: must be a text, a number or a boolean, not a list"),
            ({"a": {"b": 1}}, "baggage.a: must be a text"),
            ({"a": b"x"}, "baggage.a: must be a text"),
            ({"a": float("nan")}, "baggage.a: is NaN or Infinity"),
            ({"a": float("-inf")}, "baggage.a: is NaN or Infinity"),
            ({"event": "x"}, "baggage.event: is what log events have themselves"),
            ({"ä": "x"}, "baggage.ä: is not a name"),
            ({"a" * 65: "x"}, "is not a name"),
            ({"a-b": "x"}, "baggage.a-b: is not a name"),
            ({"a": "x" * 2048}, "baggage: is 2,056 characters long as JSON, at most 2,048"),
        ],
    )
    def test_what_it_cannot_be_is_refused(self, values, reason):
        with pytest.raises(ValidationError) as refused, baggage(**values):
            pass
        assert reason in str(refused.value)
        assert carried() is None

    @given(
        st.dictionaries(
            st.from_regex(NAME.pattern.replace("\\Z", ""), fullmatch=True).filter(
                lambda name: name not in RESERVED
            ),
            st.text(max_size=9) | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
            max_size=4,
        )
    )
    def test_what_is_stored_is_ascii_and_the_same_again(self, values):
        text = baggage_text(values)
        if not values:
            assert text is None
            return
        assert text is not None
        assert text.isascii()
        assert "\0" not in text
        assert json.loads(text) == values


class TestEnqueue:
    async def test_every_way_to_enqueue(self, app):
        async with app:
            with baggage(request_id="r-1"):
                single = await app.enqueue("task")
                (one_of_many,) = await app.enqueue_many("task", [{}])
                batch = await app.enqueue_batch("task", [{}, {}])
                bulk = await app.enqueue("counting", {"count": 1})
            plain = await app.enqueue("task")
            items = (await app.store.find(_items_of(batch))).jobs
            for job_id in (single, one_of_many, batch, bulk, *(item.id for item in items)):
                assert await carried_by(app, job_id) == {"request_id": "r-1"}
            assert (await app.get(plain)).baggage is None

    def test_a_thread_gives_its_own(self, app):
        with app, baggage(request_id="r-2"):
            job_id = app.enqueue_sync("task")
            assert app._blocking(lambda: carried_by(app, job_id)) == {"request_id": "r-2"}

    async def test_a_request_with_other_baggage_is_the_same_request(self, app):
        async with app:
            with baggage(request_id="r-1"):
                first = await app.enqueue("task", idempotency_key="k")
            with baggage(request_id="r-2"):
                assert await app.enqueue("task", idempotency_key="k") == first
            assert await carried_by(app, first) == {"request_id": "r-1"}

    async def test_jobs_run_in_a_test_carry_theirs_alone(self, app):
        seen: list[str | None] = []

        @app.task
        async def telling() -> None:
            seen.append(carried())

        async with app:
            await app.enqueue(telling)
            with baggage(a=1):
                await app.enqueue(telling)
                await run_until_idle(app)
                assert baggage_of(carried()) == {"a": 1}
        assert seen == [None, '{"a":1}']


def _items_of(batch_id: str):
    return JobFilter(batch_id=batch_id)
