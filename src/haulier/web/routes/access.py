"""Tokens, sessions, and the audit log of who did what."""

from __future__ import annotations

import base64
import hashlib
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from starlette.exceptions import HTTPException

from haulier.exceptions import StoreUnavailableError
from haulier.records.auditing import AuditLog
from haulier.records.credentials import Credentials, now
from haulier.services.audit import Actor
from haulier.services.tokens import What, check_name, check_scope, lifetime, presented
from haulier.web.access import ADMIN, OPEN, VIEWER_IN_SCOPE, WRITTEN, Caller, identity_of
from haulier.web.asked import SECURE_COOKIE, Asked
from haulier.web.authority import Authority
from haulier.web.models.access import (
    AuditEntry,
    AuditPage,
    AuditQuery,
    LinkBody,
    Me,
    NewToken,
    SessionList,
    SessionView,
    TokenBody,
    TokenList,
    TokenView,
)
from haulier.web.problems import REQUEST_ID, problem_responses
from haulier.web.routes.common import PREFIX
from haulier.web.throttle import network_of, retry_after

router = APIRouter(tags=["access"])

_SCRIPT = """
const say = (text) => { document.getElementById("say").textContent = text; };
const link = location.hash.slice(1);
history.replaceState(null, "", location.pathname);
if (!link) {
  say("Make a link:  haulier token link");
} else {
  fetch("/api/v1/session", {
    method: "POST",
    headers: {"Content-Type": "application/json", "Haulier-Request": "1"},
    body: JSON.stringify({link}),
  }).then((answer) => {
    say(answer.ok ? "You are signed in." : "This link is not good any more. Make another one.");
    if (answer.ok) { location.replace("/"); }
  }, () => say("The server does not answer."));
}
"""
_PAGE = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><title>haulier</title>'
    f'<p id="say">One moment…</p><script>{_SCRIPT}</script></html>'
)
_SCRIPT_DIGEST = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
_PAGE_HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; script-src 'sha256-{_SCRIPT_DIGEST}'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
}


def _credentials(request: Request) -> Credentials:
    found: Credentials | None = request.app.state.credentials
    if found is None:
        raise StoreUnavailableError("this server was started without records")
    return found


def _log(request: Request) -> AuditLog:
    found: AuditLog | None = request.app.state.audit_log
    if found is None:
        raise StoreUnavailableError("this server was started without records")
    return found


def _actor(request: Request) -> Actor:
    """Who does something that is written down in the same transaction."""
    identity = identity_of(request)
    asked = Asked(request.scope)
    return Actor(identity.name, identity.credential, asked.source, request.scope[REQUEST_ID])


Kept = Annotated[Credentials, Depends(_credentials)]
Log = Annotated[AuditLog, Depends(_log)]
Doer = Annotated[Actor, Depends(_actor)]


@router.get("/login", dependencies=[OPEN], include_in_schema=False)
async def login_page() -> Response:
    """Takes the code of a one-time link out of the address, where no server sees it, and posts it.

    The page is the same for everybody and has nothing in it.
    """
    return Response(_PAGE, media_type="text/html; charset=utf-8", headers=_PAGE_HEADERS)


@router.post(
    f"{PREFIX}/session",
    status_code=201,
    summary="Sign a browser in",
    dependencies=[OPEN],
    responses=problem_responses(400, 401, 413, 415, 422, 429),
)
async def sign_in(kept: Kept, body: LinkBody, request: Request, response: Response) -> SessionView:
    """By the code of a link of `haulier token link`, once. The answer sets the cookie."""
    asked = Asked.of(request.scope)
    authority: Authority = request.app.state.authority
    shown = presented(What.LINK, body.link)
    source = f"source {network_of(asked.source)}"
    actor = Actor("", "", asked.source, request.scope[REQUEST_ID])
    opened = None
    if shown is not None:
        opened = await kept.redeem(shown, actor)
    if opened is None:
        wait = authority.throttle.fail(source)
        if wait > 0:
            raise HTTPException(
                429, "Too many links that are not good", {"Retry-After": retry_after(wait)}
            )
        raise HTTPException(401, "The link is not good, or was used", {"WWW-Authenticate": "Link"})
    request.scope[WRITTEN] = True
    session, minted = opened
    name = asked.cookie_name
    response.set_cookie(
        name,
        minted.text,
        max_age=(session.expires_at - session.created_at) // 1_000_000,
        path="/",
        secure=name == SECURE_COOKIE,
        httponly=True,
        samesite="strict",
    )
    response.headers["Cache-Control"] = "no-store"
    return SessionView.of(session, now())


