"""The table of jobs: each with its speed, the time it has left, and the course of its loss."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from sqlalchemy.orm import Session

from app.db import job_table as queries
from app.db import jobs as job_queries
from app.db.engine import Database
from app.db.job_table import Filter, Sort
from app.db.jobs import JobRow
from app.domain.jobs import OWNED_STATES, Job, JobState
from app.domain.spec import JobSpec
from app.domain.workers import Worker
from app.services import catalog, jobs
from app.settings import Settings

__all__ = ["Filter", "Sort"]

_POINTS = 32


@dataclass(frozen=True)
class JobLine:
    """A job with what its line in the table shows beside it."""

    job: Job
    tokens_per_second: float | None
    """Of the newest step; None before the first."""
    seconds_left: float | None
    """At the pace of the newest step; None unless it is running."""
    losses: Sequence[float | None]
    """Some losses of the run in their order, the newest last; None where one was not finite."""


@dataclass(frozen=True)
class Table:
    """One page of the table."""

    lines: Sequence[JobLine]
    has_more: bool
    counts: Mapping[JobState, int]
    models: Sequence[str]
    newest: str | None
    """Id of the job that was submitted last, shown or not."""


def page(
    db: Database,
    settings: Settings,
    project_id: str,
    wanted: Filter,
    sort: Sort,
    *,
    after: str | None,
    limit: int,
) -> Table:
    """Return the lines behind the job `after`.

    Raises:
        NotFound: There is no job `after` (any more).
    """
    workers = catalog.list_workers(db, settings)
    with db.read() as session:
        if after is not None:
            jobs.require(session, project_id, after)
        rows = queries.page(session, project_id, wanted, sort, after=after, limit=limit + 1)
        return Table(
            lines=_lines(session, workers, rows[:limit]),
            has_more=len(rows) > limit,
            counts=queries.counts(session, project_id),
            models=queries.models(session, project_id),
            newest=queries.newest(session, project_id),
        )


def lines(
    db: Database, settings: Settings, project_id: str, job_ids: Sequence[str]
) -> Sequence[JobLine]:
    """Return the lines of those of some jobs that are still there."""
    workers = catalog.list_workers(db, settings)
    with db.read() as session:
        return _lines(session, workers, queries.by_id(session, project_id, job_ids))


def counts(db: Database, project_id: str) -> Mapping[JobState, int]:
    """Return how many jobs are in each state; states without one are left out."""
    with db.read() as session:
        return queries.counts(session, project_id)


def num_newer(db: Database, project_id: str, wanted: Filter, job_id: str) -> int:
    """Count the jobs of a filter that were submitted after a job."""
    with db.read() as session:
        return queries.num_newer(session, project_id, wanted, job_id)


def _lines(
    session: Session, workers: Sequence[Worker], rows: Sequence[JobRow]
) -> Sequence[JobLine]:
    found: list[JobLine] = []
    for row in rows:
        steps = _sampled(row)
        # One query for each job: databases read more than they need for many pairs at once.
        measured = queries.measured(session, row.id, steps)
        metrics = [measured[step]["metrics"] for step in steps if step in measured]
        found.append(_line(row, workers, metrics))
    return found


def _line(row: JobRow, workers: Sequence[Worker], metrics: Sequence[Mapping[str, Any]]) -> JobLine:
    waiting = None
    if row.state == JobState.QUEUED:
        waiting = catalog.waiting_for(workers, JobSpec.model_validate(row.spec))
    job = job_queries.to_job(row, waiting_for=waiting)
    newest = metrics[-1] if metrics else None
    seconds_left = None
    if newest is not None and job.total_steps is not None and job.state in OWNED_STATES:
        seconds_left = (job.total_steps - job.step) * newest["step_seconds"]
    return JobLine(
        job=job,
        tokens_per_second=None if newest is None else newest["tokens_per_second"],
        seconds_left=seconds_left,
        losses=[each["loss"] for each in metrics],
    )


def _sampled(row: JobRow) -> Sequence[int]:
    """Return a few logged steps, evenly spread, the newest among them."""
    every = row.spec["training"]["logging_steps"]
    num_logged = row.step // every
    last = [row.step] if row.step % every and row.step == row.total_steps else []
    count = min(_POINTS, num_logged)
    if count == 0:
        return last or ([1] if row.step else [])
    marks = [index * num_logged // count for index in range(count + 1)]
    return [*(every * later for _, later in pairwise(marks)), *last]
