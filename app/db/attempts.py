"""Queries on attempts: each is one worker's try at a job, under a fence of its own."""

from collections.abc import Sequence

from sqlalchemy import func, or_, select, update
from sqlalchemy.orm import Session

from app.db.tables import AttemptRow, JobRow
from app.db.types import db_now
from app.domain.runs import AttemptKey

LOST = "lost"
"""Outcome of an attempt whose last lines may not be stored yet."""
RECOVERED = "recovered"
"""Outcome of an attempt that was lost, and of which everything it reported is stored."""
ABANDONED = "abandoned"
"""Outcome of an attempt that was lost, and whose last lines nobody wants any more."""


def insert(session: Session, row: JobRow, *, worker_id: str) -> None:
    """Open the attempt of a job that was claimed just now."""
    session.add(
        AttemptRow(
            job_id=row.id,
            attempt=row.attempt,
            fence=row.fence,
            worker_id=worker_id,
            spec=row.spec,
        )
    )


def start_at(session: Session, key: AttemptKey, *, step: int, checkpoint_id: str | None) -> None:
    """Record where an attempt starts from."""
    _update(session, key, start_step=step, checkpoint_id=checkpoint_id)


def end(session: Session, key: AttemptKey, outcome: str) -> None:
    """Record how an attempt ended."""
    _update(session, key, ended_at=db_now(), outcome=outcome)


def outcome(session: Session, key: AttemptKey) -> str | None:
    """Return how an attempt ended; None while it runs."""
    query = select(AttemptRow.outcome).where(
        AttemptRow.job_id == key.job_id, AttemptRow.attempt == key.attempt
    )
    return session.scalar(query)


def set_adopting(session: Session, key: AttemptKey, *, adopting: bool) -> None:
    """Let the database accept rows of a dead attempt, inside this transaction only."""
    session.flush()
    _update(session, key, adopting=adopting)


def lost(session: Session, key: AttemptKey) -> Sequence[AttemptKey]:
    """Return earlier attempts whose last lines may be missing and still fit, in their order.

    Once a later attempt has started, it does the same steps again: then they fit no more.
    """
    earlier = (AttemptRow.job_id == key.job_id, AttemptRow.attempt < key.attempt)
    last_started = (
        select(func.max(AttemptRow.attempt))
        .where(*earlier, AttemptRow.start_step.is_not(None))
        .scalar_subquery()
    )
    query = (
        select(AttemptRow.attempt, AttemptRow.fence)
        .where(*earlier, AttemptRow.outcome == LOST, AttemptRow.attempt >= last_started)
        .order_by(AttemptRow.attempt)
    )
    return [AttemptKey(key.job_id, attempt, fence) for attempt, fence in session.execute(query)]


def abandon(session: Session, job_id: str) -> None:
    """Leave the last lines of lost attempts where they are: the job starts from elsewhere."""
    session.execute(
        update(AttemptRow)
        .where(AttemptRow.job_id == job_id, AttemptRow.outcome == LOST)
        .values(outcome=ABANDONED)
        .execution_options(synchronize_session=False)
    )


def unread(session: Session, job_ids: Sequence[str]) -> set[tuple[str, int]]:
    """Return (job, attempt) of the attempts whose files may hold what is not stored yet."""
    query = select(AttemptRow.job_id, AttemptRow.attempt).where(
        AttemptRow.job_id.in_(job_ids),
        or_(AttemptRow.outcome == LOST, AttemptRow.ended_at.is_(None)),
    )
    return {(job_id, attempt) for job_id, attempt in session.execute(query)}


def _update(session: Session, key: AttemptKey, **values: object) -> None:
    session.execute(
        update(AttemptRow)
        .where(AttemptRow.job_id == key.job_id, AttemptRow.attempt == key.attempt)
        .values(**values)
        .execution_options(synchronize_session=False)
    )
