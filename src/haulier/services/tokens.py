"""Tokens, session cookies and one-time links as texts: `hlr_<id>_<secret>_<checksum>`.

The id is public and tells in lists and logs which one it is. The secret has 190 bits from the
system's dice, so a plain SHA-256 of the text is enough to recognise it by: there is nothing to
guess. The checksum tells a typing mistake, and what is none of ours, without a look at the records;
scanners for leaked secrets find the text by its prefix, as GitHub's tokens have it.
"""

from __future__ import annotations

import re
import secrets
import string
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha256
from hmac import compare_digest

from haulier.domain.access import LONGEST_NAME, MOST_IN_SCOPE
from haulier.domain.job import MICROSECOND
from haulier.exceptions import Problem, ValidationError

_ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
_ID, _SECRET, _CHECKSUM = 12, 32, 6
_SHAPE = re.compile(
    rf"(hl[rsl])_([0-9A-Za-z]{{{_ID}}})_[0-9A-Za-z]{{{_SECRET}}}_([0-9A-Za-z]{{{_CHECKSUM}}})"
)
LONGEST = 4 + _ID + 1 + _SECRET + 1 + _CHECKSUM

_LIFETIME = re.compile(r"([0-9]{1,9})(s|min|h|d|w)")
_UNITS = {"s": 1, "min": 60, "h": 3_600, "d": 86_400, "w": 604_800}
LONGEST_LIFETIME = 100 * 365 * 86_400


class What(StrEnum):
    """What a text is for, which its prefix says."""

    TOKEN = "hlr"  # noqa: S105 - a prefix
    SESSION = "hls"
    LINK = "hll"


@dataclass(frozen=True, slots=True)
class Minted:
    """A new one. `text` is shown once, to whom it is for, and kept nowhere."""

    id: str
    digest: bytes
    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Presented:
    """One that somebody showed: well-formed, which is not to say that it is good for anything."""

    id: str
    digest: bytes

    def matches(self, digest: bytes) -> bool:
        """Whether it is the one with this digest, in constant time."""
        return compare_digest(self.digest, digest)


def mint(what: What) -> Minted:
    """A new one, from the system's dice."""
    public, secret = _random(_ID), _random(_SECRET)
    body = f"{what}_{public}_{secret}"
    text = f"{body}_{_checksum(body)}"
    return Minted(public, _digest(text), text)


def presented(what: What, text: str) -> Presented | None:
    """What somebody showed as one of ours, None for what cannot be one."""
    if len(text) != LONGEST:
        return None
    shape = _SHAPE.fullmatch(text)
    if shape is None or shape[1] != what:
        return None
    if _checksum(text[: -_CHECKSUM - 1]) != shape[3]:
        return None
    return Presented(shape[2], _digest(text))


def lifetime(text: str) -> int | None:
    """Microseconds of `90s`, `15min`, `12h`, `30d`, `2w`; None for `never`.

    Raises ValidationError.
    """
    if text == "never":
        return None
    found = _LIFETIME.fullmatch(text)
    seconds = int(found[1]) * _UNITS[found[2]] if found else 0
    if not 1 <= seconds <= LONGEST_LIFETIME:
        raise ValidationError(
            "the expiry was refused",
            [Problem("expires", "give a number and s, min, h, d or w, such as 30d, or never")],
        )
    return seconds * MICROSECOND


def check_name(name: str) -> str:
    """The name of a token or a session; raises ValidationError for one that cannot be shown."""
    if not name or len(name) > LONGEST_NAME or not name.isprintable() or name != name.strip():
        raise ValidationError(
            "the name was refused",
            [Problem("name", f"is a printable text of 1 to {LONGEST_NAME} characters")],
        )
    return name


def check_scope(field_name: str, names: Iterable[str]) -> frozenset[str] | None:
    """The only kinds, or queues, of a token; None if none is named. Raises ValidationError."""
    found = frozenset(names)
    if len(found) > MOST_IN_SCOPE:
        reason = f"are at most {MOST_IN_SCOPE}"
    elif any(not each or len(each) > LONGEST_NAME or not each.isprintable() for each in found):
        reason = f"are printable names of 1 to {LONGEST_NAME} characters"
    else:
        return found or None
    raise ValidationError("the scope was refused", [Problem(field_name, reason)])


def _random(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def _digest(text: str) -> bytes:
    return sha256(text.encode("ascii")).digest()


def _checksum(body: str) -> str:
    rest = zlib.crc32(body.encode("ascii"))
    digits = []
    for _ in range(_CHECKSUM):
        rest, digit = divmod(rest, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
