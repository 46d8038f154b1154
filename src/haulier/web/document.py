"""The OpenAPI document, completed by what holds for all routes, or for many of them."""

from __future__ import annotations

from typing import Any

from haulier.web.asked import SECURE_COOKIE
from haulier.web.problems import MEDIA_TYPE
from haulier.web.routes.common import PREFIX

TAGS = [
    {"name": "jobs", "description": "Enqueue jobs, look at them, stop, retry and delete them."},
    {"name": "batches", "description": "Bulk jobs: open, fill, watch, steer and export them."},
    {"name": "starts", "description": "Start the bulk kinds that haulier knows."},
    {"name": "schedules", "description": "Jobs that are enqueued at each tick of a cadence."},
    {"name": "queues", "description": "What waits where, and who works."},
    {"name": "limits", "description": "Rates, concurrency and circuit breakers."},
    {"name": "configuration", "description": "What all workers of the store go by."},
    {"name": "events", "description": "What happened, and what happens."},
    {"name": "webhooks", "description": "Who is told of what happens."},
    {"name": "access", "description": "Tokens, sessions, and who did what."},
    {"name": "service", "description": "How the service is, and its figures."},
    {"name": "aliases", "description": "Addresses that front ends of before know."},
]
"""What routes are about; each has one of these."""

_NAMES = {
    "job_id": "The id of the job; that of a batch is its head job's.",
    "name": "The name of the limit; it may have slashes.",
    "token_id": "The public id of the token or session.",
}
"""What stands in addresses, where the route itself does not say it."""

_OPEN = {f"{PREFIX}/session": "post"}
"""Routes that answer everybody, whatever they show."""

_GUESTS = {f"{PREFIX}/health": "get"}
"""Routes that answer everybody, and more to whom they know."""

_RETRY_AFTER = {"Retry-After": {"$ref": "#/components/headers/Retry-After"}}
_REQUEST_ID = {"X-Request-ID": {"$ref": "#/components/headers/X-Request-ID"}}


def complete(document: dict[str, Any]) -> None:
    """Add what the framework cannot know: problems, headers, who may ask."""
    components = document["components"]
    components["securitySchemes"] = _SCHEMES
    components["headers"] = _HEADERS
    document["security"] = [{"token": []}, {"session": []}]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            is_open = _OPEN.get(path) == method
            if is_open:
                operation["security"] = []
            elif _GUESTS.get(path) == method:
                operation["security"] = [{}, *document["security"]]
            _describe_parameters(operation)
            _complete_responses(operation["responses"], is_open=is_open, writes=method != "get")


def _describe_parameters(operation: dict[str, Any]) -> None:
    for parameter in operation.get("parameters", ()):
        if parameter["in"] == "path":
            parameter.setdefault("description", _NAMES.get(parameter["name"], ""))


def _complete_responses(responses: dict[str, Any], *, is_open: bool, writes: bool) -> None:
    for status, response in responses.items():
        if status[0] not in "123":
            # Problems have a media type of their own, whatever the route has for what it gives.
            (content,) = response["content"].values()
            response["content"] = {MEDIA_TYPE: content}
    problem = responses["default"]["content"]
    general = {"421": "Asked by a name that is not the server's", "503": "The store cannot serve"}
    if not is_open:
        general |= {"401": "This needs a token", "403": "This needs another role or scope"}
        general |= {"429": "Too many bad tokens, or too much at a time"}
    if writes:
        general["507"] = "The store is full"
    for status, description in general.items():
        responses.setdefault(status, {"description": description, "content": problem})
    # In the order of their numbers, `default` last.
    ordered = sorted(responses.items())
    responses.clear()
    for status, response in ordered:
        again = _RETRY_AFTER if status in ("429", "503") else {}
        response["headers"] = response.get("headers", {}) | _REQUEST_ID | again
        responses[status] = response


_HEADERS = {
    "X-Request-ID": {
        "description": "What the server's log and the audit log call this request.",
        "required": True,
        "schema": {"type": "string"},
    },
    "Retry-After": {
        "description": "After how many seconds it may be asked again, where waiting helps.",
        "schema": {"type": "integer", "minimum": 1},
    },
}

_SCHEMES = {
    "token": {
        "type": "http",
        "scheme": "bearer",
        "description": "What `haulier token create` prints.",
    },
    "session": {
        "type": "apiKey",
        "in": "cookie",
        "name": SECURE_COOKIE,
        "description": "A browser's, by a link of `haulier token link`. What changes something "
        "needs the header `Haulier-Request` besides.",
    },
}