@router.get(
    f"{PREFIX}/session",
    summary="Who the server takes you for",
    dependencies=[VIEWER_IN_SCOPE],
    responses=problem_responses(401),
)
async def show_me(caller: Caller) -> Me:
    """Of a token, of a session's cookie, or of whoever reaches a server without tokens."""
    return Me.of(caller)


@router.delete(
    f"{PREFIX}/session",
    status_code=204,
    summary="Sign this browser out",
    dependencies=[VIEWER_IN_SCOPE],
    responses=problem_responses(409),
)
async def sign_out(
    kept: Kept, actor: Doer, caller: Caller, request: Request, response: Response
) -> None:
    """Ends the session whose cookie was sent; answers 409 where there is none."""
    what, _, public_id = caller.credential.partition(":")
    if what != "session":
        raise HTTPException(409, "This request was not sent with the cookie of a session")
    request.scope[WRITTEN] = (await kept.revoke(actor, public_id)).now
    name = Asked.of(request.scope).cookie_name
    response.delete_cookie(
        name, path="/", secure=name == SECURE_COOKIE, httponly=True, samesite="strict"
    )


@router.get(
    f"{PREFIX}/sessions",
    summary="List sessions",
    dependencies=[ADMIN],
    responses=problem_responses(403),
)
async def list_sessions(kept: Kept) -> SessionList:
    """Browsers that are signed in, and those that were."""
    at = now()
    return SessionList(sessions=[SessionView.of(each, at) for each in await kept.sessions()])


@router.get(
    f"{PREFIX}/tokens",
    summary="List tokens",
    dependencies=[ADMIN],
    responses=problem_responses(403),
)
async def list_tokens(kept: Kept) -> TokenList:
    """Without what is secret in them, which is kept nowhere."""
    at = now()
    return TokenList(tokens=[TokenView.of(each, at) for each in await kept.tokens()])


@router.post(
    f"{PREFIX}/tokens",
    status_code=201,
    summary="Make a token",
    dependencies=[ADMIN],
    responses=problem_responses(400, 403, 413, 415, 422),
)
async def create_token(
    kept: Kept, body: TokenBody, actor: Doer, request: Request, response: Response
) -> NewToken:
    """The answer shows it, this once."""
    token, minted = await kept.create_token(
        actor,
        check_name(body.name),
        body.role,
        lifetime(body.expires),
        kinds=check_scope("kinds", body.kinds or ()),
        queues=check_scope("queues", body.queues or ()),
    )
    request.scope[WRITTEN] = True
    response.headers["Cache-Control"] = "no-store"
    return NewToken.made(token, minted.text, now())


@router.delete(
    f"{PREFIX}/tokens/{{token_id}}",
    status_code=204,
    summary="Revoke a token or a session",
    dependencies=[ADMIN],
    responses=problem_responses(403, 404),
)
async def revoke_token(kept: Kept, token_id: str, actor: Doer, request: Request) -> None:
    """For good, on all servers within 5 s, open streams included."""
    request.scope[WRITTEN] = (await kept.revoke(actor, token_id)).now


@router.get(
    f"{PREFIX}/audit",
    summary="Who did what",
    dependencies=[ADMIN],
    responses=problem_responses(403, 422),
)
async def show_audit(log: Log, query: Annotated[AuditQuery, Query()]) -> AuditPage:
    """The latest entries first; what was done a moment ago may not be written down yet."""
    found = await log.latest(query.limit, query.before)
    following = found[-1].seq if len(found) == query.limit and found[-1].seq > 1 else None
    return AuditPage(entries=[AuditEntry.of(each) for each in found], next=following)
