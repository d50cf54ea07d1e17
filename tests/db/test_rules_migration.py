"""The rules come with a migration that keeps every row, and go with its way back."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy.exc import IntegrityError

from app.db.engine import Database
from tests.fixtures.database import PostgresCluster

SCRIPTS = Path(__file__).parents[2] / "migrations"
ROWS = (
    "INSERT INTO datasets (id, project_id, name, filename, bytes, sha256, num_rows, format,"
    " ignored_keys, created_at) VALUES ('data', 'default', 'd', 'd', 1, 'x', 1, 'text', '[]',"
    " CURRENT_TIMESTAMP)",
    "INSERT INTO workers (id, host, machine, pid, process_started, slots, devices, models, version,"
    " started_at, heartbeat_at) VALUES ('worker', 'h', 'm', 1, 1.0, 1, '[]', '[]', '0',"
    " CURRENT_TIMESTAMP, CURRENT_TIMESTAMP)",
    "INSERT INTO jobs (id, project_id, dataset_id, state, desired, priority, base_model, device,"
    " spec, fence, attempt, crash_streak, owner, lease_expires_at, not_before, rung_at, step,"
    " created_at, updated_at) VALUES ('job', 'default', 'data', 'running', 'run', 0, 'm', 'cpu',"
    " '{}', 2, 2, 0, 'worker', CURRENT_TIMESTAMP, CURRENT_TIMESTAMP, CURRENT_TIMESTAMP, 5,"
    " CURRENT_TIMESTAMP, CURRENT_TIMESTAMP)",
    "INSERT INTO attempts (job_id, attempt, fence, worker_id, spec, high_water_seq, started_at)"
    " VALUES ('job', 2, 2, 'worker', '{}', 1, CURRENT_TIMESTAMP)",
    "INSERT INTO trainer_events (job_id, fence, seq, kind, step, body)"
    " VALUES ('job', 2, 1, 'step', 5, '{}')",
)
FENCE = "UPDATE jobs SET fence = 1"
STEP = "UPDATE jobs SET step = 6"


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.services)])
def before(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A database of the version before, with a job that is running."""
    name, url = "", f"sqlite:///{tmp_path / 'before.db'}"
    if request.param == "postgresql":
        cluster: PostgresCluster = request.getfixturevalue("postgres_cluster")
        name = cluster.create()
        url = cluster.url(name)
    command.upgrade(configured(url), "0002")
    database = Database(url)
    for statement in ROWS:
        execute(database, statement)
    yield database
    database.close()
    if name:
        cluster.drop(name)


def configured(url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    config.set_main_option("path_separator", "os")
    config.attributes["url"] = url
    return config


def url_of(database: Database) -> str:
    return database.url.render_as_string(hide_password=False)


def execute(database: Database, statement: str) -> None:
    with database.write() as session:
        session.connection().exec_driver_sql(statement)


def rows(database: Database, query: str) -> list[tuple[object, ...]]:
    with database.read() as session:
        return [tuple(row) for row in session.connection().exec_driver_sql(query)]


def rules(database: Database) -> int:
    """Count the triggers, and the functions that only triggers need."""
    if database.engine.dialect.name == "sqlite":
        ((count,),) = rows(database, "SELECT count(*) FROM sqlite_master WHERE type = 'trigger'")
    else:
        ((count,),) = rows(
            database,
            "SELECT (SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal)"
            " + (SELECT count(*) FROM pg_proc WHERE pronamespace = 'public'::regnamespace)",
        )
    assert isinstance(count, int)
    return count


def test_a_running_job_of_the_version_before_goes_on_under_the_rules(before: Database):
    kept = "SELECT state, fence, attempt, owner, step FROM jobs"
    had = rows(before, kept)

    command.upgrade(configured(url_of(before)), "0003")

    assert rows(before, kept) == had
    assert rows(before, "SELECT adopting FROM attempts")[0][0] in (False, 0)
    execute(before, STEP)
    execute(before, ROWS[-1].replace("2, 1,", "2, 2,"))
    with pytest.raises(IntegrityError, match="jobs_fence_is_raised_by_a_claim_only"):
        execute(before, FENCE)


def test_the_way_back_takes_the_rules_and_leaves_the_rows(before: Database):
    tables = ("jobs", "attempts", "trainer_events")
    had = [rows(before, f"SELECT * FROM {table}") for table in tables]
    none = rules(before)
    command.upgrade(configured(url_of(before)), "0003")
    some = rules(before)

    command.downgrade(configured(url_of(before)), "0002")

    assert (none, rules(before)) == (0, 0)
    assert some > 10
    assert [rows(before, f"SELECT * FROM {table}") for table in tables] == had
    execute(before, FENCE)
