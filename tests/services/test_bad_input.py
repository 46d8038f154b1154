"""Bad input is refused at the edge, with the field and the reason, and nothing is enqueued."""

from __future__ import annotations

import datetime as dt
import math
from decimal import Decimal
from typing import Any

import pytest

from haulier import App
from haulier.domain.job import LONGEST_DELAY
from haulier.domain.retry import RetryPolicy
from haulier.exceptions import InvalidTaskTypeError, ValidationError
from haulier.ports import JobFilter
from haulier.services.options import Unique
from haulier.services.registry import MAX_PAYLOAD

NAN, INFINITY = math.nan, math.inf
HALF = "half a \ud800 character"
HUGE = 10**6
"""Digits of a number that must not keep anybody busy."""
BEYOND = 10**40


async def take(value: Any) -> None: ...


async def count(n: int) -> None: ...


@pytest.fixture
def app(app: App) -> App:
    app.task(take)
    app.task(count)
    return app


async def refused(app: App, kind: str, payload: Any, **options: Any) -> dict[str, str]:
    """The problems by field; each of the ways to enqueue refuses, and nothing is in the store."""
    told = []
    for call in (
        lambda: app.enqueue(kind, payload, **options),
        lambda: app.enqueue_many(kind, [payload], **options),
        lambda: app.enqueue_batch(kind, [payload], **options),
    ):
        with pytest.raises(ValidationError) as caught:
            await call()
        assert caught.value.problems
        assert all(problem.field and problem.reason for problem in caught.value.problems)
        str(caught.value).encode()
        fields = {problem.field: problem.reason for problem in caught.value.problems}
        told.append({name.removeprefix("items[0]."): why for name, why in fields.items()})
    assert told[0].keys() == told[1].keys() == told[2].keys()
    assert await app.store.counts() == {}
    return told[0]


