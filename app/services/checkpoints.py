"""Checkpoints from the user's side: list, verify, pin, delete, download."""

import logging
import os
import shutil
import zipfile
from collections.abc import Generator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from io import RawIOBase
from pathlib import Path
from typing import Any, BinaryIO

from sqlalchemy.orm import Session

from app.db import checkpoints as checkpoint_queries
from app.db import exports as export_queries
from app.db import jobs as job_queries
from app.db.engine import Database
from app.domain import checkpoints, failpoints, ids
from app.domain.checkpoints import ADAPTER_FILES, MANIFEST_NAME, BadCheckpoint, Checkpoint
from app.domain.errors import CheckpointUnusable, InUse, InvalidInput, NotFound
from app.domain.runs import FINAL_FOLDER, attempt_folder, checkpoint_folder
from app.domain.spec import JobSpec
from app.services import jobs
from app.settings import Settings

_log = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 20
_MAX_STEP_DIGITS = 9  # more than max_steps can have, and less than overflows the column
LATEST = "latest"
BEST = "best"
FINAL = "final"


def of_job(db: Database, project_id: str, job_id: str, *, superseded: bool) -> Sequence[Checkpoint]:
    with db.read() as session:
        jobs.require(session, project_id, job_id)
        return checkpoint_queries.of_job(session, job_id, superseded=superseded)


def get(db: Database, project_id: str, job_id: str, which: str) -> Checkpoint:
    """Return a checkpoint of a job.

    Args:
        which: A step on the current branch, `latest`, `best`, or the id of a checkpoint.

    Raises:
        NotFound: The job has no such checkpoint; one of another job is none of this job's.
        InvalidInput: `which` is none of the four.
    """
    with db.read() as session:
        jobs.require(session, project_id, job_id)
        return find(session, job_id, which)


def find(session: Session, job_id: str, which: str) -> Checkpoint:
    """Do what `get` does, inside a transaction."""
    if which == LATEST:
        found = checkpoint_queries.latest(session, job_id)
    elif which == BEST:
        return _best(session, job_id)
    elif which.isascii() and which.isdigit() and len(which) <= _MAX_STEP_DIGITS:
        found = checkpoint_queries.at_step(session, job_id, int(which))
    elif ids.is_id(which, "ckpt"):
        found = checkpoint_queries.get(session, job_id, which)
    else:
        raise InvalidInput(
            f"{which[:60]!r} is no checkpoint; give a step, `latest`, `best`, or the id of a"
            " checkpoint",
            param="checkpoint",
        )
    if found is None:
        have = [
            str(each.step) for each in checkpoint_queries.of_job(session, job_id, superseded=False)
        ]
        raise NotFound(
            f"job {job_id} has no checkpoint {which}; it has: {', '.join(have) or 'none'}",
            param="checkpoint",
        )
    return found


def _best(session: Session, job_id: str) -> Checkpoint:
    """Return the checkpoint of the lowest evaluation loss on the current branch."""
    found = checkpoint_queries.best(session, job_id)
    if found is not None:
        return found
    row = job_queries.get(session, job_id)
    assert row is not None  # whoever asks has looked it up in this transaction
    if row.best_step is not None:
        why = (
            f"the one of its best evaluation (step {row.best_step}) is not committed yet, was"
            " deleted, or is corrupt, and no other was evaluated"
        )
    elif not JobSpec.model_validate(row.spec).dataset.is_evaluated:
        why = (
            "it has no rows to evaluate on; submit one with dataset.val_size or dataset.eval_id,"
            " and training.eval_steps to evaluate while it trains"
        )
    else:
        why = (
            "no evaluation on its current branch had a finite loss yet; look at"
            f" GET /jobs/{job_id}/evaluations"
        )
    raise NotFound(
        f"job {job_id} has no best checkpoint: {why}", param="checkpoint", code="no_evaluation"
    )


def folder_of(settings: Settings, checkpoint: Checkpoint) -> Path:
    return checkpoint_folder(settings.home, checkpoint.job_id, checkpoint.attempt, checkpoint.step)


def require_good(db: Database, settings: Settings, checkpoint: Checkpoint) -> None:
    """Verify a checkpoint's files; one that fails is marked corrupt for good.

    Raises:
        CheckpointUnusable: It does not verify; the message names the file.
    """
    if checkpoint.status == "corrupt":
        raise CheckpointUnusable(
            f"checkpoint {checkpoint.step} is corrupt: {checkpoint.corrupt_reason}",
            param="checkpoint",
        )
    try:
        checkpoints.verify(
            folder_of(settings, checkpoint), manifest_sha256=checkpoint.manifest_sha256
        )
    except (BadCheckpoint, OSError) as error:
        with db.write() as session:
            mark_corrupt(session, checkpoint, str(error))
        raise CheckpointUnusable(
            f"checkpoint {checkpoint.step} failed verification: {error}", param="checkpoint"
        ) from error


def mark_corrupt(session: Session, checkpoint: Checkpoint, reason: str) -> None:
    if checkpoint_queries.mark_corrupt(session, checkpoint.id, reason):
        job_queries.add_event(
            session,
            checkpoint.job_id,
            "checkpoint_corrupt",
            f"checkpoint {checkpoint.step} failed verification: {reason}",
            attempt=checkpoint.attempt,
            data={"step": checkpoint.step, "checkpoint_id": checkpoint.id},
        )


