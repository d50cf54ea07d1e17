"""Queries of OpenAI's lists: files of two kinds, jobs by metadata, events of two sources."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import ColumnElement, and_, exists, func, or_, select, tuple_, type_coerce
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import InstrumentedAttribute, Session

from app.db.datasets import is_there, to_dataset
from app.db.jobs import to_event
from app.db.tables import (
    AttemptRow,
    CheckpointRow,
    DatasetRow,
    JobEventRow,
    JobRow,
    TrainerEventRow,
)
from app.db.types import db_now
from app.domain.datasets import Dataset
from app.domain.events import TRAINER_EVENT, TrainerEvent
from app.domain.jobs import JobEvent, JobState

Order = Literal["asc", "desc"]
_SHOWN_KINDS = ("step", "evaluation")


@dataclass(frozen=True)
class FileKey:
    """Where a file is in the list: by its time, and at the same time by its id."""

    at: datetime
    id: str
    is_results: bool


@dataclass(frozen=True)
class StoredLine:
    """A trainer event with the numbers that name it."""

    fence: int
    seq: int
    event: TrainerEvent


def datasets_beside(
    session: Session, project_id: str, key: FileKey | None, *, order: Order, limit: int
) -> Sequence[FileKey]:
    """Return the data sets that come after a place in the list of files."""
    at, own = DatasetRow.created_at, DatasetRow.id
    query = select(at, own).where(DatasetRow.project_id == project_id, is_there())
    if key is not None:
        query = query.where(_beyond(at, own, key, order, same_kind=not key.is_results))
    query = query.order_by(*_sorted(at, own, order)).limit(limit)
    return [
        FileKey(when, dataset_id, is_results=False) for when, dataset_id in session.execute(query)
    ]


def results_beside(
    session: Session, project_id: str, key: FileKey | None, *, order: Order, limit: int
) -> Sequence[FileKey]:
    """Return the jobs whose result files come after a place in the list of files."""
    at, own = JobRow.finished_at, JobRow.id
    query = select(at, own).where(
        JobRow.project_id == project_id,
        JobRow.state == JobState.SUCCEEDED.value,
        at.is_not(None),
    )
    if key is not None:
        query = query.where(_beyond(at, own, key, order, same_kind=key.is_results))
    query = query.order_by(*_sorted(at, own, order)).limit(limit)
    return [
        FileKey(when, job_id, is_results=True) for when, job_id in session.execute(query) if when
    ]


def files(session: Session, keys: Sequence[FileKey]) -> list[Dataset | JobRow]:
    """Return what is at some places of the list of files, in their order: one query a kind."""
    dataset_ids = [key.id for key in keys if not key.is_results]
    job_ids = [key.id for key in keys if key.is_results]
    found: dict[str, Dataset | JobRow] = {}
    if dataset_ids:
        rows = session.scalars(select(DatasetRow).where(DatasetRow.id.in_(dataset_ids)))
        found |= {row.id: to_dataset(row) for row in rows}
    if job_ids:
        of_jobs = session.scalars(select(JobRow).where(JobRow.id.in_(job_ids)))
        found |= {row.id: row for row in of_jobs}
    return [found[key.id] for key in keys if key.id in found]


def jobs(
    session: Session,
    project_id: str,
    *,
    after: str | None,
    limit: int,
    metadata: Mapping[str, str] | None,
) -> Sequence[JobRow]:
    """Return up to `limit` jobs, newest first, older than the job `after`.

    Args:
        metadata: Pairs that a job has to have; None finds the jobs without any metadata.
    """
    query = select(JobRow).where(JobRow.project_id == project_id)
    if after is not None:
        query = query.where(JobRow.id < after)
    dialect = session.get_bind().dialect.name
    query = query.where(*_having(metadata, dialect))
    return session.scalars(query.order_by(JobRow.id.desc()).limit(limit)).all()


def newest_asked(
    session: Session, project_id: str, *, digest: str, within_seconds: float
) -> str | None:
    """Return the newest job that was asked for in the same words just now."""
    query = select(JobRow.id).where(
        JobRow.project_id == project_id,
        JobRow.created_at > db_now(-within_seconds),
        JobRow.asked["body_sha256"].as_string() == digest,
    )
    return session.scalar(query.order_by(JobRow.id.desc()).limit(1))


def tuned_jobs(session: Session, project_id: str) -> Sequence[JobRow]:
    """Return the jobs that have a final adapter or a checkpoint that can be loaded."""
    has_checkpoint = exists().where(
        CheckpointRow.job_id == JobRow.id,
        CheckpointRow.status == "committed",
        CheckpointRow.superseded.is_(False),
    )
    query = select(JobRow).where(
        JobRow.project_id == project_id, or_(JobRow.final_attempt.is_not(None), has_checkpoint)
    )
    return session.scalars(query.order_by(JobRow.id.desc())).all()


def with_receipt(session: Session, job_ids: Sequence[str]) -> set[str]:
    """Return those of some jobs whose data was looked at line by line."""
    query = select(TrainerEventRow.job_id).where(
        TrainerEventRow.job_id.in_(job_ids), TrainerEventRow.kind == "receipt"
    )
    return set(session.scalars(query.distinct()))


def history(
    session: Session, job_id: str, *, before: tuple[datetime, int] | None, limit: int
) -> Sequence[JobEvent]:
    """Return what happened to a job, newest first, before a time and a number."""
    query = select(JobEventRow).where(JobEventRow.job_id == job_id)
    if before is not None:
        query = query.where(tuple_(JobEventRow.at, JobEventRow.id) < before)
    query = query.order_by(JobEventRow.at.desc(), JobEventRow.id.desc()).limit(limit)
    return [to_event(row) for row in session.scalars(query)]


def history_entry(session: Session, job_id: str, number: int) -> JobEvent | None:
    query = select(JobEventRow).where(JobEventRow.job_id == job_id, JobEventRow.id == number)
    row = session.scalar(query)
    return None if row is None else to_event(row)


def fences(session: Session, job_id: str) -> Sequence[tuple[int, int]]:
    """Return (fence, number of its last stored line) of a job's attempts, newest first."""
    query = select(AttemptRow.fence, AttemptRow.high_water_seq).where(AttemptRow.job_id == job_id)
    return [
        (fence, last) for fence, last in session.execute(query.order_by(AttemptRow.fence.desc()))
    ]


