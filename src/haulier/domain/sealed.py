"""How a sealed secret looks in a stored payload, and a payload to compare without them."""

from __future__ import annotations

from typing import Any

SEALED = "$sealed"
"""The only name in the JSON object that stands for a sealed secret."""

MASK = "******"


def masked(node: Any) -> Any:
    """A payload without what is sealed: it is another text each time, of the same secret.

    To compare payloads. What people see goes through `redaction.shown`, which hides more.
    """
    if isinstance(node, dict):
        if node.keys() == {SEALED}:
            return MASK
        return {name: masked(value) for name, value in node.items()}
    return [masked(item) for item in node] if isinstance(node, list) else node
