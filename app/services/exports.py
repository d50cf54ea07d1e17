"""Exports from the user's side: ask for one, look, cancel, delete, download."""

import hashlib
import shutil
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.db import exports as export_queries
from app.db import keys as key_queries
from app.db.engine import Database
from app.db.exports import ExportRow
from app.db.jobs import JobRow
from app.domain import ids
from app.domain.errors import (
    IdempotencyConflict,
    InvalidInput,
    NotFound,
    StateConflict,
)
from app.domain.exports import (
    DTYPES,
    GGUF_ARCHITECTURES,
    BaseChoice,
    BaseUsed,
    Export,
    ExportFormat,
    ExportState,
    export_folder,
)
from app.domain.groups import shown
from app.domain.spec import JobSpec
from app.services import catalog, checkpoints, jobs
from app.services.jobs import Outside
from app.settings import Settings

_SCOPE = "exports"
_CHUNK_BYTES = 1 << 20
NO_WORKER = "no worker is running; start one with `lorad worker` (or everything with `lorad up`)"


class ExportBody(BaseModel):
    """What to export, and as what."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True
    )

    format: ExportFormat
    """`adapter` (PEFT), `merged` (plain transformers) or `gguf` (llama.cpp, Ollama)."""
    checkpoint: int | str | None = None
    """A step, `latest`, `best`, `final`, or the id of a checkpoint; the final adapter if there is
    one, else the newest checkpoint, when not given."""
    dtype: str = "auto"
    """merged: auto (that of the training), float32, bfloat16, float16; gguf: auto (f16), f32, f16,
    bf16, q8_0; adapter: auto."""
    base: BaseChoice = "auto"
    """What a QLoRA adapter is merged into: the `dequantized` weights that it saw (auto), or the
    `original` ones, from which those were rounded."""


@dataclass(frozen=True)
class _Source:
    """The adapter that an export starts from."""

    checkpoint_id: str | None
    attempt: int
    step: int
    manifest_sha256: str


def create(
    db: Database,
    outside: Outside,
    project_id: str,
    job_id: str,
    body: ExportBody,
    *,
    idempotency_key: str | None = None,
) -> Export:
    """Store a queued export, then ring for a worker; if the ring is lost, the reconciler rings.

    Raises:
        NotFound: No such job or checkpoint.
        InvalidInput: This job cannot be exported like that.
        CheckpointUnusable: The checkpoint does not verify.
        IdempotencyConflict: The key was used for another body.
    """
    digest = hashlib.sha256(f"{job_id}\n{body.model_dump_json()}".encode()).hexdigest()
    with db.read() as session:
        row = jobs.require(session, project_id, job_id)
        export_id = _recalled(session, project_id, idempotency_key, digest)
    if export_id is None:
        base = _require_possible(outside.settings, JobSpec.model_validate(row.spec), body)
        _require_good(db, outside.settings, project_id, row, body)
        store = partial(_store, db, project_id, job_id, body, base, idempotency_key, digest)
        try:
            export_id = store()
        except IntegrityError:
            # A request for another job used the key at this moment; this finds it, and refuses.
            export_id = store()
    outside.doorbell.call_for_exports()
    return get(db, outside.settings, project_id, job_id, export_id)


def get(db: Database, settings: Settings, project_id: str, job_id: str, export_id: str) -> Export:
    with db.read() as session:
        jobs.require(session, project_id, job_id)
        row = require(session, job_id, export_id)
    return _explained(db, settings, project_id, [row])[0]


def page(
    db: Database,
    settings: Settings,
    project_id: str,
    job_id: str,
    *,
    after: str | None,
    limit: int,
) -> list[Export]:
    with db.read() as session:
        jobs.require(session, project_id, job_id)
        rows = export_queries.of_job(session, job_id, after=after, limit=limit)
    return _explained(db, settings, project_id, rows)


def cancel(
    db: Database, settings: Settings, project_id: str, job_id: str, export_id: str
) -> Export:
    """Stop an export: a queued one at once, a running one at its worker's next heartbeat.

    Raises:
        StateConflict: It has ended already.
    """
    with db.write() as session:
        jobs.require(session, project_id, job_id)
        row = require(session, job_id, export_id)
        state = row.state
        if not export_queries.cancel_queued(session, export_id) and not (
            export_queries.ask_to_cancel(session, export_id)
        ):
            raise StateConflict(
                f"cannot cancel export {export_id}: it is {state}; DELETE removes it",
                param="export_id",
            )
    return get(db, settings, project_id, job_id, export_id)


def delete(db: Database, settings: Settings, project_id: str, job_id: str, export_id: str) -> None:
    """Remove an export and its files; a worker that is at it stops at its next heartbeat."""
    with db.write() as session:
        jobs.require(session, project_id, job_id)
        require(session, job_id, export_id)
        export_queries.remove(session, export_id)
        key_queries.forget(session, export_id)
    folder = export_folder(settings.home, job_id, export_id)
    trash = folder.with_name(f".trash-{export_id}")
    if folder.is_dir():
        # Out of sight at once; what the disk does not let go of is the sweeper's.
        folder.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)


def files(
    db: Database, settings: Settings, project_id: str, job_id: str, export_id: str
) -> tuple[Path, Sequence[str]]:
    """Return the folder of a finished export and the names of its files.

    Raises:
        StateConflict: It has not succeeded.
        NotFound: Its files are gone.
    """
    found = get(db, settings, project_id, job_id, export_id)
    if found.state is not ExportState.SUCCEEDED:
        raise StateConflict(
            f"export {export_id} has nothing to download: it is {found.state}", param="export_id"
        )
    folder = export_folder(settings.home, job_id, export_id)
    names = [each.name for each in found.files]
    sizes = {each.name: each.bytes for each in found.files}
    for name in names:
        path = folder / name
        if not path.is_file() or path.stat().st_size != sizes[name]:
            raise NotFound(
                f"export {export_id} is damaged: {name} is not what was written; delete it and"
                " export again",
                code="export_damaged",
            )
    return folder, names


def pieces(folder: Path, names: Sequence[str], wanted: str) -> Generator[bytes]:
    """Return one file piece by piece; it is open when this returns.

    Raises:
        NotFound: The export has no such file.
    """
    if wanted not in names:
        raise NotFound(
            f"the export has no file {shown(wanted)}; it has: {', '.join(names)}", param="file"
        )
    opened = _pieces(folder / wanted)
    next(opened)
    return opened


def _pieces(path: Path) -> Generator[bytes]:
    with path.open("rb") as file:
        yield b""
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


def require(session: Session, job_id: str, export_id: str) -> ExportRow:
    """Return an export of a job.

    Raises:
        NotFound: No such export.
    """
    row = None
    if ids.is_id(export_id, "exp"):
        row = export_queries.get(session, job_id, export_id)
    if row is None:
        raise NotFound(
            f"job {job_id} has no export {shown(export_id)}; see GET /jobs/{job_id}/exports",
            param="export_id",
        )
    return row


def _require_possible(settings: Settings, spec: JobSpec, body: ExportBody) -> BaseUsed:
    """Check what can be known before a worker looks; returns the base to use.

    Raises:
        InvalidInput: The choices do not fit each other, the job or its model.
    """
    if body.dtype not in DTYPES[body.format]:
        raise InvalidInput(
            f"dtype {shown(body.dtype)} is not possible with format {body.format}; possible:"
            f" {', '.join(DTYPES[body.format])}",
            param="dtype",
        )
    is_quantized = spec.quantization.load_in_4bit
    if body.base != "auto" and body.format == "adapter":
        raise InvalidInput(
            "base is for the formats merged and gguf; an adapter holds no base, so leave it out",
            param="base",
        )
    if body.base == "dequantized" and not is_quantized:
        raise InvalidInput(
            "base = dequantized is for jobs with adapter = qlora; this one was trained on the"
            " original weights, so leave base out",
            param="base",
        )
    model = catalog.require_model(settings, spec.base_model)
    if body.format == "gguf" and model.architecture not in GGUF_ARCHITECTURES:
        raise InvalidInput(
            f"the architecture {model.architecture} of {spec.base_model} cannot be written as GGUF"
            f" in this version; possible: {', '.join(GGUF_ARCHITECTURES)}; export it as merged",
            param="format",
            code="gguf_unsupported",
        )
    if body.base != "auto":
        return body.base
    return "dequantized" if is_quantized and body.format != "adapter" else "original"


def _require_good(
    db: Database, settings: Settings, project_id: str, row: JobRow, body: ExportBody
) -> None:
    """Verify the adapter's files before anything is promised."""
    with db.read() as session:
        source = _source(session, row, body)
        found = None
        if source.checkpoint_id is not None:
            found = checkpoints.find(session, row.id, source.checkpoint_id)
    if found is not None:
        checkpoints.require_good(db, settings, found)
    else:
        checkpoints.adapter_folder(db, settings, project_id, row.id, checkpoints.FINAL)


