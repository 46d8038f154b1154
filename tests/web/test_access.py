"""What each route needs, and that none forgot to say so."""

from __future__ import annotations

from fastapi.routing import APIRoute

from haulier.domain.access import Access
from haulier.web.routes import ROUTERS
from haulier.web.routes.common import PREFIX

ROUTES = [route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)]


def needed(route: APIRoute) -> list[Access]:
    calls = [dependency.dependency for dependency in route.dependencies]
    return [call.needed for call in calls if hasattr(call, "needed")]


def test_every_route_says_what_it_needs():
    assert ROUTES
    assert [route.path for route in ROUTES if len(needed(route)) != 1] == []


def test_what_changes_something_needs_more_than_to_look():
    loose = [
        route.path
        for route in ROUTES
        if route.methods and not route.methods & {"GET"} and needed(route) == [Access.VIEWER]
    ]
    # Whoever is signed in may sign out.
    assert loose == [f"{PREFIX}/session"]


def test_few_routes_answer_everybody():
    """That the service lives, the page that signs in, and the signing in."""
    answering = {
        (method, route.path)
        for route in ROUTES
        if needed(route) == [None]
        for method in route.methods
    }
    assert answering == {
        ("GET", f"{PREFIX}/health"),
        ("GET", "/login"),
        ("POST", f"{PREFIX}/session"),
    }


def test_each_role_may_do_what_the_ones_before_it_may():
    assert [[have.allows(need) for need in Access] for have in Access] == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]
