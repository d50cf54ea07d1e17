"""Queries of the table of jobs: filtered, sorted, and a page at a time."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, and_, func, or_, select
from sqlalchemy.orm import Session

from app.db.tables import JobRow, TrainerEventRow
from app.domain.jobs import JobState

Sort = Literal["newest", "priority", "loss", "best_eval_loss"]
# Jobs without a loss come after every loss.
_NO_LOSS = 1e308
_KEYS: dict[str, tuple[ColumnElement[Any], bool] | None] = {
    "newest": None,
    "priority": (JobRow.priority.expression, True),
    "loss": (func.coalesce(JobRow.loss, _NO_LOSS), False),
    "best_eval_loss": (func.coalesce(JobRow.best_eval_loss, _NO_LOSS), False),
}


@dataclass(frozen=True)
class Filter:
    """Which jobs are asked for; None asks for any."""

    states: Sequence[JobState] | None = None
    text: str | None = None
    """Part of the name, of the id or of the name of the base model, in upper or lower case."""
    model: str | None = None


def page(
    session: Session, project_id: str, wanted: Filter, sort: Sort, *, after: str | None, limit: int
) -> Sequence[JobRow]:
    """Return up to `limit` jobs behind the job `after` in the order of `sort`."""
    query = select(JobRow.id).where(JobRow.project_id == project_id, *_conditions(wanted))
    key = _KEYS[sort]
    if key is None:
        query = query.where(JobRow.id < after) if after is not None else query
        query = query.order_by(JobRow.id.desc())
    else:
        column, is_descending = key
        if after is not None:
            place = select(column).where(JobRow.id == after).scalar_subquery()
            further = column < place if is_descending else column > place
            query = query.where(or_(further, and_(column == place, JobRow.id < after)))
        order = column.desc() if is_descending else column.asc()
        query = query.order_by(order, JobRow.id.desc())
    # The ids first: whole rows are too wide to be sorted.
    return by_id(session, project_id, session.scalars(query.limit(limit)).all())


def by_id(session: Session, project_id: str, job_ids: Sequence[str]) -> Sequence[JobRow]:
    """Return those of some jobs that are there, in their order."""
    query = select(JobRow).where(JobRow.project_id == project_id, JobRow.id.in_(job_ids))
    found = {row.id: row for row in session.scalars(query)}
    return [found[job_id] for job_id in job_ids if job_id in found]


def counts(session: Session, project_id: str) -> Mapping[JobState, int]:
    """Return how many jobs are in each state; states without one are left out."""
    query = select(JobRow.state, func.count()).where(JobRow.project_id == project_id)
    return {JobState(state): number for state, number in session.execute(query.group_by("state"))}


def models(session: Session, project_id: str) -> Sequence[str]:
    query = select(JobRow.base_model).where(JobRow.project_id == project_id).distinct()
    return session.scalars(query.order_by(JobRow.base_model)).all()


def newest(session: Session, project_id: str) -> str | None:
    """Return the id of the job that was submitted last."""
    return session.scalar(select(func.max(JobRow.id)).where(JobRow.project_id == project_id))


def num_newer(session: Session, project_id: str, wanted: Filter, job_id: str) -> int:
    """Count the jobs of a filter that were submitted after a job."""
    query = select(func.count()).where(JobRow.project_id == project_id, JobRow.id > job_id)
    return session.scalar(query.where(*_conditions(wanted))) or 0


def measured(
    session: Session, job_id: str, steps: Sequence[int]
) -> Mapping[int, Mapping[str, Any]]:
    """Return what was measured at some steps of a job; a step without a row is left out."""
    if not steps:
        return {}
    row = TrainerEventRow
    query = select(row.step, row.body).where(
        row.job_id == job_id, row.kind == "step", row.step.in_(steps), row.superseded.is_(False)
    )
    return {step: json.loads(body) for step, body in session.execute(query)}


def _conditions(wanted: Filter) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if wanted.states is not None:
        conditions.append(JobRow.state.in_([state.value for state in wanted.states]))
    if wanted.model is not None:
        conditions.append(JobRow.base_model == wanted.model)
    if wanted.text is not None:
        name = JobRow.spec["name"].as_string()
        places = (name, JobRow.id, JobRow.base_model)
        conditions.append(or_(*(each.icontains(wanted.text, autoescape=True) for each in places)))
    return conditions
