"""Files in OpenAI's words: data sets under another name, and the results of jobs."""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sqlalchemy.orm import Session

from app.db import datasets as dataset_queries
from app.db import jobs as job_queries
from app.db import keys as key_queries
from app.db import listings
from app.db.engine import Database
from app.db.jobs import JobRow
from app.db.listings import FileKey, Order
from app.domain.datasets import Dataset, data_file
from app.domain.errors import InUse, InvalidInput, NotFound
from app.domain.groups import shown
from app.domain.jobs import TERMINAL_STATES, JobState
from app.domain.openai import ids
from app.domain.openai.objects import CursorPage, File, Removed, page_of, seconds
from app.domain.openai.requests import ONLY_PURPOSE
from app.services import datasets
from app.services.openai import repeats, results
from app.services.openai.repeats import Attempt
from app.settings import Settings

RESULTS_PURPOSE = "fine-tune-results"
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Content:
    """The bytes of a file: on disk, or made at this moment."""

    filename: str
    path: Path | None = None
    data: bytes = b""


def create(
    db: Database,
    settings: Settings,
    project_id: str,
    source: BinaryIO,
    *,
    filename: str,
    expires_seconds: int | None,
    attempt: Attempt,
) -> File:
    """Store a file after checking every row.

    Raises:
        InvalidDataset: It cannot be read, or a row cannot be trained on; the message names the
            line.
        TooLarge: It is larger than the limit.
        IdempotencyConflict: The key was used for another file.
        Unavailable: It cannot be stored.
    """
    sha256 = _sha256(source)
    with repeats.flights.alone(f"file {project_id} {sha256} {filename}"):
        if attempt.is_repeat:
            with db.read() as session:
                known = dataset_queries.newest_like(
                    session,
                    project_id,
                    sha256=sha256,
                    filename=filename,
                    within_seconds=repeats.WITHIN_SECONDS,
                )
            if known is not None:
                return of_dataset(settings, known)
        dataset = datasets.upload(
            db,
            settings,
            project_id,
            source,
            name=filename[:200],
            filename=filename,
            idempotency_key=attempt.key,
            expires_seconds=expires_seconds,
        )
    return of_dataset(settings, dataset)


def require_purpose(purpose: str) -> None:
    """Refuse files for what there is not.

    Raises:
        InvalidInput: The purpose is not `fine-tune`.
    """
    if purpose != ONLY_PURPOSE:
        raise InvalidInput(
            f"purpose {shown(purpose)} is not available here; upload rows with purpose"
            f" {ONLY_PURPOSE}",
            param="purpose",
            code="unsupported_purpose",
        )


def page(
    db: Database,
    settings: Settings,
    project_id: str,
    *,
    after: str | None,
    limit: int,
    order: Order,
    purpose: str | None,
) -> CursorPage[File]:
    """List files by the time they were made.

    Raises:
        InvalidInput: `after` is no id of a file.
    """
    with db.read() as session:
        key = None if after is None else _place(session, project_id, after)
        keys: list[FileKey] = []
        if purpose in (None, ONLY_PURPOSE):
            keys += listings.datasets_beside(session, project_id, key, order=order, limit=limit + 1)
        if purpose in (None, RESULTS_PURPOSE):
            keys += listings.results_beside(session, project_id, key, order=order, limit=limit + 1)
        keys.sort(key=lambda each: (each.at, each.is_results, each.id), reverse=order == "desc")
        found = listings.files(session, keys[:limit])
    files = [_file(db, settings, each) for each in found]
    return page_of(files, has_more=len(keys) > limit)


def get(db: Database, settings: Settings, project_id: str, file_id: str) -> File:
    """Return a file.

    Raises:
        NotFound: There is none with this id.
    """
    with db.read() as session:
        found = _find(session, project_id, file_id)
    return _file(db, settings, found)


def content(db: Database, settings: Settings, project_id: str, file_id: str) -> Content:
    """Return the bytes of a file, as they were uploaded.

    Raises:
        NotFound: There is no such file, or its bytes are gone.
    """
    with db.read() as session:
        found = _find(session, project_id, file_id)
    if isinstance(found, JobRow):
        return Content(_results_name(found), data=results.table(db, found))
    path = data_file(settings.datasets_folder, found).path
    if not path.is_file():
        raise _gone(file_id)
    return Content(found.filename, path=path)


