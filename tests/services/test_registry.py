"""Task definitions from functions: what becomes the payload, and what is refused."""

from __future__ import annotations

import functools
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from haulier.domain.job import Role
from haulier.domain.retry import RetryPolicy
from haulier.exceptions import ConfigurationError, InvalidTaskTypeError, ValidationError
from haulier.services.context import Context
from haulier.services.payload import validate
from haulier.services.registry import Executor, Registry, TaskDefinition, define_task
from haulier.services.secrets import Secret


class Address(BaseModel):
    street: str
    number: int = 1


class Letter(BaseModel):
    to: Address
    text: str


class Unknown:
    """Pydantic knows nothing of this type."""


async def asynchronous(n: int) -> int:
    return n


def plain(n: int, text: str = "none") -> tuple[int, str]:
    return n, text


def with_context(a: int, me: Context, b: int) -> tuple[Any, int, int]:
    return me, a, b


def whole(letter: Letter) -> Letter:
    return letter


def whole_with_context(ctx: Context, letter: Letter) -> tuple[Any, Letter]:
    return ctx, letter


def two_models(letter: Letter, address: Address) -> str:
    return letter.text + address.street


def fields_of_letter(to: Address, text: str) -> tuple[Address, str]:
    return to, text


def nothing() -> str:
    return "nothing"


def called(definition: TaskDefinition, payload: Any, ctx: Any = None) -> Any:
    assert definition.call is not None
    return definition.call(ctx, validate(definition, payload))


class TestSignatures:
    def test_coroutine_functions_run_on_the_loop_and_plain_ones_in_threads(self):
        assert define_task(asynchronous).executor is Executor.ASYNC
        assert define_task(plain).executor is Executor.THREAD

    def test_the_kind_is_the_name_unless_it_is_given(self):
        assert define_task(plain).kind == "plain"
        assert define_task(plain, kind="mail.send").kind == "mail.send"

    def test_parameters_make_the_payload(self):
        definition = define_task(plain)
        assert called(definition, {"n": 4, "text": "x"}) == (4, "x")
        assert called(definition, {"n": 4}) == (4, "none")

    def test_a_context_is_filled_in_wherever_it_stands_and_is_no_part_of_the_payload(self):
        definition = define_task(with_context)
        assert set(definition.model.model_fields) == {"a", "b"}
        assert called(definition, {"a": 1, "b": 2}, ctx="the context") == ("the context", 1, 2)

    @pytest.mark.parametrize("function", [whole, whole_with_context])
    def test_the_only_parameter_takes_the_whole_payload_if_it_is_a_model(self, function):
        definition = define_task(function)
        assert definition.model is Letter
        given = {"to": {"street": "Elm"}, "text": "hi"}
        result = called(definition, given, ctx="the context")
        letter = Letter.model_validate(given)
        assert result == (letter if function is whole else ("the context", letter))

    def test_several_models_are_fields_each(self):
        definition = define_task(two_models)
        payload = {
            "letter": {"to": {"street": "Elm"}, "text": "hi "},
            "address": {"street": "Oak"},
        }
        assert called(definition, payload) == "hi Oak"

    def test_no_parameters_mean_an_empty_payload(self):
        assert called(define_task(nothing), {}) == "nothing"

    def test_a_given_model_is_taken_whole_or_by_its_fields(self):
        payload = {"to": {"street": "Elm"}, "text": "hi"}
        assert called(define_task(whole, model=Letter), payload).text == "hi"
        to, text = called(define_task(fields_of_letter, model=Letter), payload)
        assert (to.street, text) == ("Elm", "hi")

    def test_annotations_check_the_values(self):
        def limited(
            n: Annotated[int, Field(ge=1, le=5)], mode: Literal["a", "b"] = "a"
        ) -> None: ...

        definition = define_task(limited)
        validate(definition, {"n": 5, "mode": "b"})
        with pytest.raises(ValidationError) as caught:
            validate(definition, {"n": 6, "mode": "c"})
        assert [problem.field for problem in caught.value.problems] == ["n", "mode"]

    def test_a_parameter_may_have_a_name_that_pydantic_uses_itself(self):
        def odd(json: str, copy: int, schema: bool) -> tuple[str, int]:
            return json, copy

        definition = define_task(odd)
        assert called(definition, {"json": "j", "copy": 2, "schema": True}) == ("j", 2)

    @pytest.mark.parametrize(
        ("annotation", "found"),
        [
            (Secret, True),
            (list[Secret], True),
            (dict[str, Secret | None], True),
            (str, False),
        ],
    )
    def test_secrets_are_found_however_deep_they_lie(self, annotation, found):
        def task(value): ...

        task.__annotations__ = {"value": annotation}
        assert define_task(task).has_secrets is found

    def test_defaults_go_into_the_definition(self):
        definition = define_task(
            plain, queue="night", priority=5, per_worker=2, retry=RetryPolicy.never()
        )
        assert (definition.queue, definition.priority, definition.per_worker) == ("night", 5, 2)
        assert definition.retry.max_attempts == 1
        assert definition.role is Role.SINGLE


