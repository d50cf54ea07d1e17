"""Queries on steps that were done before: what earlier attempts measured, and how they started."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.db.jobs import owned_by
from app.db.tables import AttemptRow, JobEventRow, JobRow, TrainerEventRow
from app.domain.events import StepEvent
from app.domain.metrics import StepMetrics


@dataclass(frozen=True)
class DoneStep:
    """What an attempt measured at a step."""

    fence: int
    superseded: bool
    metrics: StepMetrics


@dataclass(frozen=True)
class Start:
    """How an attempt began."""

    attempt: int
    fence: int
    spec: dict[str, Any]
    step: int


def done_steps(
    session: Session, job_id: str, *, first: int, last: int, before_fence: int | None = None
) -> Sequence[DoneStep]:
    """Return the steps from `first` to `last` of all branches, the newest attempts first."""
    query = select(TrainerEventRow).where(
        TrainerEventRow.job_id == job_id,
        TrainerEventRow.kind == "step",
        TrainerEventRow.step.between(first, last),
    )
    if before_fence is not None:
        query = query.where(TrainerEventRow.fence < before_fence)
    query = query.order_by(TrainerEventRow.fence.desc(), TrainerEventRow.step)
    return [
        DoneStep(row.fence, row.superseded, StepEvent.model_validate_json(row.body).metrics)
        for row in session.scalars(query)
    ]


def next_step(session: Session, job_id: str, *, after_step: int, superseded: bool) -> int | None:
    """Return the first recorded step past `after_step`, on the current branch or beside it."""
    query = select(func.min(TrainerEventRow.step)).where(
        TrainerEventRow.job_id == job_id,
        TrainerEventRow.kind == "step",
        TrainerEventRow.step > after_step,
        TrainerEventRow.superseded.is_(superseded),
    )
    return session.scalar(query)


def starts(session: Session, job_id: str) -> Sequence[Start]:
    """Return how every attempt of a job began, oldest first."""
    query = select(AttemptRow).where(AttemptRow.job_id == job_id).order_by(AttemptRow.fence)
    return [
        Start(row.attempt, row.fence, row.spec, row.start_step or 0)
        for row in session.scalars(query)
    ]


def saved_steps(session: Session, job_id: str) -> Sequence[tuple[int, int]]:
    """Return (fence, step) of every checkpoint ever committed, deleted ones too."""
    query = select(TrainerEventRow.fence, TrainerEventRow.step).where(
        TrainerEventRow.job_id == job_id, TrainerEventRow.kind == "checkpoint"
    )
    return [(row.fence, row.step) for row in session.execute(query)]


def has_event(session: Session, job_id: str, *, attempt: int, kind: str) -> bool:
    query = select(JobEventRow.id).where(
        JobEventRow.job_id == job_id, JobEventRow.attempt == attempt, JobEventRow.type == kind
    )
    return session.execute(query.limit(1)).first() is not None


def count(session: Session, job_id: str, *, fence: int, replayed: int, mismatches: int) -> None:
    """Add to what the job's row says of steps done again."""
    session.execute(
        update(JobRow)
        .where(JobRow.id == job_id, *owned_by(fence))
        .values(
            replayed_steps=JobRow.replayed_steps + replayed,
            replay_mismatches=JobRow.replay_mismatches + mismatches,
        )
        .execution_options(synchronize_session=False)
    )
