"""What the charts of a page stand on: the view in its address, totals, and values as a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query
from fastapi.responses import StreamingResponse

from app.api.deps import MAX_INT32, Db, JobId, Project
from app.db.engine import Database
from app.domain.errors import InvalidInput
from app.domain.jobs import Job
from app.services import charts, curves
from app.services.charts import Range
from app.services.curves import Curves
from app.web.routing import PageRoute

router = APIRouter(prefix="/ui", include_in_schema=False, route_class=PageRoute)

_TABLE_POINTS = 44

Axis = Literal["step", "tokens", "time"]


@dataclass(frozen=True)
class View:
    """How charts are looked at. The scripts read it from the address; the server checks it."""

    x: Axis
    log: bool
    smooth: float | None
    start: float | None
    end: float | None


def _view(
    x: Annotated[Axis, Query(description="What the charts run over.")] = "step",
    log: Annotated[Literal["1"] | None, Query(description="1 for a logarithmic scale.")] = None,
    smooth: Annotated[float | None, Query(ge=0, le=0.99, description="Weight of the past.")] = None,
    start: Annotated[float | None, Query(alias="from", description="Start of the zoom.")] = None,
    end: Annotated[float | None, Query(alias="to", description="End of the zoom.")] = None,
) -> View:
    if start is not None and end is not None and start >= end:
        raise InvalidInput(
            f"the zoom is from {start:g} to {end:g}, which is nothing; from must be below to",
            param="from",
        )
    return View(x, log is not None, smooth, start, end)


ChartView = Annotated[View, Depends(_view)]


@router.get("/jobs/{job_id}/curves.json")
def job_curves(
    db: Db,
    project: Project,
    job_id: JobId,
    max_points: Annotated[int, Query(ge=2, le=10_000)] = 2000,
    from_step: Annotated[int, Query(ge=0, le=MAX_INT32)] = 1,
    to_step: Annotated[int | None, Query(ge=0, le=MAX_INT32)] = None,
) -> Curves:
    """Answer what the scripts of the charts draw."""
    return curves.of_job(
        db, project, job_id, max_points=max_points, from_step=from_step, to_step=to_step
    )


@router.get("/jobs/{job_id}/metrics.csv")
def job_csv(db: Db, project: Project, job_id: JobId) -> StreamingResponse:
    """Download every step of the current branch, a row each; a link cannot ask for a type."""
    lines = charts.csv(db, project, job_id, Range())
    headers = {"content-disposition": f'attachment; filename="{job_id}.csv"'}
    return StreamingResponse(lines, media_type="text/csv; charset=utf-8", headers=headers)


@dataclass(frozen=True)
class Totals:
    """What a run did in all, on the current branch of its history."""

    num_tokens: int | None
    seconds: float | None

    @property
    def tokens_per_second(self) -> float | None:
        return self.num_tokens / self.seconds if self.num_tokens and self.seconds else None


def totals(db: Database, project_id: str, job: Job) -> Totals:
    """Return the tokens and the time of the steps of a job; none of both without a step."""
    columns = curves.of_job(db, project_id, job.id, max_points=2).columns
    if not columns.step:
        return Totals(None, None)
    return Totals(columns.tokens[-1], columns.time[-1])


@dataclass(frozen=True)
class JobCharts:
    """What the charts of a job say without a script."""

    rows: Sequence[Mapping[str, float | None]]
    """Some steps of the run, by the name of the column."""
    num_steps: int


def of_job(db: Database, project_id: str, job_id: str) -> JobCharts:
    """Return what templates/charts/job_charts.html shows, as `charts`."""
    columns = curves.of_job(db, project_id, job_id, max_points=_TABLE_POINTS).columns
    lists = columns.model_dump()
    rows = [
        {name: values[index] for name, values in lists.items()}
        for index in range(len(columns.step))
    ]
    return JobCharts(rows, columns.step[-1] if rows else 0)
