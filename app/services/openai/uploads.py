"""Uploads: a file that comes in parts, put together and then checked as any other."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, cast

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.db import datasets as dataset_queries
from app.db import keys as key_queries
from app.db import uploads as upload_queries
from app.db.engine import Database
from app.db.uploads import StoredPart, StoredUpload
from app.domain import ids as own_ids
from app.domain.errors import (
    IdempotencyConflict,
    InvalidInput,
    NotFound,
    TooLarge,
    Unavailable,
)
from app.domain.groups import shown
from app.domain.openai import ids
from app.domain.openai.objects import Upload, UploadPart, seconds
from app.domain.openai.requests import CompleteUpload, CreateUpload
from app.services import datasets
from app.services.openai import files, repeats
from app.services.openai.parts import Joined, require_whole, write
from app.services.openai.repeats import Attempt
from app.settings import Settings

LIFE_SECONDS = 3600
_SCOPE = "v1.uploads"
# A part that came twice counts twice until the upload is completed.
_MOST_TIMES = 2


def create(
    db: Database, settings: Settings, project_id: str, body: CreateUpload, *, attempt: Attempt
) -> Upload:
    """Begin an upload; it has to be completed within an hour.

    Raises:
        InvalidInput: The purpose is not available.
        TooLarge: The file is larger than the limit.
        IdempotencyConflict: The key was used for another upload.
    """
    files.require_purpose(body.purpose)
    if body.bytes > settings.max_upload_bytes:
        raise TooLarge(
            f"bytes = {body.bytes} is more than the {settings.max_upload_bytes} that a file may"
            " have (LORAD_MAX_UPLOAD_BYTES)",
            param="bytes",
        )
    digest = repeats.digest(project_id, body.model_dump_json())
    with repeats.flights.alone(f"upload {digest}"):
        try:
            stored = _stored(db, project_id, body, attempt, digest)
        except IntegrityError:
            # Another request with this key was faster; it is stored now, so this finds it.
            stored = _stored(db, project_id, body, attempt, digest)
    return _shown(stored)


def add_part(
    db: Database,
    settings: Settings,
    project_id: str,
    upload_id: str,
    source: BinaryIO,
    *,
    attempt: Attempt,
) -> UploadPart:
    """Store a part of a file.

    Raises:
        NotFound: There is no such upload.
        InvalidInput: It has ended, or its parts would hold far more than was announced.
        Unavailable: The part cannot be stored.
    """
    with db.read() as session:
        upload = _require_pending(_require(session, project_id, upload_id), "take a part")
    part_id = own_ids.new("part")
    folder = _folder(settings, upload.id)
    temporary = folder / f".tmp-{part_id}"
    try:
        num_bytes, sha256 = write(source, temporary, most=upload.bytes)
        with repeats.flights.alone(f"part {upload.id} {sha256}"):
            part = _known_part(db, upload, sha256) if attempt.is_repeat else None
            if part is None:
                temporary.rename(folder / part_id)
                part = _add(db, project_id, upload_id, part_id, num_bytes, sha256)
    except OSError as error:
        raise Unavailable(
            f"the part cannot be stored ({error.strerror or error}); make room on the disk of"
            " LORAD_HOME, or make it writable",
            param="data",
            code="storage_unavailable",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return UploadPart(
        id=ids.show(part.id), created_at=seconds(part.created_at), upload_id=upload_id
    )


def complete(
    db: Database, settings: Settings, project_id: str, upload_id: str, body: CompleteUpload
) -> Upload:
    """Put the parts together and store the file; the same request again gives the same file.

    Raises:
        NotFound: There is no such upload.
        InvalidInput: It has ended; parts are missing, unknown or named twice; or size or MD5 are
            not what was announced.
        InvalidDataset: A row cannot be trained on; the message names the line.
    """
    digest = repeats.digest(*body.part_ids, body.md5)
    with repeats.flights.alone(f"complete {upload_id}"):
        with db.read() as session:
            upload = _require(session, project_id, upload_id)
            parts = upload_queries.parts(session, upload.id)
        if upload.state == "completed" and upload.completed_with == digest:
            return _with_file(db, settings, upload)
        _require_pending(upload, "be completed")
        chosen = _chosen(upload, parts, body.part_ids)
        paths = [_folder(settings, upload.id) / part.id for part in chosen]
        require_whole(paths, body.md5)
        dataset = datasets.upload(
            db,
            settings,
            project_id,
            cast(BinaryIO, Joined(paths)),
            name=upload.filename[:200],
            filename=upload.filename,
            idempotency_key=upload.id,
            expires_seconds=upload.file_seconds,
        )
        _settle(db, upload, dataset.id, digest)
        shutil.rmtree(_folder(settings, upload.id), ignore_errors=True)
    return get(db, settings, project_id, upload_id)


def cancel(db: Database, settings: Settings, project_id: str, upload_id: str) -> Upload:
    """End an upload and remove its parts; one that is cancelled already stays so.

    Raises:
        NotFound: There is no such upload.
        InvalidInput: It is completed or expired.
    """
    with db.write() as session:
        upload = _require(session, project_id, upload_id, lock=True)
        if upload.state != "cancelled":
            _require_pending(upload, "be cancelled")
            upload_queries.move(session, upload.id, "cancelled")
            upload_queries.forget_parts(session, upload.id)
    shutil.rmtree(_folder(settings, upload.id), ignore_errors=True)
    return get(db, settings, project_id, upload_id)


def get(db: Database, settings: Settings, project_id: str, upload_id: str) -> Upload:
    with db.read() as session:
        upload = _require(session, project_id, upload_id)
    return _with_file(db, settings, upload)


def _stored(
    db: Database, project_id: str, body: CreateUpload, attempt: Attempt, digest: str
) -> StoredUpload:
    with db.write() as session:
        known = _recalled(session, project_id, body, attempt, digest)
        if known is not None:
            return known
        stored = upload_queries.insert(
            session,
            project_id,
            filename=body.filename,
            mime_type=body.mime_type,
            purpose=body.purpose,
            num_bytes=body.bytes,
            file_seconds=None if body.expires_after is None else body.expires_after.seconds,
            life_seconds=LIFE_SECONDS,
        )
        if attempt.key is not None:
            key_queries.remember(
                session,
                project_id,
                _SCOPE,
                attempt.key,
                body_sha256=digest,
                resource_id=stored.id,
            )
        return stored


def _recalled(
    session: Session, project_id: str, body: CreateUpload, attempt: Attempt, digest: str
) -> StoredUpload | None:
    if attempt.key is not None:
        known = key_queries.recall(session, project_id, _SCOPE, attempt.key)
        if known is not None and known.body_sha256 != digest:
            raise IdempotencyConflict(
                "this Idempotency-Key was used for another upload; use a new key"
            )
        return known and upload_queries.get(session, project_id, known.resource_id)
    if not attempt.is_repeat:
        return None
    return upload_queries.newest_like(
        session,
        project_id,
        filename=body.filename,
        mime_type=body.mime_type,
        num_bytes=body.bytes,
        within_seconds=repeats.WITHIN_SECONDS,
    )


def _require(
    session: Session, project_id: str, upload_id: str, *, lock: bool = False
) -> StoredUpload:
    own_id = ids.read(upload_id, "upload")
    found = None
    if own_id is not None:
        found = upload_queries.get(session, project_id, own_id, lock=lock)
    if found is None:
        raise NotFound(
            f"there is no upload {shown(upload_id)}; begin one with POST /v1/uploads",
            param="upload_id",
            code="upload_not_found",
        )
    return found


def _require_pending(upload: StoredUpload, verb: str) -> StoredUpload:
    if upload.state != "pending":
        why = {"expired": f" (after {LIFE_SECONDS // 60} minutes)"}.get(upload.state, "")
        raise InvalidInput(
            f"upload {ids.show(upload.id)} is {upload.state}{why} and cannot {verb}; begin a new"
            " one with POST /v1/uploads",
            param="upload_id",
            code="invalid_upload_state",
        )
    return upload


def _chosen(
    upload: StoredUpload, parts: Sequence[StoredPart], part_ids: Sequence[str]
) -> list[StoredPart]:
    """Return the parts in the order asked for.

    Raises:
        InvalidInput: One is none of this upload or named twice, or together they have another size.
    """
    known = {ids.show(part.id): part for part in parts}
    for index, part_id in enumerate(part_ids):
        problem = "is no part of this upload" if part_id not in known else None
        if part_id in part_ids[:index]:
            problem = "is named twice"
        if problem is not None:
            raise InvalidInput(
                f"part_ids: {shown(part_id)} {problem}; give the id of every part once, in the"
                " order of the file",
                param="part_ids",
                code="invalid_part",
            )
    chosen = [known[part_id] for part_id in part_ids]
    size = sum(part.bytes for part in chosen)
    if size != upload.bytes:
        raise InvalidInput(
            f"the {len(chosen)} parts have {size} bytes together, and {upload.bytes} were"
            " announced; upload what is missing, and name every part in part_ids",
            param="part_ids",
            code="wrong_size",
        )
    return chosen


def _settle(db: Database, upload: StoredUpload, dataset_id: str, digest: str) -> None:
    with db.write() as session:
        is_first = upload_queries.move(
            session, upload.id, "completed", dataset_id=dataset_id, completed_with=digest
        )
        if is_first:
            upload_queries.forget_parts(session, upload.id)


def _with_file(db: Database, settings: Settings, upload: StoredUpload) -> Upload:
    if upload.dataset_id is None:
        return _shown(upload)
    with db.read() as session:
        dataset = dataset_queries.get(session, upload.dataset_id, project_id=upload.project_id)
    answer = _shown(upload)
    if dataset is None:
        return answer  # the file was deleted since
    return answer.model_copy(update={"file": files.of_dataset(settings, dataset)})


def _shown(upload: StoredUpload) -> Upload:
    return Upload(
        id=ids.show(upload.id),
        bytes=upload.bytes,
        created_at=seconds(upload.created_at),
        expires_at=seconds(upload.expires_at),
        filename=upload.filename,
        purpose=upload.purpose,
        status=upload.state,
    )


def _known_part(db: Database, upload: StoredUpload, sha256: str) -> StoredPart | None:
    with db.read() as session:
        return upload_queries.newest_part_like(
            session, upload.id, sha256=sha256, within_seconds=repeats.WITHIN_SECONDS
        )


def _add(
    db: Database, project_id: str, upload_id: str, part_id: str, num_bytes: int, sha256: str
) -> StoredPart:
    with db.write() as session:
        upload = _require(session, project_id, upload_id, lock=True)
        _require_pending(upload, "take a part")
        there = upload_queries.stored_bytes(session, upload.id)
        if there + num_bytes > upload.bytes * _MOST_TIMES:
            raise InvalidInput(
                f"the parts of upload {upload_id} would have {there + num_bytes} bytes, and"
                f" {upload.bytes} were announced; complete it, or cancel it and begin anew",
                param="data",
                code="wrong_size",
            )
        return upload_queries.add_part(
            session, upload.id, part_id=part_id, num_bytes=num_bytes, sha256=sha256
        )


def _folder(settings: Settings, upload_id: str) -> Path:
    return settings.home / "uploads" / upload_id
