"""Migrations make the tables that the code expects, once."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect

from app.db import migrate
from app.db.engine import Database
from app.db.tables import Base
from app.domain.errors import Unavailable
from tests.fixtures.database import PostgresCluster


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.services)])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A database without a table."""
    name = ""
    url = f"sqlite:///{tmp_path / 'folder' / 'new.db'}"
    if request.param == "postgresql":
        cluster: PostgresCluster = request.getfixturevalue("postgres_cluster")
        name = cluster.create()
        url = cluster.url(name)
    else:
        (tmp_path / "folder").mkdir()
    database = Database(url)
    yield database
    database.close()
    if name:
        cluster.drop(name)


def upgrade(database: Database) -> None:
    migrate.upgrade(database.url.render_as_string(hide_password=False))


def test_an_empty_database_gets_every_table_and_the_default_project(empty: Database):
    before = migrate.is_current(empty)

    upgrade(empty)

    assert not before
    assert migrate.is_current(empty)
    assert set(Base.metadata.tables) < set(inspect(empty.engine).get_table_names())
    with empty.read() as session:
        rows = session.connection().exec_driver_sql("SELECT id FROM projects").all()
    assert [tuple(row) for row in rows] == [("default",)]


def test_migrating_again_changes_nothing(empty: Database):
    upgrade(empty)
    with empty.write() as session:
        session.connection().exec_driver_sql("UPDATE projects SET name = 'kept'")

    upgrade(empty)

    with empty.read() as session:
        rows = session.connection().exec_driver_sql("SELECT name FROM projects").all()
    assert [tuple(row) for row in rows] == [("kept",)]


def test_the_tables_of_the_migrations_are_those_of_the_code(empty: Database):
    upgrade(empty)
    options = {"compare_type": True, "compare_server_default": True}

    with empty.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts=options)
        difference = compare_metadata(context, Base.metadata)

    assert difference == []


def test_a_database_of_another_version_is_not_current(empty: Database):
    upgrade(empty)
    with empty.write() as session:
        session.connection().exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")

    assert not migrate.is_current(empty)


def test_a_database_that_is_away_is_unavailable_and_not_outdated(tmp_path: Path):
    database = Database(f"sqlite:///{tmp_path / 'nowhere' / 'lorad.db'}")

    with pytest.raises(Unavailable):
        migrate.is_current(database)


def test_the_folder_of_an_sqlite_file_is_made(tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'a' / 'b' / 'lorad.db'}"

    migrate.upgrade(url)

    database = Database(url)
    assert migrate.is_current(database)
    database.close()
