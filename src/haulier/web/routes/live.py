"""What happens, as it happens."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, WebSocket
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.routing import Match
from starlette.types import Scope
from typing_extensions import override

from haulier.web.access import VIEWER_IN_SCOPE, Caller
from haulier.web.live.hub import Live
from haulier.web.live.socket import Session
from haulier.web.live.sse import MEDIA_TYPE, EventStream
from haulier.web.models.live import Cursor, StreamQuery
from haulier.web.problems import problem_responses
from haulier.web.routes.common import PREFIX

router = APIRouter(prefix=PREFIX, tags=["events"])

EXAMPLE = """\
retry: 2000

id: 3f0c9a5e:41
event: snapshot
data: {"reason":"start","cursor":"3f0c9a5e:41","stats":{…},…}

id: 3f0c9a5e:42
event: complete
data: {"cursor":"3f0c9a5e:42","seq":42,"type":"complete","job_id":"0198…","kind":"resize",…}

:
id: 3f0c9a5e:42

"""


def _live(request: Request) -> Live:
    live: Live = request.app.state.live
    return live


class _WhereStreamsAreWanted(APIRoute):
    """The address of the pages of events as well, for those who take a stream there."""

    @override
    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        accepted = Headers(scope=scope).get("accept", "") if scope["type"] == "http" else ""
        if MEDIA_TYPE not in accepted.lower():
            return Match.NONE, {}
        return super().matches(scope)


async def stream_events(
    live: Annotated[Live, Depends(_live)],
    caller: Caller,
    query: Annotated[StreamQuery, Query()],
    last_event_id: Annotated[
        Cursor | None, Header(description="The `id` that was seen last; browsers send it.")
    ] = None,
) -> EventStream:
    """Server-sent events; also at `/api/v1/events` for those who accept `text/event-stream`.

    Each has the type of the event and its cursor as `id`; `snapshot` tells how everything stands
    and that events before it may be missing, `stats`, `queues`, `workers` and `batch` are told when
    they change. See the documentation of the live API for their data.
    """
    interest = query.interest(query.topics).of(caller)
    return EventStream(live, caller, interest, last_event_id or query.after)


_STREAM: dict[str, Any] = {
    "summary": "Stream what happens",
    "dependencies": [VIEWER_IN_SCOPE],
    "response_class": EventStream,
    "status_code": 200,
    "response_model": None,
    "responses": {
        200: {
            "description": "The stream; it ends with the server, or with the caller's access.",
            "content": {MEDIA_TYPE: {"schema": {"type": "string"}, "example": EXAMPLE}},
        }
    }
    | problem_responses(403, 422, 429),
}

router.add_api_route("/events/stream", stream_events, methods=["GET"], **_STREAM)
router.add_api_route(
    "/events",
    stream_events,
    methods=["GET"],
    name="stream_events_by_accept",
    include_in_schema=False,
    route_class_override=_WhereStreamsAreWanted,
    **_STREAM,
)


@router.websocket("/ws", dependencies=[VIEWER_IN_SCOPE])
async def live_socket(socket: WebSocket, caller: Caller) -> None:
    """What streams show, and what it is can be changed while the socket is open."""
    await Session(socket.app.state.live, socket, caller).run()
