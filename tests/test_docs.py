"""The documentation is held to what is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from haulier.config import Settings
from haulier.domain.moves import RULES

ROOT = Path(__file__).parents[1]
DOCS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
HOWTOS = sorted(ROOT.glob("docs/howto/*.md"))
PROMISES = (ROOT / "docs" / "guarantees.md").read_text()


def test_every_promise_names_tests_that_exist():
    named = re.findall(r"`(tests/[\w/]+\.py(?:::\w+)+)`", PROMISES)
    assert len(named) > 30
    for reference in named:
        path, *names = reference.split("::")
        sources = [ROOT / path]
        if names[0].startswith("Test"):
            sources += (ROOT / path).parent.glob("conformance/*.py")
        text = "\n".join(source.read_text() for source in sources)
        for name in names:
            assert re.search(rf"(class|def) {name}\b", text), reference


def test_every_row_of_promises_has_a_test():
    rows = [
        line for line in PROMISES.splitlines() if line.startswith("| ") and "held by" not in line
    ]
    assert rows
    for row in rows:
        assert "`tests/" in row, row


def test_every_move_is_documented():
    text = (ROOT / "docs" / "state-machine.md").read_text()
    for move in RULES:
        assert f"| {move} |" in text


def test_every_setting_is_documented():
    text = (ROOT / "docs" / "cli.md").read_text()
    for name in Settings.model_fields:
        assert f"`HAULIER_{name.upper()}`" in text


@pytest.mark.parametrize("page", HOWTOS, ids=lambda page: page.name)
def test_the_examples_of_a_howto_run(page, tmp_path):
    examples = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    assert examples
    for number, example in enumerate(examples):
        script = tmp_path / f"example_{number}.py"
        script.write_text(example)
        done = subprocess.run(
            [sys.executable, script.name],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr


PROGRAMS = [
    pytest.param(name, program, output, id=f"{page.name} {name}")
    for page in DOCS
    for program, name, output in re.findall(
        r"```python\n(# (\w+\.py)\n.*?)```\n\n```text\n(.*?)```", page.read_text(), re.DOTALL
    )
]
"""Blocks that begin with the name of a file are whole programs; what they print follows them."""


def test_there_are_programs_in_the_documentation():
    assert PROGRAMS


@pytest.mark.parametrize(("name", "program", "output"), PROGRAMS)
def test_programs_in_the_documentation_do_what_they_say(tmp_path, name, program, output):
    (tmp_path / name).write_text(program)
    done = subprocess.run(
        [sys.executable, "-W", "error", name],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == output, done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize("page", DOCS, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target
