"""What the items of a batch have to be checked and cut into, whoever adds them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from pydantic import BaseModel

from haulier.domain.batch import BatchPolicy
from haulier.domain.job import NewJob
from haulier.exceptions import Problem, ValidationError
from haulier.services.payload import Payload, validate
from haulier.services.registry import TaskDefinition


def inner_policy(definition: TaskDefinition, jobs: Sequence[NewJob]) -> BatchPolicy | None:
    """How batches are worked on whose heads are these items of a bulk kind."""
    if not definition.expand or not jobs:
        return None
    return BatchPolicy(finish=definition.own_finish(jobs[0].queue))


def validated_item(definition: TaskDefinition, index: int, payload: Payload) -> BaseModel:
    """The payload of an item as a model; a ValidationError names its index."""
    try:
        return validate(definition, payload)
    except ValidationError as error:
        raise ValidationError(
            error.message,
            [
                Problem(f"items[{index}].{problem.field}", problem.reason)
                for problem in error.problems
            ],
        ) from None


def chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """The items in lists of `size`, the last one shorter."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
