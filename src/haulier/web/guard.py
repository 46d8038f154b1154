"""What every request passes first: who may ask, how much may be sent, and what an error tells.

Nobody is answered who does not show a token or a session, but for the few addresses that are open.
Requests for other names than ours are refused before: a page that has its own name point to us (DNS
rebinding) still sends that name as the host, and one that posts across origins says where it comes
from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import structlog
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from haulier.domain.access import Access, Identity
from haulier.exceptions import StoreError
from haulier.services.audit import Actor, Entry
from haulier.services.deadlines import at_most
from haulier.services.ids import new_id
from haulier.services.tokens import What
from haulier.web.access import FACTS, IDENTITY, WRITTEN
from haulier.web.asked import CSRF_HEADER, Asked
from haulier.web.authority import Authority
from haulier.web.diary import Diary
from haulier.web.options import WebOptions
from haulier.web.problems import REQUEST_ID, problem_response
from haulier.web.sizes import Sizes
from haulier.web.throttle import retry_after

LOCAL = Identity("local", Access.ADMIN)
"""Whoever reaches a loopback address of a server without tokens is this machine's operator."""

_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="haulier"'}
_REFUSED = {"WWW-Authenticate": 'Bearer realm="haulier", error="invalid_token"'}

_NOSNIFF = (b"x-content-type-options", b"nosniff")

_log = structlog.get_logger("haulier.web")


