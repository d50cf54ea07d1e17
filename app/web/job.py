"""The page of one job: how far it is, what it kept, and what can be done with it."""

from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse

from app.api.deps import Config, Db, JobId, Project, Reach
from app.domain.errors import InvalidInput
from app.domain.jobs import RESUMABLE_STATES, Desired, Job, JobState, allowed_requests
from app.services import checkpoints, jobs, resume
from app.services.resume import ResumeRequest
from app.web import charts, render
from app.web.charts import ChartView
from app.web.routing import PageRoute

router = APIRouter(prefix="/ui", include_in_schema=False, route_class=PageRoute)


@router.get("/jobs/{job_id}")
def job_page(
    request: Request, db: Db, config: Config, project: Project, job_id: JobId, view: ChartView
) -> HTMLResponse:
    """Show a job with its checkpoints and its curves."""
    job = jobs.get(db, config, project, job_id)
    return render.page(
        request,
        "job/overview.html",
        active="jobs",
        job=job,
        blocked=_blocked(job),
        checkpoints=checkpoints.of_job(db, project, job_id, superseded=False),
        charts=charts.of_job(db, project, job_id),
        view=view,
    )


@router.post("/jobs/{job_id}/pause")
def pause(db: Db, reach: Reach, project: Project, job_id: JobId) -> RedirectResponse:
    jobs.pause(db, reach, project, job_id)
    return _back(job_id)


@router.post("/jobs/{job_id}/cancel")
def cancel(db: Db, reach: Reach, project: Project, job_id: JobId) -> RedirectResponse:
    jobs.cancel(db, reach, project, job_id)
    return _back(job_id)


@router.post("/jobs/{job_id}/resume")
def resume_job(
    db: Db,
    reach: Reach,
    project: Project,
    job_id: JobId,
    checkpoint: Annotated[str, Form(max_length=64)] = "latest",
    max_steps: Annotated[str, Form(max_length=20)] = "",
) -> RedirectResponse:
    """Continue from a checkpoint, to a later end if one is given."""
    text = max_steps.strip()
    if text and not (text.isascii() and text.isdigit()):
        raise InvalidInput(
            f"max_steps is {text!r}; write a whole number in digits alone", param="max_steps"
        )
    changes = {"max_steps": int(text)} if text else {}
    asked = ResumeRequest(checkpoint=checkpoint, training=changes)
    resume.resume(db, reach, project, job_id, asked)
    return _back(job_id)


def _back(job_id: str) -> RedirectResponse:
    return RedirectResponse(f"/ui/jobs/{job_id}", status_code=303, headers=render.HEADERS)


def _blocked(job: Job) -> dict[str, str]:
    """Return why an action is not possible now, by the name of the action."""
    why = f"the job is {job.state}; {allowed_requests(job.state)}"
    found: dict[str, str] = {}
    if job.state not in (JobState.QUEUED, JobState.STARTING, JobState.RUNNING):
        found["pause"] = why
    elif job.desired != Desired.RUN:
        found["pause"] = f"{job.desired} was requested already"
    if job.is_terminal:
        found["cancel"] = why
    if job.state not in RESUMABLE_STATES:
        found["resume"] = why
    return found
