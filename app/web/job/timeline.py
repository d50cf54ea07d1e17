"""What happened to a job, and what its trainer printed."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import HTMLResponse

from app.api.deps import MAX_INT32, MAX_INT64, Config, Db, JobId, Project
from app.services import jobs, output, timeline
from app.web import render
from app.web.job import frame
from app.web.routing import PageRoute

router = APIRouter(prefix="/ui", include_in_schema=False, route_class=PageRoute)

_EVENTS = 100

Attempt = Annotated[int | None, Query(ge=0, le=MAX_INT32, description="The newest without one.")]


@router.get("/jobs/{job_id}/events")
def events_page(
    request: Request,
    db: Db,
    config: Config,
    project: Project,
    job_id: JobId,
    kind: Annotated[str, Query(max_length=64, description="Only this kind.")] = "",
    before: Annotated[int | None, Query(ge=1, le=MAX_INT64, description="Only older ones.")] = None,
) -> HTMLResponse:
    """Show the history of a job, newest first."""
    job = jobs.get(db, config, project, job_id)
    found = timeline.page(db, project, job_id, kind=kind or None, before=before, limit=_EVENTS)
    return frame.page(
        request, job, "events", "job/events.html", found=found, kind=kind, before=before
    )


@router.get("/jobs/{job_id}/logs")
def logs_page(
    request: Request,
    db: Db,
    config: Config,
    project: Project,
    job_id: JobId,
    attempt: Attempt = None,
    before: Annotated[int | None, Query(ge=0, le=MAX_INT64, description="Up to here.")] = None,
) -> HTMLResponse:
    """Show the end of what an attempt printed, or the part up to a byte of it."""
    job = jobs.get(db, config, project, job_id)
    part = output.part_before(db, config, project, job_id, attempt=attempt, before=before)
    return frame.page(request, job, "logs", "job/logs.html", part=part, before=before)


@router.get("/jobs/{job_id}/logs/new")
def new_output(
    request: Request,
    db: Db,
    config: Config,
    project: Project,
    job_id: JobId,
    attempt: Attempt = None,
    offset: Annotated[int, Query(ge=0, le=MAX_INT64, description="From here on.")] = 0,
) -> Response:
    """Answer what an attempt printed since, and where to ask for more; nothing when all is told."""
    part = output.part_after(db, config, project, job_id, attempt=attempt, offset=offset)
    if part.is_open and not part.text:
        return Response(status_code=204, headers=render.HEADERS)  # what asks stays and asks again
    return render.page(request, "job/log_part.html", job_id=job_id, part=part)
