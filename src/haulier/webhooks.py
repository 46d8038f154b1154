"""Webhooks as they go over the wire: signed by haulier, verified by whoever receives them.

The form is that of Standard Webhooks 1.0 (github.com/standard-webhooks/standard-webhooks,
spec/standard-webhooks.md): headers `webhook-id`, `webhook-timestamp` (seconds since 1970) and
`webhook-signature`, which is `v1,` and the base64 of HMAC-SHA256 over `id.timestamp.body` with the
bytes that stand in base64 behind the `whsec_` of the secret. Several signatures are parted by
spaces. Libraries of that name in other languages verify the same.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Mapping

from haulier.exceptions import AuthenticationError

PREFIX = "whsec_"
VERSION = "v1"
TOLERANCE = 300.0
"""Seconds that a timestamp may differ from the receiver's clock."""

MAX_SIGNATURES = 20


def sign(secret: str, webhook_id: str, timestamp: int, body: bytes) -> str:
    """The signature of a message, as the header has it; raises ValueError for what is no secret."""
    signed = b".".join((webhook_id.encode(), str(timestamp).encode(), body))
    digest = hmac.digest(_key_of(secret), signed, hashlib.sha256)
    return f"{VERSION},{base64.b64encode(digest).decode()}"


def verify(
    secret: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    tolerance: float = TOLERANCE,
    now: float | None = None,
) -> str:
    """The `webhook-id` of a message that is genuine; raises AuthenticationError for any other.

    `headers` may have any case; `body` is what came, byte by byte: JSON that was read and written
    again is another text. The timestamp may be `tolerance` seconds from `now` (Unix time), so that
    nobody can send an old message again for ever. The same id may come more than once: remember
    those of the last days, and do nothing the second time.
    """
    given = {name.lower(): value for name, value in headers.items()}
    webhook_id, signatures = given.get("webhook-id", ""), given.get("webhook-signature", "")
    text = given.get("webhook-timestamp", "")
    if not webhook_id or not signatures:
        raise AuthenticationError("the message is not signed")
    if not (text.isascii() and text.isdecimal() and len(text) < 16):
        raise AuthenticationError("the message has no timestamp")
    timestamp = int(text)
    if abs((time.time() if now is None else now) - timestamp) > tolerance:
        raise AuthenticationError("the message's timestamp is too old, or in the future")
    expected = sign(secret, webhook_id, timestamp, body).encode()
    for signature in signatures.split(" ")[:MAX_SIGNATURES]:
        # In constant time: the answer's delay must not tell how much of a guess is right.
        if hmac.compare_digest(signature.encode("utf-8", "replace"), expected):
            return webhook_id
    raise AuthenticationError("the message's signature is wrong")


def _key_of(secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except ValueError:
        key = b""
    if not secret.startswith(PREFIX) or len(key) < 24:
        # The secret itself is not told.
        raise ValueError(f"a webhook's secret begins with {PREFIX} and has 24 bytes in base64")
    return key
