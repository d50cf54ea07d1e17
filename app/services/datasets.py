"""Data sets: checked row by row while they are stored, never changed afterwards."""

import hashlib
import os
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.db import datasets as dataset_queries
from app.db import jobs as job_queries
from app.db import keys as key_queries
from app.db.engine import Database
from app.domain import failpoints, ids
from app.domain.datasets import (
    REPORT_FILE,
    Dataset,
    DatasetReport,
    OnBadRows,
    data_file_name,
)
from app.domain.errors import (
    IdempotencyConflict,
    InUse,
    NotFound,
    TooLarge,
    Unavailable,
)
from app.domain.groups import shown
from app.services import inspection
from app.settings import Settings

_CHUNK_BYTES = 1 << 20
_UPLOADED = "upload"
_SCOPE = "datasets"


def upload(
    db: Database,
    settings: Settings,
    project_id: str,
    source: BinaryIO,
    *,
    name: str,
    filename: str,
    on_bad_rows: OnBadRows = "refuse",
    idempotency_key: str | None = None,
    expires_seconds: int | None = None,
) -> Dataset:
    """Store a file of rows after checking every one.

    The file is complete on disk before its row exists, so a job never finds half of it.

    Args:
        on_bad_rows: `keep` stores a file that has rows which cannot be trained on; jobs drop them.
        expires_seconds: Life of the data set; without, it stays until it is deleted.

    Raises:
        InvalidDataset: The file cannot be read, or a row cannot be trained on; the message names
            the first ones.
        TooLarge: The file is larger than the limit, or would be once decompressed.
        IdempotencyConflict: The key was used for another file.
        Unavailable: The file cannot be stored, because the disk is full for example.
    """
    dataset_id = ids.new("ds")
    final = settings.datasets_folder / dataset_id
    report = _write_files(
        source,
        final,
        filename=filename,
        on_bad_rows=on_bad_rows,
        max_bytes=settings.max_upload_bytes,
    )
    # What makes an upload another one under the same idempotency key.
    body = hashlib.sha256(
        f"{report.sha256}\0{name}\0{filename}\0{on_bad_rows}".encode()
    ).hexdigest()
    insert = partial(
        _insert,
        db,
        project_id,
        dataset_id,
        name,
        filename,
        report,
        idempotency_key,
        body,
        expires_seconds,
    )
    try:
        try:
            dataset = insert()
        except IntegrityError:
            # Two uploads with one key at the same time: the other one is stored now.
            dataset = insert()
    except IdempotencyConflict:
        shutil.rmtree(final, ignore_errors=True)
        raise
    if dataset.id != dataset_id:
        shutil.rmtree(final, ignore_errors=True)
    return dataset


def _write_files(
    source: BinaryIO, final: Path, *, filename: str, on_bad_rows: OnBadRows, max_bytes: int
) -> DatasetReport:
    """Check a file and put it, with its report, where it belongs: whole or not at all."""
    temporary = final.with_name(f".tmp-{final.name}")
    try:
        temporary.mkdir(parents=True, mode=0o700)
        uploaded = temporary / _UPLOADED
        size, sha256 = _store(source, uploaded, max_bytes=max_bytes)
        report = inspection.inspect(
            uploaded,
            filename=filename,
            size=size,
            sha256=sha256,
            on_bad_rows=on_bad_rows,
            max_bytes=max_bytes,
        )
        uploaded.rename(temporary / data_file_name(report.container, report.compression))
        _write_durably(temporary / REPORT_FILE, report.model_dump_json(indent=2).encode())
        temporary.rename(final)
        _sync_folder(final.parent)
    except OSError as error:
        raise Unavailable(
            f"the file cannot be stored ({error.strerror or error}); make room on the disk of "
            "LORAD_HOME, or make it writable",
            param="file",
            code="storage_unavailable",
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return report


def get(db: Database, project_id: str, dataset_id: str) -> Dataset:
    with db.read() as session:
        return _get(session, project_id, dataset_id)


def page(db: Database, project_id: str, *, after: str | None, limit: int) -> Sequence[Dataset]:
    with db.read() as session:
        return dataset_queries.page(session, project_id, after=after, limit=limit)


def delete(db: Database, settings: Settings, project_id: str, dataset_id: str) -> None:
    """Remove a data set that no job was submitted with.

    Raises:
        NotFound: No such data set.
        InUse: A job needs it, now or to be resumed.
    """
    try:
        _delete_row(db, project_id, dataset_id)
    except IntegrityError as error:
        raise InUse(f"data set {dataset_id} was given to a job at this moment") from error
    shutil.rmtree(settings.datasets_folder / dataset_id, ignore_errors=True)


def _delete_row(db: Database, project_id: str, dataset_id: str) -> None:
    with db.write() as session:
        _get(session, project_id, dataset_id)
        users = job_queries.uses_dataset(session, dataset_id)
        if users:
            names = ", ".join(users[:3]) + (" ..." if len(users) > 3 else "")
            raise InUse(f"data set {dataset_id} belongs to {names}; delete the jobs first")
        dataset_queries.remove(session, dataset_id)
        key_queries.forget(session, dataset_id)


def _store(source: BinaryIO, target: Path, *, max_bytes: int) -> tuple[int, str]:
    digest = hashlib.sha256()
    size = 0
    with target.open("xb") as file:
        while chunk := source.read(_CHUNK_BYTES):
            size += len(chunk)
            if size > max_bytes:
                raise TooLarge(
                    f"the file is larger than {max_bytes} bytes (LORAD_MAX_UPLOAD_BYTES)",
                    param="file",
                )
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        failpoints.hit("dataset.fsync")
        os.fsync(file.fileno())
    return size, digest.hexdigest()


def _insert(
    db: Database,
    project_id: str,
    dataset_id: str,
    name: str,
    filename: str,
    report: DatasetReport,
    idempotency_key: str | None,
    body: str,
    expires_seconds: int | None,
) -> Dataset:
    with db.write() as session:
        if idempotency_key is not None:
            known = key_queries.recall(session, project_id, _SCOPE, idempotency_key)
            if known is not None and known.body_sha256 != body:
                raise IdempotencyConflict(
                    "this Idempotency-Key was used for another upload; use a new key"
                )
            if known is not None:
                return _get(session, project_id, known.resource_id)
            key_queries.remember(
                session,
                project_id,
                _SCOPE,
                idempotency_key,
                body_sha256=body,
                resource_id=dataset_id,
            )
        return dataset_queries.insert(
            session,
            project_id,
            dataset_id,
            name=name,
            filename=filename,
            report=report,
            expires_seconds=expires_seconds,
        )


def _get(session: Session, project_id: str, dataset_id: str) -> Dataset:
    found = None
    if ids.is_id(dataset_id, "ds"):  # the database never sees what cannot be an id
        found = dataset_queries.get(session, dataset_id, project_id=project_id)
    if found is None:
        raise NotFound(
            f"there is no data set {shown(dataset_id)}; see GET /datasets", param="dataset_id"
        )
    return found


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
