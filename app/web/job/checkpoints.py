"""The checkpoints of a job: what each is worth, and what can be done with it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Form, Query, Request, Response
from fastapi.responses import HTMLResponse

from app.api.deps import Config, Db, JobId, Project, Reach
from app.db.engine import Database
from app.domain.checkpoints import Checkpoint
from app.domain.errors import InvalidInput, NotFound
from app.domain.exports import ACTIVE, DTYPES
from app.domain.groups import shown
from app.domain.jobs import RESUMABLE_STATES, Job, JobState
from app.domain.replays import Verification
from app.services import checkpoints, exports, jobs, verifying
from app.services.verifying import VerifyRequest
from app.web.job import frame
from app.web.routing import PageRoute

router = APIRouter(prefix="/ui", include_in_schema=False, route_class=PageRoute)

_EXPORTS = 100


@dataclass(frozen=True)
class Line:
    """A checkpoint with what its line says beside it."""

    checkpoint: Checkpoint
    marks: Sequence[str]
    blocked: dict[str, str]
    """Why an action is not possible now, by the name of the action."""


@router.get("/jobs/{job_id}/checkpoints")
def checkpoints_page(
    request: Request,
    db: Db,
    config: Config,
    project: Project,
    job_id: JobId,
    include: Annotated[str, Query(pattern="^(superseded)?$")] = "",
) -> HTMLResponse:
    """Show the checkpoints of a job and what was exported of them."""
    return _page(request, db, config, project, job_id, superseded=bool(include))


@router.post("/jobs/{job_id}/checkpoints/{which}/pin")
def pin(
    request: Request,
    db: Db,
    project: Project,
    job_id: JobId,
    which: str,
    pinned: Annotated[bool, Form()] = True,
) -> Response:
    checkpoints.pin(db, project, job_id, which, pinned=pinned)
    return frame.back(request, job_id, "checkpoints")


@router.post("/jobs/{job_id}/checkpoints/{which}/verify")
def verify(
    request: Request, db: Db, config: Config, project: Project, job_id: JobId, which: str
) -> Response:
    """Hash the files of a checkpoint; one that fails is marked corrupt, with the reason."""
    checkpoints.require_good(db, config, checkpoints.get(db, project, job_id, which))
    note = f"Every file of checkpoint {which} is as it was written."
    return _page(request, db, config, project, job_id, note=note)


@router.post("/jobs/{job_id}/checkpoints/{which}/delete")
def delete(
    request: Request, db: Db, config: Config, project: Project, job_id: JobId, which: str
) -> Response:
    checkpoints.delete(db, config, project, job_id, which)
    return frame.back(request, job_id, "checkpoints")


@router.post("/jobs/{job_id}/verify-resume")
def verify_resume(
    request: Request,
    db: Db,
    config: Config,
    reach: Reach,
    project: Project,
    job_id: JobId,
    checkpoint: Annotated[str, Form(max_length=64)] = "latest",
    steps: Annotated[str, Form(max_length=20)] = "3",
) -> Response:
    """Let a worker do steps again from a checkpoint, and show them beside the recorded ones."""
    if not (steps.isascii() and steps.isdigit() and 1 <= int(steps) <= 50):
        message = f"steps is {shown(repr(steps))}; write a whole number from 1 to 50"
        raise InvalidInput(message, param="steps")
    asked = VerifyRequest(checkpoint=checkpoint, steps=int(steps))
    found = verifying.verify(db, reach, project, job_id, asked)
    return _page(request, db, config, project, job_id, verification=found)


def _page(
    request: Request,
    db: Db,
    config: Config,
    project: str,
    job_id: str,
    *,
    superseded: bool = False,
    note: str = "",
    verification: Verification | None = None,
) -> HTMLResponse:
    job = jobs.get(db, config, project, job_id)
    made = exports.page(db, config, project, job_id, after=None, limit=_EXPORTS)
    return frame.page(
        request,
        job,
        "checkpoints",
        "job/checkpoints.html",
        lines=_lines(db, project, job, superseded=superseded),
        superseded=superseded,
        exports=made,
        is_busy=any(each.state in ACTIVE for each in made),
        dtypes=DTYPES,
        note=note,
        verification=verification,
    )


def _lines(db: Database, project: str, job: Job, *, superseded: bool) -> list[Line]:
    every = checkpoints.of_job(db, project, job.id, superseded=superseded)
    named = {name: _id(db, project, job.id, name) for name in ("latest", "best")}
    lines: list[Line] = []
    for each in every:
        marks = [name for name, found in named.items() if found == each.id]
        marks += ["pinned"] if each.pinned else []
        marks += ["superseded"] if each.superseded else []
        lines.append(Line(each, marks, _blocked(job, each, is_newest=each.id == named["latest"])))
    return lines


def _id(db: Database, project: str, job_id: str, which: str) -> str | None:
    try:
        return checkpoints.get(db, project, job_id, which).id
    except NotFound:
        return None


def _blocked(job: Job, checkpoint: Checkpoint, *, is_newest: bool) -> dict[str, str]:
    found: dict[str, str] = {}
    if checkpoint.status != "committed":
        reason = f"it is {checkpoint.status}: {checkpoint.corrupt_reason or 'it is being removed'}"
        found |= dict.fromkeys(("resume", "try", "download", "export", "verify"), reason)
    if checkpoint.superseded:
        found |= dict.fromkeys(("resume", "try"), "the job went on from an earlier step")
    if job.state not in RESUMABLE_STATES:
        found.setdefault("resume", f"the job is {job.state}; pause it first")
    elif job.state is JobState.SUCCEEDED:
        found.setdefault("resume", "the job has succeeded; Extend it on its overview")
    if checkpoint.pinned:
        found["delete"] = "it is pinned"
    elif is_newest and not job.is_terminal:
        found["delete"] = "a job that has not ended goes on from it"
    return found
