"""Data sets: checked line by line while they are stored, never changed afterwards."""

import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.db import datasets as dataset_queries
from app.db import jobs as job_queries
from app.db import keys as key_queries
from app.db.engine import Database
from app.domain import failpoints, ids, lines, rows
from app.domain.datasets import DATA_FILE, REPORT_FILE, Dataset, DatasetReport
from app.domain.errors import (
    IdempotencyConflict,
    InUse,
    InvalidDataset,
    NotFound,
    TooLarge,
    Unavailable,
)
from app.domain.groups import shown
from app.domain.rows import BadRow, RowFormat
from app.settings import Settings

_CHUNK_BYTES = 1 << 20
_MAX_PROBLEMS = 10
_MAX_IGNORED_KEYS = 50
_SCOPE = "datasets"


def upload(
    db: Database,
    settings: Settings,
    project_id: str,
    source: BinaryIO,
    *,
    name: str,
    filename: str,
    idempotency_key: str | None = None,
) -> Dataset:
    """Store a JSONL file after checking every line.

    The file is complete on disk before its row exists, so a job never finds half of it.

    Raises:
        InvalidDataset: A line cannot be trained on; the message names the first ones.
        TooLarge: The file is larger than the limit.
        IdempotencyConflict: The key was used for another file.
        Unavailable: The file cannot be stored, because the disk is full for example.
    """
    dataset_id = ids.new("ds")
    final = settings.datasets_folder / dataset_id
    report = _write_files(source, final, max_bytes=settings.max_upload_bytes)
    insert = partial(_insert, db, project_id, dataset_id, name, filename, report, idempotency_key)
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


def _write_files(source: BinaryIO, final: Path, *, max_bytes: int) -> DatasetReport:
    """Check a file and put it, with its report, where it belongs: whole or not at all."""
    temporary = final.with_name(f".tmp-{final.name}")
    try:
        temporary.mkdir(parents=True, mode=0o700)
        size, sha256 = _store(source, temporary / DATA_FILE, max_bytes=max_bytes)
        report = check(temporary / DATA_FILE, size=size, sha256=sha256)
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


def check(path: Path, *, size: int, sha256: str) -> DatasetReport:
    """Read every line of a file and describe it.

    Raises:
        InvalidDataset: The file is empty, a line is unusable, or its rows are of several formats.
    """
    found = _Findings()
    try:
        with path.open("rb") as file:
            for number, line in lines.numbered(file):
                found.look_at(number, line)
                if len(found.problems) > _MAX_PROBLEMS:
                    break
    except BadRow as bad:
        found.problems.append(bad.message)
    _refuse(found)
    return DatasetReport(
        bytes=size,
        sha256=sha256,
        num_rows=found.num_rows,
        format=next(iter(found.formats)),
        ignored_keys=sorted(found.ignored_keys)[:_MAX_IGNORED_KEYS],
    )


@dataclass
class _Findings:
    """What a look at every line found."""

    num_rows: int = 0
    formats: dict[RowFormat, int] = field(default_factory=dict[RowFormat, int])
    problems: list[str] = field(default_factory=list[str])
    ignored_keys: set[str] = field(default_factory=set[str])

    def look_at(self, number: int, line: bytes) -> None:
        self.num_rows += 1
        try:
            record = rows.decode(line)
            row = rows.parse_record(record)
        except BadRow as bad:
            self.problems.append(f"line {number}: {bad.message}")
            return
        self.formats.setdefault(rows.format_of(row), number)
        if len(self.ignored_keys) < _MAX_IGNORED_KEYS:
            self.ignored_keys |= rows.ignored_keys(record, row)


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


def _refuse(found: _Findings) -> None:
    if found.problems:
        more = "; and more" if len(found.problems) > _MAX_PROBLEMS else ""
        raise InvalidDataset("; ".join(found.problems[:_MAX_PROBLEMS]) + more, param="file")
    if found.num_rows == 0:
        raise InvalidDataset("the file is empty; it needs at least one JSON line", param="file")
    if len(found.formats) > 1:
        each = ", ".join(f"{name} from line {line}" for name, line in found.formats.items())
        raise InvalidDataset(
            f"rows of several formats ({each}); upload one file each", param="file"
        )


def _insert(
    db: Database,
    project_id: str,
    dataset_id: str,
    name: str,
    filename: str,
    report: DatasetReport,
    idempotency_key: str | None,
) -> Dataset:
    body = hashlib.sha256(f"{report.sha256}\0{name}\0{filename}".encode()).hexdigest()
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
            session, project_id, dataset_id, name=name, filename=filename, report=report
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
