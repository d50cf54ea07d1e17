"""Queries on jobs; `transition` is the only code that changes a state."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, delete, func, or_, select, update
from sqlalchemy.orm import Session, aliased

from app.db import attempts
from app.db.tables import JobEventRow, JobRow
from app.db.types import db_now
from app.domain import ids
from app.domain.jobs import (
    DISK_FULL,
    OWNED_STATES,
    TERMINAL_STATES,
    Actor,
    Desired,
    Job,
    JobError,
    JobEvent,
    JobState,
    check_transition,
)
from app.domain.spec import JobSpec
from app.domain.workers import Capability

_OWNED = [state.value for state in OWNED_STATES]


def insert(session: Session, project_id: str, spec: JobSpec) -> str:
    """Store a queued job with its first event and return its id."""
    job_id = ids.new("job")
    row = JobRow(
        id=job_id,
        project_id=project_id,
        dataset_id=spec.dataset.id,
        eval_dataset_id=spec.dataset.eval_id,
        state=JobState.QUEUED,
        spec=spec.model_dump(mode="json"),
        priority=spec.priority,
        base_model=spec.base_model,
        device=spec.resources.device,
    )
    session.add(row)
    session.flush()
    add_event(session, job_id, "state", "submitted", attempt=0, target=JobState.QUEUED)
    return job_id


def get(
    session: Session,
    job_id: str,
    *,
    project_id: str | None = None,
    lock: bool = False,
    skip_locked: bool = False,
) -> JobRow | None:
    """Return a job; with `lock` no other transaction changes it until this one ends.

    With `skip_locked` a job that another transaction holds is as good as none.
    """
    query = select(JobRow).where(JobRow.id == job_id)
    if lock:
        query = query.with_for_update(skip_locked=skip_locked)
    if project_id is not None:
        query = query.where(JobRow.project_id == project_id)
    return session.scalar(query)


def page(
    session: Session, project_id: str, *, state: JobState | None, after: str | None, limit: int
) -> Sequence[JobRow]:
    """Return up to `limit` jobs, newest first, older than the job `after`."""
    query = select(JobRow).where(JobRow.project_id == project_id)
    if state is not None:
        query = query.where(JobRow.state == state.value)
    if after is not None:
        query = query.where(JobRow.id < after)
    return session.scalars(query.order_by(JobRow.id.desc()).limit(limit)).all()


def transition(
    session: Session,
    job_id: str,
    source: JobState,
    target: JobState,
    actor: Actor,
    *,
    message: str,
    reason: str | None = None,
    guards: Sequence[ColumnElement[bool]] = (),
    values: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
) -> bool:
    """Move a job along the state table and record it, in one statement guarded by the state itself.

    Args:
        guards: More conditions of the move, such as the fence.
        values: More columns to set with it.
        data: Values that belong to the event.

    Returns:
        False when the job was not in `source` any more or a guard did not hold; nothing changed.

    Raises:
        StateConflict: The state table has no such move.
    """
    check_transition(source, target, actor)
    changes: dict[str, Any] = {
        "state": target.value,
        "state_reason": reason,
        "needed_bytes": None,
        "updated_at": db_now(),
    }
    if target in TERMINAL_STATES:
        changes["finished_at"] = db_now()
    if target not in OWNED_STATES:
        changes |= {"owner": None, "lease_expires_at": None}
    statement = (
        update(JobRow)
        .where(JobRow.id == job_id, JobRow.state == source.value, *guards)
        .values(**{**changes, **(values or {})})
        .returning(JobRow.attempt)
        .execution_options(synchronize_session=False)
    )
    attempt = session.execute(statement).scalar_one_or_none()
    if attempt is None:
        return False
    add_event(
        session, job_id, "state", message, attempt=attempt, source=source, target=target, data=data
    )
    return True


def owned_by(fence: int) -> tuple[ColumnElement[bool], ...]:
    """Guards of every write by an attempt: its fence is the newest, and the job is still owned."""
    return (JobRow.fence == fence, JobRow.state.in_(_OWNED))


def next_claimable(session: Session, capability: Capability) -> str | None:
    """Return the best queued job that a worker with `capability` can run now."""
    return session.scalar(
        select(JobRow.id)
        .where(
            JobRow.state == JobState.QUEUED.value,
            JobRow.desired == Desired.RUN.value,
            JobRow.not_before <= db_now(),
            JobRow.base_model.in_(capability.models),
            JobRow.device.in_(["auto", *capability.device_kinds]),
        )
        .order_by(JobRow.priority.desc(), JobRow.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )


def claim(
    session: Session, job_id: str, *, worker_id: str, slots: int, lease_seconds: float
) -> JobRow | None:
    """Take a queued job for a worker: mints the fence, starts the lease, opens the attempt.

    Returns:
        None when another worker was faster or every slot of this one is taken.
    """
    mine = aliased(JobRow)
    busy = (
        select(func.count())
        .select_from(mine)
        .where(mine.owner == worker_id, mine.state.in_(_OWNED))
        .scalar_subquery()
    )
    claimed = transition(
        session,
        job_id,
        JobState.QUEUED,
        JobState.STARTING,
        Actor.WORKER,
        message=f"claimed by {worker_id}",
        guards=(JobRow.desired == Desired.RUN.value, JobRow.not_before <= db_now(), busy < slots),
        values={
            "fence": JobRow.fence + 1,
            "attempt": JobRow.attempt + 1,
            "owner": worker_id,
            "lease_expires_at": db_now(lease_seconds),
            "started_at": func.coalesce(JobRow.started_at, db_now()),
            "error": None,
        },
    )
    if not claimed:
        return None
    row = session.get_one(JobRow, job_id, populate_existing=True)
    attempts.insert(session, row, worker_id=worker_id)
    return row


def renew(session: Session, job_id: str, *, fence: int, lease_seconds: float) -> Desired | None:
    """Extend the lease and return what is asked of the job; None when the attempt is fenced."""
    statement = (
        update(JobRow)
        .where(JobRow.id == job_id, *owned_by(fence))
        .values(lease_expires_at=db_now(lease_seconds))
        .returning(JobRow.desired)
        .execution_options(synchronize_session=False)
    )
    desired = session.execute(statement).scalar_one_or_none()
    return None if desired is None else Desired(desired)


def update_owned(session: Session, job_id: str, *, fence: int, values: Mapping[str, Any]) -> bool:
    """Set columns for an attempt; False when it is fenced, and then nothing else may be written."""
    return update_guarded(session, job_id, guards=owned_by(fence), values=values)


def update_guarded(
    session: Session,
    job_id: str,
    *,
    guards: Sequence[ColumnElement[bool]],
    values: Mapping[str, Any],
) -> bool:
    """Set columns if the guards hold, and lock the row; False when they do not."""
    statement = (
        update(JobRow)
        .where(JobRow.id == job_id, *guards)
        .values(**(values or {"fence": JobRow.fence}))
        .execution_options(synchronize_session=False)
    )
    return _changed(session, statement) == 1


def ask(session: Session, job_id: str, desired: Desired, *, states: Sequence[JobState]) -> bool:
    """Record what the user wants of an owned job; False when it is in none of `states` any more."""
    statement = (
        update(JobRow)
        .where(JobRow.id == job_id, JobRow.state.in_([state.value for state in states]))
        .values(desired=desired.value)
        .execution_options(synchronize_session=False)
    )
    return _changed(session, statement) == 1


def set_progress(session: Session, job_id: str, values: Mapping[str, Any]) -> None:
    """Say how far a job is on its current branch."""
    session.execute(
        update(JobRow)
        .where(JobRow.id == job_id)
        .values(**values)
        .execution_options(synchronize_session=False)
    )


def attempt_of(session: Session, job_id: str) -> int:
    return session.scalar(select(JobRow.attempt).where(JobRow.id == job_id)) or 0


def expired(session: Session, *, grace_seconds: float) -> Sequence[JobRow]:
    """Return owned jobs whose lease ended more than `grace_seconds` ago."""
    query = select(JobRow).where(
        JobRow.state.in_(_OWNED), JobRow.lease_expires_at < db_now(-grace_seconds)
    )
    return session.scalars(query).all()


def waiting_for_space(session: Session) -> Sequence[JobRow]:
    """Return jobs that were paused by a full disk and not by their users."""
    query = select(JobRow).where(
        JobRow.state == JobState.PAUSED.value, JobRow.state_reason == DISK_FULL
    )
    return session.scalars(query.order_by(JobRow.priority.desc(), JobRow.id)).all()


def states(session: Session, job_ids: Sequence[str]) -> dict[str, JobState]:
    """Return the state of those of `job_ids` that have a row."""
    query = select(JobRow.id, JobRow.state).where(JobRow.id.in_(job_ids))
    return {job_id: JobState(state) for job_id, state in session.execute(query)}


def owned(session: Session) -> Sequence[JobRow]:
    return session.scalars(select(JobRow).where(JobRow.state.in_(_OWNED))).all()


def mark_forgotten_as_rung(session: Session, *, after_seconds: float) -> int:
    """Count queued jobs that should have been claimed by now, and start their wait anew."""
    statement = (
        update(JobRow)
        .where(
            JobRow.state == JobState.QUEUED.value,
            JobRow.not_before <= db_now(),
            JobRow.rung_at < db_now(-after_seconds),
        )
        .values(rung_at=db_now())
        .execution_options(synchronize_session=False)
    )
    return _changed(session, statement)


def uses_dataset(session: Session, dataset_id: str) -> Sequence[str]:
    """Return the ids of jobs that were submitted with a data set, to train or to evaluate on."""
    query = (
        select(JobRow.id)
        .where(or_(JobRow.dataset_id == dataset_id, JobRow.eval_dataset_id == dataset_id))
        .order_by(JobRow.id)
    )
    return session.scalars(query).all()


def remove(session: Session, job_id: str) -> bool:
    """Delete a terminal job and all its rows; False when it is not terminal any more."""
    statement = delete(JobRow).where(
        JobRow.id == job_id, JobRow.state.in_([state.value for state in TERMINAL_STATES])
    )
    return _changed(session, statement) == 1


def add_event(
    session: Session,
    job_id: str,
    kind: str,
    message: str,
    *,
    attempt: int,
    source: JobState | None = None,
    target: JobState | None = None,
    data: Mapping[str, Any] | None = None,
) -> None:
    session.add(
        JobEventRow(
            job_id=job_id,
            type=kind,
            message=message,
            attempt=attempt,
            from_state=source,
            to_state=target,
            data=dict(data or {}),
        )
    )
    session.flush()


def events(session: Session, job_id: str, *, after: int, limit: int) -> Sequence[JobEvent]:
    query = (
        select(JobEventRow)
        .where(JobEventRow.job_id == job_id, JobEventRow.id > after)
        .order_by(JobEventRow.id)
        .limit(limit)
    )
    return [to_event(row) for row in session.scalars(query)]


def to_job(row: JobRow, *, waiting_for: str | None = None) -> Job:
    spec = JobSpec.model_validate(row.spec)
    return Job(
        id=row.id,
        project_id=row.project_id,
        name=spec.name,
        state=JobState(row.state),
        state_reason=row.state_reason,
        desired=Desired(row.desired),
        waiting_for=waiting_for,
        step=row.step,
        total_steps=row.total_steps,
        epoch=row.epoch,
        loss=row.loss,
        eval_loss=row.eval_loss,
        best_eval_loss=row.best_eval_loss,
        best_step=row.best_step,
        replayed_steps=row.replayed_steps,
        replay_mismatches=row.replay_mismatches,
        skipped_steps=row.skipped_steps,
        attempt=row.attempt,
        crash_streak=row.crash_streak,
        worker=row.owner,
        error=None if row.error is None else JobError.model_validate(row.error),
        spec=spec,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        updated_at=row.updated_at,
    )


def to_event(row: JobEventRow) -> JobEvent:
    return JobEvent(
        id=row.id,
        job_id=row.job_id,
        at=row.at,
        type=row.type,
        from_state=None if row.from_state is None else JobState(row.from_state),
        to_state=None if row.to_state is None else JobState(row.to_state),
        attempt=row.attempt,
        message=row.message,
        data=row.data,
    )


def _changed(session: Session, statement: Any) -> int:
    return int(session.execute(statement).rowcount)  # type: ignore[attr-defined]
