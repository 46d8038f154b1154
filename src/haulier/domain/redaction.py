"""What is masked in texts and in structured data before people or logs see it.

Three nets, since each has holes: values that are known to be secret, in every form in which they
may turn up; names of fields that hold secrets; and the places of URLs and HTTP headers where
credentials stand.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote, quote_plus

from haulier.domain.sealed import MASK, SEALED

SHORTEST = 4
"""Shorter values are left in texts: masking every "a" would hide the text and tell the secret."""

_SHORTEST_FORM = 8
"""The same for forms that a value takes when it is encoded, which are parts of longer texts."""

_DEEPEST = 32

_SECRETS = """
auth authorization authorisation cookie credential credentials passphrase passwd password pwd secret
secrets token
"""
_TOLD = """
age at by count created expires expiry file hash id kind left length limit name names path prefix
role type uri url used
"""
"""Last words that say that a field only tells about a secret: `token_count`, `cookie_name`."""

_SECRET_WORDS, _NOT_SECRET = frozenset(_SECRETS.split()), frozenset(_TOLD.split())
_SECRET_PAIRS = frozenset(
    {
        ("access", "key"),
        ("api", "key"),
        ("private", "key"),
        ("secret", "key"),
        ("set", "cookie"),
        ("signing", "key"),
    }
)
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")

_USERINFO = re.compile(r"(?P<scheme>\b[A-Za-z][A-Za-z0-9+.-]{0,20}://)[^\s/'\"<>]{1,500}@")
"""The credentials of a URL (RFC 3986 section 3.2.1), whichever scheme it has."""

_BEARER = re.compile(r"(?i)\b(?P<scheme>bearer|basic)\s+(?=\S*[0-9=]|\S{20})[A-Za-z0-9._~+/=-]{8,}")
"""The credentials of an Authorization header (RFC 9110 section 11.4), and no plain word."""

_HEADER = re.compile(
    r"(?i)(?P<name>\b(?:proxy-)?authorization|\b(?:set-)?cookie|\bx-api-key)"
    r"(?P<between>['\"]\s*,\s*b?['\"]|['\"]?\s*[:=]\s*(?:b?['\"])?)(?P<value>[^\r\n'\"]{4,})"
)
_ASSIGNED = re.compile(
    r"(?i)(?P<name>password|passwd|passphrase|secret|token|api[_-]?key)"
    r"(?P<between>['\"]?\s?[:=]\s?['\"]?)[^\s'\"&;,)}\]]{4,}"
)
"""`password=…`, `"api_key": "…"`: in queries, in JSON, in the arguments of a traceback's line."""


def is_secret_name(name: str) -> bool:
    """Whether a field of this name holds a secret: `password`, `apiKey`, `X-Auth-Token`."""
    words = [word.lower() for word in _WORD.findall(name)]
    if not words or words[-1] in _NOT_SECRET:
        return False
    return words[-1] in _SECRET_WORDS or tuple(words[-2:]) in _SECRET_PAIRS


def forms(value: str) -> frozenset[str]:
    """How a secret may look in a text: as it is, and as JSON, URLs, HTML, reprs and base64 have it.

    Of base64 also those parts that are the same wherever in a longer text the value stands, as a
    password does in the Basic scheme (RFC 7617).
    """
    if len(value) < SHORTEST:
        return frozenset()
    raw = value.encode("utf-8", "surrogatepass")
    found = {
        json.dumps(value)[1:-1],
        json.dumps(value, ensure_ascii=False)[1:-1],
        repr(value)[1:-1],
        repr(raw)[2:-1],
        html.escape(value),
        value.encode("unicode_escape").decode(),
        raw.hex(),
        raw.hex().upper(),
        value[::-1],
    }
    for quoted in (quote(raw, safe=""), quote(raw), quote_plus(raw)):
        found |= {quoted, re.sub("%[0-9A-F]{2}", lambda match: match[0].lower(), quoted)}
    for skipped in range(3):
        # Six bits a letter: those at the borders hold bits of the neighbours as well.
        padded = bytes(skipped) + raw
        text = base64.b64encode(padded).decode()
        first = (skipped * 8 + 5) // 6
        inner = text[first : len(padded) * 8 // 6]
        found |= {inner, inner.translate(_URL_SAFE)}
    return frozenset({value, *(form for form in found if len(form) >= _SHORTEST_FORM)})


_URL_SAFE = str.maketrans("+/", "-_")


def without(text: str, values: Iterable[str]) -> str:
    """The text with each of the given values masked, the longest first."""
    for value in sorted((value for value in values if value in text), key=len, reverse=True):
        text = text.replace(value, MASK)
    return text


def without_credentials(text: str) -> str:
    """The text with what stands where credentials do masked, although nobody said it is secret."""
    if "://" in text:
        text = _USERINFO.sub(rf"\g<scheme>{MASK}@", text)
    text = _HEADER.sub(rf"\g<name>\g<between>{MASK}", text)
    text = _BEARER.sub(rf"\g<scheme> {MASK}", text)
    return _ASSIGNED.sub(rf"\g<name>\g<between>{MASK}", text)


def shown(node: Any, depth: int = 0) -> Any:
    """JSON to show to people: sealed secrets, fields with names of secrets, and URLs' credentials.

    Numbers, truth values and what is empty stay: they are no secrets.
    """
    if depth > _DEEPEST:
        return MASK
    if isinstance(node, dict):
        if node.keys() == {SEALED}:
            return MASK
        return {name: _field(name, value, depth) for name, value in node.items()}
    if isinstance(node, list | tuple):
        return [shown(item, depth + 1) for item in node]
    if isinstance(node, str) and "://" in node:
        return _USERINFO.sub(rf"\g<scheme>{MASK}@", node)
    return node


def _field(name: Any, value: Any, depth: int) -> Any:
    if isinstance(value, str) and value and is_secret_name(str(name)):
        return MASK
    return shown(value, depth + 1)
