"""The command that migrates the database."""

from app.cli import local, output
from app.cli.local import Home


def migrate(home: Home = None) -> None:
    """Create the database or bring it to the schema of this version."""
    # Loaded by the command that runs: SQLAlchemy is too slow to load for `lorad --help`.
    from app.cli import database

    database.upgrade(local.settings(home=home))
    output.say("the database is up to date")
