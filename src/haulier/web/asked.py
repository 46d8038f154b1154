"""The head of a request, read once: what decides whether it is answered at all."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from ipaddress import ip_address

from starlette.types import Scope

LOOPBACK = re.compile(r"(localhost|127(\.[0-9]{1,3}){3}|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)
_HOST = re.compile(r"([^:\[\]@/\s]+|\[[0-9a-fA-F:.]+\])(:[0-9]{1,5})?")
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})

SECURE_COOKIE = "__Host-haulier"
PLAIN_COOKIE = "haulier-session"
"""On a loopback name, where there is no TLS and browsers may not keep the other one. Cookies know
no ports, so it has the port in its name."""

CSRF_HEADER = "haulier-request"
"""A page of another origin cannot send it without our leave, which nobody gets."""

_OWN_PAGES = frozenset({"same-origin", "none"})
_WANTED = frozenset(
    {
        *(b"host", b"origin", b"authorization", b"cookie", b"sec-fetch-site"),
        *(b"content-length", b"content-type", b"transfer-encoding", CSRF_HEADER.encode()),
    }
)


@dataclass(slots=True)
class Asked:
    """What a request says of itself. Headers that came several times are all there."""

    scope: Scope
    headers: dict[bytes, list[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, scope: Scope) -> Asked:
        """Read the headers that matter here, and no others."""
        asked = cls(scope)
        for name, value in scope["headers"]:
            if name in _WANTED:
                asked.headers.setdefault(name, []).append(value.decode("latin-1"))
        return asked

    def one(self, name: str) -> str:
        """A header that may come once; what came several times counts as not there."""
        values = self.headers.get(name.encode(), ())
        return values[0] if len(values) == 1 else ""

    @property
    def unsafe(self) -> bool:
        """Whether it may change something, or listen for as long as it likes."""
        return self.scope["type"] == "websocket" or self.scope["method"] not in SAFE_METHODS

    @property
    def host(self) -> str:
        return self.one("host")

    @property
    def source(self) -> str:
        """The address that it came from, as the socket has it."""
        client = self.scope.get("client")
        return str(client[0]) if client else "local"

    def host_known(self, names: frozenset[str]) -> bool:
        """Whether it asks for a name of ours: a page that has its own name lead here does not.

        A loopback name, one of the operator's, or the address itself that it came to.
        """
        host = self.host
        if LOOPBACK.fullmatch(host):
            return True
        found = _HOST.fullmatch(host)
        if found is None:
            return False
        name = found[1].lower()
        return name in names or (bool(names) and name.strip("[]") == _bare(_server(self.scope)))

    @property
    def local(self) -> bool:
        """Whether it came to a loopback address, by a loopback name."""
        return LOOPBACK.fullmatch(self.host) is not None and _on_loopback(self.scope)

    def from_other_pages(self) -> bool:
        """Whether a browser says that it comes from a page which is not our own."""
        origins = self.headers.get(b"origin", ())
        host = self.host.lower()
        if any(origin.lower() not in (f"http://{host}", f"https://{host}") for origin in origins):
            return True
        site = self.headers.get(b"sec-fetch-site", ())
        return any(each.lower() not in _OWN_PAGES for each in site)

    def bearer(self) -> str | None:
        """The token it shows: None if it shows none, empty if what it shows cannot be one."""
        values = self.headers.get(b"authorization")
        if values is None:
            return None
        scheme, _, text = self.one("authorization").partition(" ")
        return text.strip() if scheme.lower() == "bearer" else ""

    @property
    def cookie_name(self) -> str:
        """What the cookie of a session is called at the host that was asked for."""
        return cookie_name(self.host)

    def cookie(self) -> str | None:
        """The session it shows: None if it shows none."""
        name, found = self.cookie_name, []
        for header in self.headers.get(b"cookie", ()):
            for part in header.split(";"):
                key, _, value = part.partition("=")
                if key.strip() == name:
                    found.append(value.strip())
        if not found:
            return None
        # Two of one name: somebody has put one beside ours.
        return found[0] if len(found) == 1 else ""


def cookie_name(host: str) -> str:
    """What the cookie of a session is called at a host, as a request names it."""
    loopback = LOOPBACK.fullmatch(host)
    if loopback is None:
        return SECURE_COOKIE
    return f"{PLAIN_COOKIE}-{(loopback[3] or ':80')[1:]}"


def _on_loopback(scope: Scope) -> bool:
    """Whether a request came to an address that only this machine has."""
    server = _server(scope)
    if server == "localhost":
        return True
    try:
        return ip_address(server).is_loopback
    except ValueError:
        return False


def _server(scope: Scope) -> str:
    server = scope.get("server")
    return str(server[0]) if server else ""


def _bare(address: str) -> str:
    return address.lower().strip("[]")
