"""The sweeper: finishes deletions that were cut short and removes half-written folders."""

import logging
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from sqlalchemy.exc import IntegrityError

from app.db import attempts
from app.db import checkpoints as checkpoint_queries
from app.db import datasets as dataset_queries
from app.db import jobs as job_queries
from app.db import uploads as upload_queries
from app.db.engine import Database
from app.domain import ids
from app.domain.jobs import OWNED_STATES
from app.domain.runs import TOKENS_FOLDER, TOKENS_USED_FILE, job_folder, step_of_folder
from app.services import checkpoints, exporting
from app.settings import Settings

_log = logging.getLogger(__name__)

# Longer than anything is under way beside a row: an upload, a save, a tool task.
_MIN_AGE_SECONDS = 3600.0
_LEFTOVERS = (".tmp-", ".trash-")
_IDS_IN_A_QUERY = 500
_SECONDS_A_DAY = 86_400.0


def sweep(db: Database, settings: Settings) -> None:
    """Clean up once; a job that a worker owns is never touched.

    Raises:
        Unavailable: The database is away; nothing is removed on a guess.
    """
    finish_deletions(db, settings)
    sweep_jobs(db, settings)
    sweep_datasets(settings)
    sweep_expired_datasets(db, settings)
    sweep_uploads(db, settings)
    sweep_tools(settings)
    sweep_tokens(settings)


def finish_deletions(db: Database, settings: Settings) -> None:
    """Delete the files of checkpoints that are marked `deleting`, and then their rows."""
    with db.read() as session:
        half_deleted = checkpoint_queries.half_deleted(session)
    for checkpoint in half_deleted:
        checkpoints.remove_files(db, settings, checkpoint)


def sweep_jobs(db: Database, settings: Settings) -> None:
    """Remove half-written folders, and checkpoints without a row, of jobs that no worker owns.

    A trainer that is killed between writing a checkpoint and reporting it leaves a folder that
    nothing refers to; its steps are done again.

    A folder whose job has no row stays: with a database restored from a backup, or another one on
    this home, it may be all that is left of a job.
    """
    for job_ids in _batches(settings.home / "jobs", "job"):
        with db.read() as session:
            states = job_queries.states(session, job_ids)
            known = checkpoint_queries.folders(session, job_ids)
            unread = attempts.unread(session, job_ids)
        for job_id in job_ids:
            if job_id in states and states[job_id] not in OWNED_STATES:
                folder = job_folder(settings.home, job_id)
                _remove_old(_leftovers_of_attempts(folder))
                _remove_old(_orphans(folder, job_id, known, unread))
        _remove_old(list(exporting.leftovers(db, settings, list(states))))


def sweep_datasets(settings: Settings) -> None:
    """Remove uploads that were cut short; complete data sets stay, as jobs' folders do."""
    _remove_old(_leftovers(settings.datasets_folder))


def sweep_expired_datasets(db: Database, settings: Settings) -> None:
    """Remove data sets whose time is over; one that a job goes on with stays until it has ended.

    Of those that jobs were submitted with, the rows stay as long as the jobs.
    """
    with db.read() as session:
        expired = dataset_queries.expired(session)
    for dataset_id, is_used in expired:
        shutil.rmtree(settings.datasets_folder / dataset_id, ignore_errors=True)
        if not is_used:
            # A job that was submitted at the moment of its end keeps the row.
            with suppress(IntegrityError), db.write() as session:
                dataset_queries.remove(session, dataset_id)


def sweep_uploads(db: Database, settings: Settings) -> None:
    """Let uploads expire that were not completed in time, and remove parts that nobody needs."""
    with db.read() as session:
        are_late = upload_queries.any_late(session)
    if are_late:
        with db.write() as session:
            upload_queries.expire(session)
    for upload_ids in _batches(settings.home / "uploads", "upload"):
        with db.read() as session:
            states = upload_queries.states(session, upload_ids)
        for upload_id in upload_ids:
            if states.get(upload_id) not in ("pending", None):
                shutil.rmtree(settings.home / "uploads" / upload_id, ignore_errors=True)


def sweep_tools(settings: Settings) -> None:
    """Remove the folders of tool tasks that whoever asked did not live to remove."""
    folder = settings.home / "tools"
    _remove_old(path for path in _folders(folder) if ids.is_id(path.name, "tool"))


def sweep_tokens(settings: Settings) -> None:
    """Remove cached tokens that no job used for long, and what dead builders left."""
    parent = settings.cache_folder / TOKENS_FOLDER
    _remove_old(_leftovers(parent))
    for folder in _folders(parent):
        if not folder.name.startswith(_LEFTOVERS) and _is_unused(folder, settings):
            # Moved first: whoever looks for it meanwhile finds all of it, or nothing.
            trash = folder.with_name(f".trash-{folder.name}")
            with suppress(OSError):
                folder.rename(trash)
                shutil.rmtree(trash)
                _log.info("removed the cached tokens %s, which nobody used", folder.name)


def _is_unused(folder: Path, settings: Settings) -> bool:
    try:
        used = (folder / TOKENS_USED_FILE).stat().st_mtime
    except OSError:
        return False  # another process sweeps too
    return time.time() - used > settings.token_cache_days * _SECONDS_A_DAY


def _batches(parent: Path, prefix: str) -> Iterator[Sequence[str]]:
    """Yield the ids that folders of `parent` are named by, as many as fit in a query."""
    found = [path.name for path in _folders(parent) if ids.is_id(path.name, prefix)]
    for start in range(0, len(found), _IDS_IN_A_QUERY):
        yield found[start : start + _IDS_IN_A_QUERY]


def _leftovers_of_attempts(job: Path) -> Iterator[Path]:
    for attempt in _folders(job / "attempts"):
        if attempt.name.isdecimal():
            yield from _leftovers(attempt)


def _orphans(
    job: Path, job_id: str, known: set[tuple[str, int, int]], unread: set[tuple[str, int]]
) -> Iterator[Path]:
    """Yield the checkpoint folders that no row knows, of attempts that have nothing left to say."""
    for attempt in _folders(job / "attempts"):
        if not attempt.name.isdecimal() or (job_id, int(attempt.name)) in unread:
            continue
        for folder in _folders(attempt):
            step = step_of_folder(folder.name)
            if step is not None and (job_id, int(attempt.name), step) not in known:
                yield folder


def _leftovers(parent: Path) -> Iterator[Path]:
    return (path for path in _folders(parent) if path.name.startswith(_LEFTOVERS))


def _folders(parent: Path) -> Sequence[Path]:
    """Return the folders in `parent`; links are none, and a parent that is gone has none."""
    try:
        return [path for path in parent.iterdir() if path.is_dir() and not path.is_symlink()]
    except FileNotFoundError:
        return []
    except OSError as error:
        _log.warning("cannot look into %s: %s", parent, error)
        return []


def _remove_old(folders: Iterable[Path]) -> None:
    for folder in folders:
        try:
            if _seconds_since_change(folder) < _MIN_AGE_SECONDS:
                continue
            shutil.rmtree(folder)
        except FileNotFoundError:
            continue  # another process sweeps too
        except OSError as error:
            _log.warning("cannot remove %s: %s", folder, error)
        else:
            _log.info("removed %s, which was left over", folder)


def _seconds_since_change(folder: Path) -> float:
    # Writing to a file in it does not change a folder's own time.
    changed = max(path.lstat().st_mtime for path in (folder, *folder.iterdir()))
    return time.time() - changed
