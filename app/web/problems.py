"""The pages that tell an error: where no key was given, they ask for one."""

import base64
import hashlib

from fastapi import Request
from fastapi.responses import HTMLResponse

from app.api import errors
from app.domain.errors import LoradError, Unauthenticated
from app.web import render

_STYLE = (render.FOLDER / "templates" / "sign_in.css").read_text("utf-8")
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
# This page is shown to whoever has no key, so it loads nothing: its style is in it, by its hash.
_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; form-action 'self'; base-uri 'none';"
    " frame-ancestors 'none'"
)


def of(request: Request, error: LoradError, status: int | None = None) -> HTMLResponse:
    """Return the page that tells an error; for a swap, only the part that is shown in place."""
    status = status or errors.status_of(error)
    is_swap = "hx-request" in request.headers
    if isinstance(error, Unauthenticated) and not is_swap:
        place = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        return sign_in(request, place if request.method == "GET" else "", problem=None)
    template = "parts/problem.html" if is_swap else "error.html"
    return render.page(request, template, status=status, error=error, active=None)


def sign_in(request: Request, place: str, *, problem: LoradError | None) -> HTMLResponse:
    """Return the page that asks for a key; after it comes `place`."""
    answer = render.page(
        request, "sign_in.html", status=401, problem=problem, place=place, style=_STYLE
    )
    answer.headers["content-security-policy"] = _POLICY
    answer.headers["www-authenticate"] = "Bearer"
    return answer
