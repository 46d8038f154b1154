"""One command of haulier in a process that was forked for it (nursery.py)."""

from __future__ import annotations

import atexit
import os
import runpy
import sys
import threading
import traceback
from pathlib import Path
from typing import Any


def run(spec: dict[str, Any]) -> None:
    """Be what `python -m haulier` is in a folder; the exit code goes to a file."""
    _become(spec)
    code: Any = 0
    try:
        runpy.run_module("haulier", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        code = ended.code or 0
    except Exception:  # noqa: BLE001 - as the interpreter itself does
        traceback.print_exc()
        code = 1
    if not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    # What an interpreter does at its end: threads that are left would keep the command waiting.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    Path(spec["code"]).write_text(str(code))


def _become(spec: dict[str, Any]) -> None:
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        mode = os.O_RDONLY if name == "stdin" else os.O_WRONLY | os.O_CREAT | os.O_APPEND
        os.dup2(os.open(spec[name], mode), descriptor)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    os.chdir(spec["folder"])
    os.environ.clear()
    os.environ.update(spec["env"])
    sys.argv[1:] = spec["arguments"]
    # The folder takes the place of the nursery's; modules of tests are not found from a command.
    sys.path[0] = spec["folder"]
    tests = str(Path(__file__).parent)
    sys.path[:] = [place for place in sys.path if place != tests]
