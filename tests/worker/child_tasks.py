"""What child processes run: plain functions at the top level of a module they can import."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import structlog
from pydantic import BaseModel

from haulier import (
    BaseTaskRunner,
    CancelJob,
    Context,
    JobTimeoutError,
    PermanentError,
    RetryLater,
    Secret,
    Snooze,
)
from haulier.services.baggage import carried


def add(ctx: Context, left: int, right: int = 1) -> dict[str, Any]:
    return {
        "sum": left + right,
        "pid": os.getpid(),
        "job": ctx.job.id,
        "lease": ctx.lease,
        "attempt": ctx.job.attempt,
        "cancelled": ctx.cancelled,
    }


def report_baggage(ctx: Context) -> list[Any]:
    return [ctx.baggage, carried(), structlog.contextvars.get_contextvars()]


def report_parents(ctx: Context) -> list[Any]:
    return [[each.state, each.value, each.ended] for each in ctx.parents_sync()]


def report(ctx: Context) -> None:
    ctx.log.info("hello", who="world", number=3)
    ctx.progress(40, "four of ten")
    wait_for(ctx, ctx.job.id)
    ctx.progress(100, "done with it")


def wait_for(ctx: Context, name: str) -> None:
    """Until the test makes a file of that name."""
    while not (Path(os.environ["HAULIER_TEST_SCENE"]) / name).exists():
        time.sleep(0.01)


def fail(how: str) -> None:
    raise {
        "value": ValueError("it broke"),
        "permanent": PermanentError("never"),
        "later": RetryLater("not yet", delay=3600),
        "cancel": CancelJob("nothing to do"),
        "snooze": Snooze(3600),
        "exit": SystemExit(3),
        "generator": GeneratorExit(),
        "interrupt": KeyboardInterrupt(),
        "memory": MemoryError("no more"),
        "asked": httpx.HTTPStatusError(
            "too many",
            request=httpx.Request("GET", "http://127.0.0.1"),
            response=httpx.Response(429, headers={"retry-after": "1800"}),
        ),
    }[how]


def die(how: str) -> None:
    if how == "exit":
        os._exit(7)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "fork":
        # A grandchild that keeps every inherited descriptor open.
        if os.fork() == 0:
            time.sleep(30)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "memory":
        bytearray(10**12)
    ctypes.string_at(0)


def mixed(how: str) -> str:
    """A good one, or one of the others."""
    if how != "good":
        die(how)
    return how


class Login(BaseModel):
    user: str
    password: Secret


def login(ctx: Context, login: Login) -> str:
    plain = login.password.reveal()
    ctx.log.info("trying", password=plain)
    ctx.progress(5, f"trying {plain}")
    raise LookupError(f"login failed: {login.user}:{plain}@host")


def plain_login(user: str, password: Secret) -> str:
    return user


def reveal(login: Login, token: Secret) -> list[str]:
    return [login.password.reveal()[::-1], token.reveal()[::-1], str(login.password)]


def stay(ctx: Context, how: str = "heed", seconds: float = 30) -> str:
    """Sleeps, and heeds what it is told, or catches it, or cannot hear."""
    mark = Path(os.environ["HAULIER_TEST_SCENE"]) / f"{ctx.job.id}.pid"
    mark.write_text(str(os.getpid()))
    if how == "deaf":
        # Holds the interpreter's lock, so no signal handler can run.
        ctypes.PyDLL(None).sleep(int(seconds))
    try:
        time.sleep(seconds)
    except JobTimeoutError:
        if how != "catch":
            raise
        return "caught"
    return "slept"


def starts_others() -> int:
    return subprocess.run([sys.executable, "-c", "pass"], check=True).returncode


def look(ctx: Context) -> None:
    ctx._runtime.reader  # noqa: B018 - it raises


class Start(BaseModel):
    count: int


class Item(BaseModel):
    n: int


class Squares(BaseTaskRunner[Start, Item]):
    task_type = "squares"
    start_model = Start
    item_model = Item
    executor = "process"

    def expand(self, ctx: Context, start: Start):
        return (Item(n=n) for n in range(start.count))

    def run_item(self, ctx: Context, item: Item) -> int:
        return item.n**2


def stepping(ctx: Context) -> list[Any]:
    """Two steps; the first attempt dies between them. A file has a line for each that was done."""

    def done(name: str) -> tuple[str, int]:
        with (Path(os.environ["HAULIER_TEST_SCENE"]) / f"{ctx.job.id}.steps").open("a") as file:
            file.write(f"{name}\n")
        return name, os.getpid()

    ctx.log(f"attempt {ctx.job.attempt}")
    first = ctx.step_sync("first", done, "first")
    if ctx.job.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return [first[0], ctx.step_sync("second", done, "second")[0]]


def slow_to_keep(ctx: Context) -> int:
    """One step, and a line in a file for each time it was done."""

    def do() -> int:
        with (Path(os.environ["HAULIER_TEST_SCENE"]) / "done").open("a") as file:
            file.write("once\n")
        return 7

    return ctx.step_sync("one", do)


def step_twice(ctx: Context) -> None:
    for _ in range(2):
        ctx.step_sync("again", list)


def says(ctx: Context, login: Login) -> None:
    plain = login.password.reveal()
    for number in range(3):
        ctx.log(f"{number}: {plain}")
    ctx.log("x" * 5000)


def say_tick(ctx: Context) -> list[Any]:
    tick = ctx.tick_sync()
    return [] if tick is None else [tick.schedule, tick.tick, tick.state, tick.job]