def _source(session: Session, row: JobRow, body: ExportBody) -> _Source:
    which = body.checkpoint
    if which is None:
        which = checkpoints.FINAL if row.final_attempt is not None else checkpoints.LATEST
    if which != checkpoints.FINAL:
        found = checkpoints.find(session, row.id, str(which))
        return _Source(found.id, found.attempt, found.step, found.manifest_sha256)
    if row.final_attempt is None or row.final_manifest_sha256 is None:
        raise NotFound(f"job {row.id} has no final adapter: it is {row.state}", param="checkpoint")
    return _Source(None, row.final_attempt, row.step, row.final_manifest_sha256)


def _store(
    db: Database,
    project_id: str,
    job_id: str,
    body: ExportBody,
    base: BaseUsed,
    idempotency_key: str | None,
    digest: str,
) -> str:
    with db.write() as session:
        row = jobs.require(session, project_id, job_id, lock=True)
        known = _recalled(session, project_id, idempotency_key, digest)
        if known is not None:
            return known
        export_id = ids.new("exp")
        _insert(session, export_id, row, body, base)
        if idempotency_key is not None:
            key_queries.remember(
                session,
                project_id,
                _SCOPE,
                idempotency_key,
                body_sha256=digest,
                resource_id=export_id,
            )
    return export_id


