"""How a sealed secret looks in a stored payload, and a payload with its secrets hidden."""

from __future__ import annotations

from typing import Any

SEALED = "$sealed"
"""The only name in the JSON object that stands for a sealed secret."""

MASK = "******"


def masked(node: Any) -> Any:
    """The payload to show to people: even sealed, secrets are nobody's business."""
    if isinstance(node, dict):
        if node.keys() == {SEALED}:
            return MASK
        return {name: masked(value) for name, value in node.items()}
    return [masked(item) for item in node] if isinstance(node, list) else node
