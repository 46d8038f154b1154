"""Real haulier processes for tests, in a folder of their own, stopped each by its pid."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support import wait_until

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
    """Run a command to its end."""
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


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def with_tasks(folder: Path) -> Path:
    """The module `tasks` with its `app`, in the folder."""
    (folder / "tasks.py").write_text(TASKS)
    return folder


def told(folder: Path) -> list[str]:
    """What the tasks of that module have said so far."""
    path = folder / "told.txt"
    return path.read_text().splitlines() if path.exists() else []
