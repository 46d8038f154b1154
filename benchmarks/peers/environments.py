"""An environment per peer, made by pip or npm in a folder that git does not see."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

from table import ADAPTERS, Peer

PATIENCE = 900


class NotMadeError(Exception):
    """It could not be made; the message says why."""


def prepare(peer: Peer, cache: Path) -> tuple[list[str], dict[str, str]]:
    """The command that starts the peer's adapter, and the versions that run."""
    folder = cache / peer.environment
    stamp = folder / "made-of"
    wanted = hashlib.sha256(json.dumps([sys.version, peer.packages]).encode()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        folder.mkdir(parents=True, exist_ok=True)
        (_make_node if peer.language == "Node" else _make_python)(peer, folder)
        stamp.write_text(wanted)
    if peer.language == "Node":
        # Node looks for modules from where the file lies.
        adapter = folder / peer.adapter
        adapter.write_text((ADAPTERS / peer.adapter).read_text())
        return ["node", str(adapter)], _node_versions(peer, folder)
    python = str(folder / "bin" / "python")
    return [python, str(ADAPTERS / peer.adapter)], _python_versions(peer, python)


def _make_python(peer: Peer, folder: Path) -> None:
    _run([sys.executable, "-m", "venv", str(folder)])
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    _run([*pip, "--disable-pip-version-check", *peer.packages])


def _make_node(peer: Peer, folder: Path) -> None:
    (folder / "package.json").write_text('{"private": true}\n')
    quiet = ["--no-audit", "--no-fund", "--loglevel=error"]
    _run(["npm", "install", *quiet, *peer.packages], folder)


def _python_versions(peer: Peer, python: str) -> dict[str, str]:
    ask = "import importlib.metadata as m, json, sys; "
    ask += "print(json.dumps({name: m.version(name) for name in sys.argv[1:]}))"
    return json.loads(_run([python, "-c", ask, *peer.shows]))


def _node_versions(peer: Peer, folder: Path) -> dict[str, str]:
    found = {"node": _run(["node", "--version"]).strip().removeprefix("v")}
    for name in peer.shows:
        package = json.loads((folder / "node_modules" / name / "package.json").read_text())
        found[name] = package["version"]
    return found


def _run(command: list[str], folder: Path | None = None) -> str:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    except OSError as error:
        raise NotMadeError(f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise NotMadeError(lines[-1] if lines else f"{command[0]} failed")
    return done.stdout


def clean_environment(server: str) -> dict[str, str]:
    """What an adapter sees: nothing of haulier's settings, and where the jobs live."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HAULIER_")}
    return {**kept, "PEER_SERVER": server, "PYTHONUNBUFFERED": "1"}
