"""Payloads between Python and JSON: checked at enqueue and again at run, secrets sealed between.

The envelope of a payload is its job's own fields: kind and version. The JSON itself is opaque to
every store.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pydantic
from pydantic import BaseModel
from pydantic_core import PydanticSerializationError, from_json, to_json, to_jsonable_python

from haulier.exceptions import PermanentError, Problem, Snooze, ValidationError
from haulier.services.registry import TaskDefinition
from haulier.services.secrets import Sealer, Secret, collect_into, reveal_tree
from haulier.services.steps import MAX_RESULT

Payload = Mapping[str, Any] | BaseModel
"""What a job may be given: the fields of its kind's model, or the model."""

MAX_DEPTH = 32

NEWER_DELAY = 10.0
"""Seconds until a job is offered again whose payload is newer than this process can read."""


def validate(definition: TaskDefinition, payload: Payload) -> BaseModel:
    """The payload as its kind's model; raises ValidationError with a problem per bad field."""
    if type(payload) is dict:
        # Asked first: to ask whether something is a model takes half as long as to check it.
        return _checked(definition, payload)
    if isinstance(payload, definition.model):
        return payload
    if isinstance(payload, BaseModel):
        raise ValidationError(
            f"{definition.kind}: the payload must be a {definition.model.__name__}",
            [Problem("payload", f"a {type(payload).__name__} was given")],
        )
    if not isinstance(payload, Mapping):
        what = type(payload).__name__
        raise _refusal(definition.kind, f"must be an object with named fields, not a {what}")
    return _checked(definition, payload)


def _checked(definition: TaskDefinition, payload: Mapping[str, Any]) -> BaseModel:
    try:
        fields = payload if type(payload) is dict else dict(payload)
        return definition.model.model_validate(fields)
    except pydantic.ValidationError as error:
        raise refused(definition.kind, error) from None
    except RecursionError:
        raise _refusal(definition.kind, "is nested too deeply") from None


def encode(definition: TaskDefinition, payload: BaseModel, job_id: str, sealer: Sealer) -> bytes:
    """The payload as JSON with its secrets sealed for this job."""
    try:
        if definition.has_secrets:
            secrets: list[Secret] = []
            tree = to_jsonable_python(payload, context=collect_into(secrets), round_trip=True)
            tree = sealer.seal_tree(tree, secrets, kind=definition.kind, job_id=job_id)
            data = to_json(tree)
        else:
            data = to_json(payload, round_trip=True)
        _check_json(definition, data, payload)
    except (PydanticSerializationError, RecursionError, ValueError) as error:
        raise _refusal(definition.kind, f"cannot be written as JSON: {error}") from None
    return data


def decode(
    definition: TaskDefinition,
    data: bytes,
    job_id: str,
    sealer: Sealer,
    version: int | None = None,
) -> BaseModel:
    """The stored payload as its kind's model; secrets are bound, not opened.

    One of an older `version` (None: the present one) is brought up to date first. Raises
    ValidationError for what the model refuses, PermanentError if an upcast is missing or fails,
    Snooze for a payload of a newer version: another process may know it.
    """
    try:
        if version is not None and version != definition.version:
            tree = sealer.open_tree(from_json(data), kind=definition.kind, job_id=job_id)
            tree = _brought_up(definition, tree, version)
            if definition.has_secrets:
                return definition.model.model_validate(tree)
            data = to_json(tree)
        if definition.has_secrets:
            tree = sealer.open_tree(from_json(data), kind=definition.kind, job_id=job_id)
            return definition.model.model_validate(tree)
        return definition.model.model_validate_json(data)
    except pydantic.ValidationError as error:
        raise refused(definition.kind, error) from None
    except ValueError as error:
        raise _refusal(definition.kind, f"is not stored as JSON: {error}") from None


