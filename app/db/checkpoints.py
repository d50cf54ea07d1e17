"""Queries on checkpoints: only a row makes a checkpoint exist."""

from collections.abc import Sequence
from typing import Any, cast

from sqlalchemy import ColumnElement, delete, select, update
from sqlalchemy.orm import Session

from app.db.tables import CheckpointRow, ExportRow, JobRow
from app.domain import ids
from app.domain.checkpoints import Checkpoint
from app.domain.events import CheckpointEvent
from app.domain.exports import ACTIVE
from app.domain.jobs import OWNED_STATES


def insert(
    session: Session, job_id: str, *, attempt: int, fence: int, event: CheckpointEvent
) -> str:
    checkpoint_id = ids.new("ckpt")
    session.add(
        CheckpointRow(
            id=checkpoint_id,
            job_id=job_id,
            attempt=attempt,
            fence=fence,
            step=event.step,
            loss=event.loss,
            eval_loss=event.eval_loss,
            bytes=event.bytes,
            manifest_sha256=event.manifest_sha256,
        )
    )
    session.flush()
    return checkpoint_id


def of_job(session: Session, job_id: str, *, superseded: bool) -> Sequence[Checkpoint]:
    """Return the checkpoints of a job in the order of their steps."""
    query = select(CheckpointRow).where(
        CheckpointRow.job_id == job_id, CheckpointRow.status != "deleting"
    )
    if not superseded:
        query = query.where(CheckpointRow.superseded.is_(False))
    query = query.order_by(CheckpointRow.step, CheckpointRow.attempt)
    return [to_checkpoint(row) for row in session.scalars(query)]


def get(session: Session, job_id: str, checkpoint_id: str) -> Checkpoint | None:
    return _one(session, job_id, CheckpointRow.id == checkpoint_id)


def at_step(session: Session, job_id: str, step: int) -> Checkpoint | None:
    """Return the checkpoint of a step on the current branch."""
    return _one(session, job_id, CheckpointRow.step == step, CheckpointRow.superseded.is_(False))


def latest(session: Session, job_id: str, *, up_to_step: int | None = None) -> Checkpoint | None:
    """Return the furthest checkpoint on the current branch that is not known to be corrupt."""
    conditions = [CheckpointRow.status == "committed", CheckpointRow.superseded.is_(False)]
    if up_to_step is not None:
        conditions.append(CheckpointRow.step <= up_to_step)
    return _one(session, job_id, *conditions)


def best(session: Session, job_id: str) -> Checkpoint | None:
    """Return the checkpoint of the lowest evaluation loss on the current branch, if there is one.

    Of equal ones it is the first, as in the trainer: a best evaluation is below all before it.
    """
    row = session.scalar(
        select(CheckpointRow)
        .where(
            CheckpointRow.job_id == job_id,
            CheckpointRow.status == "committed",
            CheckpointRow.superseded.is_(False),
            CheckpointRow.eval_loss.is_not(None),
        )
        .order_by(CheckpointRow.eval_loss, CheckpointRow.step)
        .limit(1)
    )
    return None if row is None else to_checkpoint(row)


def supersede(session: Session, job_id: str, *, after_step: int, before_fence: int) -> int:
    """Mark the checkpoints of older attempts past a step as left behind; returns how many."""
    return _update(
        session,
        CheckpointRow.job_id == job_id,
        CheckpointRow.step > after_step,
        CheckpointRow.fence < before_fence,
        CheckpointRow.superseded.is_(False),
        values={"superseded": True},
    )


def mark_corrupt(session: Session, checkpoint_id: str, reason: str) -> bool:
    return _changes(
        session,
        CheckpointRow.id == checkpoint_id,
        CheckpointRow.status == "committed",
        values={"status": "corrupt", "corrupt_reason": reason},
    )


def pin(session: Session, checkpoint_id: str, *, pinned: bool) -> bool:
    return _changes(session, CheckpointRow.id == checkpoint_id, values={"pinned": pinned})