class TestRefusals:
    def refused(self, function, match, **options) -> None:
        with pytest.raises(ConfigurationError, match=match):
            Registry().add(define_task(function, **options))

    def test_parameters_that_json_cannot_give(self):
        def many(*values: int) -> None: ...
        def anything(**values: int) -> None: ...
        def positional(n: int, /) -> None: ...

        self.refused(many, "'values' cannot be given by name")
        self.refused(anything, r"'\*\*values' hides")
        self.refused(positional, "'n' cannot be given by name")

    def test_annotations_that_mean_nothing_here(self):
        def lost(n) -> None: ...

        lost.__annotations__ = {"n": "NoSuchName"}
        self.refused(lost, "NoSuchName")

    def test_types_that_pydantic_cannot_check(self):
        def strange(n: Unknown) -> None: ...

        strange.__annotations__ = {"n": Unknown}
        self.refused(strange, "strange")

    def test_names_that_no_field_can_have(self):
        def hidden(_n: int) -> None: ...

        def method(model_dump: str) -> None: ...

        self.refused(hidden, "underscore")
        self.refused(method, "model_dump")

    def test_two_contexts(self):
        def greedy(one: Context, two: Context) -> None: ...

        self.refused(greedy, "Context")

    def test_functions_that_yield(self):
        def plain_generator(n: int):
            yield n

        async def async_generator(n: int):
            yield n

        self.refused(plain_generator, "yield")
        self.refused(async_generator, "yield")

    def test_a_given_model_that_does_not_fit_the_parameters(self):
        def half(text: str) -> None: ...

        self.refused(half, "'?to'? is not both", model=Letter)
        self.refused(plain, "is not both", model=Letter)

    def test_callables_that_are_no_functions(self):
        self.refused(functools.partial(plain, 1), "partial", kind="partial")

    @pytest.mark.parametrize(
        "kind", ["has space", "1st", "a..b", ".a", "a.", "a-b", "ü", "a\n", "x" * 201]
    )
    def test_kinds_that_are_no_dotted_names(self, kind):
        self.refused(plain, "dotted name", kind=kind)

    @pytest.mark.parametrize("queue", ["", "a b", "a/b", "x" * 201])
    def test_queues_that_are_no_dotted_names(self, queue):
        self.refused(plain, "dotted name", queue=queue)

    def test_a_lambda_has_no_name_to_go_by(self):
        self.refused(lambda: None, "dotted name")


class TestRegistry:
    def test_a_kind_is_registered_once(self):
        registry = Registry()
        registry.add(define_task(plain))
        with pytest.raises(ConfigurationError, match="registered twice"):
            registry.add(define_task(asynchronous, kind="plain"))
        assert [definition.kind for definition in registry] == ["plain"]
        assert "plain" in registry

    def test_an_unknown_kind_is_refused_with_the_nearest_known_one(self):
        registry = Registry()
        registry.add(define_task(plain, kind="media_uniq"))
        with pytest.raises(InvalidTaskTypeError, match="did you mean 'media_uniq'") as caught:
            registry.get("media_unik")
        assert [problem.field for problem in caught.value.problems] == ["kind"]
        with pytest.raises(InvalidTaskTypeError) as caught:
            registry.get("x" * 10_000)
        assert len(str(caught.value)) < 500

    def test_a_kind_that_lacks_a_library_says_how_to_get_it(self):
        registry = Registry()
        registry.missing("media_uniq", "pip install 'haulier[media]'")
        with pytest.raises(InvalidTaskTypeError, match="pip install"):
            registry.get("media_uniq")