class Guard:
    """ASGI middleware around the whole API. `is_open` tells what answers everybody."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        options: WebOptions,
        authority: Authority,
        diary: Diary,
        is_open: Callable[[Asked], bool] = lambda _: False,
    ) -> None:
        self._app = app
        self._sizes = Sizes(options.max_body, options.max_lines)
        self._deadline = options.deadline
        self._no_token = options.no_token
        self._hosts = frozenset(name.lower() for name in options.public_hosts)
        self._authority = authority
        self._diary = diary
        self._is_open = is_open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        scope[REQUEST_ID] = new_id()
        passage = _Passage(scope, send)
        asked = Asked.of(scope)
        refusal = self._misdirected(asked)
        if refusal is None:
            with at_most(self._deadline):
                refusal = await self._unknown(asked) or self._too_much(asked)
        try:
            if refusal is None:
                await self._pass(passage, receive)
            else:
                await refusal(scope, receive, passage.send)
        finally:
            # Also when it was cut off: some of it may have been done.
            self._write_down(passage, asked)

    async def _pass(self, passage: _Passage, receive: Receive) -> None:
        scope = passage.scope
        if scope["type"] == "websocket":
            await self._app(scope, receive, passage.send)
            return
        try:
            with at_most(self._deadline):
                await self._app(scope, self._sizes.limited(scope, receive), passage.send)
        except Exception:
            _log.exception(
                "request failed",
                request=scope[REQUEST_ID],
                method=scope["method"],
                path=scope["path"],
            )
            if passage.status is not None:
                # Half an answer is out: only a broken connection tells the client.
                raise
            await problem_response(500)(scope, receive, passage.send)

    # ── Whether it is answered at all ────────────────────────────────────────────────────────

    def _misdirected(self, asked: Asked) -> Response | None:
        if not asked.host_known(self._hosts):
            return problem_response(421, detail="Ask by a name that this server is known by")
        # A page may open a socket to anywhere, and read what it is told.
        if asked.unsafe and asked.from_other_pages():
            return problem_response(403, detail="Pages of other origins may not do this")
        return None

    async def _unknown(self, asked: Asked) -> Response | None:
        """Find out who asks; answers a refusal for who may not, None for who may."""
        bearer = asked.bearer()
        try:
            if bearer is not None:
                return await self._recognised(asked, What.TOKEN, bearer)
            cookie = asked.cookie()
            if cookie is not None and not self._is_open(asked):
                return await self._by_cookie(asked, cookie)
        except StoreError as error:
            _log.warning("records not asked", request=asked.scope[REQUEST_ID], error=str(error))
            return problem_response(
                503, detail="It cannot be told who asks", headers={"Retry-After": "5"}
            )
        if self._no_token and asked.local:
            asked.scope[IDENTITY] = LOCAL
            return None
        if self._is_open(asked):
            return None
        return problem_response(401, detail="This needs a token", headers=_CHALLENGE)

    async def _by_cookie(self, asked: Asked, cookie: str) -> Response | None:
        """A browser sends its cookie whoever made it ask, so it has to say more."""
        if asked.from_other_pages():
            return problem_response(403, detail="Pages of other origins may not do this")
        if asked.scope["type"] == "websocket":
            if not asked.one("origin"):
                return problem_response(403, detail="A browser tells the origin of its page")
        elif asked.unsafe and not asked.one(CSRF_HEADER):
            return problem_response(403, detail=f"A cookie needs the header {CSRF_HEADER}")
        if self._no_token and asked.local:
            # One that is over keeps nobody out where nobody needs one.
            await self._recognised(asked, What.SESSION, cookie)
            asked.scope.setdefault(IDENTITY, LOCAL)
            return None
        return await self._recognised(asked, What.SESSION, cookie)

    async def _recognised(self, asked: Asked, what: What, text: str) -> Response | None:
        identity, wait = await self._authority.recognise(what, text, asked.source)
        if identity is not None:
            asked.scope[IDENTITY] = identity
            self._diary.used(identity.credential)
            return None
        if wait > 0:
            headers = {"Retry-After": retry_after(wait)}
            return problem_response(429, detail="Too many bad tokens", headers=headers)
        # The throttle keeps these few.
        _log.warning("token refused", request=asked.scope[REQUEST_ID], source=asked.source)
        return problem_response(401, detail="The token is not good", headers=_REFUSED)

    def _too_much(self, asked: Asked) -> Response | None:
        """Why the head of a request is enough to refuse it, None if it is not."""
        if asked.scope["type"] == "http":
            refusal = self._sizes.refusal(asked.scope, Headers(scope=asked.scope))
            if refusal is not None:
                return refusal
        if asked.unsafe and self._diary.full:
            # Nothing is done, so there is nothing to write down.
            asked.scope[WRITTEN] = True
            return problem_response(
                503, detail="The audit log cannot be written", headers={"Retry-After": "5"}
            )
        return None

    # ── What passes through ──────────────────────────────────────────────────────────────────

    def _write_down(self, passage: _Passage, asked: Asked) -> None:
        """Tell the audit log who did what, with what came of it."""
        scope = passage.scope
        identity: Identity | None = scope.get(IDENTITY)
        if identity is None or not asked.unsafe or scope.get(WRITTEN):
            return
        method = scope["method"] if scope["type"] == "http" else "WEBSOCKET"
        template = getattr(scope.get("route"), "path", None)
        facts: dict[str, Any] = {**scope.get("path_params", {}), **scope.get(FACTS, {})}
        if passage.location is not None:
            facts["location"] = passage.location
        self._diary.write(
            Entry(
                Actor(identity.name, identity.credential, asked.source, scope[REQUEST_ID]),
                f"{method} {template or '(no such address)'}",
                facts,
                passage.status,
            )
        )
        scope[WRITTEN] = True


class _Passage:
    """An answer on its way out: stamped, and its status noted."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.scope = scope
        self.status: int | None = None
        self.location: str | None = None
        self._send = send

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind in ("http.response.start", "websocket.http.response.start"):
            self.status = message["status"]
            told = list(message.get("headers", ()))
            if self.status in (201, 202):
                self.location = Headers(raw=told).get("location")
            told += (b"x-request-id", self.scope[REQUEST_ID].encode()), _NOSNIFF
            message["headers"] = told
        elif kind == "websocket.accept":
            self.status = 101
        await self._send(message)
