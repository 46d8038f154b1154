"""The history of a run with real processes: a file to which each of them appends its lines.

A line is written before the process goes on, so it outlives whatever happens to the process next.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

Line = dict[str, Any]


class Log:
    """Appends lines to the file of a run.

    at: microseconds of the monotonic clock, which all processes of a machine share and no jump of
    the wall clock touches. pid: of the process that writes.
    """

    def __init__(self, path: Path | str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def write(self, what: str, **fields: Any) -> None:
        line = {"what": what, "at": now(), "by": os.getpid(), **fields}
        # One call for one line. The line break before it ends a line of another process that was
        # killed in the middle of its own.
        os.write(self._file, f"\n{json.dumps(line)}\n".encode())

    def close(self) -> None:
        os.close(self._file)


def now() -> int:
    return time.monotonic_ns() // 1000


def read(path: Path | str) -> list[Line]:
    """All lines that are whole, in the order of their file.

    A torn one says nothing: its writer was killed before it went on to what the line speaks of, or
    had done already what an earlier line announced.
    """
    lines = []
    for text in Path(path).read_text(errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and "what" in line and "by" in line:
            lines.append(line)
    return lines
