"""The way from the bare address to the table of jobs."""

from fastapi import APIRouter
from fastapi.responses import RedirectResponse

from app.web.routing import PageRoute

router = APIRouter(include_in_schema=False, route_class=PageRoute)


@router.get("/")
@router.get("/ui")
def home() -> RedirectResponse:
    return RedirectResponse("/ui/jobs", status_code=303)
