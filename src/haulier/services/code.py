"""Where a child process finds what it is to run: module-level names of the program's own source.

They are taken from the parent's registry, which code has filled; nothing here comes from data.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from haulier.exceptions import ConfigurationError


@dataclass(frozen=True, slots=True)
class Name:
    """A name at the top level of a module."""

    module: str
    name: str


@dataclass(frozen=True, slots=True)
class Code:
    """A function, or the class of a runner, and the payload model if one was given beside it."""

    target: Name
    model: Name | None = None


def code_of(function: Callable[..., Any], model: type[Any] | None) -> Code:
    """Where a plain function is found; raises ConfigurationError for one that has no such place."""
    if not inspect.isfunction(function):
        raise ConfigurationError(f"{function!r} is not a plain function: a process cannot find it")
    return Code(_name_of(function), None if model is None else _name_of(model))


def code_of_runner(runner: object) -> Code:
    """Where a runner's class is found, of which each process makes an instance of its own."""
    made = type(runner)
    if vars(runner) or inspect.signature(made).parameters:
        raise ConfigurationError(
            f"{made.__qualname__} has a state of its own, which a process would not see: keep "
            "settings in the payload, or at the class"
        )
    return Code(_name_of(made))


def _name_of(named: Any) -> Name:
    if named.__qualname__ != named.__name__ or not named.__name__.isidentifier():
        raise ConfigurationError(
            f"{named.__qualname__} is not at the top level of its module: a process cannot find it"
        )
    return Name(named.__module__, named.__name__)
