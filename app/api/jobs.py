"""Jobs: submit, look, pause, cancel, resume, delete, and what they print and record."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response, status
from fastapi.responses import PlainTextResponse

from app.api.answering import line_of, while_connected
from app.api.charts import (
    METRICS_ANSWERS,
    MetricsAnswer,
    Steps,
    WantedMetrics,
    metrics_answer,
)
from app.api.deps import (
    MAX_INT32,
    MAX_INT64,
    Config,
    Db,
    IdempotencyKey,
    JobAfter,
    JobId,
    Limit,
    Project,
    Reach,
)
from app.api.errors import answers, answers_beside_text
from app.api.schemas import Deleted, Page, page_of
from app.api.strict import StrictRoute
from app.domain.jobs import Job, JobEvent, JobState
from app.domain.replays import Verification
from app.domain.spec import JobSpec
from app.services import charts, generation, jobs, output, resume, verifying
from app.services.charts import Markers
from app.services.generation import GenerateBody, Generation
from app.services.resume import ResumeRequest
from app.services.verifying import VerifyRequest

router = APIRouter(prefix="/jobs", tags=["jobs"], route_class=StrictRoute)


@router.post("", status_code=status.HTTP_201_CREATED, responses=answers(404, 409, 413))
def submit_job(
    spec: JobSpec, db: Db, reach: Reach, project: Project, idempotency_key: IdempotencyKey = None
) -> Job:
    """Store a training job; it starts when a worker is free."""
    return jobs.submit(db, reach, project, spec, idempotency_key=idempotency_key)


@router.get("", responses=answers())
def list_jobs(
    db: Db,
    config: Config,
    project: Project,
    after: JobAfter,
    state: Annotated[JobState | None, Query(description="Only jobs in this state.")] = None,
    limit: Limit = 20,
) -> Page[Job]:
    """List jobs, newest first."""
    found = jobs.page(db, config, project, state=state, after=after, limit=limit + 1)
    return page_of(found, limit)


@router.get("/{job_id}", responses=answers(404))
def get_job(job_id: JobId, db: Db, config: Config, project: Project) -> Job:
    """Show a job."""
    return jobs.get(db, config, project, job_id)


@router.delete("/{job_id}", responses=answers(404, 409))
def delete_job(job_id: JobId, db: Db, config: Config, project: Project) -> Deleted:
    """Remove a job that has ended, with its checkpoints, metrics and files."""
    jobs.delete(db, config, project, job_id)
    return Deleted(id=job_id, object="job")


@router.post("/{job_id}/pause", responses=answers(404, 409))
def pause_job(job_id: JobId, db: Db, reach: Reach, project: Project) -> Job:
    """Stop a job at its next step, with a checkpoint."""
    return jobs.pause(db, reach, project, job_id)


@router.post("/{job_id}/cancel", responses=answers(404, 409))
def cancel_job(job_id: JobId, db: Db, reach: Reach, project: Project) -> Job:
    """End a job without saving; its checkpoints stay."""
    return jobs.cancel(db, reach, project, job_id)


@router.post("/{job_id}/resume", responses=answers(404, 409, 413))
def resume_job(
    job_id: JobId, db: Db, reach: Reach, project: Project, request: ResumeRequest | None = None
) -> Job:
    """Continue a stopped job from a checkpoint."""
    return resume.resume(db, reach, project, job_id, request or ResumeRequest())


@router.post("/{job_id}/verify-resume", responses=answers(404, 409, 413))
def verify_resume(
    job_id: JobId, db: Db, reach: Reach, project: Project, request: VerifyRequest | None = None
) -> Verification:
    """Do recorded steps again from a checkpoint, beside the job, and compare to the last bit."""
    return verifying.verify(db, reach, project, job_id, request or VerifyRequest())


@router.post("/{job_id}/generate", responses=answers(404, 409, 413, 429))
async def generate(
    job_id: JobId, body: GenerateBody, request: Request, project: Project
) -> Generation:
    """Answer conversations with a checkpoint of the job, its final adapter, or the base model."""
    work = generation.generate(line_of(request), project, job_id, body)
    return await while_connected(request, work)


@router.get("/{job_id}/metrics", response_model=MetricsAnswer, responses=METRICS_ANSWERS)
def list_metrics(job_id: JobId, db: Db, project: Project, wanted: WantedMetrics) -> Response:
    """List step metrics in the order of their steps, or draw a chart of them.

    With `max_points` the current branch comes as a chart: a list per measurement, thinned so that
    no lowest or highest value is missing. `Accept: text/csv` answers with CSV, a row each step.
    """
    return metrics_answer(db, project, job_id, wanted)


@router.get("/{job_id}/markers", responses=answers(404))
def list_markers(job_id: JobId, db: Db, project: Project, steps: Steps) -> Markers:
    """List what happened at steps: checkpoints, resumes, heals, skipped steps and spikes."""
    return charts.markers(db, project, job_id, steps)


@router.get("/{job_id}/events", responses=answers(404))
def list_events(
    job_id: JobId,
    db: Db,
    project: Project,
    after: Annotated[
        int, Query(ge=0, le=MAX_INT64, description="Only events past this number.")
    ] = 0,
    limit: Limit = 100,
) -> Page[JobEvent]:
    """List what happened to a job, oldest first."""
    found = jobs.events(db, project, job_id, after=after, limit=limit + 1)
    return page_of(found, limit)


@router.get("/{job_id}/logs", response_class=PlainTextResponse, responses=answers_beside_text(404))
def get_logs(
    job_id: JobId,
    db: Db,
    config: Config,
    project: Project,
    attempt: Annotated[
        int | None,
        Query(ge=1, le=MAX_INT32, description="Attempt; the newest when not given."),
    ] = None,
    offset: Annotated[int, Query(ge=0, le=MAX_INT64, description="Where to start, in bytes.")] = 0,
) -> Response:
    """Show what the trainer of an attempt printed; `x-next-offset` is where to go on."""
    piece = output.read(db, config, project, job_id, attempt=attempt, offset=offset)
    headers = {"x-next-offset": str(piece.next_offset), "x-attempt": str(piece.attempt)}
    return PlainTextResponse(piece.text, headers=headers)