def _insert(
    session: Session, export_id: str, row: JobRow, body: ExportBody, base: BaseUsed
) -> None:
    # Looked up again: the job's row is locked now, so no deletion comes between.
    source = _source(session, row, body)
    values = {
        "checkpoint_id": source.checkpoint_id,
        "attempt": source.attempt,
        "step": source.step,
        "manifest_sha256": source.manifest_sha256,
        "format": body.format,
        "dtype": body.dtype,
        "base": base,
    }
    export_queries.insert(session, export_id, row.id, values)


def _recalled(
    session: Session, project_id: str, idempotency_key: str | None, digest: str
) -> str | None:
    if idempotency_key is None:
        return None
    known = key_queries.recall(session, project_id, _SCOPE, idempotency_key)
    if known is None:
        return None
    if known.body_sha256 != digest:
        raise IdempotencyConflict("this Idempotency-Key was used for another export; use a new key")
    return known.resource_id


def _explained(
    db: Database, settings: Settings, project_id: str, rows: Sequence[ExportRow]
) -> list[Export]:
    if not any(row.state == ExportState.QUEUED for row in rows):
        return [export_queries.to_export(row) for row in rows]
    with db.read() as session:
        base_model = jobs.require(session, project_id, rows[0].job_id).base_model
    waiting_for = _waiting_for(db, settings, base_model)
    return [
        export_queries.to_export(
            row, waiting_for=waiting_for if row.state == ExportState.QUEUED else None
        )
        for row in rows
    ]


def _waiting_for(db: Database, settings: Settings, base_model: str) -> str | None:
    workers = catalog.list_workers(db, settings)
    if not workers:
        return NO_WORKER
    if not any(base_model in worker.models for worker in workers):
        return f"no worker has base model {base_model}"
    return "a worker makes one export at a time; the next free one takes it"
