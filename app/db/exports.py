"""Queries on exports: the row is the truth, and every write of a worker carries its fence."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import ColumnElement, delete, select, update
from sqlalchemy.orm import Session

from app.db.tables import ExportRow, JobRow
from app.db.types import db_now
from app.domain.exports import ACTIVE, Export, ExportFile, ExportState, Parity
from app.domain.jobs import JobError

_FINAL = "final"


@dataclass(frozen=True)
class Claimed:
    """One try of an export that a worker has to itself."""

    id: str
    job_id: str
    fence: int


def insert(session: Session, export_id: str, job_id: str, values: dict[str, Any]) -> None:
    session.add(ExportRow(id=export_id, job_id=job_id, state=ExportState.QUEUED, **values))
    session.flush()


def get(session: Session, job_id: str, export_id: str) -> ExportRow | None:
    return session.scalar(
        select(ExportRow).where(ExportRow.id == export_id, ExportRow.job_id == job_id)
    )


def of_job(
    session: Session, job_id: str, *, after: str | None = None, limit: int
) -> Sequence[ExportRow]:
    """Return exports of a job, newest first."""
    query = select(ExportRow).where(ExportRow.job_id == job_id)
    if after is not None:
        query = query.where(ExportRow.id < after)
    return session.scalars(query.order_by(ExportRow.id.desc()).limit(limit)).all()


def claim(
    session: Session, worker_id: str, *, models: Sequence[str], lease_seconds: float
) -> Claimed | None:
    """Give the oldest export whose base model the worker has to it; None when there is none."""
    query = (
        select(ExportRow)
        .join(JobRow, JobRow.id == ExportRow.job_id)
        .where(ExportRow.state == ExportState.QUEUED, JobRow.base_model.in_(models))
        .order_by(ExportRow.id)
        .limit(1)
        .with_for_update(of=ExportRow, skip_locked=True)
    )
    row = session.scalar(query)
    if row is None:
        return None
    key = Claimed(row.id, row.job_id, row.fence + 1)
    moved = _update(
        session,
        ExportRow.id == row.id,
        ExportRow.state == ExportState.QUEUED,
        ExportRow.fence == row.fence,
        values={
            "state": ExportState.RUNNING,
            "fence": key.fence,
            "tries": row.tries + 1,
            "owner": worker_id,
            "lease_expires_at": db_now(lease_seconds),
            "started_at": row.started_at or db_now(),
            "progress": 0.0,
            "phase": "starting",
        },
    )
    return key if moved else None


def renew(
    session: Session, key: Claimed, *, lease_seconds: float, progress: float, phase: str
) -> ExportRow | None:
    """Prolong a lease and note how far the work is; None when the export is another's, or gone."""
    is_ours = _update(
        session,
        *_owned(key),
        values={
            "lease_expires_at": db_now(lease_seconds),
            "progress": progress,
            "phase": phase,
        },
    )
    return get(session, key.job_id, key.id) if is_ours else None


def settle(
    session: Session, key: Claimed, state: ExportState, values: dict[str, Any] | None = None
) -> bool:
    """End a try; false when the export is another's, was cancelled meanwhile, or is gone.

    An export that is to be cancelled ends in no other way.
    """
    conditions = list(_owned(key))
    if state is not ExportState.CANCELLED:
        conditions.append(ExportRow.cancel_requested.is_(False))
    return _end(session, conditions, state, values)


def cancel_queued(session: Session, export_id: str) -> bool:
    conditions = [ExportRow.id == export_id, ExportRow.state == ExportState.QUEUED]
    return _end(session, conditions, ExportState.CANCELLED, None)


def ask_to_cancel(session: Session, export_id: str) -> bool:
    return _update(
        session,
        ExportRow.id == export_id,
        ExportRow.state == ExportState.RUNNING,
        values={"cancel_requested": True},
    )


def remove(session: Session, export_id: str) -> None:
    """Remove the row; a worker that is at it finds out when it renews its lease."""
    session.execute(delete(ExportRow).where(ExportRow.id == export_id))


def running(session: Session) -> Sequence[ExportRow]:
    return session.scalars(select(ExportRow).where(ExportRow.state == ExportState.RUNNING)).all()


def expired(session: Session, *, grace_seconds: float) -> Sequence[ExportRow]:
    query = select(ExportRow).where(
        ExportRow.state == ExportState.RUNNING,
        ExportRow.lease_expires_at < db_now(-grace_seconds),
    )
    return session.scalars(query).all()


def mark_forgotten_as_rung(session: Session, *, after_seconds: float) -> bool:
    """Note that it is rung for exports that nobody took for some time; false when there is none."""
    return _update(
        session,
        ExportRow.state == ExportState.QUEUED,
        ExportRow.rung_at < db_now(-after_seconds),
        values={"rung_at": db_now()},
    )


def known(session: Session, export_ids: Sequence[str]) -> dict[str, tuple[str, int]]:
    """Return state and fence of those exports that have a row."""
    query = select(ExportRow.id, ExportRow.state, ExportRow.fence).where(
        ExportRow.id.in_(export_ids)
    )
    return {export_id: (state, fence) for export_id, state, fence in session.execute(query)}


def uses(session: Session, checkpoint_id: str) -> bool:
    """Tell whether an export that has not ended needs a checkpoint."""
    query = select(ExportRow.id).where(
        ExportRow.checkpoint_id == checkpoint_id, ExportRow.state.in_(ACTIVE)
    )
    return session.scalar(query.limit(1)) is not None


def to_export(row: ExportRow, *, waiting_for: str | None = None) -> Export:
    return Export(
        id=row.id,
        job_id=row.job_id,
        format=cast(Any, row.format),
        checkpoint=row.checkpoint_id or _FINAL,
        step=row.step,
        dtype=row.dtype,
        base=cast(Any, row.base),
        state=ExportState(row.state),
        waiting_for=waiting_for,
        cancel_requested=row.cancel_requested and row.state == ExportState.RUNNING,
        progress=row.progress,
        phase=row.phase,
        tries=row.tries,
        error=None if row.error is None else JobError.model_validate(row.error),
        parity=None if row.parity is None else Parity.model_validate(row.parity),
        files=[ExportFile.model_validate(each) for each in row.files],
        bytes=row.bytes,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
    )


def _owned(key: Claimed) -> tuple[ColumnElement[bool], ...]:
    return (
        ExportRow.id == key.id,
        ExportRow.fence == key.fence,
        ExportRow.state == ExportState.RUNNING,
    )


def _end(
    session: Session,
    conditions: Sequence[ColumnElement[bool]],
    state: ExportState,
    values: dict[str, Any] | None,
) -> bool:
    ended = {} if state is ExportState.QUEUED else {"finished_at": db_now()}
    return _update(
        session,
        *conditions,
        values={
            "state": state,
            "owner": None,
            "lease_expires_at": None,
            "phase": None,
            **ended,
            **(values or {}),
        },
    )


def _update(session: Session, *conditions: ColumnElement[bool], values: dict[str, Any]) -> bool:
    statement = update(ExportRow).where(*conditions).values(**values)
    result = session.execute(statement.execution_options(synchronize_session=False))
    # Rows that were read before hold what they were then.
    session.expire_all()
    return int(result.rowcount) > 0  # type: ignore[attr-defined]
