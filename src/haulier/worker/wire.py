"""What a worker and its child processes say to each other: JSON in both directions, nothing else.

parent to child   run    job, code, payload, seconds
                  end
                  answer steps | kept | parents | error
child to parent   ready
                  began
                  note   job, lease, progress, message
                  line   number, text
                  log    level, event, fields
                  steps                     is answered: name -> result
                  keep   name, result       is answered: whether its lease holds
                  parents                   is answered: what the job has waited for
                  done   outcome, note, spent
"""

from __future__ import annotations

import json
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import Any

from haulier.domain.flow import Otherwise, Parent
from haulier.domain.job import (
    Cancelled,
    Failed,
    Interrupted,
    Job,
    JobError,
    JobState,
    OnLost,
    Outcome,
    Role,
    Snoozed,
    Succeeded,
    TimedOut,
)
from haulier.domain.retry import RetryPolicy
from haulier.services.code import Code, Name

Message = dict[str, Any]


def send(connection: Connection, message: Message) -> None:
    """Send one message; raises OSError when nobody is there."""
    connection.send_bytes(json.dumps(message).encode())


def receive(connection: Connection) -> Message:
    """The next message; raises EOFError at the end, ValueError for what is none."""
    message = json.loads(connection.recv_bytes())
    if not isinstance(message, dict):
        raise TypeError("a message is an object")
    return message


def job_to(job: Job) -> Message:
    """A running job as plain values."""
    return {
        **job._asdict(),
        "payload": job.payload.decode(),
        "result": None,
        "retry": job.retry.as_dict() if job.retry else None,
        "error": asdict(job.error) if job.error else None,
    }


def job_from(message: Message) -> Job:
    """The inverse of `job_to`."""
    given = {
        "payload": message["payload"].encode(),
        "state": JobState(message["state"]),
        "role": Role(message["role"]),
        "on_lost": OnLost(message["on_lost"]),
        "retry": RetryPolicy.from_dict(message["retry"]) if message["retry"] else None,
        "error": JobError(**message["error"]) if message["error"] else None,
    }
    return Job(**{**message, **given})


def parent_to(parent: Parent) -> Message:
    """A parent as plain values."""
    result = None if parent.result is None else parent.result.decode()
    return {**asdict(parent), "result": result}


def parent_from(message: Message) -> Parent:
    """The inverse of `parent_to`."""
    given = {
        "otherwise": Otherwise(message["otherwise"]),
        "state": JobState(message["state"]),
        "result": None if message["result"] is None else message["result"].encode(),
        "error": JobError(**message["error"]) if message["error"] else None,
    }
    return Parent(**{**message, **given})


def code_to(code: Code) -> Message:
    """Where the function is found, as plain values."""
    return asdict(code)


def code_from(message: Message) -> Code:
    """The inverse of `code_to`."""
    model = message["model"]
    return Code(Name(**message["target"]), Name(**model) if model else None)


def outcome_to(outcome: Outcome) -> Message:
    """An outcome as plain values; of those that a plain function can come to."""
    match outcome:
        case Succeeded(result):
            return {"is": "succeeded", "result": result.decode()}
        case Failed() | TimedOut() | Snoozed() | Cancelled():
            return {"is": type(outcome).__name__.lower(), **asdict(outcome)}
        case _:
            return {"is": "interrupted"}


def outcome_from(message: Message) -> Outcome:
    """The inverse of `outcome_to`."""
    fields = {name: value for name, value in message.items() if name != "is"}
    if "error" in fields:
        fields["error"] = JobError(**fields["error"])
    match message["is"]:
        case "succeeded":
            return Succeeded(fields["result"].encode())
        case "failed":
            return Failed(**{**fields, "classes": tuple(fields["classes"])})
        case "timedout":
            return TimedOut(**fields)
        case "snoozed":
            return Snoozed(**fields)
        case "cancelled":
            return Cancelled(**fields)
        case _:
            return Interrupted()
