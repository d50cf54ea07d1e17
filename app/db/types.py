"""Column types and SQL functions that mean the same on SQLite and PostgreSQL."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, DateTime, Dialect
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator

Json = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


class UtcDateTime(TypeDecorator[datetime]):
    """Aware UTC on both databases; SQLite stores text without a zone, in order of time."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None or dialect.name != "sqlite":
            return value
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None or value.tzinfo is not None:
            return value
        return value.replace(tzinfo=UTC)


class db_now(FunctionElement[datetime]):  # noqa: N801 (reads as the SQL function it is)
    """The database's clock, optionally some seconds away: leases live on one clock only."""

    type = UtcDateTime()
    inherit_cache = False

    def __init__(self, offset_seconds: float = 0.0) -> None:
        super().__init__()
        self.offset_seconds = float(offset_seconds)


@compiles(db_now, "sqlite")
def _sqlite_now(element: db_now, _compiler: Any, **_: Any) -> str:
    # The three digits of %f and three zeros: as wide as SQLAlchemy's own text form, so that the
    # order of text is the order of time.
    return (
        f"(strftime('%Y-%m-%d %H:%M:%f', 'now', '{element.offset_seconds:+.3f} seconds') || '000')"
    )


@compiles(db_now, "postgresql")
def _postgresql_now(element: db_now, _compiler: Any, **_: Any) -> str:
    # clock_timestamp() moves inside a transaction; now() does not.
    return f"(clock_timestamp() + make_interval(secs => {element.offset_seconds:.3f}))"