def _brought_up(definition: TaskDefinition, tree: Any, version: int) -> Any:
    """The tree of an older version after all upcasts that lead to the present one."""
    if version > definition.version:
        raise Snooze(NEWER_DELAY)
    for step in range(version, definition.version):
        upcast = definition.upcasts.get(step)
        if upcast is None:
            raise _unreadable(
                definition,
                f"is {version}, this process reads {definition.version} and has no upcast from "
                f"version {step}",
            )
        try:
            tree = upcast(tree)
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise _unreadable(
                definition, f"the upcast from version {step} raised {what}"
            ) from error
    return tree


def _unreadable(definition: TaskDefinition, reason: str) -> PermanentError:
    return PermanentError(f"{definition.kind}: the payload cannot be read\n  version: {reason}")


def newer_than(definition: TaskDefinition, version: int) -> str:
    """What is said of a job whose payload this process cannot read yet."""
    return f"waits for a worker that reads version {version}; this one reads {definition.version}"


def opened(definition: TaskDefinition, payload: BaseModel) -> str:
    """The payload as JSON with its secrets in plain: for a child process, never for a store."""
    if not definition.has_secrets:
        return to_json(payload, round_trip=True).decode()
    secrets: list[Secret] = []
    tree = to_jsonable_python(payload, context=collect_into(secrets), round_trip=True)
    return to_json(reveal_tree(tree, secrets)).decode()


def encode_result(value: Any) -> bytes:
    """A task's result as JSON. One over the limit is replaced by a note of its size.

    NaN and infinities become null: the work is done, and JSON has no word for them. Raises
    PermanentError for what cannot be written at all, since doing the work again would not help.
    """
    if value is None:
        return b"null"
    try:
        data = to_json(value, inf_nan_mode="null")
    except (PydanticSerializationError, RecursionError, ValueError) as error:
        raise PermanentError(f"the result cannot be written as JSON: {error}") from None
    if len(data) > MAX_RESULT:
        return to_json({"$truncated": len(data), "limit": MAX_RESULT})
    return data


def refused(kind: str, error: pydantic.ValidationError) -> ValidationError:
    """Our error for pydantic's. Given values are left out: one of them may be a secret."""
    return ValidationError(
        f"{kind}: the payload was refused",
        [
            Problem(".".join(str(part) for part in item["loc"]) or "payload", item["msg"])
            for item in error.errors(include_input=False, include_url=False, include_context=False)
        ],
    )


def _refusal(kind: str, reason: str) -> ValidationError:
    return ValidationError(f"{kind}: the payload was refused", [Problem("payload", reason)])


def _check_json(definition: TaskDefinition, data: bytes, payload: BaseModel) -> None:
    if len(data) > definition.max_payload:
        raise _refusal(
            definition.kind,
            f"is {len(data):,} bytes long, at most {definition.max_payload:,} are allowed",
        )
    # Both looks below are exact only after cheap ones say that they could find something.
    if (
        len(data) > 2 * MAX_DEPTH
        and data.count(b"[") + data.count(b"{") > MAX_DEPTH
        and _too_deep(data)
    ):
        raise _refusal(definition.kind, f"is nested more than {MAX_DEPTH} levels deep")
    # A model writes NaN as null unless its settings say otherwise, so null has to be looked into.
    if (b"null" in data or b"NaN" in data or b"Infinity" in data) and any(
        isinstance(leaf, float) and not math.isfinite(leaf)
        for leaf in _leaves(payload.model_dump(warnings=False))
    ):
        raise _refusal(definition.kind, "holds NaN or Infinity, which JSON cannot carry")


def _too_deep(data: bytes) -> bool:
    try:
        level = [from_json(data)]
    except ValueError:
        # The parser's own limit is far beyond ours.
        return True
    for _ in range(MAX_DEPTH):
        level = [child for node in level for child in _children(node) if _is_container(child)]
    return bool(level)


def _leaves(node: Any) -> Iterator[Any]:
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if _is_container(node):
            waiting.extend(_children(node))
        else:
            yield node


def _is_container(node: Any) -> bool:
    return isinstance(node, (dict, list, tuple, set, frozenset))


def _children(node: Any) -> Iterable[Any]:
    return node.values() if isinstance(node, dict) else node
