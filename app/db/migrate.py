"""Bringing a database to the newest schema."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import make_url

from app.db.engine import Database

_SCRIPTS = Path(__file__).resolve().parents[2] / "migrations"


def upgrade(url: str) -> None:
    """Create or migrate the tables; does nothing on a database that is up to date."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    command.upgrade(_config(url), "head")


def revision() -> str:
    """Return the schema of this version of the code."""
    return ScriptDirectory.from_config(_config("")).get_current_head() or ""


def is_current(database: Database) -> bool:
    """Tell whether the tables are those that this version of the code expects.

    Raises:
        Unavailable: The database cannot be reached.
    """
    with database.read() as session:
        found = MigrationContext.configure(session.connection()).get_current_revision()
    return found == revision()


def _config(url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS))
    config.set_main_option("path_separator", "os")
    config.attributes["url"] = url
    return config
