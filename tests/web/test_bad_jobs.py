"""Bad input over HTTP: a problem that names the field, and no job."""

from __future__ import annotations

import json

import pytest

JSON = {"content-type": "application/json"}
JOBS = "/api/v1/jobs"
GOOD = {"kind": "add", "payload": {"a": 1, "b": 2}}


async def post(client, **fields):
    return await client.post(JOBS, content=json.dumps({**GOOD, **fields}), headers=JSON)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("delay", -1),
        ("delay", float("nan")),
        ("delay", float("inf")),
        ("delay", 1e300),
        ("delay", "soon"),
        ("priority", float("nan")),
        ("priority", 10_001),
        ("priority", 1.5),
        ("priority", "highest"),
        ("queue", ""),
        ("queue", "two words"),
        ("queue", "a/b"),
        ("queue", "a'; DROP TABLE jobs; --"),
        ("queue", "a\u0000"),
        ("queue", "naïve"),
        ("queue", "x" * 201),
        ("key", ""),
        ("key", "k" * 201),
        ("key", 7),
        ("run_at", "yesterday"),
        ("run_at", "2026-01-01T00:00:00"),
        ("run_at", float("nan")),
        ("id", "x"),
        ("kind", "nothing"),
        ("kind", ""),
        ("kind", "x" * 201),
        ("kind", None),
        ("payload", [1]),
        ("payload", "text"),
        ("payload", None),
        ("colour", "red"),
    ],
)
async def test_each_field_is_checked(client, check, jobs, field, value):
    told = check.refused(await post(client, **{field: value}))
    assert [name for name, _ in told] == [field]
    assert await jobs.store.counts() == {}


@pytest.mark.parametrize("field", ["key", "queue", "kind"])
async def test_half_a_character_is_refused(client, check, jobs, field):
    body = json.dumps({**GOOD, field: "half \ud800"})
    answer = await client.post(JOBS, content=body, headers=JSON)
    check.problem(answer, answer.status_code)
    assert answer.status_code in (400, 422)
    assert await jobs.store.counts() == {}


@pytest.mark.parametrize("payload", ['{"value": "\\ud800"}', '{"value": {"\\udc00": 1}}'])
async def test_half_a_character_in_a_payload_is_refused(client, check, jobs, payload):
    body = f'{{"kind": "tell", "payload": {payload}}}'
    answer = await client.post(JOBS, content=body, headers=JSON)
    check.problem(answer, answer.status_code)
    assert answer.status_code in (400, 422)
    assert await jobs.store.counts() == {}


@pytest.mark.parametrize("levels", [33, 1000, 10_000])
async def test_a_payload_that_is_nested_too_deeply_is_refused(client, check, jobs, levels):
    value = "[" * levels + "]" * levels
    body = f'{{"kind": "tell", "payload": {{"value": {value}}}}}'
    answer = await client.post(JOBS, content=body, headers=JSON)
    check.problem(answer, answer.status_code)
    assert answer.status_code in (400, 422)
    assert await jobs.store.counts() == {}


@pytest.mark.parametrize("number", ["9" * 1_000_000, "-" + "9" * 5000, "1e999999999", "NaN"])
async def test_numbers_that_are_none_are_refused(client, check, jobs, number):
    for body in (
        f'{{"kind": "tell", "payload": {{"value": {number}}}}}',
        f'{{"kind": "add", "payload": {{"a": 1, "b": 2}}, "priority": {number}}}',
        f'{{"kind": "add", "payload": {{"a": 1, "b": 2}}, "delay": {number}}}',
    ):
        answer = await client.post(JOBS, content=body, headers=JSON)
        check.problem(answer, answer.status_code)
        assert answer.status_code in (400, 422)
    assert await jobs.store.counts() == {}


async def test_a_payload_over_the_limit_of_a_kind_is_refused(client, check, jobs):
    answer = await post(client, kind="tell", payload={"value": "x" * 300_000})
    assert check.refused(answer) == [("payload", None)]
    assert await jobs.store.counts() == {}


async def test_a_body_of_a_hundred_megabytes_is_refused(client, check, jobs):
    answer = await post(client, kind="tell", payload={"value": "x" * 100 * 1024 * 1024})
    check.problem(answer, 413)
    assert await jobs.store.counts() == {}
