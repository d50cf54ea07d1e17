"""What endpoints ask for: the process's parts, the caller's project, cursors."""

from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import Depends, Header, Path, Query, Request

from app.asking import Asker
from app.db.engine import Database
from app.domain import ids
from app.domain.errors import InvalidInput
from app.services.jobs import Outside
from app.settings import Settings
from app.stream import LiveReader

# What columns of the database can hold.
MAX_INT32 = 2**31 - 1
MAX_INT64 = 2**63 - 1

_AFTER = "Id of the last item of the page before; the answer starts behind it."


@dataclass(frozen=True)
class Parts:
    """The parts of one API process."""

    settings: Settings
    db: Database
    outside: Outside
    reader: LiveReader
    asker: Asker


def _parts(request: Request) -> Parts:
    return request.app.state.parts


def _db(request: Request) -> Database:
    return _parts(request).db


def _settings(request: Request) -> Settings:
    return _parts(request).settings


def _outside(request: Request) -> Outside:
    return _parts(request).outside


def _project(request: Request) -> str:
    return request.state.project_id


def _after_job(after: Annotated[str | None, Query(description=_AFTER)] = None) -> str | None:
    return _cursor(after, "job")


def _after_dataset(after: Annotated[str | None, Query(description=_AFTER)] = None) -> str | None:
    return _cursor(after, "ds")


def _cursor(after: str | None, prefix: str) -> str | None:
    if after is not None and not ids.is_id(after, prefix):
        raise InvalidInput(
            f"after: {after[:60]!r} is no cursor; give the id of the last item of the page before",
            param="after",
            code="invalid_cursor",
        )
    return after


Db = Annotated[Database, Depends(_db)]
Config = Annotated[Settings, Depends(_settings)]
Reach = Annotated[Outside, Depends(_outside)]
Project = Annotated[str, Depends(_project)]
JobAfter = Annotated[str | None, Depends(_after_job)]
DatasetAfter = Annotated[str | None, Depends(_after_dataset)]
Limit = Annotated[int, Query(ge=1, le=100, description="Most items in the answer.")]
JobId = Annotated[str, Path(description="Id of the job.", max_length=64)]
Which = Annotated[
    str,
    Path(
        description="A step on the current branch, `latest`, `best`, or the id of a checkpoint.",
        max_length=64,
    ),
]
IdempotencyKey = Annotated[
    str | None,
    Header(
        description="Any text of your own: the same key and body give the same answer again.",
        min_length=1,
        max_length=255,
    ),
]
Include = Annotated[
    Literal["superseded"] | None,
    Query(description="`superseded` also lists what a resume from an earlier step left behind."),
]
