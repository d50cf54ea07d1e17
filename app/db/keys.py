"""Queries on API keys, projects and idempotency keys."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, exists, func, select, update
from sqlalchemy.orm import Session

from app.db.tables import ApiKeyRow, IdempotencyRow
from app.db.types import db_now

DEFAULT_PROJECT = "default"


@dataclass(frozen=True)
class ApiKey:
    """An API key without its secret, which only its owner has."""

    id: str
    project_id: str
    name: str
    secret_hash: str
    created_at: datetime
    revoked_at: datetime | None


@dataclass(frozen=True)
class Remembered:
    """What an idempotency key was first used for."""

    body_sha256: str
    resource_id: str


def insert(session: Session, key_id: str, *, name: str, secret_hash: str) -> None:
    session.add(
        ApiKeyRow(id=key_id, project_id=DEFAULT_PROJECT, name=name, secret_hash=secret_hash)
    )


def get(session: Session, key_id: str) -> ApiKey | None:
    row = session.get(ApiKeyRow, key_id)
    return None if row is None else _key(row)


def list_all(session: Session) -> Sequence[ApiKey]:
    return [_key(row) for row in session.scalars(select(ApiKeyRow).order_by(ApiKeyRow.created_at))]


def any_created(session: Session) -> bool:
    """Tell whether a key was ever created; revoked ones count, so revoking never opens a door."""
    return bool(session.scalar(select(exists(select(ApiKeyRow.id)))))


def revoke(session: Session, key_id: str) -> bool:
    statement = (
        update(ApiKeyRow)
        .where(ApiKeyRow.id == key_id, ApiKeyRow.revoked_at.is_(None))
        .values(revoked_at=db_now())
    )
    return session.execute(statement).rowcount == 1  # type: ignore[attr-defined]


def recall(session: Session, project_id: str, scope: str, key: str) -> Remembered | None:
    """Return what an idempotency key was used for before."""
    row = session.get(IdempotencyRow, (project_id, scope, key))
    return None if row is None else Remembered(row.body_sha256, row.resource_id)


def remember(
    session: Session, project_id: str, scope: str, key: str, *, body_sha256: str, resource_id: str
) -> None:
    session.add(
        IdempotencyRow(
            project_id=project_id,
            scope=scope,
            key=key,
            body_sha256=body_sha256,
            resource_id=resource_id,
        )
    )
    session.flush()


def forget(session: Session, resource_id: str) -> None:
    session.execute(delete(IdempotencyRow).where(IdempotencyRow.resource_id == resource_id))


def count_active(session: Session) -> int:
    query = select(func.count()).select_from(ApiKeyRow).where(ApiKeyRow.revoked_at.is_(None))
    return session.scalar(query) or 0


def _key(row: ApiKeyRow) -> ApiKey:
    return ApiKey(row.id, row.project_id, row.name, row.secret_hash, row.created_at, row.revoked_at)
