"""Settings, read once from the environment. Command-line flags override them."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import AliasChoices, Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from haulier.exceptions import ConfigurationError, Problem

PREFIX = "HAULIER_"
NOT_SETTINGS = ("HAULIER_APP", "HAULIER_TEST_")
"""Variables with our prefix that something else reads: the command line, and our own tests."""


def _also(name: str, *others: str) -> Any:
    """The prefixed name, and the names that users of D0's service already set."""
    return AliasChoices(f"{PREFIX}{name}", *others)


class Settings(BaseSettings):
    """Every setting, its default, and in its alias the environment variable that sets it.

    `records`: None stands for those beside the store. Times are seconds: `grace` is what running
    jobs get when a worker stops, `ttl` how long a worker may fail to renew itself before its jobs
    go to others. `child_memory` is megabytes of address space. `media_root` and `output_root` are
    the only folders that the HTTP API may read pictures from and write renditions to. `check_url`
    is what proxies are checked against. `allowed_hosts` may be called for users although they are
    not public. `api_deadline` is how long the HTTP API waits for one answer of the store. `streams`
    is how many live streams it serves at once, `heartbeat` after how long a silent one shows a sign
    of life.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="ignore", frozen=True, populate_by_name=True
    )

    store: str = "sqlite:///haulier.db"
    records: str | None = None
    queues: Annotated[tuple[str, ...], NoDecode] = ("default",)
    concurrency: int = Field(
        100, ge=1, le=10_000, validation_alias=_also("CONCURRENCY", "CONCURRENCY_LIMIT")
    )
    threads: int = Field(16, ge=1, le=1_000)
    children: int = Field(os.cpu_count() or 1, ge=1, le=256)
    jobs_per_child: int = Field(100, ge=0)
    child_memory: int | None = Field(None, ge=1)
    grace: float = Field(30.0, ge=0, le=86_400)
    ttl: float = Field(15.0, ge=1, le=3_600)
    secret_key_file: Path | None = None
    host: str = "127.0.0.1"
    port: int = Field(8470, ge=0, le=65_535)
    public_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    media_root: Path = Path("media")
    output_root: Path = Path("output")
    check_url: str | None = None
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    api_deadline: float = Field(2.0, ge=0.1, le=60)
    streams: int = Field(1000, ge=0, le=100_000)
    streams_per_caller: int = Field(100, ge=0, le=100_000)
    heartbeat: float = Field(15.0, ge=0.1, le=300)
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["console", "json"] = "console"

    @field_validator("queues", "public_hosts", "allowed_hosts", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value


def read_settings(**flags: Any) -> Settings:
    """The settings from the environment, with the given flags (those not None) over them.

    Raises ConfigurationError that names each variable at fault, also one that is misspelt.
    """
    _refuse_unknown_variables()
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return Settings(**given)
    except pydantic.ValidationError as error:
        problems = [
            str(Problem(str(item["loc"][0]) if item["loc"] else "settings", item["msg"]))
            for item in error.errors(include_input=False, include_url=False)
        ]
        raise ConfigurationError("; ".join(problems)) from None


def _refuse_unknown_variables() -> None:
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    for name in os.environ:
        if name.startswith(PREFIX) and name not in known and not name.startswith(NOT_SETTINGS):
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigurationError(f"unknown environment variable {name}{hint}")
