"""Signing in and out: by a key, or by the link that the service prints once."""

from typing import Annotated

from fastapi import APIRouter, Form, Query, Request, Response
from fastapi.responses import RedirectResponse

from app.api.deps import Config, Db
from app.api.guard import SESSION_COOKIE
from app.domain.errors import Unauthenticated
from app.services import keys, sessions
from app.web import problems
from app.web.routing import PageRoute

router = APIRouter(prefix="/ui", include_in_schema=False, route_class=PageRoute)

_START = "/ui/jobs"


@router.get("/sign-in")
def sign_in_page(
    request: Request,
    db: Db,
    once: Annotated[str, Query(max_length=100)] = "",
    next: Annotated[str, Query(max_length=2000)] = "",
) -> Response:
    """Ask for a key; or sign in by a link, which works once."""
    if not keys.are_required(db):
        return RedirectResponse(_START, status_code=303)
    if not once:
        return problems.sign_in(request, next, problem=None)
    try:
        token = sessions.redeem(db, once)
    except Unauthenticated as error:
        return problems.sign_in(request, "", problem=error)
    return signed_in(request, token, next)


@router.post("/sign-in")
def sign_in(
    request: Request,
    db: Db,
    config: Config,
    key: Annotated[str, Form(max_length=200)] = "",
    next: Annotated[str, Form(max_length=2000)] = "",
) -> Response:
    """Start a session with a key that was typed."""
    try:
        token = sessions.sign_in(db, config, key.strip())
    except Unauthenticated as error:
        return problems.sign_in(request, next, problem=error)
    return signed_in(request, token, next)


@router.post("/sign-out")
def sign_out(request: Request, db: Db) -> Response:
    """End the session of this browser."""
    sessions.sign_out(db, request.cookies.get(SESSION_COOKIE, ""))
    answer = RedirectResponse("/ui/sign-in", status_code=303)
    answer.delete_cookie(SESSION_COOKIE, path="/")
    return answer


def signed_in(request: Request, token: str, place: str) -> Response:
    """Return the way to a page of ours, with the cookie of a session."""
    answer = RedirectResponse(place if _is_ours(place) else _START, status_code=303)
    keep(request, answer, token)
    return answer


def keep(request: Request, answer: Response, token: str) -> None:
    """Put the cookie of a session into an answer."""
    answer.set_cookie(
        SESSION_COOKIE,
        token,
        max_age=sessions.SECONDS,
        path="/",
        httponly=True,
        secure=request.url.scheme == "https",
        # Lax, so that a link from a chat or a mail opens a page; changes are checked by Origin.
        samesite="lax",
    )


def _is_ours(place: str) -> bool:
    """Tell whether a place to go on to is a page of ours, and nothing that a browser reads else."""
    return place.startswith("/ui/") and place.isprintable() and "\\" not in place
