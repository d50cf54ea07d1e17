"""The frame of a job's pages: its heading, its state, and the tabs of its sections."""

from typing import Any

from fastapi import Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from app.domain.jobs import Job
from app.web import render

SECTIONS = {
    "": "Overview",
    "checkpoints": "Checkpoints",
    "data": "Data",
    "gradients": "Gradients",
    "events": "Events",
    "logs": "Logs",
    "config": "Config",
    "certificate": "Certificate",
    "memory": "Memory",
}


def page(
    request: Request, job: Job, section: str, template: str, *, status: int = 200, **context: Any
) -> HTMLResponse:
    """Render a section of a job; its template extends job/frame.html and fills `section`."""
    return render.page(
        request,
        template,
        status=status,
        active="jobs",
        job=job,
        section=section,
        sections=SECTIONS,
        **context,
    )


def back(request: Request, job_id: str, section: str = "") -> Response:
    """Go back to a section of a job after something was done."""
    return to(request, f"/ui/jobs/{job_id}" + (f"/{section}" if section else ""))


def stay(request: Request, job_id: str) -> Response:
    """Stay where htmx asked from, which the live stream renews; a form goes back to the job."""
    if "hx-request" in request.headers:
        return HTMLResponse("", headers=render.HEADERS)
    return back(request, job_id)


def to(request: Request, path: str) -> Response:
    """Go to a page; htmx, which would show the answer in place, is told to open it."""
    if "hx-request" in request.headers:
        return Response(status_code=204, headers={**render.HEADERS, "hx-redirect": path})
    return RedirectResponse(path, status_code=303, headers=render.HEADERS)
