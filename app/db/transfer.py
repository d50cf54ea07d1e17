"""A job's rows as plain values, out of one database and into another under its rules."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import DateTime, delete, select, update
from sqlalchemy.orm import Session
from sqlalchemy.types import TypeDecorator

from app.db.tables import (
    AttemptRow,
    Base,
    CheckpointRow,
    DatasetRow,
    JobEventRow,
    JobRow,
    TrainerEventRow,
    WorkerRow,
)
from app.db.types import db_now

Values = dict[str, Any]

# Moves from the last attempt, which has begun, to the state that the job had.
_WAYS = {
    "paused": ("paused",),
    "cancelled": ("cancelled",),
    "failed": ("failed",),
    "succeeded": ("running", "finalizing", "succeeded"),
}
MOVABLE_STATES = tuple(_WAYS)


def dump(session: Session, job_id: str) -> dict[str, list[Values]]:
    """Return every row that belongs to a job, by table, with JSON's types."""
    job = session.get_one(JobRow, job_id)
    data_ids = [job.dataset_id, *([job.eval_dataset_id] if job.eval_dataset_id else [])]
    return {
        "datasets": _dumped(session, DatasetRow, DatasetRow.id.in_(data_ids), DatasetRow.id),
        "jobs": _dumped(session, JobRow, JobRow.id == job_id, JobRow.id),
        "attempts": _dumped(session, AttemptRow, AttemptRow.job_id == job_id, AttemptRow.attempt),
        "trainer_events": _dumped(
            session,
            TrainerEventRow,
            TrainerEventRow.job_id == job_id,
            TrainerEventRow.fence,
            TrainerEventRow.seq,
        ),
        "checkpoints": _dumped(
            session, CheckpointRow, CheckpointRow.job_id == job_id, CheckpointRow.id
        ),
        "job_events": _dumped(session, JobEventRow, JobEventRow.job_id == job_id, JobEventRow.id),
    }


def load(session: Session, project_id: str, rows: Mapping[str, Sequence[Values]]) -> None:
    """Store the rows of a job, in one transaction of the caller's.

    The database takes rows of an attempt only while that attempt owns its job. So the job goes
    through its attempts again, one claim each, and ends in the state that it had.
    """
    for values in rows["datasets"]:
        if session.get(DatasetRow, values["id"]) is None:
            session.add(DatasetRow(**_loaded(DatasetRow, {**values, "project_id": project_id})))
    (job,) = rows["jobs"]
    final = _loaded(JobRow, {**job, "project_id": project_id})
    begun = {"state": "queued", "fence": 0, "attempt": 0, "owner": None, "lease_expires_at": None}
    session.add(JobRow(**{**final, **begun}))
    session.flush()
    carrier = _carrier(session, str(job["id"]))
    for fence in range(1, job["fence"] + 1):
        if fence > 1:
            _set(session, job["id"], state="queued", owner=None, lease_expires_at=None)
        _set(
            session,
            job["id"],
            state="starting",
            fence=fence,
            attempt=fence,
            owner=carrier,
            lease_expires_at=db_now(60),
        )
        _load_attempt(session, rows, fence)
    for state in _WAYS[job["state"]]:
        gone = (
            {} if state in ("running", "finalizing") else {"owner": None, "lease_expires_at": None}
        )
        _set(session, job["id"], state=state, **gone)
    _set(session, job["id"], **{name: final[name] for name in final if name not in begun})
    session.execute(delete(WorkerRow).where(WorkerRow.id == carrier))
    for values in rows["job_events"]:
        session.add(JobEventRow(**_loaded(JobEventRow, {**values, "id": None})))
        session.flush()  # their numbers are their order


def has_job(session: Session, job_id: str) -> bool:
    return session.get(JobRow, job_id) is not None


def dataset_sha256(session: Session, dataset_id: str) -> str | None:
    row = session.get(DatasetRow, dataset_id)
    return None if row is None else row.sha256


def _load_attempt(session: Session, rows: Mapping[str, Sequence[Values]], fence: int) -> None:
    tables: tuple[tuple[str, type[Base]], ...] = (
        ("attempts", AttemptRow),
        ("trainer_events", TrainerEventRow),
        ("checkpoints", CheckpointRow),
    )
    for name, table in tables:
        session.add_all(
            table(**_loaded(table, values)) for values in rows[name] if values["fence"] == fence
        )
        session.flush()


def _carrier(session: Session, job_id: str) -> str:
    """Insert the worker that owns the job inside this transaction; it was never alive."""
    worker_id = job_id.replace("job-", "worker-", 1)
    session.add(
        WorkerRow(
            id=worker_id,
            host="import",
            machine="import",
            pid=0,
            process_started=0.0,
            slots=0,
            devices=[],
            models=[],
            version="",
            ended_at=db_now(),
        )
    )
    session.flush()
    return worker_id


def _set(session: Session, job_id: str, **values: Any) -> None:
    statement = update(JobRow).where(JobRow.id == job_id).values(**values)
    session.execute(statement.execution_options(synchronize_session=False))


def _dumped(session: Session, table: type[Base], condition: Any, *order: Any) -> list[Values]:
    columns = table.__table__.columns
    query = select(*columns).where(condition).order_by(*order)
    return [
        {
            name: value.isoformat() if isinstance(value, datetime) else value
            for name, value in row.items()
        }
        for row in session.execute(query).mappings()
    ]


def _loaded(table: type[Base], values: Values) -> Values:
    """Return a row's values with times as such; `id: None` leaves the numbering to the database."""
    times = {column.name for column in table.__table__.columns if _is_time(column.type)}
    return {
        name: datetime.fromisoformat(value) if name in times and value is not None else value
        for name, value in values.items()
        if not (name == "id" and value is None)
    }


def _is_time(kind: Any) -> bool:
    inner = kind.impl if isinstance(kind, TypeDecorator) else kind
    return isinstance(inner, DateTime)
