"""Queries on sessions of browsers."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, delete, or_, select, update
from sqlalchemy.orm import Session

from app.db.tables import ApiKeyRow, SessionRow
from app.db.types import db_now

PUBLIC_ID_LENGTH = 16


@dataclass(frozen=True)
class BrowserSession:
    """A browser that signed in, or a link that was not used yet."""

    token_hash: str
    project_id: str
    key_id: str | None
    """Key that it stands for; None when it came by a link from the machine of the service."""
    created_at: datetime
    expires_at: datetime
    used_at: datetime

    @property
    def id(self) -> str:
        """What names it in lists: the start of the hash, which opens nothing."""
        return self.token_hash[:PUBLIC_ID_LENGTH]


def insert(
    session: Session,
    token_hash: str,
    project_id: str,
    *,
    key_id: str | None,
    seconds: float,
    is_link: bool = False,
) -> None:
    """Store a session; what has expired goes at the same time."""
    session.execute(delete(SessionRow).where(SessionRow.expires_at <= db_now()))
    session.add(
        SessionRow(
            token_hash=token_hash,
            project_id=project_id,
            key_id=key_id,
            is_link=is_link,
            expires_at=db_now(seconds),
        )
    )


def take_link(session: Session, token_hash: str) -> str | None:
    """Use up a link and return its project; None when there is none, or no more."""
    statement = (
        delete(SessionRow)
        .where(
            SessionRow.token_hash == token_hash,
            SessionRow.is_link,
            SessionRow.expires_at > db_now(),
        )
        .returning(SessionRow.project_id)
        .execution_options(synchronize_session=False)
    )
    return session.scalar(statement)


def get(session: Session, token_hash: str) -> BrowserSession | None:
    """Return a session that is valid: not too old, and its key not revoked."""
    row = session.scalar(select(SessionRow).where(SessionRow.token_hash == token_hash, *_valid()))
    return None if row is None else _session(row)


def list_all(session: Session, project_id: str) -> Sequence[BrowserSession]:
    query = select(SessionRow).where(SessionRow.project_id == project_id, *_valid())
    return [_session(row) for row in session.scalars(query.order_by(SessionRow.created_at))]


def touch(session: Session, token_hash: str, *, within_seconds: float) -> None:
    """Record that a session is used, unless that was recorded just now."""
    session.execute(
        update(SessionRow)
        .where(SessionRow.token_hash == token_hash, SessionRow.used_at < db_now(-within_seconds))
        .values(used_at=db_now())
    )


def remove(session: Session, token_hash: str) -> None:
    session.execute(delete(SessionRow).where(SessionRow.token_hash == token_hash))


def remove_all(session: Session, project_id: str) -> None:
    session.execute(delete(SessionRow).where(SessionRow.project_id == project_id))


def _valid() -> tuple[ColumnElement[bool], ...]:
    active = select(ApiKeyRow.id).where(ApiKeyRow.revoked_at.is_(None))
    return (
        SessionRow.is_link.is_(False),
        SessionRow.expires_at > db_now(),
        or_(SessionRow.key_id.is_(None), SessionRow.key_id.in_(active)),
    )


def _session(row: SessionRow) -> BrowserSession:
    return BrowserSession(
        row.token_hash, row.project_id, row.key_id, row.created_at, row.expires_at, row.used_at
    )
