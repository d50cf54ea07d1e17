"""The first page of a job: how far it is, what can be asked of it, and its curves."""

from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from app.api.deps import Config, Db, JobId, Project
from app.db.engine import Database
from app.domain.checkpoints import Checkpoint
from app.domain.jobs import Job
from app.services import checkpoints, job_table, jobs, keys
from app.services.job_table import JobLine
from app.settings import Settings
from app.web import charts
from app.web.charts import ChartView
from app.web.job import actions, copies, frame
from app.web.routing import PageRoute

router = APIRouter(prefix="/ui", include_in_schema=False, route_class=PageRoute)


@dataclass(frozen=True)
class Facts:
    """What the page says of a job and renews while it is open."""

    job: Job
    line: JobLine | None
    """Its line in the table of all jobs; None when it was deleted in the same moment."""
    blocked: dict[str, str]
    checkpoints: Sequence[Checkpoint]
    """Those that it can be resumed from."""


def facts(db: Database, settings: Settings, project_id: str, job_id: str) -> Facts:
    """Return what the page says of a job now.

    Raises:
        NotFound: The project has no such job.
    """
    job = jobs.get(db, settings, project_id, job_id)
    lines = job_table.lines(db, settings, project_id, [job_id])
    kept = checkpoints.of_job(db, project_id, job_id, superseded=False)
    usable = [each for each in kept if each.status == "committed"]
    return Facts(job, lines[0] if lines else None, actions.blocked(job, usable), usable)


@router.get("/jobs/{job_id}")
def job_page(
    request: Request, db: Db, config: Config, project: Project, job_id: JobId, view: ChartView
) -> HTMLResponse:
    """Show a job with what can be done with it, and its curves."""
    found = facts(db, config, project, job_id)
    return frame.page(
        request,
        found.job,
        "",
        "job/overview.html",
        facts=found,
        blocked=found.blocked,
        copies=copies.of_spec(
            found.job.spec, str(request.base_url).rstrip("/"), needs_key=keys.are_required(db)
        ),
        charts=charts.of_job(db, project, job_id),
        view=view,
    )