def nest(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


class TestOptions:
    """What is said about a job beside its payload."""

    @pytest.mark.parametrize(
        "delay", [-1, -0.001, NAN, INFINITY, -INFINITY, LONGEST_DELAY + 1, BEYOND, "5", [], 1j]
    )
    async def test_delay(self, app, delay):
        assert (await refused(app, "take", {"value": 1}, delay=delay)).keys() == {"delay"}

    @pytest.mark.parametrize(
        "priority", [NAN, INFINITY, 1.5, 10_001, -10_001, BEYOND, "1", Decimal(1), []]
    )
    async def test_priority(self, app, priority):
        assert (await refused(app, "take", {"value": 1}, priority=priority)).keys() == {"priority"}

    @pytest.mark.parametrize("retry", [NAN, 3, "never", {"max_attempts": 3}, RetryPolicy])
    async def test_retry(self, app, retry):
        assert (await refused(app, "take", {"value": 1}, retry=retry)).keys() == {"retry"}

    @pytest.mark.parametrize(
        "fields",
        [
            {"delay": NAN},
            {"delay": -1},
            {"cap": NAN},
            {"cap": INFINITY},
            {"max_attempts": NAN},
            {"max_attempts": 0},
            {"max_attempts": 2.5},
            {"delay": 5, "cap": 4},
        ],
    )
    async def test_a_retry_policy_of_nonsense(self, app, fields):
        """Whether the policy itself cannot be made or the job with it is refused."""
        with pytest.raises((ValueError, ValidationError)):
            await app.enqueue("take", {"value": 1}, retry=RetryPolicy(**fields))
        assert await app.store.counts() == {}

    async def test_a_retry_policy_that_cannot_be_stored(self, app):
        retry = RetryPolicy(function=lambda attempt, error, message: 1.0)
        assert (await refused(app, "take", {"value": 1}, retry=retry)).keys() == {"retry"}

    @pytest.mark.parametrize(
        "queue",
        [
            "",
            " ",
            "two words",
            "dash-ed",
            "a/b",
            "a..b",
            ".a",
            "a.",
            "1st",
            "naïve",
            "a\n",
            "a\x00",
            HALF,
            "a'; DROP TABLE jobs; --",
            "*",
            "x" * 201,
            7,
            b"bytes",
            ["default"],
        ],
    )
    async def test_queue(self, app, queue):
        assert (await refused(app, "take", {"value": 1}, queue=queue)).keys() == {"queue"}

    @pytest.mark.parametrize("key", ["", "k" * 201, HALF, "\udfff", 7, b"bytes", ["k"]])
    async def test_key(self, app, key):
        assert (await refused(app, "take", {"value": 1}, key=key)).keys() == {"key"}

    @pytest.mark.parametrize(
        "run_at",
        [NAN, 0, "2026-01-01T00:00:00Z", dt.datetime(2026, 1, 1), dt.date(2026, 1, 1)],  # noqa: DTZ001
    )
    async def test_run_at(self, app, run_at):
        assert (await refused(app, "take", {"value": 1}, run_at=run_at)).keys() == {"run_at"}

    @pytest.mark.parametrize("year", [1, 9999])
    async def test_instants_far_away(self, app, year):
        """Either end of what a date can be: taken as it is."""
        when = dt.datetime(year, 1, 1, tzinfo=dt.UTC)
        job_id = await app.enqueue("take", {"value": 1}, run_at=when)
        assert (await app.get(job_id)).state == "pending"

    @pytest.mark.parametrize(
        "job_id", ["", "x", "1" * 36, HALF, 7, b"0" * 16, "01234567-89ab-7def-8123-456789abcde\n"]
    )
    async def test_job_id(self, app, job_id):
        for call in (app.enqueue, app.enqueue_batch):
            payload = {"value": 1} if call == app.enqueue else [{"value": 1}]
            with pytest.raises(ValidationError) as caught:
                await call("take", payload, job_id=job_id)
            assert [problem.field for problem in caught.value.problems] == ["job_id"]
        assert await app.store.counts() == {}

    @pytest.mark.parametrize("value", ["", "k" * 201, HALF, 7, b"bytes", ["k"]])
    async def test_idempotency_key(self, app, value):
        with pytest.raises(ValidationError) as caught:
            await app.enqueue("take", {"value": 1}, idempotency_key=value)
        assert [problem.field for problem in caught.value.problems] == ["idempotency_key"]
        assert await app.store.counts() == {}

    @pytest.mark.parametrize(
        ("value", "field"),
        [
            ("", "unique.by"),
            ("k" * 201, "unique.by"),
            (HALF, "unique.by"),
            (7, "unique"),
            (["k"], "unique"),
            (Unique(by="k", scope="for ever"), "unique.scope"),
            (Unique(by="k", conflict="match"), "unique.conflict"),
            (Unique(by="k", conflict=HALF), "unique.conflict"),
            (Unique(by="k", scope=[]), "unique.scope"),
            (Unique(by="k", scope="period"), "unique.period"),
            (Unique(by="k", period=5), "unique.period"),
            (Unique(by="k", scope="period", period=NAN), "unique.period"),
            (Unique(by="k", scope="period", period=-1), "unique.period"),
            (Unique(by="k", scope="period", period=BEYOND), "unique.period"),
            (Unique(by="k", scope="period", period="1"), "unique.period"),
        ],
    )
    async def test_unique(self, app, value, field):
        with pytest.raises(ValidationError) as caught:
            await app.enqueue("take", {"value": 1}, unique=value)
        assert [problem.field for problem in caught.value.problems] == [field]
        str(caught.value).encode()
        assert await app.store.counts() == {}

    @pytest.mark.parametrize("name", ["concurrency", "batch_size", "max_failures"])
    @pytest.mark.parametrize("value", [-1, NAN, 1.5, "1", True, [], 2**63])
    async def test_limits_of_batches(self, app, name, value):
        with pytest.raises(ValidationError) as caught:
            await app.enqueue_batch("take", [{"value": 1}], **{name: value})
        assert [problem.field for problem in caught.value.problems] == [name]
        assert await app.store.counts() == {}

    @pytest.mark.parametrize("name", ["concurrency", "batch_size", "max_failures"])
    async def test_a_single_job_has_no_such_limits(self, app, name):
        with pytest.raises(ValidationError) as caught:
            await app.enqueue("take", {"value": 1}, **{name: 1})
        assert [problem.field for problem in caught.value.problems] == [name]

    async def test_options_that_are_none(self, app):
        assert (await refused(app, "take", {"value": 1}, colour="red")).keys() == {"colour"}

    async def test_all_that_is_wrong_is_told_at_once(self, app):
        told = await refused(app, "take", {"value": 1}, delay=NAN, priority=NAN, key=HALF, queue="")
        assert told.keys() == {"delay", "priority", "key", "queue"}


class TestKind:
    """Kinds that nobody registered."""

    @pytest.mark.parametrize(
        "kind", ["nothing", "", "Take", "take ", "os.system", HALF, "x" * 100_000, "tak\x00e"]
    )
    async def test_unknown_kinds(self, app, kind):
        with pytest.raises(InvalidTaskTypeError) as caught:
            await app.enqueue(kind, {"value": 1})
        (problem,) = caught.value.problems
        assert problem.field == "kind"
        assert len(str(caught.value)) < 1000
        assert await app.store.counts() == {}

    async def test_a_batch_with_an_unknown_callback(self, app):
        with pytest.raises(InvalidTaskTypeError):
            await app.enqueue_batch("take", [{"value": 1}], on_finish="nothing")
        assert await app.store.counts() == {}


class TestPayload:
    """Payloads that no store should hold."""

    @pytest.mark.parametrize("size", [MAX_PAYLOAD, 100 * 1024 * 1024])
    async def test_one_that_is_too_large(self, app, size):
        big = {"value": "x" * size}
        for call in (app.enqueue("take", big), app.enqueue_batch("take", [big])):
            with pytest.raises(ValidationError) as caught:
                await call
            (problem,) = caught.value.problems
            assert problem.field.endswith("payload")
            assert "262,144" in problem.reason
            assert len(str(caught.value)) < 1000
        assert await app.store.counts() == {}

    @pytest.mark.parametrize("levels", [32, 1000, 10_000, 100_000])
    @pytest.mark.parametrize("shape", ["lists", "objects"])
    async def test_one_that_is_nested_too_deeply(self, app, levels, shape):
        value: Any = 0
        for _ in range(levels):
            value = [value] if shape == "lists" else {"a": value}
        told = await refused(app, "take", {"value": value})
        assert len(told) == 1

    @pytest.mark.parametrize("where", ["value", "name", "deep"])
    async def test_half_a_character(self, app, where):
        payload = {
            "value": {"value": HALF},
            "name": {"value": {HALF: 1}},
            "deep": {"value": [[{"a": [HALF]}]]},
        }[where]
        assert await refused(app, "take", payload)

    @pytest.mark.parametrize("name", ["val\ud800ue", "other"])
    async def test_names_that_the_task_does_not_have(self, app, name):
        assert await refused(app, "take", {name: 1})

    @pytest.mark.parametrize("number", [NAN, INFINITY, -INFINITY])
    async def test_numbers_that_json_cannot_carry(self, app, number):
        for payload in ({"value": number}, {"value": [{"a": number}]}):
            assert await refused(app, "take", payload)

    @pytest.mark.parametrize(
        ("kind", "payload"), [("take", {"value": -(10**HUGE)}), ("count", {"n": 10**HUGE})]
    )
    async def test_numbers_of_a_million_digits(self, app, kind, payload):
        with pytest.raises(ValidationError) as caught:
            await app.enqueue(kind, payload)
        assert caught.value.problems
        assert len(str(caught.value)) < 1000
        assert await app.store.counts() == {}

    async def test_numbers_of_a_million_digits_as_text(self, app):
        assert (await refused(app, "count", {"n": "9" * HUGE})).keys() == {"n"}

    @pytest.mark.parametrize("value", [object(), print, type, range])
    async def test_what_is_no_data(self, app, value):
        assert await refused(app, "take", {"value": value})

    @pytest.mark.parametrize("payload", [[], [1], "text", 7, b"{}", object()])
    async def test_what_is_no_object(self, app, payload):
        with pytest.raises(ValidationError) as caught:
            await app.enqueue("take", payload or [0])
        assert [problem.field for problem in caught.value.problems] == ["payload"]
        assert await app.store.counts() == {}

    async def test_something_that_holds_itself(self, app):
        ring: list[Any] = []
        ring.append(ring)
        assert await refused(app, "take", {"value": ring})

    async def test_one_bad_item_among_good_ones(self, app):
        payloads = [{"n": 1}, {"n": 2}, {"n": "three"}, {"n": 4}]
        for call in (app.enqueue_many, app.enqueue_batch):
            with pytest.raises(ValidationError) as caught:
                await call("count", payloads)
            assert [problem.field for problem in caught.value.problems] == ["items[2].n"]
        assert await app.store.counts() == {}


class TestLimits:
    """A limit that is no count of jobs is refused before anything is done to any."""

    @pytest.mark.parametrize("verb", ["cancel_all", "retry_all", "delete_all", "retry_failed"])
    async def test_of_what_is_done_to_many(self, app, verb):
        ids = await app.enqueue_many("take", [{"value": n} for n in range(3)])
        batch = await app.enqueue_batch("take", [{"value": n} for n in range(3)])
        await app.cancel(ids[0])
        before = await app.store.counts()
        target = batch if verb == "retry_failed" else JobFilter()
        with pytest.raises(ValidationError) as caught:
            await getattr(app.batches if verb == "retry_failed" else app, verb)(target, limit=-1)
        assert [problem.field for problem in caught.value.problems] == ["limit"]
        assert await app.store.counts() == before

    @pytest.mark.parametrize("limit", [0, -1])
    async def test_of_a_page(self, app, limit):
        await app.enqueue("take", {"value": 1})
        with pytest.raises(ValidationError) as caught:
            await app.find(limit=limit)
        assert [problem.field for problem in caught.value.problems] == ["limit"]
