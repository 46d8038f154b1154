"""The OpenAPI document, and each of its routes by what it says of itself."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from haulier.web.app import WebOptions, create_app

UNKNOWN = "01890000-0000-7000-8000-000000000000"
OPTIONS = WebOptions(media_root=Path("media"), output_root=Path("output"), version="9.9")
DOCUMENT = create_app(jobs=None, options=OPTIONS).openapi()  # type: ignore[arg-type]
OPERATIONS = [
    pytest.param(method.upper(), path, operation, id=f"{method} {path}")
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
]
STREAMS = {"/api/v1/events/stream"}
EXPORTS = {"/api/v1/batches/{job_id}/export": "application/x-ndjson"}
LINES = {"/api/v1/jobs/stream", "/api/v1/batches/{job_id}/items"}
PROBLEM = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}}


@pytest.fixture
async def api(serving):
    async with serving() as api:
        yield api


async def test_the_document_is_served(client):
    assert (await client.get("/api/v1/openapi.json")).json() == DOCUMENT
    assert DOCUMENT["info"] == {"title": "haulier", "version": "9.9"}


def test_the_routes_are_those_that_are_documented():
    """docs/http.md names each route whole, as `METHOD /path`, and no other."""
    text = (Path(__file__).parents[2] / "docs" / "http.md").read_text()
    named = re.findall(r"`(GET|POST|PUT|PATCH|DELETE) (/(?:api/|metrics)[^\s`?]*)", text)
    documented = {(method, _unnamed(path)) for method, path in named}
    assert {(param.values[0], _unnamed(param.values[1])) for param in OPERATIONS} == documented


def _unnamed(path):
    return re.sub(r"{[^}]*}", "{}", path)


@pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS)
def test_a_route_tells_what_it_does_and_answers(method, path, operation):
    assert operation["summary"]
    assert operation["description"]
    [success] = [status for status in operation["responses"] if status.startswith("2")]
    content = operation["responses"][success].get("content")
    assert (content is None) == (success == "204")
    if path in LINES and method == "POST":
        assert operation["requestBody"]["content"]["application/x-ndjson"]["example"]
    if path in STREAMS:
        assert content["text/event-stream"]["example"]
    elif path == "/metrics":
        assert content["text/plain"]
    elif path in EXPORTS:
        assert EXPORTS[path] in content
    else:
        assert content is None or "$ref" in content["application/json"]["schema"]
    problems = {
        status: response["content"]
        for status, response in operation["responses"].items()
        if not status.startswith("2")
    }
    assert "default" in problems
    assert "404" in problems or "{job_id}" not in path
    assert ("415" in problems) == ("requestBody" in operation)
    assert all(content == PROBLEM for content in problems.values())


@pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS)
def test_a_route_is_told_in_full(method, path, operation):
    [topic] = operation["tags"]
    assert topic in {tag["name"] for tag in DOCUMENT["tags"]}
    told = {each["name"]: each.get("description") for each in operation.get("parameters", ())}
    assert all(told.values()), told
    assert set(re.findall("{(.*?)}", path)) <= set(told)
    if "requestBody" in operation:
        [body] = operation["requestBody"]["content"].values()
        assert _examples(body) or any(map(_examples, _models(body["schema"]))), "no example"
    responses = operation["responses"]
    for status, response in responses.items():
        assert response["description"]
        assert "X-Request-ID" in response["headers"]
        assert ("Retry-After" in response["headers"]) == (status in ("429", "503"))
    assert "503" in responses
    assert ("507" in responses) == (method != "GET")


@pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS)
def test_a_route_tells_who_may_ask(method, path, operation):
    either = [{"token": []}, {"session": []}]
    open_to_all = {("GET", "/api/v1/health"): [{}, *either], ("POST", "/api/v1/session"): []}
    expected = open_to_all.get((method, path), either)
    assert operation.get("security", DOCUMENT["security"]) == expected
    assert "401" in operation["responses"]
    schemes = DOCUMENT["components"]["securitySchemes"]
    assert (schemes["token"]["type"], schemes["token"]["scheme"]) == ("http", "bearer")
    assert (schemes["session"]["type"], schemes["session"]["in"]) == ("apiKey", "cookie")


def test_every_topic_is_described_and_has_routes():
    used = {tag for param in OPERATIONS for tag in param.values[2]["tags"]}
    assert used == {tag["name"] for tag in DOCUMENT["tags"] if tag["description"]}


def _examples(place):
    return place.get("example") or place.get("examples")


def _models(schema):
    """A schema, and those that it may be instead."""
    if "$ref" in schema:
        schema = DOCUMENT["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    yield schema
    for one in schema.get("anyOf", ()):
        yield from _models(one)


@pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS)
async def test_what_is_not_there_is_a_problem(client, check, method, path, operation):
    """An unknown id where there is one; else a parameter or a body that is no good."""
    known = operation["responses"]
    for job_id in (UNKNOWN, "7", "not-an-id", "%00", "%F0%9F%92%A5", "a b"):
        if "{job_id}" in path:
            body = {"concurrency": 1} if method == "PATCH" else None
            answer = await client.request(method, path.replace("{job_id}", job_id), json=body)
            assert check.problem(answer, 404)["type"].endswith(":job-not-found")
        elif "{" in path:
            answer = await client.request(method, re.sub("{.*?}", job_id, path), json={"id": 1})
            assert answer.status_code < 500
        elif path in LINES:
            answer = await client.request(method, path, params={"on_bad": "7"})
            check.problem(answer, 422)
        elif "requestBody" in operation:
            answer = await client.request(method, path, json={"id": job_id})
            check.problem(answer, 501 if answer.status_code == 501 and "501" in known else 422)
        elif operation.get("parameters"):
            check.problem(await client.request(method, path, params={"batch": "7"}), 422)
        else:
            answer = await client.request(method, path)
            assert answer.status_code == (409 if method == "DELETE" else 200)
