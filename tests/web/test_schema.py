"""What schemathesis draws from the OpenAPI document, asked of a server, with and without trouble.

`--schema-examples N` makes the runs as long as you like; `--schema-seed N` draws others.
"""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict
from schema_runs import NO_END, Served, narrowed, run, served

from haulier.services.registry import Registry, define_task
from haulier.web.app import create_app

KINDS = ("send", "report", "resize", "fetch")
"""Those that the examples of the document speak of."""


class Anything(BaseModel):
    model_config = ConfigDict(extra="allow")


async def _do(payload: Anything) -> str:
    return repr(payload)


@pytest.fixture
def registry() -> Registry:
    registry = Registry()
    for kind in KINDS:
        registry.add(define_task(_do, kind=kind))
    return registry


@pytest.fixture
def document(options) -> dict[str, Any]:
    return narrowed(create_app(jobs=None, options=options).openapi(), KINDS)


@pytest.fixture
def seed(request) -> int:
    return request.config.getoption("schema_seed")


@pytest.fixture
def examples(request) -> int:
    return request.config.getoption("schema_examples")


def operations_of(document):
    return {
        f"{method.upper()} {path}"
        for path, methods in document["paths"].items()
        for method in methods
        if path != NO_END
    }


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["coverage", "fuzzing", "stateful"])
def test_all_answers_are_as_the_document_says(registry, options, document, seed, examples, phase):
    with served(Served(registry, options)) as address:
        told = run(document, address, phase, seed=seed, examples=examples)
    print(f"{phase}: {told}")
    assert not told.faults, told.told()
    assert not {500, 502, 503, 504, 507} & set(told.statuses)
    if phase != "stateful":
        assert told.operations == operations_of(document)


def test_the_examples_are_taken(registry, options, document, seed):
    with served(Served(registry, options)) as address:
        told = run(document, address, "examples", seed=seed, examples=1)
    print(f"examples: {told}")
    assert not told.faults, told.told()


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.05, 0.3])
def test_a_store_that_fails_is_told_as_that(registry, options, document, seed, examples, share):
    make = Served(registry, options, share=share, seed=seed)
    with served(make) as address:
        told = run(document, address, "fuzzing", "stateful", seed=seed, examples=examples)
    print(f"a share of {share} failing: {told}; {make.failing.failed}")
    assert not told.faults, told.told()
    assert {503, 507} <= set(told.statuses) <= SERVED | {501, 503, 507}
    assert len(make.failing.failed) == 3


SERVED = set(range(200, 500))
