"""Fine-tuning jobs: create, list, show, cancel, pause, resume, their events and checkpoints."""

import re
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from app.api.deps import Db, Project, Reach
from app.api.errors import answers
from app.api.strict import StrictRoute, require_known
from app.api.v1.deps import After, FineTuningJobId, Sent
from app.domain.errors import InvalidInput
from app.domain.groups import shown
from app.domain.openai.objects import (
    CursorPage,
    FineTuningCheckpoint,
    FineTuningEvent,
    FineTuningJob,
)
from app.domain.openai.requests import NAMES, CreateJob, ResumeJob
from app.domain.spec import JobSpec, MetadataKey, MetadataValue
from app.services.openai import checkpoints, events, files, fine_tuning

router = APIRouter(prefix="/v1/fine_tuning", tags=["openai"], route_class=StrictRoute)
# Without the look at parameters: those of a metadata filter have names of the client's own.
filtered = APIRouter(prefix="/v1/fine_tuning", tags=["openai"], route_class=APIRoute)

_FILTER = re.compile(r"metadata\[(.+)\]", re.DOTALL)
_PAIRS: TypeAdapter[dict[str, str]] = TypeAdapter(dict[MetadataKey, MetadataValue])
_Limit = Annotated[int, Query(ge=1, le=100, description="Most items in the answer.")]


@router.post("/jobs", responses=answers(404, 409))
def create_fine_tuning_job(
    body: CreateJob, db: Db, reach: Reach, project: Project, sent: Sent
) -> FineTuningJob:
    """Store a training job; it starts when a worker is free."""
    return fine_tuning.create(db, reach, project, body, _spec(body), attempt=sent)


@filtered.get(
    "/jobs",
    responses=answers(),
    openapi_extra={
        "parameters": [
            {
                "name": "metadata",
                "in": "query",
                "style": "deepObject",
                "explode": True,
                "description": "Only jobs with these pairs: `metadata[key]=value`. `metadata=null`"
                " finds jobs without metadata.",
                "schema": {"type": "object", "additionalProperties": {"type": "string"}},
            }
        ]
    },
)
def list_fine_tuning_jobs(
    request: Request, db: Db, project: Project, after: After = None, limit: _Limit = 20
) -> CursorPage[FineTuningJob]:
    """List jobs, newest first."""
    metadata = _metadata(request)
    return fine_tuning.page(db, project, after=after, limit=limit, metadata=metadata)


@router.get("/jobs/{fine_tuning_job_id}", responses=answers(404))
def get_fine_tuning_job(
    fine_tuning_job_id: FineTuningJobId, db: Db, reach: Reach, project: Project
) -> FineTuningJob:
    """Show a job."""
    return fine_tuning.get(db, reach, project, fine_tuning_job_id)


@router.post("/jobs/{fine_tuning_job_id}/cancel", responses=answers(404, 409))
def cancel_fine_tuning_job(
    fine_tuning_job_id: FineTuningJobId, db: Db, reach: Reach, project: Project, sent: Sent
) -> FineTuningJob:
    """End a job without saving; its checkpoints stay."""
    return fine_tuning.cancel(db, reach, project, fine_tuning_job_id, attempt=sent)


@router.post("/jobs/{fine_tuning_job_id}/pause", responses=answers(404, 409))
def pause_fine_tuning_job(
    fine_tuning_job_id: FineTuningJobId, db: Db, reach: Reach, project: Project, sent: Sent
) -> FineTuningJob:
    """Stop a job at its next step, with a checkpoint."""
    return fine_tuning.pause(db, reach, project, fine_tuning_job_id, attempt=sent)


@router.post("/jobs/{fine_tuning_job_id}/resume", responses=answers(404, 409))
def resume_fine_tuning_job(
    fine_tuning_job_id: FineTuningJobId,
    db: Db,
    reach: Reach,
    project: Project,
    sent: Sent,
    body: ResumeJob | None = None,
) -> FineTuningJob:
    """Continue a stopped job from its newest checkpoint, or from another one."""
    return fine_tuning.resume_job(
        db, reach, project, fine_tuning_job_id, body or ResumeJob(), attempt=sent
    )


@router.get("/jobs/{fine_tuning_job_id}/events", responses=answers(404))
def list_fine_tuning_events(
    fine_tuning_job_id: FineTuningJobId,
    db: Db,
    project: Project,
    after: After = None,
    limit: _Limit = 20,
) -> CursorPage[FineTuningEvent]:
    """List what happened to a job and what was measured, newest first."""
    return events.page(db, project, fine_tuning_job_id, after=after, limit=limit)


@router.get("/jobs/{fine_tuning_job_id}/checkpoints", responses=answers(404))
def list_fine_tuning_checkpoints(
    fine_tuning_job_id: FineTuningJobId,
    db: Db,
    project: Project,
    after: After = None,
    limit: _Limit = 10,
) -> CursorPage[FineTuningCheckpoint]:
    """List the checkpoints of a job, newest first."""
    return checkpoints.page(db, project, fine_tuning_job_id, after=after, limit=limit)


def _spec(body: CreateJob) -> JobSpec:
    """Return the job in our words.

    Raises:
        NotFound: The id of a file is none.
        InvalidInput: A hyperparameter contradicts a key of ours.
        RequestValidationError: A value of ours is none; the keys are named as they were given.
    """
    dataset_id = files.dataset_id(body.training_file, param="training_file")
    eval_id = body.validation_file and files.dataset_id(
        body.validation_file, param="validation_file"
    )
    try:
        return body.spec(dataset_id=dataset_id, eval_id=eval_id or None)
    except PydanticCustomError as error:
        key = (error.context or {}).get("key")
        raise InvalidInput(error.message(), param=key, code=error.type) from error
    except ValidationError as error:
        raise RequestValidationError([_renamed(dict(each)) for each in error.errors()]) from error


def _renamed(error: dict[str, Any]) -> dict[str, Any]:
    path = ".".join(map(str, error["loc"]))
    return {**error, "loc": ("body", *NAMES.get(path, path).split("."))} if path else error


def _metadata(request: Request) -> dict[str, str] | None:
    """Read the filter of a list: `{}` without one, None for jobs that have no metadata.

    Raises:
        InvalidInput: There is another parameter, one given twice, or a pair that no job can have.
    """
    given = request.query_params.multi_items()
    pairs = {name: found[1] for name, _ in given if (found := _FILTER.fullmatch(name))}
    require_known(
        [name for name, _ in given], ["after", "limit", "metadata", *pairs], what="parameter"
    )
    whole = request.query_params.get("metadata")
    if whole is not None and (whole != "null" or pairs):
        raise InvalidInput(
            f"metadata = {shown(whole)} is no filter; give metadata[key]=value, or only"
            " metadata=null for jobs without metadata",
            param="metadata",
        )
    if whole is not None:
        return None
    try:
        return _PAIRS.validate_python(
            {pairs[name]: value for name, value in given if name in pairs}
        )
    except ValidationError as error:
        raise InvalidInput(
            f"metadata: {error.errors()[0]['msg']}; keys have up to 64 characters, values up to"
            " 512",
            param="metadata",
        ) from error
