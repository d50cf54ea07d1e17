"""One engine by URL: SQLite or PostgreSQL, with transactions that mean the same on both."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, TimeoutError
from sqlalchemy.orm import Session

from app.db import filesystem
from app.domain import failpoints
from app.domain.errors import Unavailable

_BUSY_TIMEOUT_MS = 15_000
_CONNECT_SECONDS = 5
# A process that is stopped inside a transaction (SIGSTOP, a suspended machine, a partition) would
# keep its rows locked for ever: PostgreSQL ends its session, and others wait no longer than this.
_MOST_IDLE_SECONDS = 10
_MOST_LOCKED_SECONDS = 5
# PostgreSQL's codes for a session that was ended for being idle in a transaction.
_ENDED = ("25P03", "57P05")
# PostgreSQL's codes for a table and a column that do not exist.
_UNDEFINED = ("42P01", "42703")


class Database:
    """Units of work on one database; each `with` block is one transaction.

    Raises:
        StartupError: It is an SQLite file on a network filesystem.
    """

    def __init__(self, url: str) -> None:
        self.url = make_url(url)
        if self.url.get_backend_name() == "sqlite" and self.url.database:
            filesystem.require_local(Path(self.url.database))
        self.engine = _create(url)

    @contextmanager
    def write(self) -> Generator[Session]:
        """Run a transaction that may write; it commits at the end of the block.

        On SQLite it takes the write lock at once: what it reads cannot change before it writes.

        Raises:
            Unavailable: The database cannot be reached; nothing was written, or the commit's fate
                is unknown, so the caller must be safe to run again.
        """
        with (
            _translated(),
            Session(self.engine, expire_on_commit=False) as session,
            session.begin(),
        ):
            session.connection(execution_options={"lorad_begin": "BEGIN IMMEDIATE"})
            yield session
            failpoints.hit("database.commit")
        failpoints.hit("database.committed")

    @contextmanager
    def read(self) -> Generator[Session]:
        """Run a transaction that only reads.

        Raises:
            Unavailable: The database cannot be reached.
        """
        with _translated(), Session(self.engine, expire_on_commit=False) as session:
            yield session

    def close(self) -> None:
        self.engine.dispose()


def is_outage(error: DBAPIError) -> bool:
    """Tell a database that is away, or not there at all, from a statement that is wrong."""
    if error.connection_invalidated or isinstance(error, InterfaceError):
        return True
    if getattr(error.orig, "sqlstate", None) in _ENDED:
        return True
    return isinstance(error, OperationalError)


@contextmanager
def _translated() -> Generator[None]:
    try:
        yield
    except TimeoutError as error:
        message = "every connection to the database is in use; try again"
        raise Unavailable(message, code="database_unavailable") from error
    except DBAPIError as error:
        if _lacks_tables(error):
            message = "the database needs a migration; run `lorad migrate`"
            raise Unavailable(message, code="migration") from error
        if is_outage(error):
            reason = str(error.orig).strip().splitlines() or ["no reason given"]
            message = f"the database is not available ({reason[0]}); try again"
            raise Unavailable(message, code="database_unavailable") from error
        raise


def _lacks_tables(error: DBAPIError) -> bool:
    undefined = getattr(error.orig, "sqlstate", None) in _UNDEFINED
    return undefined or str(error.orig).startswith(("no such table", "no such column"))


def _create(url: str) -> Engine:
    if make_url(url).get_backend_name() == "sqlite":
        engine = create_engine(url, connect_args={"timeout": _BUSY_TIMEOUT_MS / 1000})
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    return create_engine(
        url,
        pool_pre_ping=True,
        pool_size=10,
        max_overflow=20,
        pool_timeout=_CONNECT_SECONDS,
        connect_args={
            "connect_timeout": _CONNECT_SECONDS,
            "options": f"-c idle_in_transaction_session_timeout={_MOST_IDLE_SECONDS}s"
            f" -c lock_timeout={_MOST_LOCKED_SECONDS}s",
            # A server that vanished without a word is noticed within half a minute.
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 4,
            "tcp_user_timeout": 30_000,
        },
    )


def _configure_sqlite(connection: Any, _record: Any) -> None:
    # The driver's own transaction control begins late and ends early; an event does it instead.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    # With NORMAL a power cut may undo a committed transaction: an accepted job would vanish.
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get("lorad_begin", "BEGIN"))
