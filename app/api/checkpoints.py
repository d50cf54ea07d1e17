"""Checkpoints of a job: list, show, pin, delete, download."""

from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from app.api.deps import Config, Db, Include, JobId, Project, Which
from app.api.errors import answers
from app.api.schemas import Deleted, Page
from app.api.strict import StrictRoute
from app.domain.checkpoints import Checkpoint
from app.services import checkpoints

router = APIRouter(
    prefix="/jobs/{job_id}/checkpoints", tags=["checkpoints"], route_class=StrictRoute
)


@router.get("", responses=answers(404))
def list_checkpoints(
    job_id: JobId, db: Db, project: Project, include: Include = None
) -> Page[Checkpoint]:
    """List checkpoints in the order of their steps."""
    found = checkpoints.of_job(db, project, job_id, superseded=include == "superseded")
    return Page(data=list(found), has_more=False)


@router.get("/{which}", responses=answers(404))
def get_checkpoint(job_id: JobId, which: Which, db: Db, project: Project) -> Checkpoint:
    """Show a checkpoint."""
    return checkpoints.get(db, project, job_id, which)


@router.delete("/{which}", responses=answers(404, 409))
def delete_checkpoint(
    job_id: JobId, which: Which, db: Db, config: Config, project: Project
) -> Deleted:
    """Remove a checkpoint that nothing needs."""
    found = checkpoints.get(db, project, job_id, which)
    checkpoints.delete(db, config, project, job_id, found.id)
    return Deleted(id=found.id, object="checkpoint")


@router.post("/{which}/pin", responses=answers(404))
def pin_checkpoint(
    job_id: JobId,
    which: Which,
    db: Db,
    project: Project,
    pinned: Annotated[bool, Query(description="False takes the pin off.")] = True,
) -> Checkpoint:
    """Keep a checkpoint whatever save_total_limit says."""
    return checkpoints.pin(db, project, job_id, which, pinned=pinned)


@router.get(
    "/{which}/download",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"application/zip": {}}, "description": "The PEFT adapter as a zip"},
        **answers(404, 409),
    },
)
def download_adapter(
    job_id: JobId, which: Which, db: Db, config: Config, project: Project
) -> StreamingResponse:
    """Download the verified PEFT adapter of a checkpoint; `final` is the job's result."""
    folder = checkpoints.adapter_folder(db, config, project, job_id, which)
    headers = {"content-disposition": f'attachment; filename="{job_id}-{folder.name}.zip"'}
    return StreamingResponse(
        checkpoints.zipped(folder), media_type="application/zip", headers=headers
    )