def pin(db: Database, project_id: str, job_id: str, which: str, *, pinned: bool) -> Checkpoint:
    with db.write() as session:
        jobs.require(session, project_id, job_id)
        found = find(session, job_id, which)
        checkpoint_queries.pin(session, found.id, pinned=pinned)
        return find(session, job_id, found.id)


def delete(db: Database, settings: Settings, project_id: str, job_id: str, which: str) -> None:
    """Remove one checkpoint.

    Raises:
        InUse: It is pinned, it is what a running or resumable job would continue from, or an
            attempt is starting from it now.
    """
    with db.write() as session:
        row = jobs.require(session, project_id, job_id, lock=True)
        found = find(session, job_id, which)
        newest = checkpoint_queries.latest(session, job_id)
        if newest is not None and newest.id == found.id and not job_queries.to_job(row).is_terminal:
            raise InUse(
                f"checkpoint {found.step} is the newest good one of a job that has not ended"
            )
        if row.resume_checkpoint_id == found.id:
            raise InUse(f"checkpoint {found.step} is what job {job_id} continues from")
        if export_queries.uses(session, found.id):
            raise InUse(
                f"checkpoint {found.step} is being exported; see GET /jobs/{job_id}/exports"
            )
        if not checkpoint_queries.mark_deleting(session, found.id):
            raise InUse(f"checkpoint {found.step} is pinned; unpin it first")
    remove_files(db, settings, found)


def remove_files(db: Database, settings: Settings, checkpoint: Checkpoint) -> None:
    """Delete a checkpoint that is marked `deleting`: first out of sight, then off the disk.

    What the disk does not let go of stays marked; the sweeper comes back for it.
    """
    folder = folder_of(settings, checkpoint)
    trash = folder.with_name(f".trash-{checkpoint.id}")
    try:
        failpoints.hit("checkpoint.delete")
        if folder.is_dir():
            folder.rename(trash)
        if trash.exists():
            shutil.rmtree(trash)
    except OSError as error:
        _log.warning("checkpoint %s is not deleted yet: %s", checkpoint.id, error)
        return
    with db.write() as session:
        checkpoint_queries.remove(session, checkpoint.id)


def adapter_folder(
    db: Database, settings: Settings, project_id: str, job_id: str, which: str
) -> Path:
    """Return the verified folder of a checkpoint, or of the final adapter when `which` is `final`.

    Raises:
        NotFound: The job has no such adapter.
        CheckpointUnusable: Its files do not verify.
    """
    if which != FINAL:
        found = get(db, project_id, job_id, which)
        require_good(db, settings, found)
        return folder_of(settings, found)
    with db.read() as session:
        row = jobs.require(session, project_id, job_id)
    if row.final_attempt is None:
        raise NotFound(f"job {job_id} has no final adapter: it is {row.state}", param="checkpoint")
    folder = attempt_folder(settings.home, job_id, row.final_attempt) / FINAL_FOLDER
    try:
        checkpoints.verify(folder, manifest_sha256=row.final_manifest_sha256)
    except (BadCheckpoint, OSError) as error:
        raise CheckpointUnusable(f"the final adapter failed verification: {error}") from error
    return folder


def zipped(
    folder: Path, names: Sequence[str] = (*ADAPTER_FILES, MANIFEST_NAME)
) -> Generator[bytes]:
    """Return a zip archive of files of a folder piece by piece, never holding a file in memory.

    Every file is open when this returns, so that a deletion from then on takes nothing away.

    Raises:
        CheckpointUnusable: It was deleted since it was verified.
    """
    pieces = _zip_pieces(folder, names)
    try:
        next(pieces)
    except OSError as error:
        raise CheckpointUnusable(f"{folder.name} was deleted at this moment") from error
    return pieces


def _zip_pieces(folder: Path, names: Sequence[str]) -> Generator[bytes]:
    """Yield nothing once every file is open, then the archive; closing it closes the files."""
    sink = _Sink()
    with ExitStack() as stack:
        sources = {name: stack.enter_context((folder / name).open("rb")) for name in names}
        yield b""
        with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
            for name, source in sources.items():
                with archive.open(_entry(name, source), "w") as target:
                    while chunk := source.read(_CHUNK_BYTES):
                        target.write(chunk)
                        yield sink.take()
    yield sink.take()


def _entry(name: str, source: BinaryIO) -> zipfile.ZipInfo:
    """Describe an open file; its path may be gone."""
    found = os.fstat(source.fileno())
    written = datetime.fromtimestamp(found.st_mtime, UTC)
    info = zipfile.ZipInfo(name, written.timetuple()[:6])
    info.external_attr = (found.st_mode & 0xFFFF) << 16
    info.file_size = found.st_size
    return info


class _Sink(RawIOBase):
    """A file that cannot seek and forgets what was taken; zipfile then writes sizes last."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._buffer += data
        return len(data)

    def take(self) -> bytes:
        taken = bytes(self._buffer)
        self._buffer.clear()
        return taken
