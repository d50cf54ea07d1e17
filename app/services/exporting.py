"""Exports from the worker's side: claim, renew, settle; always under the fence."""

import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from app.db import exports as export_queries
from app.db import jobs as job_queries
from app.db import workers as worker_queries
from app.db.engine import Database
from app.db.exports import Claimed, ExportRow
from app.domain import failpoints, ids
from app.domain.errors import Fenced
from app.domain.exports import (
    FILES_FOLDER,
    MAX_TRIES,
    ExportState,
    export_folder,
    exports_folder,
    work_folder,
)
from app.domain.jobs import JobError
from app.domain.runs import FINAL_FOLDER, RUN_FILE, attempt_folder, checkpoint_folder
from app.domain.spec import JobSpec
from app.domain.tools import ExportProgress, ExportRequest, ExportResult
from app.queue import Doorbell
from app.services import catalog, workers
from app.settings import Settings

_log = logging.getLogger(__name__)

_GRACE_SHARE = 2 / 15
_NAME_CHARACTERS = 48


def claim(db: Database, settings: Settings, worker_id: str) -> Claimed | None:
    """Take the oldest queued export that this worker has the base model of."""
    models = catalog.model_names(settings)
    with db.write() as session:
        return export_queries.claim(
            session, worker_id, models=models, lease_seconds=settings.lease_seconds
        )


def request_of(db: Database, settings: Settings, key: Claimed) -> ExportRequest:
    """Return what the process is told that does a claimed export.

    Raises:
        Fenced: It was deleted.
        InvalidModel: The base model cannot be used any more.
    """
    with db.read() as session:
        row = export_queries.get(session, key.job_id, key.id)
        job = job_queries.get(session, key.job_id)
    if row is None or job is None:
        raise Fenced(f"export {key.id} was deleted")
    spec = JobSpec.model_validate(job.spec)
    model = catalog.require_model(settings, spec.base_model)
    return ExportRequest(
        export_id=key.id,
        name=_name(spec, key.job_id),
        format=row.format,  # type: ignore[arg-type]
        dtype=row.dtype,
        base=row.base,  # type: ignore[arg-type]
        spec=spec,
        trained_on=_trained_on(settings, row),
        model_folder=model.path,
        adapter_folder=_adapter_folder(settings, row),
        adapter_manifest_sha256=row.manifest_sha256,
        cache_folder=settings.cache_folder,
    )


def renew(db: Database, settings: Settings, key: Claimed, at: ExportProgress) -> bool:
    """Keep a claimed export, and tell how far it is; true when it is to be cancelled.

    Raises:
        Fenced: It was deleted, or belongs to another worker now.
    """
    with db.write() as session:
        row = export_queries.renew(
            session,
            key,
            lease_seconds=settings.lease_seconds,
            progress=at.progress,
            phase=at.phase,
        )
    if row is None:
        raise Fenced(f"export {key.id} is another worker's now, or was deleted")
    return row.cancel_requested


def finish(db: Database, settings: Settings, key: Claimed, result: ExportResult) -> None:
    """Put the files of a proven export in place and settle it; one without proof fails.

    Raises:
        Fenced: It was deleted, cancelled, or belongs to another worker now; the files are removed.
    """
    proof = {"parity": result.parity.model_dump(mode="json"), "dtype": result.dtype}
    if not result.parity.is_proven:
        problem = "; ".join(result.parity.problems)
        error = JobError(
            code="parity_failed",
            message=f"the export is not the model that was trained, and was removed: {problem}",
        )
        _settle(db, key, ExportState.FAILED, {**proof, "error": error.model_dump()})
        return
    target = export_folder(settings.home, key.job_id, key.id)
    # A try that died between the rename and the commit left one.
    shutil.rmtree(target, ignore_errors=True)
    (work_folder(settings.home, key.job_id, key.id, key.fence) / FILES_FOLDER).rename(target)
    _sync(target.parent)
    failpoints.hit("export.renamed")
    values = {
        **proof,
        "files": [each.model_dump() for each in result.files],
        "bytes": sum(each.bytes for each in result.files),
        "progress": 1.0,
    }
    try:
        _settle(db, key, ExportState.SUCCEEDED, values)
    except Fenced:
        shutil.rmtree(target, ignore_errors=True)
        raise


def fail(db: Database, key: Claimed, code: str, message: str) -> None:
    """Settle an export that cannot be done, whoever tries.

    Raises:
        Fenced: It was deleted, cancelled, or belongs to another worker now.
    """
    error = JobError(code=code, message=message)
    _settle(db, key, ExportState.FAILED, {"error": error.model_dump()})


def cancelled(db: Database, key: Claimed) -> None:
    """Settle an export that was stopped because its user asked for it."""
    with db.write() as session:
        export_queries.settle(session, key, ExportState.CANCELLED)


