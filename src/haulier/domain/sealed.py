"""How a sealed secret looks in a stored payload, and payloads without them."""

from __future__ import annotations

from typing import Any

SEALED = "$sealed"
"""The only name in the JSON object that stands for a sealed secret."""

MASK = "******"


def masked(node: Any) -> Any:
    """The payload without what is sealed in it, which differs each time it is sealed."""
    if isinstance(node, dict):
        if node.keys() == {SEALED}:
            return MASK
        return {name: masked(value) for name, value in node.items()}
    return [masked(item) for item in node] if isinstance(node, list) else node
