"""Reports of a job: receipt, evaluations, gradient flow, memory, certificate."""

from typing import Annotated

from fastapi import APIRouter, Query

from app.api.deps import MAX_INT32, Db, JobId, Project
from app.api.errors import answers
from app.api.schemas import Page, page_of
from app.api.strict import StrictRoute
from app.domain.certificates import Certificate
from app.domain.evaluations import Evaluation
from app.domain.gradient_flow import GradientFlow
from app.domain.memory import MemoryReport
from app.domain.receipts import Receipt
from app.services import reports

router = APIRouter(prefix="/jobs/{job_id}", tags=["reports"], route_class=StrictRoute)

AfterStep = Annotated[int, Query(ge=0, le=MAX_INT32, description="Only steps past this one.")]


@router.get("/receipt", responses=answers(404))
def get_receipt(job_id: JobId, db: Db, project: Project) -> Receipt:
    """Show what became of every line of the data set."""
    return reports.receipt(db, project, job_id)


@router.get("/evaluations", responses=answers(404))
def list_evaluations(
    job_id: JobId,
    db: Db,
    project: Project,
    after_step: AfterStep = 0,
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
