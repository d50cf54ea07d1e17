"""Queries on what trainers report; step metrics are the events of kind `step`."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app.db import rollups
from app.db.tables import AttemptRow, TrainerEventRow
from app.domain.evaluations import Evaluation
from app.domain.events import TRAINER_EVENT, EvaluationEvent, StepEvent, TrainerEvent
from app.domain.metrics import StepMetrics

# Databases take some ten thousand parameters in a statement; a row has seven.
_ROWS_PER_STATEMENT = 1000
_INSERT = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


@dataclass(frozen=True)
class StoredEvent:
    """A trainer event with the numbers that order it within its job."""

    fence: int
    seq: int
    kind: str
    body: str

    @property
    def cursor(self) -> str:
        return f"{self.fence}-{self.seq}"


def insert_many(
    session: Session, job_id: str, *, fence: int, attempt: int, events: Sequence[TrainerEvent]
) -> None:
    """Store events and move the attempt's high-water mark; those already stored stay."""
    rows = [
        {
            "job_id": job_id,
            "fence": fence,
            "seq": event.seq,
            "kind": event.kind,
            "step": event.step,
            "superseded": False,
            "body": event.model_dump_json(),
        }
        for event in events
    ]
    # One statement, never executemany: psycopg would send that as a pipeline, inside of which
    # PostgreSQL counts a frozen client as busy and keeps its locks for ever.
    insert = _INSERT[session.get_bind().dialect.name]
    for start in range(0, len(rows), _ROWS_PER_STATEMENT):
        values = rows[start : start + _ROWS_PER_STATEMENT]
        session.execute(insert(TrainerEventRow).values(values).on_conflict_do_nothing())
    session.execute(
        update(AttemptRow)
        .where(AttemptRow.job_id == job_id, AttemptRow.attempt == attempt)
        .values(high_water_seq=events[-1].seq)
        .execution_options(synchronize_session=False)
    )


def high_water(session: Session, job_id: str, attempt: int) -> int:
    """Return the number of the last line of an attempt's events.jsonl that is stored."""
    query = select(AttemptRow.high_water_seq).where(
        AttemptRow.job_id == job_id, AttemptRow.attempt == attempt
    )
    return session.scalar(query) or 0


def metrics(
    session: Session, job_id: str, *, after_step: int, limit: int, superseded: bool
) -> Sequence[StepMetrics]:
    """Return the metrics of `limit` steps in their order, left branches only on demand.

    With left branches a step may have several rows; a page never ends between them, because the
    next one starts behind the step.
    """
    conditions = [
        TrainerEventRow.job_id == job_id,
        TrainerEventRow.kind == "step",
        TrainerEventRow.step > after_step,
    ]
    if superseded:
        step = TrainerEventRow.step
        covered = select(step).where(*conditions).distinct().order_by(step).limit(limit)
        conditions.append(step.in_(select(covered.subquery().c.step)))
        query = select(TrainerEventRow).where(*conditions)
    else:
        conditions.append(TrainerEventRow.superseded.is_(False))
        query = select(TrainerEventRow).where(*conditions).limit(limit)
    query = query.order_by(TrainerEventRow.step, TrainerEventRow.fence)
    return [_metrics(row) for row in session.scalars(query)]


def newest(session: Session, job_id: str, kind: str) -> TrainerEvent | None:
    """Return the last event of a kind on the current branch."""
    row = session.scalar(
        select(TrainerEventRow)
        .where(
            TrainerEventRow.job_id == job_id,
            TrainerEventRow.kind == kind,
            TrainerEventRow.superseded.is_(False),
        )
        .order_by(TrainerEventRow.fence.desc(), TrainerEventRow.seq.desc())
        .limit(1)
    )
    return None if row is None else TRAINER_EVENT.validate_json(row.body)


def of_kind(
    session: Session, job_id: str, kind: str, *, after_step: int, limit: int | None
) -> Sequence[TrainerEvent]:
    """Return events of a kind on the current branch in the order of their steps."""
    query = (
        select(TrainerEventRow)
        .where(
            TrainerEventRow.job_id == job_id,
            TrainerEventRow.kind == kind,
            TrainerEventRow.step > after_step,
            TrainerEventRow.superseded.is_(False),
        )
        .order_by(TrainerEventRow.step, TrainerEventRow.fence, TrainerEventRow.seq)
        .limit(limit)
    )
    return [TRAINER_EVENT.validate_json(row.body) for row in session.scalars(query)]


def after(
    session: Session, job_id: str, *, fence: int, seq: int, limit: int
) -> Sequence[StoredEvent]:
    """Return the events of the current branch behind (fence, seq), in the order of their writing.

    A cursor may sit on an event that was superseded since.
    """
    query = (
        select(TrainerEventRow)
        .where(
            TrainerEventRow.job_id == job_id,
            TrainerEventRow.superseded.is_(False),
            tuple_(TrainerEventRow.fence, TrainerEventRow.seq) > (fence, seq),
        )
        .order_by(TrainerEventRow.fence, TrainerEventRow.seq)
        .limit(limit)
    )
    return [StoredEvent(row.fence, row.seq, row.kind, row.body) for row in session.scalars(query)]


def newest_cursor(session: Session, job_id: str) -> tuple[int, int]:
    """Return (fence, seq) of the last event stored, superseded or not; (0, 0) without one."""
    row = session.execute(
        select(TrainerEventRow.fence, TrainerEventRow.seq)
        .where(TrainerEventRow.job_id == job_id)
        .order_by(TrainerEventRow.fence.desc(), TrainerEventRow.seq.desc())
        .limit(1)
    ).first()
    return (0, 0) if row is None else (row[0], row[1])


def supersede(session: Session, job_id: str, *, after_step: int, before_fence: int) -> int:
    """Mark the events of older attempts past a step as left behind; returns how many."""
    rollups.remove(session, job_id, after_step=after_step)
    result = session.execute(
        update(TrainerEventRow)
        .where(
            TrainerEventRow.job_id == job_id,
            TrainerEventRow.step > after_step,
            TrainerEventRow.fence < before_fence,
            TrainerEventRow.superseded.is_(False),
        )
        .values(superseded=True)
        .execution_options(synchronize_session=False)
    )
    return int(result.rowcount)  # type: ignore[attr-defined]


def last_metrics(session: Session, job_id: str) -> StepMetrics | None:
    """Return the metrics of the furthest step on the current branch."""
    row = session.scalar(
        select(TrainerEventRow)
        .where(
            TrainerEventRow.job_id == job_id,
            TrainerEventRow.kind == "step",
            TrainerEventRow.superseded.is_(False),
        )
        .order_by(TrainerEventRow.step.desc())
        .limit(1)
    )
    return None if row is None else _metrics(row)


def evaluations(session: Session, job_id: str) -> Sequence[Evaluation]:
    """Return all evaluations of the current branch in the order of their steps."""
    found = of_kind(session, job_id, "evaluation", after_step=0, limit=None)
    return [event.evaluation for event in found if isinstance(event, EvaluationEvent)]


def _metrics(row: TrainerEventRow) -> StepMetrics:
    return StepEvent.model_validate_json(row.body).metrics
