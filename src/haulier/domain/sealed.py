"""How a sealed secret looks in a stored payload, and what is shown in its place."""

from __future__ import annotations

SEALED = "$sealed"
"""The only name in the JSON object that stands for a sealed secret."""

MASK = "******"
