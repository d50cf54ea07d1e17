"""Queries on uploads: files that come in parts."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, cast

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from app.db.tables import UploadPartRow, UploadRow
from app.db.types import db_now
from app.domain import ids

State = Literal["pending", "completed", "cancelled", "expired"]


@dataclass(frozen=True)
class StoredUpload:
    """An upload as it is stored; `has_expired` is a matter of the database's clock."""

    id: str
    project_id: str
    filename: str
    mime_type: str
    purpose: str
    bytes: int
    file_seconds: int | None
    state: State
    dataset_id: str | None
    completed_with: str | None
    created_at: datetime
    expires_at: datetime


@dataclass(frozen=True)
class StoredPart:
    id: str
    upload_id: str
    bytes: int
    sha256: str
    created_at: datetime


def insert(
    session: Session,
    project_id: str,
    *,
    filename: str,
    mime_type: str,
    purpose: str,
    num_bytes: int,
    file_seconds: int | None,
    life_seconds: float,
) -> StoredUpload:
    row = UploadRow(
        id=ids.new("upload"),
        project_id=project_id,
        filename=filename,
        mime_type=mime_type,
        purpose=purpose,
        bytes=num_bytes,
        file_seconds=file_seconds,
        state="pending",
        expires_at=cast(Any, db_now(life_seconds)),
    )
    session.add(row)
    session.flush()
    session.refresh(row)
    return _upload(row)


def get(
    session: Session, project_id: str, upload_id: str, *, lock: bool = False
) -> StoredUpload | None:
    """Return an upload; one that was not completed in time is `expired` from that moment on."""
    query = select(UploadRow, UploadRow.expires_at <= db_now()).where(
        UploadRow.id == upload_id, UploadRow.project_id == project_id
    )
    found = session.execute(query.with_for_update() if lock else query).first()
    if found is None:
        return None
    row, is_late = found
    return _upload(row, "expired" if is_late and row.state == "pending" else None)


def newest_like(
    session: Session,
    project_id: str,
    *,
    filename: str,
    mime_type: str,
    num_bytes: int,
    within_seconds: float,
) -> StoredUpload | None:
    """Return the newest pending upload of the same file that was begun just now."""
    query = select(UploadRow).where(
        UploadRow.project_id == project_id,
        UploadRow.filename == filename,
        UploadRow.mime_type == mime_type,
        UploadRow.bytes == num_bytes,
        UploadRow.state == "pending",
        UploadRow.created_at > db_now(-within_seconds),
        UploadRow.expires_at > db_now(),
    )
    row = session.scalar(query.order_by(UploadRow.id.desc()).limit(1))
    return None if row is None else _upload(row)


def move(session: Session, upload_id: str, state: State, **values: Any) -> bool:
    """End a pending upload; False when it had ended already."""
    statement = (
        update(UploadRow)
        .where(UploadRow.id == upload_id, UploadRow.state == "pending")
        .values(state=state, **values)
        .execution_options(synchronize_session=False)
    )
    return int(session.execute(statement).rowcount) == 1  # type: ignore[attr-defined]


def add_part(
    session: Session, upload_id: str, *, part_id: str, num_bytes: int, sha256: str
) -> StoredPart:
    row = UploadPartRow(id=part_id, upload_id=upload_id, bytes=num_bytes, sha256=sha256)
    session.add(row)
    session.flush()
    session.refresh(row)
    return _part(row)


def parts(session: Session, upload_id: str) -> Sequence[StoredPart]:
    query = select(UploadPartRow).where(UploadPartRow.upload_id == upload_id)
    return [_part(row) for row in session.scalars(query.order_by(UploadPartRow.id))]


def stored_bytes(session: Session, upload_id: str) -> int:
    query = select(func.coalesce(func.sum(UploadPartRow.bytes), 0))
    return int(session.scalar(query.where(UploadPartRow.upload_id == upload_id)) or 0)


def newest_part_like(
    session: Session, upload_id: str, *, sha256: str, within_seconds: float
) -> StoredPart | None:
    """Return the newest part of the same content that came just now."""
    query = select(UploadPartRow).where(
        UploadPartRow.upload_id == upload_id,
        UploadPartRow.sha256 == sha256,
        UploadPartRow.created_at > db_now(-within_seconds),
    )
    row = session.scalar(query.order_by(UploadPartRow.id.desc()).limit(1))
    return None if row is None else _part(row)


def any_late(session: Session) -> bool:
    """Tell whether there is a pending upload whose time is over."""
    query = select(UploadRow.id).where(
        UploadRow.state == "pending", UploadRow.expires_at <= db_now()
    )
    return session.scalar(query.limit(1)) is not None


def expire(session: Session) -> None:
    """Let pending uploads whose time is over expire."""
    session.execute(
        update(UploadRow)
        .where(UploadRow.state == "pending", UploadRow.expires_at <= db_now())
        .values(state="expired")
        .execution_options(synchronize_session=False)
    )


def states(session: Session, upload_ids: Sequence[str]) -> dict[str, State]:
    """Return the state of those of `upload_ids` that have a row."""
    query = select(UploadRow.id, UploadRow.state).where(UploadRow.id.in_(upload_ids))
    return {upload_id: cast(State, state) for upload_id, state in session.execute(query)}


def forget_parts(session: Session, upload_id: str) -> None:
    session.execute(delete(UploadPartRow).where(UploadPartRow.upload_id == upload_id))


def _upload(row: UploadRow, state: State | None = None) -> StoredUpload:
    return StoredUpload(
        id=row.id,
        project_id=row.project_id,
        filename=row.filename,
        mime_type=row.mime_type,
        purpose=row.purpose,
        bytes=row.bytes,
        file_seconds=row.file_seconds,
        state=state or cast(State, row.state),
        dataset_id=row.dataset_id,
        completed_with=row.completed_with,
        created_at=row.created_at,
        expires_at=row.expires_at,
    )


def _part(row: UploadPartRow) -> StoredPart:
    return StoredPart(row.id, row.upload_id, row.bytes, row.sha256, row.created_at)
