"""What can be asked of a job, as forms: pause, resume, extend, cancel and delete."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request, Response

from app.api.deps import Config, Db, JobId, Project, Reach
from app.domain.checkpoints import Checkpoint
from app.domain.errors import InvalidInput
from app.domain.groups import shown
from app.domain.jobs import (
    RESUMABLE_STATES,
    TERMINAL_STATES,
    Desired,
    Job,
    JobState,
    allowed_requests,
)
from app.services import jobs, resume
from app.services.resume import ResumeRequest
from app.web.job import frame
from app.web.routing import PageRoute

router = APIRouter(prefix="/ui", include_in_schema=False, route_class=PageRoute)

# What the form of a resume calls a start without any checkpoint.
FROM_SCRATCH = "scratch"
_STATES: dict[str, Sequence[JobState]] = {
    "pause": (JobState.QUEUED, JobState.STARTING, JobState.RUNNING),
    "resume": RESUMABLE_STATES,
    "extend": RESUMABLE_STATES,
    "cancel": [state for state in JobState if state not in TERMINAL_STATES],
    "delete": TERMINAL_STATES,
}
_ASKED = {"pause": (Desired.PAUSE, Desired.CANCEL), "cancel": (Desired.CANCEL,)}

Text = Annotated[str, Form(max_length=20)]


@router.post("/jobs/{job_id}/pause")
def pause_job(request: Request, db: Db, reach: Reach, project: Project, job_id: JobId) -> Response:
    jobs.pause(db, reach, project, job_id)
    return frame.stay(request, job_id)


@router.post("/jobs/{job_id}/cancel")
def cancel_job(request: Request, db: Db, reach: Reach, project: Project, job_id: JobId) -> Response:
    jobs.cancel(db, reach, project, job_id)
    return frame.stay(request, job_id)


@router.post("/jobs/{job_id}/delete")
def delete_job(
    request: Request, db: Db, config: Config, project: Project, job_id: JobId
) -> Response:
    jobs.delete(db, config, project, job_id)
    return frame.to(request, "/ui/jobs")


@router.post("/jobs/{job_id}/resume")
def resume_job(
    request: Request,
    db: Db,
    reach: Reach,
    project: Project,
    job_id: JobId,
    checkpoint: Annotated[str, Form(max_length=64)] = "latest",
    max_steps: Text = "",
    num_train_epochs: Text = "",
) -> Response:
    """Continue from a checkpoint, to a later end if one is given."""
    changes: dict[str, Any] = {}
    if max_steps.strip():
        changes["max_steps"] = _whole(max_steps.strip())
    if num_train_epochs.strip():
        changes["num_train_epochs"] = _number(num_train_epochs.strip())
    if checkpoint == FROM_SCRATCH:
        asked = ResumeRequest(from_scratch=True, training=changes)
    else:
        asked = ResumeRequest(checkpoint=checkpoint, training=changes)
    resume.resume(db, reach, project, job_id, asked)
    return frame.back(request, job_id)


def blocked(job: Job, checkpoints: Sequence[Checkpoint]) -> dict[str, str]:
    """Return why an action is not possible now, by the name of the action."""
    why = f"the job is {job.state}; {allowed_requests(job.state)}"
    found = {name: why for name, states in _STATES.items() if job.state not in states}
    for name, asked in _ASKED.items():
        if name not in found and job.desired in asked:
            found[name] = f"{job.desired} was requested already"
    if job.state is JobState.SUCCEEDED:
        found["resume"] = f"the job is succeeded with {job.step} steps; Extend gives it more to do"
    if not checkpoints:
        found["chat"] = "there is no checkpoint yet; the first comes with the first save"
    return found


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise InvalidInput(
            f"max_steps is {shown(repr(text))}; write a whole number in digits alone",
            param="max_steps",
        )
    return int(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        message = f"num_train_epochs is {shown(repr(text))}; write a number such as 2 or 1.5"
        raise InvalidInput(message, param="num_train_epochs") from None