def line(session: Session, job_id: str, fence: int, seq: int) -> StoredLine | None:
    """Return one line of an attempt's events."""
    row = session.get(TrainerEventRow, (job_id, fence, seq))
    return None if row is None else StoredLine(fence, seq, TRAINER_EVENT.validate_json(row.body))


def measured(
    session: Session, job_id: str, *, up_to: tuple[int, int] | None, limit: int
) -> Sequence[StoredLine]:
    """Return what trainers measured, newest first, up to and with the line (fence, number)."""
    query = select(TrainerEventRow).where(
        TrainerEventRow.job_id == job_id, TrainerEventRow.kind.in_(_SHOWN_KINDS)
    )
    if up_to is not None:
        query = query.where(tuple_(TrainerEventRow.fence, TrainerEventRow.seq) <= up_to)
    query = query.order_by(TrainerEventRow.fence.desc(), TrainerEventRow.seq.desc()).limit(limit)
    return [
        StoredLine(row.fence, row.seq, TRAINER_EVENT.validate_json(row.body))
        for row in session.scalars(query)
    ]


def now(session: Session) -> datetime:
    found = session.scalar(select(db_now()))
    assert found is not None
    return found


def _beyond(
    at: InstrumentedAttribute[Any],
    own: InstrumentedAttribute[str],
    key: FileKey,
    order: Order,
    *,
    same_kind: bool,
) -> ColumnElement[bool]:
    """Return what comes after a place; newest first, results are before data sets of one time."""
    if order == "desc":
        later, further = at < key.at, own < key.id
        is_past = not key.is_results
    else:
        later, further = at > key.at, own > key.id
        is_past = key.is_results
    at_once = at == key.at
    if same_kind:
        return or_(later, and_(at_once, further))
    return later if is_past else or_(later, at_once)


def _sorted(
    at: InstrumentedAttribute[Any], own: InstrumentedAttribute[str], order: Order
) -> tuple[ColumnElement[Any], ...]:
    return tuple(each.desc() if order == "desc" else each.asc() for each in (at, own))


def _having(metadata: Mapping[str, str] | None, dialect: str) -> list[ColumnElement[bool]]:
    if metadata is None:
        return [JobRow.spec["metadata"].as_string() == "{}"]
    if dialect == "postgresql":
        wanted = {"metadata": dict(metadata)}
        return [type_coerce(JobRow.spec, JSONB).contains(wanted)] if metadata else []
    return [_has_pair(key, value) for key, value in metadata.items()]


def _has_pair(key: str, value: str) -> ColumnElement[bool]:
    # Not by a path of JSON, in which a key with a quotation mark cannot be written.
    pairs = func.json_each(JobRow.spec, "$.metadata").table_valued("key", "value")
    return exists(select(pairs.c.key).where(pairs.c.key == key, pairs.c.value == value))
