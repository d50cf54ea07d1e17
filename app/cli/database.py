"""What local commands do with the database: migrate it, manage keys in it."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from app.cli import local
from app.db import migrate
from app.db.engine import Database
from app.db.keys import ApiKey
from app.domain.errors import InvalidInput, StartupError, Unavailable
from app.services import keys, sessions, transfer
from app.services.transfer import JobManifest
from app.settings import Settings


def upgrade(settings: Settings) -> None:
    """Bring the database to the schema of this version.

    Raises:
        InvalidInput: Its URL is not one of a database that lorad knows.
        Unavailable: It cannot be reached.
    """
    _require_known(settings.sqlalchemy_url)
    if settings.database_url is None:
        local.prepare_home(settings.home)
    try:
        migrate.upgrade(settings.sqlalchemy_url)
    except DBAPIError as error:
        reason = str(error.orig).strip().splitlines()[0]
        message = f"the database cannot be migrated: {reason}"
        raise Unavailable(message, param="LORAD_DATABASE_URL") from error


def create_key(settings: Settings, *, name: str) -> str:
    """Make a key and return its secret."""
    with _opened(settings) as db:
        return keys.create(db, settings, name=name).secret


def list_keys(settings: Settings) -> Sequence[ApiKey]:
    with _opened(settings) as db:
        return keys.list_all(db)


def revoke_key(settings: Settings, key_id: str) -> None:
    with _opened(settings) as db:
        keys.revoke(db, key_id)


def sign_in_link(settings: Settings) -> str | None:
    """Return a token that signs one browser in, once and soon; None where no key is needed."""
    with _opened(settings) as db:
        return sessions.make_link(db) if keys.are_required(db) else None


def export_job(settings: Settings, job_id: str, target: Path) -> JobManifest:
    """Write a whole job into a new folder."""
    with _opened(settings) as db:
        return transfer.export_job(db, settings, job_id, target)


def import_job(settings: Settings, source: Path) -> str:
    """Take in a job that was written so, and return its id."""
    local.prepare_home(settings.home)
    with _opened(settings) as db:
        return transfer.import_job(db, settings, source)


def require_key_unless_loopback(settings: Settings) -> None:
    """Refuse an address that others can reach while anybody could use it.

    Raises:
        StartupError: The address is not loopback and there is no active key.
    """
    if settings.is_loopback:
        return
    with _opened(settings) as db:
        if not keys.any_active(db):
            raise StartupError(
                f"{settings.host} can be reached by others and there is no API key; "
                "create one first with: lorad keys create"
                f" --home {settings.home}",
                param="--host",
            )


def _require_known(url: str) -> None:
    try:
        is_known = make_url(url).get_backend_name() in ("sqlite", "postgresql")
    except ArgumentError:
        is_known = False
    if not is_known:
        # The URL may hold a password, so it is not repeated.
        raise InvalidInput(
            "LORAD_DATABASE_URL is no URL of SQLite or PostgreSQL; they look like "
            "sqlite:////folder/lorad.db and postgresql+psycopg://user:password@host/name",
            param="LORAD_DATABASE_URL",
        )


@contextmanager
def _opened(settings: Settings) -> Generator[Database]:
    upgrade(settings)
    db = Database(settings.sqlalchemy_url)
    try:
        yield db
    finally:
        db.close()
