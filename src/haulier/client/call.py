"""A request as a value, and how its answer is read; what all calls are put together from.

Nothing here is sent. A call is safe to repeat when carrying it out twice leads to the same as once.
"""

from __future__ import annotations

import functools
import inspect
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Generic, TypeVar
from urllib.parse import quote
from uuid import UUID

from pydantic import BaseModel, TypeAdapter

from haulier.client.answers import Answer, Count, Page
from haulier.exceptions import Problem, ValidationError

T = TypeVar("T")
A = TypeVar("A", bound=Answer)
F = TypeVar("F", bound=Callable[..., Any])

API = "/api/v1"


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A request and how its answer is read. `subject`: the id or name of what it is about.

    `repeatable`: carried out twice it leads to the same, also without its idempotency `key`.
    `again`: its body can be sent a second time.
    """

    method: str
    path: str
    read: Callable[[bytes], T]
    params: Mapping[str, Any] = field(default_factory=dict)
    body: bytes | None = field(default=None, repr=False)
    subject: str = ""
    key: str | None = field(default=None, repr=False)
    repeatable: bool = True
    again: bool = True


@dataclass(frozen=True, slots=True)
class Listing(Generic[T]):
    """A list that is read page by page: the call of the first, and the parameter that goes on."""

    first: Call[Page[T]]
    parameter: str = "cursor"

    def after(self, cursor: str) -> Call[Page[T]]:
        """The call of the page that a `next` leads to."""
        return replace(self.first, params={**self.first.params, self.parameter: cursor})


def as_method(method: F, call: Callable[..., Any]) -> F:
    """A method that shows the parameters of the call that it makes."""
    functools.update_wrapper(method, call)
    own = inspect.signature(call)
    this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    method.__signature__ = own.replace(  # type: ignore[attr-defined]
        parameters=[this, *own.parameters.values()], return_annotation=own.empty
    )
    return method


def line_of(document: Mapping[str, Any] | BaseModel) -> bytes:
    """One line of NDJSON."""
    return to_json(document) + b"\n"


def new_key() -> str:
    return secrets.token_hex(16)


def segment(text: str) -> str:
    """A name as one part of a path; of dots alone it would lead elsewhere."""
    if text in ("", ".", ".."):
        raise ValidationError("no such name", [Problem("name", f"{text!r} names nothing")])
    return quote(text, safe="")


def of_job(job_id: str, rest: str = "") -> str:
    return f"/jobs/{segment(str(job_id))}{rest}"


def of_batch(batch_id: str, rest: str = "") -> str:
    return f"/batches/{segment(str(batch_id))}{rest}"


def of_schedule(name: str, rest: str = "") -> str:
    return f"/schedules/{segment(name)}{rest}"


def of_limit(name: str) -> str:
    # Names of declared limits have slashes: `fetch/rate`.
    return "/limits/" + "/".join(segment(each) for each in name.split("/"))


def to_json(document: Any) -> bytes:
    def plain(value: Any) -> Any:
        if isinstance(value, BaseModel):
            return value.model_dump(mode="json")
        if isinstance(value, datetime):
            return value.isoformat()
        if isinstance(value, UUID):
            return str(value)
        if isinstance(value, Mapping):
            return dict(value)
        raise TypeError(f"{type(value).__name__} is not JSON")

    try:
        return json.dumps(
            document, default=plain, ensure_ascii=False, allow_nan=False, separators=(",", ":")
        ).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValidationError("the input is not JSON", [Problem("body", str(error))]) from None


def job_body(
    kind: str, payload: Mapping[str, Any] | BaseModel | None, options: Mapping[str, Any]
) -> dict[str, Any]:
    return {"kind": kind, "payload": {} if payload is None else payload, **given_of(options)}


def given_of(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def query(values: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of an address; those without a value are left out."""
    params: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, datetime):
            params[name] = value.isoformat()
        elif isinstance(value, str) or not isinstance(value, Sequence):
            params |= {} if value is None else {name: str(value)}
        elif value:
            params[name] = [str(each) for each in value]
    return params


def get(path: str, answer: type[A], *, subject: str = "") -> Call[A]:
    return Call("GET", API + path, answer.model_validate_json, subject=subject)


def post(
    path: str,
    answer: type[A],
    body: Any = None,
    *,
    subject: str = "",
    key: str | None = None,
    repeatable: bool = True,
) -> Call[A]:
    call = send("POST", path, answer, body, subject=subject, repeatable=repeatable)
    return replace(call, key=key)


def send(
    method: str,
    path: str,
    answer: type[A],
    body: Any,
    *,
    subject: str = "",
    repeatable: bool = True,
) -> Call[A]:
    return Call(
        method,
        API + path,
        answer.model_validate_json,
        body=None if body is None else to_json(body),
        subject=subject,
        repeatable=repeatable,
    )


def remove(path: str, subject: str) -> Call[None]:
    return Call("DELETE", API + path, lambda _: None, subject=subject)


def whole(
    path: str,
    field: str,
    answer: type[A],
    params: Mapping[str, Any] | None = None,
    *,
    subject: str = "",
) -> Call[tuple[A, ...]]:
    """A list that is answered whole."""
    adapter: TypeAdapter[dict[str, tuple[A, ...]]] = TypeAdapter(dict[str, tuple[answer, ...]])  # type: ignore[valid-type]
    return Call(
        "GET",
        API + path,
        lambda body: adapter.validate_json(body)[field],
        params=params or {},
        subject=subject,
    )


def listing(
    path: str,
    field: str,
    answer: type[A],
    params: Mapping[str, Any],
    *,
    by: str = "cursor",
    subject: str = "",
) -> Listing[A]:
    def read(body: bytes) -> Page[A]:
        document = json.loads(body)
        found = tuple(answer.model_validate(each) for each in document[field])
        # Of events there always is a next page; an empty one is where now is.
        following = document["next"] if found else None
        return Page(found=found, next=None if following is None else str(following))

    return Listing(Call("GET", API + path, read, params=params, subject=subject), by)


def by_filter(
    verb: str, limit: int | None, where: Mapping[str, Any], *, dry_run: bool
) -> Call[Count]:
    chosen = {
        name: [str(each) for each in value] if name == "state" else value
        for name, value in where.items()
        if value
    }
    body = {**chosen, **given_of({"limit": limit}), "dry_run": dry_run}
    # What was counted is not counted again: a repetition would tell of the rest only.
    return post(f"/jobs/{verb}", Count, body, repeatable=dry_run)
