"""Rendering of pages and fragments: one environment, everything escaped, one policy."""

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from app.web import formats, states

FOLDER = Path(__file__).parent
STATIC = FOLDER / "static"
# Nothing inline, nothing from elsewhere. Images made by a script (PNG of a chart) are blobs.
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none';"
    " form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {"content-security-policy": POLICY, "referrer-policy": "same-origin"}


def page(request: Request, template: str, *, status: int = 200, **context: Any) -> HTMLResponse:
    """Render a template of app/web/templates; the context may be anything, all of it is escaped."""
    html = _environment().get_template(template).render(request=request, **context)
    return HTMLResponse(html, status_code=status, headers=HEADERS)


def fragment(template: str, **context: Any) -> str:
    """Render a part of a page, for a stream or a swap."""
    return _environment().get_template(template).render(**context)


def static_url(name: str) -> str:
    """Return the address of a file of app/web/static; it changes with the file's content."""
    return f"/ui/static/{name}?v={_digest(name)}"


@lru_cache
def _digest(name: str) -> str:
    return hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]


@lru_cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(formats.FILTERS)
    environment.globals["static"] = static_url  # pyright: ignore[reportArgumentType]
    environment.globals["face"] = states.face  # pyright: ignore[reportArgumentType]
    environment.globals["meaning"] = states.meaning  # pyright: ignore[reportArgumentType]
    return environment
