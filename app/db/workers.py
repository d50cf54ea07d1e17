"""Queries on workers."""

from collections.abc import Sequence

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.db.tables import JobRow, WorkerRow
from app.db.types import db_now
from app.domain.jobs import OWNED_STATES
from app.domain.workers import Device, Worker, WorkerIdentity


def insert(
    session: Session,
    worker_id: str,
    *,
    host: str,
    identity: WorkerIdentity,
    slots: int,
    devices: Sequence[Device],
    models: Sequence[str],
    version: str,
) -> None:
    session.add(
        WorkerRow(
            id=worker_id,
            host=host,
            machine=identity.machine,
            pid=identity.pid,
            process_started=identity.started,
            slots=slots,
            devices=[device.model_dump() for device in devices],
            models=list(models),
            version=version,
        )
    )


def beat(session: Session, worker_id: str, *, models: Sequence[str]) -> None:
    """Record that a worker is alive and which models it has now."""
    session.execute(
        update(WorkerRow)
        .where(WorkerRow.id == worker_id)
        .values(heartbeat_at=db_now(), models=list(models))
    )


def end(session: Session, worker_id: str) -> None:
    session.execute(update(WorkerRow).where(WorkerRow.id == worker_id).values(ended_at=db_now()))


def lock(session: Session, worker_id: str) -> None:
    """Let one claim of a worker wait for another, so that both count its free slots right."""
    session.execute(select(WorkerRow.id).where(WorkerRow.id == worker_id).with_for_update())


def identity(session: Session, worker_id: str) -> WorkerIdentity | None:
    row = session.get(WorkerRow, worker_id)
    if row is None:
        return None
    return WorkerIdentity(machine=row.machine, pid=row.pid, started=row.process_started)


def alive(session: Session, *, within_seconds: float) -> Sequence[Worker]:
    """Return the workers that have not ended and whose heartbeat is recent, oldest first."""
    busy = (
        select(func.count())
        .select_from(JobRow)
        .where(
            JobRow.owner == WorkerRow.id, JobRow.state.in_([state.value for state in OWNED_STATES])
        )
        .scalar_subquery()
    )
    query = (
        select(WorkerRow, busy)
        .where(WorkerRow.ended_at.is_(None), WorkerRow.heartbeat_at > db_now(-within_seconds))
        .order_by(WorkerRow.started_at)
    )
    return [_worker(row, busy_slots) for row, busy_slots in session.execute(query)]


def _worker(row: WorkerRow, busy_slots: int) -> Worker:
    return Worker(
        id=row.id,
        host=row.host,
        alive=True,
        slots=row.slots,
        busy_slots=busy_slots,
        devices=[Device.model_validate(device) for device in row.devices],
        models=row.models,
        version=row.version,
        started_at=row.started_at,
        heartbeat_at=row.heartbeat_at,
    )
