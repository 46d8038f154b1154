"""The house rules that a machine can hold: layers, sizes, the public list, and what is banned."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import haulier

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "haulier"
FILES = sorted(SOURCE.rglob("*.py"))
LONGEST_FILE = 500
LONGEST_FUNCTION = 60

EXCESSES: dict[str, str] = {
    "stores/postgres/store.py": "a short method for each verb of the port",
    "stores/sqlite/store.py": "a short method for each verb of the port",
}
"""Files (`path`) and functions (`path:name`) beyond the limits, each with its reason."""

BANNED_CALLS = {"eval", "exec", "compile", "__import__"}
BANNED_MODULES = {"pickle", "marshal", "shelve", "dill"}


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def name_of(path: Path) -> str:
    return str(path.relative_to(SOURCE))


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Each function's name and its number of lines, decorators and docstring left out."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            if ast.get_docstring(node) is not None and len(node.body) > 1:
                first = node.body[1]
            assert node.end_lineno is not None
            yield node.name, node.end_lineno - first.lineno + 1


def test_imports_point_inwards():
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_no_file_is_too_long():
    long = {name_of(path): len(path.read_text().splitlines()) for path in FILES}
    assert {name for name, lines in long.items() if lines > LONGEST_FILE} <= EXCESSES.keys()


def test_no_function_is_too_long():
    long = {
        f"{name_of(path)}:{name}"
        for path in FILES
        for name, lines in functions(path)
        if lines > LONGEST_FUNCTION
    }
    assert long <= EXCESSES.keys()


def test_every_excess_is_one():
    """A reason that is no longer needed is taken out of the table."""
    for entry in EXCESSES:
        path, _, function = entry.partition(":")
        if function:
            assert dict(functions(SOURCE / path))[function] > LONGEST_FUNCTION
        else:
            assert len((SOURCE / path).read_text().splitlines()) > LONGEST_FILE


def test_the_public_list_is_sorted_and_every_name_is_there():
    assert haulier.__all__ == sorted(haulier._HOME)
    for name in haulier.__all__:
        assert getattr(haulier, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        haulier.Nonsense  # noqa: B018


def test_importing_haulier_loads_nothing_else():
    probe = "import sys, haulier; print([m for m in sys.modules if m.startswith('haulier.')])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_is_unpickled_or_evaluated(path):
    for node in ast.walk(tree_of(path)):
        if _is_plain_call(node):
            assert node.func.id not in BANNED_CALLS
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        assert not {name.partition(".")[0] for name in names} & BANNED_MODULES


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_the_command_line_prints(path):
    if not name_of(path).startswith("cli/"):
        called = {node.func.id for node in ast.walk(tree_of(path)) if _is_plain_call(node)}
        assert "print" not in called


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_module_says_what_it_is_for(path):
    assert ast.get_docstring(tree_of(path))


def test_only_the_composition_root_imports_by_name():
    """What is imported by a text comes from an operator's command line, never from data.

    A child process gets its worker's word for where a function is, which has it from its registry.
    """
    allowed = {"__init__.py", "container.py", "cli/__init__.py", "worker/child.py"}
    for path in FILES:
        if "import_module" in path.read_text():
            assert name_of(path) in allowed


def test_the_error_tree_in_the_docstring_is_the_one_in_the_code():
    errors = importlib.import_module("haulier.exceptions")
    drawn = errors.__doc__ or ""
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, errors.HaulierError):
            assert f" {name}" in drawn or drawn.lstrip().find(name) >= 0, name


def _is_plain_call(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
