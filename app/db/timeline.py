"""Queries on a job's history as a page shows it: newest first, of one kind or of all."""

from collections.abc import Mapping, Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.db.jobs import to_event
from app.db.tables import JobEventRow
from app.domain.jobs import JobEvent


def page(
    session: Session, job_id: str, *, kind: str | None, before: int | None, limit: int
) -> Sequence[JobEvent]:
    """Return up to `limit` events, newest first, that are older than the event `before`."""
    query = select(JobEventRow).where(JobEventRow.job_id == job_id)
    if kind is not None:
        query = query.where(JobEventRow.type == kind)
    if before is not None:
        query = query.where(JobEventRow.id < before)
    query = query.order_by(JobEventRow.id.desc()).limit(limit)
    return [to_event(row) for row in session.scalars(query)]


def kinds(session: Session, job_id: str) -> Mapping[str, int]:
    """Return how many events of each kind a job has, the most frequent kind first."""
    number = func.count()
    query = (
        select(JobEventRow.type, number)
        .where(JobEventRow.job_id == job_id)
        .group_by(JobEventRow.type)
        .order_by(number.desc(), JobEventRow.type)
    )
    return {row[0]: row[1] for row in session.execute(query)}