def delete(db: Database, settings: Settings, project_id: str, file_id: str) -> Removed:
    """Remove a file. Jobs that have ended keep what they made of it, but cannot be resumed.

    Raises:
        NotFound: There is no such file.
        InUse: A job that has not ended needs it.
        InvalidInput: It holds the results of a job.
    """
    with db.write() as session:
        found = _find(session, project_id, file_id)
        if isinstance(found, JobRow):
            raise InvalidInput(
                f"file {file_id} holds the results of job {ids.show(found.id)} and is made of its"
                " metrics; it goes when the job is deleted",
                param="file_id",
                code="not_deletable",
            )
        _remove(session, found)
    shutil.rmtree(settings.datasets_folder / found.id, ignore_errors=True)
    return Removed(id=file_id, object="file")


def of_dataset(settings: Settings, dataset: Dataset) -> File:
    """Return a data set as a file."""
    path = data_file(settings.datasets_folder, dataset).path
    is_there = path.is_file() and path.stat().st_size == dataset.bytes
    return File(
        id=ids.show(dataset.id),
        bytes=dataset.bytes,
        created_at=seconds(dataset.created_at),
        filename=dataset.filename,
        purpose="fine-tune",
        status="processed" if is_there else "error",
        status_details=None if is_there else "its bytes are gone or changed; upload it again",
        expires_at=None if dataset.expires_at is None else seconds(dataset.expires_at),
    )


def dataset_id(file_id: str, *, param: str) -> str:
    """Return the id of the data set that a file is.

    Raises:
        NotFound: It is no id of a file of rows.
    """
    found = ids.read(file_id, "ds")
    if found is None:
        raise NotFound(
            f"there is no file {shown(file_id)} to train or evaluate on; upload it with purpose"
            f" {ONLY_PURPOSE} and give its id",
            param=param,
            code="file_not_found",
        )
    return found


def _file(db: Database, settings: Settings, found: Dataset | JobRow) -> File:
    if isinstance(found, Dataset):
        return of_dataset(settings, found)
    assert found.finished_at is not None
    return File(
        id=ids.show_results(found.id),
        bytes=results.size(db, found),
        created_at=seconds(found.finished_at),
        filename=_results_name(found),
        purpose=RESULTS_PURPOSE,
        status="processed",
    )


def _results_name(row: JobRow) -> str:
    return f"{ids.show(row.id)}-results.csv"


def _find(session: Session, project_id: str, file_id: str) -> Dataset | JobRow:
    found: Dataset | JobRow | None = None
    own_id, job_id = ids.read(file_id, "ds"), ids.read_results(file_id)
    if own_id is not None:
        found = dataset_queries.get(session, own_id, project_id=project_id)
    elif job_id is not None:
        found = job_queries.get(session, job_id, project_id=project_id)
        found = found if found is not None and found.state == JobState.SUCCEEDED else None
    if found is None:
        raise NotFound(
            f"there is no file {shown(file_id)}; see GET /v1/files",
            param="file_id",
            code="file_not_found",
        )
    return found


def _place(session: Session, project_id: str, after: str) -> FileKey:
    try:
        found = _find(session, project_id, after)
    except NotFound as error:
        raise InvalidInput(
            f"after: there is no file {shown(after)}; give the id of the last file of the page"
            " before",
            param="after",
            code="invalid_cursor",
        ) from error
    if isinstance(found, Dataset):
        return FileKey(found.created_at, found.id, is_results=False)
    assert found.finished_at is not None
    return FileKey(found.finished_at, found.id, is_results=True)


def _remove(session: Session, dataset: Dataset) -> None:
    users = job_queries.uses_dataset(session, dataset.id)
    states = job_queries.states(session, users)
    busy = [job_id for job_id in users if states[job_id] not in TERMINAL_STATES]
    if busy:
        names = ", ".join(map(ids.show, busy[:3])) + (" ..." if len(busy) > 3 else "")
        raise InUse(
            f"file {ids.show(dataset.id)} is used by {names}; wait until they have ended, or cancel"
            " them",
            param="file_id",
        )
    if users:
        dataset_queries.withdraw(session, dataset.id)
    else:
        dataset_queries.remove(session, dataset.id)
    key_queries.forget(session, dataset.id)


def _gone(file_id: str) -> NotFound:
    return NotFound(
        f"the bytes of file {file_id} are gone; upload it again",
        param="file_id",
        code="file_not_found",
    )


def _sha256(source: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := source.read(_CHUNK_BYTES):
        digest.update(chunk)
    source.seek(0)
    return digest.hexdigest()
