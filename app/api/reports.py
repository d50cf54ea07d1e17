"""Reports of a job: receipt, evaluations, gradient flow, memory, certificate."""

from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import FileResponse

from app.api.deps import MAX_INT32, Config, Db, JobId, Project
from app.api.errors import answers, answers_beside_text
from app.api.schemas import Page, page_of
from app.api.strict import StrictRoute
from app.domain.certificates import Certificate
from app.domain.evaluations import Evaluation
from app.domain.gradient_flow import GradientFlow
from app.domain.memory import MemoryReport
from app.domain.receipts import Receipt
from app.services import reports

router = APIRouter(prefix="/jobs/{job_id}", tags=["reports"], route_class=StrictRoute)

_JSONL = "application/jsonl"
_LINES: dict[str, Any] = {
    "description": "The fate of every line, in the order of the file.",
    "content": {_JSONL: {"schema": {"type": "string"}}},
}
AfterStep = Annotated[int, Query(ge=0, le=MAX_INT32, description="Only steps past this one.")]


@router.get("/receipt", responses=answers(404))
def get_receipt(job_id: JobId, db: Db, project: Project) -> Receipt:
    """Show what became of every line of the data set."""
    return reports.receipt(db, project, job_id)


@router.get(
    "/receipt/lines",
    response_class=FileResponse,
    responses={200: _LINES, **answers_beside_text(404)},
)
def get_receipt_lines(job_id: JobId, db: Db, config: Config, project: Project) -> FileResponse:
    """Download the fate of every line of the data set, an object of JSON on each line."""
    path = reports.fates_file(db, config, project, job_id)
    return FileResponse(path, media_type=_JSONL, filename=f"{job_id}-receipt.jsonl")


@router.get("/evaluations", responses=answers(404))
def list_evaluations(
    job_id: JobId,
    db: Db,
    project: Project,
    after_step: Annotated[
        int, Query(ge=-1, le=MAX_INT32, description="Only steps past this one; step 0 is the base.")
    ] = -1,
    limit: Annotated[int, Query(ge=1, le=1000, description="Most entries in the answer.")] = 100,
) -> Page[Evaluation]:
    """List evaluations in the order of their steps."""
    found = reports.evaluations(db, project, job_id, after_step=after_step, limit=limit + 1)
    return page_of(found, limit)


@router.get("/gradient-flow", responses=answers(404))
def list_gradient_flow(
    job_id: JobId,
    db: Db,
    project: Project,
    after_step: AfterStep = 0,
    limit: Annotated[int, Query(ge=1, le=100, description="Most entries in the answer.")] = 20,
) -> Page[GradientFlow]:
    """List gradients and movement of every trained matrix, a table for each sampled step."""
    found = reports.gradient_flow(db, project, job_id, after_step=after_step, limit=limit + 1)
    return page_of(found, limit)


@router.get("/memory", responses=answers(404))
def get_memory(job_id: JobId, db: Db, project: Project) -> MemoryReport:
    """Show the memory peaks of the newest attempt, by phase."""
    return reports.memory(db, project, job_id)


@router.get("/certificate", responses=answers(404))
def get_certificate(job_id: JobId, db: Db, project: Project) -> Certificate:
    """Show what was measured of the final adapter."""
    return reports.certificate(db, project, job_id)
