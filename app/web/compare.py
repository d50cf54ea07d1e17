"""The page that lays the curves, settings and results of up to ten jobs side by side."""

import json
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse
from pydantic import JsonValue

from app.api.deps import Config, Db, Project
from app.api.errors import status_of
from app.domain import differences
from app.domain.differences import Absent
from app.domain.errors import InvalidInput, LoradError, NotFound
from app.domain.jobs import Job
from app.services import jobs
from app.web import charts, render
from app.web.charts import ChartView
from app.web.routing import PageRoute

router = APIRouter(prefix="/ui", include_in_schema=False, route_class=PageRoute)

MOST_JOBS = 10
_OFFERED = 50


@router.get("/compare")
def compare_page(
    request: Request,
    db: Db,
    config: Config,
    project: Project,
    view: ChartView,
    job: Annotated[list[str] | None, Query()] = None,
) -> HTMLResponse:
    """Show what sets jobs apart; what is wrong with one of them does not hide the others."""
    asked = list(dict.fromkeys(each.strip() for each in job or [] if each.strip()))
    problem = _too_many(asked) if len(asked) > MOST_JOBS else None
    found: list[Job] = []
    for job_id in asked[:MOST_JOBS]:
        try:
            found.append(jobs.get(db, config, project, job_id))
        except NotFound as error:
            problem = problem or error
    offered = jobs.page(db, config, project, state=None, after=None, limit=_OFFERED)
    shown = {each.id for each in found}
    return render.page(
        request,
        "compare.html",
        status=200 if problem is None else status_of(problem),
        active="compare",
        problem=problem,
        view=view,
        jobs=found,
        others={each.id: [other.id for other in found if other is not each] for each in found},
        unknown=next((each for each in asked[:MOST_JOBS] if each not in shown), ""),
        offered=[each for each in offered if each.id not in shown],
        most_jobs=MOST_JOBS,
        lowest=_lowest(found),
        totals={each.id: charts.totals(db, project, each) for each in found},
        differences=_settings(found),
    )


def _too_many(asked: Sequence[str]) -> LoradError:
    return InvalidInput(
        f"{len(asked)} jobs are asked for, and up to {MOST_JOBS} can be compared at once; the first"
        f" {MOST_JOBS} are shown, leave some out to see the others",
        param="job",
        code="too_many_jobs",
    )


def _lowest(found: Sequence[Job]) -> str | None:
    """Return the id of the job with the lowest evaluation loss, if there is anything to compare."""
    measured = [(each.best_eval_loss, each.id) for each in found if each.best_eval_loss is not None]
    return min(measured)[1] if len(measured) > 1 else None


def _settings(found: Sequence[Job]) -> list[tuple[str, list[str | None]]]:
    """Return each key that differs with the text of its value for every job, None without one."""
    return [
        (each.key, [text_of(value) for value in each.values])
        for each in differences.between([job.spec for job in found])
        if each.key != "name"  # it stands at the head of the column already
    ]


def text_of(value: JsonValue | Absent) -> str | None:
    """Return how a value of a setting is shown; None where a job does not have the key."""
    if isinstance(value, Absent):
        return None
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
