"""What was measured of a job beside its curves: its certificate, and its memory by phase."""

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from app.api.deps import Config, Db, JobId, Project
from app.domain.errors import NotFound
from app.services import jobs, reports
from app.web.job import frame
from app.web.routing import PageRoute

router = APIRouter(prefix="/ui", include_in_schema=False, route_class=PageRoute)


@router.get("/jobs/{job_id}/certificate")
def certificate_page(
    request: Request, db: Db, config: Config, project: Project, job_id: JobId
) -> HTMLResponse:
    """Show the proof that the final adapter is what training made."""
    job = jobs.get(db, config, project, job_id)
    try:
        found = reports.certificate(db, project, job_id)
    except NotFound:
        found = None
    return frame.page(request, job, "certificate", "job/certificate.html", certificate=found)


@router.get("/jobs/{job_id}/memory")
def memory_page(
    request: Request, db: Db, config: Config, project: Project, job_id: JobId
) -> HTMLResponse:
    """Show the peak of each phase beside what was expected and what was allowed."""
    job = jobs.get(db, config, project, job_id)
    try:
        found = reports.memory(db, project, job_id)
    except NotFound:
        found = None
    most = 0
    if found is not None:
        bars = [found.limit_bytes, found.expected_bytes, found.peak_bytes]
        most = max(1, *(each or 0 for each in bars), *(each.peak_bytes for each in found.phases))
    return frame.page(request, job, "memory", "job/memory.html", memory=found, most=most)
