"""Ids: UUIDv7 (RFC 9562), as pure functions of a time and of random bytes."""

from __future__ import annotations

import hashlib

ENTROPY_BYTES = 10


def uuid7(milliseconds: int, entropy: bytes) -> str:
    """A UUIDv7 from a Unix time in milliseconds and 10 random bytes."""
    # Put together as text, because producers make tens of thousands a second: version 7 takes the
    # place of the first random digit, the variant's two bits those of the fifth.
    time_digits, digits = f"{milliseconds:012x}", entropy.hex()
    variant = "89ab"[entropy[2] >> 4 & 3]
    return f"{time_digits[:8]}-{time_digits[8:]}-7{digits[1:4]}-{variant}{digits[5:8]}-{digits[8:]}"


def derived_id(parent: str, label: str) -> str:
    """The id that belongs to `label` of a parent id: the same arguments give the same id.

    It keeps the parent's time, so items sort beside their batch, and replaces the random part
    by a hash. A producer that crashed half-way repeats its inserts and none is doubled.
    """
    raw = raw_id(parent)
    digest = hashlib.blake2b(f"{text_id(raw)}/{label}".encode(), digest_size=ENTROPY_BYTES).digest()
    return uuid7(int.from_bytes(raw[:6], "big"), digest)


def text_id(raw: bytes) -> str:
    """The 36-character form of 16 bytes."""
    h = raw.hex()
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"


def raw_id(text: str) -> bytes:
    """The 16 bytes of an id; raises ValueError for anything that is not a UUID."""
    digits = text.replace("-", "")
    raw = bytes.fromhex(digits)
    # Both lengths: fromhex passes over white space.
    if len(digits) != 32 or len(raw) != 16:
        raise ValueError(f"{text!r} is not a UUID")
    return raw
