"""Real haulier processes for tests, in a folder of their own, stopped each by its pid."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pkgutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import haulier.cli
from nursery import Nursery
from support import wait_until

NEW = False
"""Whether each command starts Python anew (`--new-processes`)."""

LOADED = (
    "command",
    *(found.name for found in pkgutil.walk_packages(haulier.cli.__path__, "haulier.cli.")),
    *("haulier.config", "haulier.container", "haulier.runners.media_uniq"),
    *("haulier.runners.proxy_diagnostics", "haulier.web", "haulier.worker", "uvicorn"),
)
"""What a command need not load any more."""

TASKS = """
import asyncio, os, time
from pathlib import Path
from haulier import App, Context, RetryPolicy

app = App("sqlite:///tasks.db")
here = Path(__file__).parent


def tell(line):
    with (here / "told.txt").open("a") as file:
        file.write(line + "\\n")


@app.task
async def nap(ctx: Context, seconds: float, name: str = "nap"):
    tell(f"start {name} {ctx.job.attempt}")
    await asyncio.sleep(seconds)
    tell(f"end {name}")
    return name


@app.task
def snore(ctx: Context, seconds: float, name: str = "snore"):
    tell(f"start {name} {ctx.job.attempt}")
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        ctx.check()
        time.sleep(0.01)
    tell(f"end {name}")


@app.task(retry=RetryPolicy.never())
async def fail(reason: str = "no"):
    raise ValueError(reason)


@app.task
async def echo(value: int):
    return value
"""


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Our own variables only where a test sets them; the key file inside the test's folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HAULIER_")}
    kept.pop("CONCURRENCY_LIMIT", None)
    ours = {"XDG_CONFIG_HOME": str(folder / "config"), "NO_COLOR": "1", "PYTHONFAULTHANDLER": "1"}
    return {**kept, **ours, **more}


def haulier(
    folder: Path, *arguments: str, stdin: str | None = None, timeout: float = 60, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end: in a process of its own that need not load the library any more."""
    run = started_anew if NEW else _forked
    return run(folder, *arguments, stdin=stdin, timeout=timeout, **env)


def started_anew(
    folder: Path, *arguments: str, stdin: str | None = None, timeout: float = 60, **env: str
) -> subprocess.CompletedProcess[str]:
    """The same in a process that has loaded nothing yet."""
    return subprocess.run(
        [sys.executable, "-m", "haulier", *arguments],
        cwd=folder,
        env=environment(folder, **env),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


_open = contextlib.ExitStack()


@functools.cache
def _nursery() -> Nursery:
    """The nursery of all commands of this test process; `close` ends it."""
    folder = Path(_open.enter_context(tempfile.TemporaryDirectory(prefix="haulier-nursery-")))
    return _open.enter_context(Nursery(folder, environment(folder), LOADED))


def close() -> None:
    """End what all tests have shared."""
    _open.close()
    _nursery.cache_clear()


def _forked(
    folder: Path, *arguments: str, stdin: str | None, timeout: float, **env: str
) -> subprocess.CompletedProcess[str]:
    nursery = _nursery()
    with tempfile.TemporaryDirectory(prefix="haulier-command-") as own:
        files = {name: Path(own) / name for name in ("stdin", "stdout", "stderr", "code")}
        files["stdin"].write_text(stdin or "")
        spec = {
            **{name: str(path) for name, path in files.items()},
            "folder": str(folder),
            "arguments": arguments,
            "env": environment(folder, **env),
        }
        child = nursery.start("command:run", spec)
        if not child.wait(timeout):
            child.kill()
            raise subprocess.TimeoutExpired(["haulier", *arguments], timeout)
        assert files["code"].exists(), f"haulier {arguments} ended without a code: {child.says()}"
        return subprocess.CompletedProcess(
            ["haulier", *arguments],
            int(files["code"].read_text()),
            files["stdout"].read_text(),
            files["stderr"].read_text(),
        )


def haulier_json(folder: Path, *arguments: str, **env: str) -> Any:
    """Run a command with --json that must succeed; its document."""
    done = haulier(folder, *arguments, "--json", **env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@dataclass
class Daemon:
    """A long-running command, its log in a file."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def says(self) -> str:
        return self.log.read_text()

    def children(self) -> list[int]:
        """The pids of its worker processes; multiprocessing has a helper process beside them."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError, IndexError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == self.pid and b"spawn_main" in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
        return found

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def ended(self, timeout: float = 30) -> int:
        """Its return code; if it goes on for too long, the error tells where it hangs."""
        try:
            await wait_until(lambda: self.process.poll() is not None, timeout)
        except AssertionError as error:
            self.send(signal.SIGABRT)
            await wait_until(lambda: self.process.poll() is not None)
            error.add_note(self.says())
            raise
        return self.process.returncode


@contextlib.contextmanager
def running(folder: Path, *arguments: str, **env: str) -> Iterator[Daemon]:
    """A command that runs until the end of the block at the latest."""
    log = folder / f"{arguments[0]}-{len(list(folder.glob('*.log')))}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "haulier", *arguments],
            cwd=folder,
            env=environment(folder, **env),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    daemon = Daemon(process, log)
    try:
        yield daemon
    finally:
        for pid in daemon.children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.kill()
        process.wait()


def with_tasks(folder: Path) -> Path:
    """The module `tasks` with its `app`, in the folder."""
    (folder / "tasks.py").write_text(TASKS)
    return folder


def told(folder: Path) -> list[str]:
    """What the tasks of that module have said so far."""
    path = folder / "told.txt"
    return path.read_text().splitlines() if path.exists() else []
