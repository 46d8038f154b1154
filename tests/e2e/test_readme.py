"""Every command of the README is run as it stands there."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from processes import environment, running
from support import wait_until

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BIN = Path(sys.executable).parent


def console_commands() -> list[str]:
    blocks = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


COMMANDS = console_commands()
HAULIER = [command for command in COMMANDS if command.startswith("haulier ")]
CURL = [command for command in COMMANDS if command.startswith("curl ")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working folder with the examples, as a user has it after `make demo`."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "examples", folder / "examples")
    return folder


def shell(folder: Path, command: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run a command with this environment's programs in front, as an activated one has them."""
    env = {**environment(folder), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(
        command, shell=True, cwd=folder, env=env, capture_output=True, text=True,
        timeout=timeout, check=False,
    )  # fmt: skip


def test_the_readme_has_the_commands_that_are_tested_here():
    others = set(COMMANDS) - set(HAULIER) - set(CURL)
    assert others == {"make demo", "make test", "source .venv/bin/activate"}
    assert "haulier serve --no-token --allow-host 127.0.0.1" in HAULIER


@pytest.mark.slow
def test_make_demo_runs_the_main_job_and_says_what_to_do_next(folder):
    """`make -C` with this environment: what it would install is installed."""
    venv = BIN.parent
    for stamp in (".demo", ".test"):
        if not (venv / stamp).exists():
            pytest.skip("not run from an environment that make has set up")
    done = shell(
        folder,
        f"make -C {shlex.quote(str(ROOT))} demo VENV={shlex.quote(str(venv))} "
        f"ARGS='--out {shlex.quote(str(folder / 'haulier-demo'))}'",
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "600 of 600" in done.stdout
    assert "What next:" in done.stdout
    assert "auth_refused" in done.stdout
    assert len(list((folder / "haulier-demo" / "renditions").rglob("*.jpg"))) == 600


def test_make_test_checks_and_then_tests():
    """It cannot be run from inside itself: that it does both is read off what it would do."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        ["make", "-n", "-B", "test"], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    )
    assert "ruff check" in done.stdout
    assert "mypy" in done.stdout
    assert "lint-imports" in done.stdout
    tests = re.findall(r"python -m pytest (.*)", done.stdout)
    assert tests[-2:] == ["-q -n 3 --ignore=tests/faults", "-n 2 tests/faults"]


@pytest.mark.parametrize("command", [c for c in HAULIER if not c.startswith("haulier serve")])
def test_a_command_of_the_readme_succeeds(folder, command):
    sample = folder / "haulier-demo" / "renditions" / "account-0001"
    if not sample.exists():
        # Without the demo before it, a picture of the demo's kind takes its place.
        from PIL import Image

        sample.mkdir(parents=True)
        Image.linear_gradient("L").convert("RGB").save(sample / "picture.jpg")
    done = shell(folder, command)
    assert done.returncode == 0, done.stderr
    assert done.stdout


async def test_the_requests_of_the_readme_are_answered(folder, free_port):
    """The port differs, so that a server which is really used is left in peace."""
    flags = ("--no-token", "--allow-host", "127.0.0.1", "--port", str(free_port))
    with running(folder, "serve", *flags) as server:
        await wait_until(lambda: "haulier serves" in server.says())
        for command in CURL:
            done = shell(folder, command.replace("8470", str(free_port)) + " --fail-with-body")
            assert done.returncode == 0, done.stdout + done.stderr
            assert done.stdout.startswith(("{", "["))


@pytest.fixture
def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_the_program_of_the_readme_runs(folder):
    program = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert program is not None
    (folder / "hello.py").write_text(program[1])
    done = shell(folder, f"{shlex.quote(sys.executable)} hello.py")
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == "Hello Ada! Hello Ada!"
    assert second == "{'total': 2, 'completed': 2, 'failed': 0, 'cancelled': 0}"
