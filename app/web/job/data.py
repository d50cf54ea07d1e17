"""The data of a job: what became of every line, and rows as the tokens it trains on."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import HTMLResponse

from app.api.deps import MAX_INT32, Config, Db, JobId, Project, Reach
from app.domain.errors import NotFound
from app.services import datasets, jobs, previews, raw_rows, reports
from app.services.previews import Wanted
from app.web import token_preview
from app.web.job import frame
from app.web.routing import PageRoute

router = APIRouter(prefix="/ui", include_in_schema=False, route_class=PageRoute)


@router.get("/jobs/{job_id}/data")
def data_page(
    request: Request, db: Db, config: Config, project: Project, job_id: JobId
) -> HTMLResponse:
    """Show the data set, its receipt, and rows as tokens."""
    job = jobs.get(db, config, project, job_id)
    try:
        receipt = reports.receipt(db, project, job_id)
    except NotFound:
        receipt = None
    try:
        dataset = datasets.get(db, project, job.spec.dataset.id)
    except NotFound:
        dataset = None  # deleted, or expired
    return frame.page(request, job, "data", "job/data.html", receipt=receipt, dataset=dataset)


@router.get("/jobs/{job_id}/tokens")
def tokens_page(
    request: Request,
    db: Db,
    config: Config,
    reach: Reach,
    project: Project,
    job_id: JobId,
    offset: Annotated[int, Query(ge=0, le=MAX_INT32)] = 0,
) -> Response:
    """Show one row as this job trains on it: with its template, its length and its mask."""
    spec = jobs.get(db, config, project, job_id).spec
    options = spec.dataset.model_dump(mode="json", exclude=set(token_preview.NOT_OF_ROWS))
    shown = token_preview.within_limit(options)
    wanted = Wanted(spec.base_model, offset=offset, num_rows=1, options=shown)
    found = previews.preview(db, reach, project, spec.dataset.id, wanted)
    raw = raw_rows.at(db, config, project, spec.dataset.id, offset)
    return token_preview.shown(
        request, found, f"/ui/jobs/{job_id}/tokens?", raw, max_length=spec.dataset.max_length
    )
