"""Ids: UUIDv7 (RFC 9562), as pure functions of a time and of random bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

ENTROPY_BYTES = 10


_DIGITS = 2 * ENTROPY_BYTES
_VARIANT = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}


def uuid7(milliseconds: int, entropy: bytes) -> str:
    """A UUIDv7 from a Unix time in milliseconds and 10 random bytes."""
    return uuid7s(milliseconds, entropy)[0]


def uuid7s(milliseconds: int, entropy: bytes) -> list[str]:
    """A UUIDv7 for every 10 random bytes, all of the same time."""
    # Put together as text, because producers make tens of thousands a second: version 7 takes the
    # place of the first random digit, the variant's two bits those of the fifth.
    time_digits, digits = f"{milliseconds:012x}", entropy.hex()
    start = f"{time_digits[:8]}-{time_digits[8:]}-7"
    return [
        f"{start}{digits[at + 1 : at + 4]}-{_VARIANT[digits[at + 4]]}{digits[at + 5 : at + 8]}"
        f"-{digits[at + 8 : at + _DIGITS]}"
        for at in range(0, len(digits), _DIGITS)
    ]


def derived_id(parent: str, label: str) -> str:
    """The id that belongs to `label` of a parent id: the same arguments give the same id.

    It keeps the parent's time, so items sort beside their batch, and replaces the random part
    by a hash. A producer that crashed half-way repeats its inserts and none is doubled.
    """
    return derived_ids(parent, [label])[0]


def derived_ids(parent: str, labels: Iterable[str]) -> list[str]:
    """`derived_id` for many labels, at half the cost of one by one."""
    raw = raw_id(parent)
    begun = hashlib.blake2b(f"{text_id(raw)}/".encode(), digest_size=ENTROPY_BYTES)
    digests = []
    for label in labels:
        whole = begun.copy()
        whole.update(label.encode())
        digests.append(whole.digest())
    return uuid7s(int.from_bytes(raw[:6], "big"), b"".join(digests))


def text_id(raw: bytes) -> str:
    """The 36-character form of 16 bytes."""
    h = raw.hex()
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"


def text_id_of(text: str) -> str:
    """The 36-character form of an id in any form; raises ValueError for what is none."""
    return text_id(raw_id(text))


def raw_id(text: str) -> bytes:
    """The 16 bytes of an id; raises ValueError for anything that is not a UUID."""
    digits = text.replace("-", "")
    raw = bytes.fromhex(digits)
    # Both lengths: fromhex passes over white space.
    if len(digits) != 32 or len(raw) != 16:
        raise ValueError(f"{text!r} is not a UUID")
    return raw
