"""Queries on data sets."""

from collections.abc import Sequence
from typing import Any, cast

from sqlalchemy import ColumnElement, delete, or_, select, update
from sqlalchemy.orm import Session

from app.db.tables import DatasetRow, JobRow
from app.db.types import db_now
from app.domain.datasets import Dataset, DatasetReport


def insert(
    session: Session,
    project_id: str,
    dataset_id: str,
    *,
    name: str,
    filename: str,
    report: DatasetReport,
    expires_seconds: int | None = None,
) -> Dataset:
    """Store a data set; with `expires_seconds` it is gone that long after now."""
    values = {**report.model_dump(exclude={"problems"}), "format": report.format or ""}
    row = DatasetRow(id=dataset_id, project_id=project_id, name=name, filename=filename, **values)
    if expires_seconds is not None:
        row.expires_at = cast(Any, db_now(expires_seconds))
    session.add(row)
    session.flush()
    session.refresh(row)
    return to_dataset(row)


def get(session: Session, dataset_id: str, *, project_id: str | None = None) -> Dataset | None:
    """Return a data set; for a project only one that has not expired, for a job in any case."""
    query = select(DatasetRow).where(DatasetRow.id == dataset_id)
    if project_id is not None:
        query = query.where(DatasetRow.project_id == project_id, is_there())
    row = session.scalar(query)
    return None if row is None else to_dataset(row)


def page(session: Session, project_id: str, *, after: str | None, limit: int) -> Sequence[Dataset]:
    """Return up to `limit` data sets, newest first, older than the data set `after`."""
    query = select(DatasetRow).where(DatasetRow.project_id == project_id, is_there())
    if after is not None:
        query = query.where(DatasetRow.id < after)
    query = query.order_by(DatasetRow.id.desc()).limit(limit)
    return [to_dataset(row) for row in session.scalars(query)]


def remove(session: Session, dataset_id: str) -> None:
    session.execute(delete(DatasetRow).where(DatasetRow.id == dataset_id))


def is_there() -> ColumnElement[bool]:
    """Condition of every look at data sets from outside: not deleted, not expired."""
    return or_(DatasetRow.expires_at.is_(None), DatasetRow.expires_at > db_now())


def withdraw(session: Session, dataset_id: str) -> None:
    """Let a data set expire now; its row stays for the jobs that were submitted with it."""
    session.execute(
        update(DatasetRow).where(DatasetRow.id == dataset_id).values(expires_at=db_now())
    )


def expired(session: Session) -> Sequence[tuple[str, bool]]:
    """Return (id, whether a job was ever submitted with it) of those that expired.

    Those that a job that has not ended was submitted with are left out.
    """
    users = or_(JobRow.dataset_id == DatasetRow.id, JobRow.eval_dataset_id == DatasetRow.id)
    going_on = select(JobRow.id).where(
        users, JobRow.state.not_in(["succeeded", "failed", "cancelled"])
    )
    query = select(DatasetRow.id, select(JobRow.id).where(users).exists()).where(
        DatasetRow.expires_at <= db_now(), ~going_on.exists()
    )
    return [(dataset_id, is_used) for dataset_id, is_used in session.execute(query)]


def newest_like(
    session: Session, project_id: str, *, sha256: str, filename: str, within_seconds: float
) -> Dataset | None:
    """Return the newest data set of the same content and name that was made just now."""
    query = select(DatasetRow).where(
        DatasetRow.project_id == project_id,
        DatasetRow.sha256 == sha256,
        DatasetRow.filename == filename,
        DatasetRow.created_at > db_now(-within_seconds),
        is_there(),
    )
    row = session.scalar(query.order_by(DatasetRow.id.desc()).limit(1))
    return None if row is None else to_dataset(row)


def to_dataset(row: DatasetRow) -> Dataset:
    return Dataset(
        id=row.id,
        project_id=row.project_id,
        name=row.name,
        filename=row.filename,
        bytes=row.bytes,
        sha256=row.sha256,
        num_rows=row.num_rows,
        format=cast(Any, row.format or None),
        container=cast(Any, row.container),
        compression=cast(Any, row.compression),
        columns=row.columns,
        num_bad_rows=row.num_bad_rows,
        ignored_keys=row.ignored_keys,
        created_at=row.created_at,
        expires_at=row.expires_at,
    )
