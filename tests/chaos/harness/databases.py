"""The database of a chaos run, and the journal that its triggers keep of every accepted write."""

import os
import shutil
import signal
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import psycopg
from psycopg import sql
from sqlalchemy import Connection, create_engine, inspect, text
from sqlalchemy.engine import Engine
from sqlalchemy.pool import NullPool

from app.db import migrate
from tests.fixtures.database import PostgresCluster, find_bin_folder, open_folder

_JOURNAL = """
CREATE TABLE chaos_journal (
  id {auto}, what VARCHAR(16), job_id VARCHAR(40), fence BIGINT, current_fence BIGINT,
  attempt INTEGER, old_state VARCHAR(16), new_state VARCHAR(16), is_adopted INTEGER
)"""
# Accepted under the fence of the row, while the job's own was the second.
_WRITTEN = """
INSERT INTO chaos_journal (what, job_id, fence, current_fence, is_adopted)
SELECT '{table}', NEW.job_id, NEW.fence, j.fence, {adopted} FROM jobs j WHERE j.id = NEW.job_id"""
_ADOPTED = """
COALESCE((SELECT CASE WHEN a.adopting THEN 1 ELSE 0 END FROM attempts a
  WHERE a.job_id = NEW.job_id AND a.fence = NEW.fence), 0)"""
_MOVED = """
INSERT INTO chaos_journal (what, job_id, fence, current_fence, attempt, old_state, new_state)
VALUES ('state', NEW.id, OLD.fence, NEW.fence, NEW.attempt, OLD.state, NEW.state)"""
_MOVED_WHEN = "OLD.state <> NEW.state OR OLD.fence <> NEW.fence"


class ChaosDatabase(Protocol):
    """What a run needs of its database."""

    kind: str
    url: str

    def close(self) -> None: ...


class Sqlite:
    """One file in the home of the run."""

    kind = "sqlite"

    def __init__(self, home: Path) -> None:
        self.url = f"sqlite:///{home / 'lorad.db'}"
        migrate.upgrade(self.url)
        install_journal(self.url)

    def close(self) -> None:
        pass


class Postgres:
    """A server of the run's own, which can be stopped in every way."""

    kind = "postgresql"

    def __init__(self) -> None:
        self._folder = open_folder()
        self.cluster = PostgresCluster(find_bin_folder(), self._folder)
        self.cluster.initialize()
        self.cluster.start()
        name = self.cluster.create()
        self.url = self.cluster.url(name)
        migrate.upgrade(self.url)
        install_journal(self.url)
        # Without it a crash of the server takes back what was committed, and that would be the
        # test's fault. What the server hands to the kernel survives it, so fsync may stay off.
        with psycopg.connect(host=str(self._folder), user="lorad", dbname=name) as connection:
            statement = sql.SQL("ALTER DATABASE {} SET synchronous_commit = on")
            connection.execute(statement.format(sql.Identifier(name)))

    def stop(self, *, immediately: bool) -> None:
        """Stop the server: every connection is cut; immediately, it has to recover afterwards."""
        if immediately:
            os.kill(self.cluster.pid, signal.SIGQUIT)
        self.cluster.stop()

    def start(self) -> None:
        self.cluster.start()

    def close(self) -> None:
        self.cluster.stop()
        shutil.rmtree(self._folder, ignore_errors=True)


def engine(url: str) -> Engine:
    """Return an engine that keeps no connection open."""
    return create_engine(url, poolclass=NullPool)


@contextmanager
def reading(url: str) -> Generator[Connection]:
    with engine(url).connect() as connection:
        yield connection


def install_journal(url: str) -> None:
    """Let the database itself record each write that it accepts, whatever the product says."""
    made = engine(url)
    with made.begin() as connection:
        columns = {each["name"] for each in inspect(connection).get_columns("attempts")}
        adopted = _ADOPTED if "adopting" in columns else "0"
        for statement in _statements(made.dialect.name, adopted):
            connection.execute(text(statement))


def _statements(dialect: str, adopted: str) -> Iterator[str]:
    is_sqlite = dialect == "sqlite"
    auto = "INTEGER PRIMARY KEY AUTOINCREMENT" if is_sqlite else "BIGSERIAL PRIMARY KEY"
    yield _JOURNAL.format(auto=auto)
    for table in ("trainer_events", "checkpoints"):
        body = _WRITTEN.format(table=table, adopted=adopted)
        yield from _trigger(f"chaos_{table}", f"AFTER INSERT ON {table}", "TRUE", body, is_sqlite)
    yield from _trigger("chaos_jobs", "AFTER UPDATE ON jobs", _MOVED_WHEN, _MOVED, is_sqlite)


def _trigger(name: str, event: str, when: str, body: str, is_sqlite: bool) -> Iterator[str]:
    if is_sqlite:
        yield f"CREATE TRIGGER {name} {event} WHEN {when} BEGIN {body}; END"
        return
    yield (
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN {body}; RETURN NULL; END $$"
    )
    yield f"CREATE TRIGGER {name} {event} FOR EACH ROW WHEN ({when}) EXECUTE FUNCTION {name}()"
