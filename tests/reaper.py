"""Ends the servers of a test run that did not live to do so itself.

A process of its own, which reads on its standard input what there is to end: `<pid> <folder>` for a
server that runs, 0 for a folder alone, `-` for one that is gone. When the input ends, however its
writer ended, what is left is killed and removed. It does so from outside because no process can
clean up after its own SIGKILL, and because PR_SET_PDEATHSIG goes with the thread that started a
server and is lost when that becomes another user's.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

PATIENCE = 10.0
"""Seconds that killed processes may take to be gone before their folder is removed."""


def children(parent: int) -> list[int]:
    """Processes that this one has started: PostgreSQL's are no members of its group."""
    if not Path("/proc/self/stat").exists():
        told = subprocess.run(["pgrep", "-P", str(parent)], capture_output=True, check=False)
        return [int(pid) for pid in told.stdout.split()]
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # After the name in brackets: the state, then the parent.
            if int(stat.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(stat.parent.name))
    return found


def end(pid: int, folder: str) -> None:
    """Kill a server with all that it has started, and remove its data."""
    # A server works in its folder; its number may be another process's by now.
    if pid and _lives_in(pid, folder):
        family = [pid, *children(pid)]
        for each in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        give_up = time.monotonic() + PATIENCE
        while any(_lives_in(each, folder) for each in family) and time.monotonic() < give_up:
            time.sleep(0.02)
    shutil.rmtree(folder, ignore_errors=True)


def _lives_in(pid: int, folder: str) -> bool:
    proc = Path(f"/proc/{pid}/cwd")
    try:
        return str(proc.readlink()).startswith(folder)
    except FileNotFoundError:
        return not Path("/proc/self").exists() and not _gone(pid)
    except OSError:
        return False


def _gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return True
    return False


def main() -> None:
    # What ends the run must not end this too.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    there: dict[str, int] = {}
    for line in sys.stdin:
        pid, _, folder = line.rstrip("\n").partition(" ")
        if pid == "-":
            there.pop(folder, None)
        else:
            there[folder] = int(pid)
    for folder, server in there.items():
        end(server, folder)


if __name__ == "__main__":
    main()
