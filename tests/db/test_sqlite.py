"""SQLite is set up so that a committed transaction stays, and readers do not wait."""

import pytest

from app.db.engine import Database


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("setting", "value"), [("synchronous", 2), ("journal_mode", "wal"), ("foreign_keys", 1)]
)
def test_what_every_connection_is_set_to(database: Database, setting: str, value: object):
    with database.read() as session:
        found = session.connection().exec_driver_sql(f"PRAGMA {setting}").scalar()

    assert found == value
