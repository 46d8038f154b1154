"""A process that has loaded everything once, and from which the processes of tests are forked.

To start Python and to import the library takes most of a second; a run that starts hundreds of
processes would do little else. It has no thread, no event loop and no connection when it forks, so
what comes out of it is as good as a process that was started anew.

Requests and answers are lines of JSON on its standard input and output; it ends with its input.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from support import wait_until

TESTS = Path(__file__).parent
PR_SET_PDEATHSIG = 1
DRIVERS = ("haulier.stores.sqlite", "haulier.stores.postgres", "haulier.stores.redis")


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@dataclass(eq=False)
class Child:
    """One forked process, and what it has said."""

    pid: int
    log: Path
    stopped: bool = field(default=False)

    @property
    def alive(self) -> bool:
        return alive(self.pid)

    def says(self) -> str:
        return self.log.read_text(errors="replace")

    def complaints(self) -> list[str]:
        """What it has said of trouble, with its pid."""
        return [
            f"{self.pid}: {line}"
            for line in self.says().splitlines()
            if "warning" in line or "error" in line
        ]

    def send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it with all that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def wait(self, timeout: float) -> bool:
        """Stand still until it has ended; whether it has, in time."""
        try:
            process = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return True
        try:
            return bool(select.select([process], [], [], timeout)[0])
        finally:
            os.close(process)

    async def ended(self, timeout: float = 30) -> None:
        await wait_until(lambda: not self.alive, timeout)


class Nursery:
    """Forks processes, each the whole run of a function `<module>:<function>(spec)`.

    `loaded` are the modules that they find loaded, `env` is their environment.
    """

    def __init__(self, folder: Path, env: dict[str, str], loaded: Sequence[str]) -> None:
        self._folder = folder
        self._env = env
        self._loaded = loaded
        self._count = 0
        # One request at a time: what a child is to read must not be in our buffer.
        self._asking = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        path = os.pathsep.join([str(TESTS), self._env.get("PYTHONPATH", "")])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "nursery", *self._loaded],
            env={**self._env, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.communicate(timeout=30)

    def start(self, main: str, spec: dict[str, Any]) -> Child:
        """A new process, the leader of a group of its own."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._asking:
            self._count += 1
            log = self._folder / f"child-{self._count}.log"
            request = {"main": main, "spec": spec, "log": str(log)}
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return Child(int(self._process.stdout.readline()), log)


def main() -> None:
    """Fork until the input ends; then nothing that was forked is left."""
    for name in (*DRIVERS, *sys.argv[1:]):
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)
    children: set[int] = set()
    for line in sys.stdin:
        while children:
            pid, _ = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            children.discard(pid)
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _live(request)
        # From both sides: the parent may want to kill the group before the child has made it.
        with contextlib.suppress(PermissionError):
            os.setpgid(pid, pid)
        children.add(pid)
        print(pid, flush=True)
    for pid in children:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def _live(request: dict[str, Any]) -> None:
    code = 1
    try:
        with contextlib.suppress(PermissionError):
            os.setpgid(0, 0)
        # Nobody may be left behind, even by a nursery that is killed itself.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        output = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        module, _, function = request["main"].partition(":")
        getattr(importlib.import_module(module), function)(request["spec"])
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
