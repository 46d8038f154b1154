"""How long another system asked us to wait."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haulier import JobState, RetryPolicy
from haulier.exceptions import RateLimitError
from haulier.worker.retry_after import LONGEST_RETRY_AFTER, retry_after
from support import wait_until

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


def told(**attributes: Any) -> Exception:
    error = Exception("slow down")
    for name, value in attributes.items():
        setattr(error, name, value)
    return error


def answered(header: Any) -> httpx.HTTPStatusError:
    response = httpx.Response(429, headers={"RETRY-AFTER": header})
    request = httpx.Request("GET", "http://127.0.0.1")
    return httpx.HTTPStatusError("too many", request=request, response=response)


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (told(retry_after=7), 7),
        (told(retry_after=0.5), 0.5),
        (told(retry_after=timedelta(minutes=2)), 120),
        (told(retry_after="9"), 9),
        (RateLimitError(retry_after=3), 3),
        (RateLimitError(), None),
        (answered("120"), 120),
        (answered(" 5 "), 5),
        (answered("0"), 0),
        (answered("Thu, 01 Jan 2026 12:01:40 GMT"), 100),
        (answered("Thursday, 01-Jan-26 12:01:40 GMT"), 100),
        (answered("Thu Jan  1 12:01:40 2026"), 100),
        (answered("Thu, 01 Jan 2026 11:00:00 GMT"), 0),
        (told(headers={"Retry-After": "4"}), 4),
        (told(headers={"retry-after": "4"}), 4),
        (told(retry_after=None, headers={"Retry-After": "4"}), 4),
        (told(retry_after=-5, headers={"Retry-After": "4"}), 4),
        # A day is the most.
        (told(retry_after=10**9), LONGEST_RETRY_AFTER),
        (answered("9" * 500), LONGEST_RETRY_AFTER),
        (answered("Thu, 01 Jan 2099 12:00:00 GMT"), LONGEST_RETRY_AFTER),
        (told(retry_after=timedelta(days=9)), LONGEST_RETRY_AFTER),
        # Nonsense says nothing.
        (Exception("plain"), None),
        (told(retry_after=-1), None),
        (told(retry_after=math.nan), None),
        (told(retry_after=math.inf), None),
        (told(retry_after=True), None),
        (told(retry_after=timedelta(seconds=-1)), None),
        (told(retry_after=object()), None),
        (told(retry_after="-5"), None),
        (told(headers={"Retry-After": "1.5"}), None),
        (told(headers={"Retry-After": "²"}), None),
        (told(headers={"Retry-After": b"5"}), None),
        (told(headers="Retry-After: 5"), None),
        (told(headers=None, response=None), None),
        (answered("soon"), None),
        (answered("Thu, 99 Jan 2026 99:99:99 GMT"), None),
        (answered(""), None),
        (told(response=SimpleNamespace(headers={"Retry-After": "6"})), 6),
    ],
)
def test_what_an_error_says(error, seconds):
    assert retry_after(error, NOW) == seconds


class HostileError(Exception):
    @property
    def response(self) -> Any:
        raise RuntimeError("no response for you")


def test_an_error_whose_attributes_raise_says_nothing():
    assert retry_after(HostileError(), NOW) is None


@given(st.text() | st.floats() | st.integers() | st.none() | st.binary())
def test_whatever_it_says_the_answer_is_a_time_within_a_day(value):
    for error in (told(retry_after=value), told(headers={"Retry-After": value})):
        seconds = retry_after(error, NOW)
        assert seconds is None or 0 <= seconds <= LONGEST_RETRY_AFTER


async def test_a_job_waits_at_least_as_long_as_the_server_asked(app):
    def busy(request: httpx.Request) -> httpx.Response:
        return httpx.Response(503, headers={"Retry-After": "1800"})

    @app.task(retry=RetryPolicy(delay=1, cap=1))
    async def call() -> None:
        async with httpx.AsyncClient(transport=httpx.MockTransport(busy)) as client:
            (await client.get("http://127.0.0.1/")).raise_for_status()

    async with app.working():
        job_id = await app.enqueue(call)
        job = await wait_until(lambda: _retrying(app, job_id))
    assert 1800 <= (job.run_at - job.started_at) / 1e6 <= 1810


async def test_a_retry_function_that_raises_fails_the_job_and_not_the_worker(app):
    def wild(attempt: int, error: str, message: str) -> float:
        raise ZeroDivisionError("in the policy")

    @app.task(retry=RetryPolicy(function=wild))
    async def fails() -> None:
        raise LookupError("gone")

    @app.task
    async def other() -> str:
        return "fine"

    async with app.working():
        job = await app.wait(await app.enqueue(fails), timeout=20, progress=False)
        assert await app.result(await app.enqueue(other), timeout=20) == "fine"
    assert (job.state, job.attempt, job.error.type) == (JobState.FAILED, 1, "LookupError")
    assert job.error.message == (
        "gone\nthe retry policy's function raised ZeroDivisionError: in the policy"
    )


@pytest.mark.parametrize(
    ("policy", "attempts"),
    [
        (RetryPolicy(delay=0, cap=0, retry_on=("builtins.LookupError",)), 3),
        (RetryPolicy(delay=0, cap=0, retry_on=(LookupError,)), 3),
        (RetryPolicy(delay=0, cap=0, retry_on=(ValueError,)), 1),
        (RetryPolicy(delay=0, cap=0, give_up_on=("KeyError",)), 1),
        (RetryPolicy(max_attempts=9, function=lambda attempt, *_: 0 if attempt < 4 else None), 4),
    ],
)
@pytest.mark.parametrize("how", ["async", "plain"])
async def test_the_class_of_an_error_decides(app, policy, attempts, how):
    async def coroutine() -> None:
        raise KeyError("gone")

    def plain() -> None:
        raise KeyError("gone")

    task = app.task(kind="fails", retry=policy)(coroutine if how == "async" else plain)
    async with app.working():
        job = await app.wait(await app.enqueue(task), timeout=20, progress=False)
    assert (job.state, job.attempt) == (JobState.FAILED, attempts)


async def _retrying(app: Any, job_id: str) -> Any:
    job = await app.get(job_id)
    return job if job.state is JobState.PENDING and job.attempt else None
