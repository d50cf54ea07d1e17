"""The files that pages load: named by their content, kept by browsers for ever."""

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import FileResponse

from app.domain.errors import NotFound
from app.web import render
from app.web.routing import PageRoute

router = APIRouter(prefix="/ui/static", include_in_schema=False, route_class=PageRoute)

_FOREVER = "private, max-age=31536000, immutable"


@router.get("/{name:path}")
def static_file(
    request: Request, name: Annotated[str, Path(max_length=100)], v: str = ""
) -> Response:
    """Serve a file of app/web/static; only names that are there are looked up at all."""
    if name not in _names():
        raise NotFound(f"there is no file {name!r}", param="name")
    known = {"cache-control": _FOREVER} if v else {}
    return FileResponse(render.STATIC / name, headers=known)


def _names() -> frozenset[str]:
    files = (path for path in render.STATIC.rglob("*") if path.is_file())
    return frozenset(path.relative_to(render.STATIC).as_posix() for path in files)