def mark_deleting(session: Session, checkpoint_id: str) -> bool:
    """Take a checkpoint out of use; false when it is pinned, being exported or already going."""
    exported = select(ExportRow.id).where(
        ExportRow.checkpoint_id == checkpoint_id, ExportRow.state.in_(ACTIVE)
    )
    return _changes(
        session,
        CheckpointRow.id == checkpoint_id,
        CheckpointRow.status != "deleting",
        CheckpointRow.pinned.is_(False),
        ~exported.exists(),
        values={"status": "deleting"},
    )


def remove(session: Session, checkpoint_id: str) -> None:
    session.execute(delete(CheckpointRow).where(CheckpointRow.id == checkpoint_id))


def beyond_limit(session: Session, job_id: str, limit: int) -> Sequence[Checkpoint]:
    """Return what retention may delete: all but `limit` checkpoints, pinned ones not counted.

    Kept are the best, the newest, and then the next newest. One that the job is to continue from
    is kept in any case.
    """
    query = (
        select(CheckpointRow)
        .where(
            CheckpointRow.job_id == job_id,
            CheckpointRow.status == "committed",
            CheckpointRow.superseded.is_(False),
            CheckpointRow.pinned.is_(False),
        )
        .order_by(CheckpointRow.step.desc())
    )
    wanted_id = session.scalar(select(JobRow.resume_checkpoint_id).where(JobRow.id == job_id))
    found = [to_checkpoint(row) for row in session.scalars(query)]
    the_best = best(session, job_id)
    best_id = None if the_best is None else the_best.id
    num_kept = limit - 1 if any(each.id == best_id for each in found[limit:]) else limit
    return [each for each in found[num_kept:] if each.id not in (best_id, wanted_id)]


def folders(session: Session, job_ids: Sequence[str]) -> set[tuple[str, int, int]]:
    """Return (job, attempt, step) of every checkpoint that has a row."""
    query = select(CheckpointRow.job_id, CheckpointRow.attempt, CheckpointRow.step).where(
        CheckpointRow.job_id.in_(job_ids)
    )
    return {(job_id, attempt, step) for job_id, attempt, step in session.execute(query)}


def half_deleted(session: Session) -> Sequence[Checkpoint]:
    """Return the checkpoints marked `deleting` of jobs that no worker owns."""
    query = (
        select(CheckpointRow)
        .join(JobRow, JobRow.id == CheckpointRow.job_id)
        .where(
            CheckpointRow.status == "deleting",
            JobRow.state.not_in([state.value for state in OWNED_STATES]),
        )
    )
    return [to_checkpoint(row) for row in session.scalars(query)]


def deleting(session: Session, job_id: str) -> Sequence[Checkpoint]:
    """Return the checkpoints of a job that are marked `deleting`."""
    query = select(CheckpointRow).where(
        CheckpointRow.job_id == job_id, CheckpointRow.status == "deleting"
    )
    return [to_checkpoint(row) for row in session.scalars(query)]


def to_checkpoint(row: CheckpointRow) -> Checkpoint:
    return Checkpoint(
        id=row.id,
        job_id=row.job_id,
        attempt=row.attempt,
        step=row.step,
        status=cast(Any, row.status),
        corrupt_reason=row.corrupt_reason,
        superseded=row.superseded,
        pinned=row.pinned,
        loss=row.loss,
        eval_loss=row.eval_loss,
        bytes=row.bytes,
        manifest_sha256=row.manifest_sha256,
        created_at=row.created_at,
    )


def _one(session: Session, job_id: str, *conditions: ColumnElement[bool]) -> Checkpoint | None:
    row = session.scalar(
        select(CheckpointRow)
        .where(CheckpointRow.job_id == job_id, CheckpointRow.status != "deleting", *conditions)
        .order_by(CheckpointRow.step.desc(), CheckpointRow.fence.desc())
        .limit(1)
    )
    return None if row is None else to_checkpoint(row)


def _changes(session: Session, *conditions: ColumnElement[bool], values: dict[str, Any]) -> bool:
    return _update(session, *conditions, values=values) == 1


def _update(session: Session, *conditions: ColumnElement[bool], values: dict[str, Any]) -> int:
    statement = update(CheckpointRow).where(*conditions).values(**values)
    result = session.execute(statement.execution_options(synchronize_session=False))
    return int(result.rowcount)  # type: ignore[attr-defined]
