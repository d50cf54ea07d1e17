"""Queries on data sets."""

from collections.abc import Sequence
from typing import Any, cast

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from app.db.tables import DatasetRow
from app.domain.datasets import Dataset, DatasetReport


def insert(
    session: Session,
    project_id: str,
    dataset_id: str,
    *,
    name: str,
    filename: str,
    report: DatasetReport,
) -> Dataset:
    values = {**report.model_dump(exclude={"problems"}), "format": report.format or ""}
    row = DatasetRow(id=dataset_id, project_id=project_id, name=name, filename=filename, **values)
    session.add(row)
    session.flush()
    session.refresh(row)
    return _dataset(row)


def get(session: Session, dataset_id: str, *, project_id: str | None = None) -> Dataset | None:
    query = select(DatasetRow).where(DatasetRow.id == dataset_id)
    if project_id is not None:
        query = query.where(DatasetRow.project_id == project_id)
    row = session.scalar(query)
    return None if row is None else _dataset(row)


def page(session: Session, project_id: str, *, after: str | None, limit: int) -> Sequence[Dataset]:
    """Return up to `limit` data sets, newest first, older than the data set `after`."""
    query = select(DatasetRow).where(DatasetRow.project_id == project_id)
    if after is not None:
        query = query.where(DatasetRow.id < after)
    query = query.order_by(DatasetRow.id.desc()).limit(limit)
    return [_dataset(row) for row in session.scalars(query)]


def remove(session: Session, dataset_id: str) -> None:
    session.execute(delete(DatasetRow).where(DatasetRow.id == dataset_id))


def _dataset(row: DatasetRow) -> Dataset:
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
    )