def give_back(db: Database, key: Claimed, *, crashed: str | None) -> None:
    """Put an export back in the queue; one that crashed too often fails.

    Args:
        db: The database.
        key: The try that ended.
        crashed: What happened; None when the worker drains, which costs no try.
    """
    with db.write() as session:
        row = export_queries.get(session, key.job_id, key.id)
        if row is None or row.fence != key.fence:
            return
        _put_back(session, row, key, crashed)


def settle_dead(db: Database, settings: Settings, *, also_expired: bool) -> list[str]:
    """Put exports back whose worker is gone; returns their ids.

    Args:
        db: The database.
        settings: Its lease tells when a silent worker counts as gone.
        also_expired: Whether to look at leases, or only for processes of this machine.
    """
    with db.read() as session:
        dead = [
            row
            for row in export_queries.running(session)
            if (identity := worker_queries.identity(session, row.owner or "")) is not None
            and workers.is_dead(identity)
        ]
        if also_expired:
            grace_seconds = settings.lease_seconds * _GRACE_SHARE
            dead += export_queries.expired(session, grace_seconds=grace_seconds)
    settled: list[str] = []
    for row in {each.id: each for each in dead}.values():
        key = Claimed(row.id, row.job_id, row.fence)
        with db.write() as session:
            current = export_queries.get(session, row.job_id, row.id)
            if current is None or current.fence != row.fence:
                continue
            if _put_back(session, current, key, "its worker died or was not heard of any more"):
                settled.append(row.id)
    return settled


def ring_for_forgotten(db: Database, settings: Settings, doorbell: Doorbell) -> bool:
    """Ring when an export has waited although a worker is there."""
    if not catalog.list_workers(db, settings):
        return False
    with db.write() as session:
        forgotten = export_queries.mark_forgotten_as_rung(
            session, after_seconds=settings.ring_again_seconds
        )
    return doorbell.call_for_exports() if forgotten else False


def leftovers(db: Database, settings: Settings, job_ids: Sequence[str]) -> Iterator[Path]:
    """Yield folders of exports that nothing refers to: of dead tries, and without a row."""
    found = [(job_id, path) for job_id in job_ids for path in _folders(settings.home, job_id)]
    with db.read() as session:
        known = export_queries.known(session, [_id_in(path.name) for _, path in found])
    for job_id, path in found:
        export_id = _id_in(path.name)
        state, fence = known.get(export_id, ("", 0))
        is_result = path.name == export_id and state in ("succeeded", "running")
        working = work_folder(settings.home, job_id, export_id, fence)
        if not is_result and not (state == "running" and path == working):
            yield path


def _folders(home: Path, job_id: str) -> list[Path]:
    try:
        return [path for path in exports_folder(home, job_id).iterdir() if path.is_dir()]
    except OSError:
        return []


def _id_in(name: str) -> str:
    """Return the id of the export that a folder's name is of; an empty text where it is none."""
    bare = name.removeprefix(".tmp-").removeprefix(".trash-")[: len("exp-") + 24]
    return bare if ids.is_id(bare, "exp") else ""


def _put_back(session: Any, row: ExportRow, key: Claimed, crashed: str | None) -> bool:
    if row.cancel_requested:
        return export_queries.settle(session, key, ExportState.CANCELLED)
    if crashed is None:
        return export_queries.settle(
            session, key, ExportState.QUEUED, {"tries": row.tries - 1, "progress": 0.0}
        )
    if row.tries < MAX_TRIES:
        return export_queries.settle(session, key, ExportState.QUEUED, {"progress": 0.0})
    error = JobError(
        code="export_crashed",
        message=f"it was begun {row.tries} times and ended without a result each time"
        f" ({crashed}); look at the workers' logs, and whether there is memory for the model twice",
    )
    return export_queries.settle(session, key, ExportState.FAILED, {"error": error.model_dump()})


def _settle(db: Database, key: Claimed, state: ExportState, values: dict[str, Any]) -> None:
    with db.write() as session:
        settled = export_queries.settle(session, key, state, values)
    if not settled:
        raise Fenced(f"export {key.id} was cancelled, deleted, or is another worker's now")


def _adapter_folder(settings: Settings, row: ExportRow) -> Path:
    if row.checkpoint_id is None:
        return attempt_folder(settings.home, row.job_id, row.attempt) / FINAL_FOLDER
    return checkpoint_folder(settings.home, row.job_id, row.attempt, row.step)


def _trained_on(settings: Settings, row: ExportRow) -> Any:
    path = attempt_folder(settings.home, row.job_id, row.attempt) / RUN_FILE
    with suppress(OSError, ValueError, KeyError):
        if json.loads(path.read_bytes())["device"] == "cuda":
            return "cuda"
    return "cpu"


def _name(spec: JobSpec, job_id: str) -> str:
    """Return a name for files and command lines: the job's, if it can be one, else its id."""
    plain = "".join(
        character if character.isascii() and (character.isalnum() or character in "._-") else "-"
        for character in spec.name or ""
    )
    return plain.strip("-._")[:_NAME_CHARACTERS].lower() or job_id


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
