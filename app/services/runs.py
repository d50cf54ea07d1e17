"""Jobs from the worker's side: claim, begin, record, renew, settle; always under the fence."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from app.db import attempts
from app.db import checkpoints as checkpoint_queries
from app.db import datasets as dataset_queries
from app.db import jobs as job_queries
from app.db import workers as worker_queries
from app.db.engine import Database
from app.db.jobs import JobRow
from app.db.types import db_now
from app.domain import disk, failpoints
from app.domain.checkpoints import Checkpoint
from app.domain.datasets import Dataset
from app.domain.errors import Fenced
from app.domain.events import FinishedEvent
from app.domain.jobs import DISK_FULL, OWNED_STATES, Actor, Desired, JobError, JobState
from app.domain.runs import AttemptKey
from app.domain.spec import JobSpec
from app.domain.workers import Capability
from app.services import checkpoints, resume
from app.settings import Settings

_FIRST_BACKOFF_SECONDS = 5.0
_MAX_BACKOFF_SECONDS = 60.0


@dataclass(frozen=True)
class Claimed(AttemptKey):
    """A job that this worker owns under a fence."""

    spec: JobSpec
    dataset: Dataset
    eval_dataset: Dataset | None
    resume_checkpoint_id: str | None


def claim(
    db: Database, settings: Settings, *, worker_id: str, capability: Capability
) -> Claimed | None:
    """Take the best queued job that this worker can run; None without one, or a free slot."""
    with db.write() as session:
        worker_queries.lock(session, worker_id)
        job_id = job_queries.next_claimable(session, capability)
        if job_id is None:
            return None
        failpoints.hit("claim")
        row = job_queries.claim(
            session,
            job_id,
            worker_id=worker_id,
            slots=settings.slots,
            lease_seconds=settings.lease_seconds,
        )
        if row is None:
            return None
        dataset = dataset_queries.get(session, row.dataset_id)
        assert dataset is not None  # the foreign key holds it
        return Claimed(
            job_id=row.id,
            attempt=row.attempt,
            fence=row.fence,
            spec=JobSpec.model_validate(row.spec),
            dataset=dataset,
            eval_dataset=_eval_dataset(session, row),
            resume_checkpoint_id=row.resume_checkpoint_id,
        )


def _eval_dataset(session: Session, row: JobRow) -> Dataset | None:
    if row.eval_dataset_id is None:
        return None
    return dataset_queries.get(session, row.eval_dataset_id)


def begin(db: Database, settings: Settings, run: Claimed) -> Checkpoint | None:
    """Choose and verify the checkpoint that an attempt starts from, and leave the rest behind.

    Returns:
        The furthest good checkpoint of the job's branch; None to start at step 0.

    Raises:
        Fenced: Another attempt owns the job.
    """
    start = resume.choose(db, settings, run.job_id, wanted_id=run.resume_checkpoint_id)
    step = 0 if start is None else start.step
    with db.write() as session:
        # Read here, not from the claim: after a commit whose answer was lost, it was told already.
        wanted_id = _locked(session, run).resume_checkpoint_id
        if wanted_id is not None and (start is None or start.id != wanted_id):
            resume.tell_fallback(session, run.job_id, run.attempt, wanted_id, start)
        require_owner(session, run, {"resume_checkpoint_id": None})
        resume.leave_behind(session, run.job_id, after_step=step, before_fence=run.fence)
        checkpoint_id = None if start is None else start.id
        attempts.start_at(session, run, step=step, checkpoint_id=checkpoint_id)
    return start


def renew(db: Database, settings: Settings, run: Claimed) -> Desired:
    """Extend the lease and return what is asked of the job.

    Raises:
        Fenced: Another attempt owns the job, or it was reaped.
    """
    failpoints.hit("heartbeat")
    with db.write() as session:
        desired = job_queries.renew(
            session, run.job_id, fence=run.fence, lease_seconds=settings.lease_seconds
        )
    if desired is None:
        raise Fenced(f"attempt {run.attempt} of {run.job_id} lost its lease")
    return desired


def move(
    db: Database,
    run: Claimed,
    source: JobState,
    target: JobState,
    *,
    message: str,
    reason: str | None = None,
) -> None:
    """Change the state of an owned job whose attempt goes on.

    Raises:
        Fenced: Another attempt owns the job, or it is not in `source`.
    """
    with db.write() as session:
        _settle(session, run, source, target, reason, message, {}, ends=False)


def fail(db: Database, run: Claimed, source: JobState, error: JobError) -> None:
    """Settle a job as failed for good.

    A failure that trying again would repeat wins over a pause or cancel that came meanwhile, so
    what was asked is cleared: a failed job waits for nothing.
    """
    values = {"error": error.model_dump(), "desired": Desired.RUN.value}
    with db.write() as session:
        _settle(session, run, source, JobState.FAILED, error.code, error.message, values)


def succeed(db: Database, run: Claimed, finished: FinishedEvent) -> None:
    """Settle a job whose last event is stored and whose final adapter verified.

    A cancel that was accepted before this moment still cancels it; a pause came too late.

    Raises:
        Fenced: Another attempt owns the job.
    """
    values = {
        "desired": Desired.RUN.value,
        "final_attempt": run.attempt,
        "final_manifest_sha256": finished.manifest_sha256,
    }
    reason, message = None, f"trained {finished.step} steps"
    with db.write() as session:
        row = job_queries.get(session, run.job_id, lock=True)
        if row is not None and row.desired == Desired.CANCEL:
            _end_as_wished(session, run, JobState.FINALIZING, Desired.CANCEL, message)
            return
        if row is not None and finished.step < (row.total_steps or 0):
            reason = resume.EARLY_STOPPING
            message = f"{message} of {row.total_steps}, stopped early: see the event early_stopping"
        _settle(session, run, JobState.FINALIZING, JobState.SUCCEEDED, reason, message, values)


def settle_stopped(db: Database, run: Claimed, *, needed_bytes: int | None = None) -> JobState:
    """Settle a job whose trainer has stopped, by what is asked of it at this moment.

    Args:
        needed_bytes: Free space to wait for, where the trainer stopped for want of it.

    Returns:
        cancelled or paused as the user wished; paused when the disk is full; queued when it was
        only drained.

    Raises:
        Fenced: Another attempt owns the job.
    """
    with db.write() as session:
        row = _locked(session, run)
        is_full = row.state_reason == DISK_FULL and row.desired == Desired.RUN
        target = {
            Desired.CANCEL: JobState.CANCELLED,
            Desired.PAUSE: JobState.PAUSED,
            Desired.RUN: JobState.PAUSED if is_full else JobState.QUEUED,
        }[Desired(row.desired)]
        values: dict[str, Any] = {"rung_at": db_now(), "not_before": db_now()}
        if is_full:
            needed_bytes = needed_bytes or disk.SOME_BYTES
            values["needed_bytes"] = needed_bytes
            message = f"the disk is full; it goes on when {needed_bytes / 1e6:.0f} MB are free"
            _settle(session, run, JobState.STOPPING, target, DISK_FULL, message, values)
        else:
            reason = row.desired if target is not JobState.QUEUED else "drain"
            _settle(session, run, JobState.STOPPING, target, reason, f"{reason} done", values)
    return target


def crash(
    db: Database,
    settings: Settings,
    run: Claimed,
    source: JobState,
    what: str,
    *,
    outcome: str | None = None,
) -> None:
    """Settle a job whose trainer died.

    It goes back in the queue, or fails when its crash budget is spent, or ends as the user wished
    when a pause or cancel was asked for meanwhile.

    Args:
        outcome: How the attempt ended; the state that the job gets when not given.

    Raises:
        Fenced: Another attempt owns the job.
    """
    with db.write() as session:
        row = _locked(session, run)
        if row.desired != Desired.RUN:
            _end_as_wished(session, run, source, Desired(row.desired), what, outcome)
            return
        streak = row.crash_streak + 1
        if streak >= settings.max_crashes:
            error = crash_loop(streak, what)
            values: dict[str, Any] = {"error": error.model_dump(), "crash_streak": streak}
            target, reason, message = JobState.FAILED, error.code, error.message
            _settle(session, run, source, target, reason, message, values, outcome=outcome)
            return
        wait_seconds = backoff_seconds(streak)
        values = {
            "crash_streak": streak,
            "not_before": db_now(wait_seconds),
            "rung_at": db_now(wait_seconds - settings.ring_again_seconds),
        }
        message = f"{what}; trying again" + (f" in {wait_seconds:.0f} s" if wait_seconds else "")
        target = JobState.QUEUED
        _settle(session, run, source, target, "crash", message, values, outcome=outcome)


def give_back(db: Database, settings: Settings, run: Claimed, source: JobState, what: str) -> None:
    """Put a job back that could not start for no fault of its own; it costs no crash budget.

    Raises:
        Fenced: Another attempt owns the job.
    """
    with db.write() as session:
        row = _locked(session, run)
        if row.desired != Desired.RUN:
            _end_as_wished(session, run, source, Desired(row.desired), what)
            return
        wait_seconds = settings.ring_again_seconds
        values = {"not_before": db_now(wait_seconds), "rung_at": db_now()}
        _settle(session, run, source, JobState.QUEUED, "device_busy", what, values)


def crash_loop(streak: int, what: str) -> JobError:
    return JobError(
        code="crash_loop",
        message=f"crashed {streak} times without a new checkpoint in between; last: {what}. "
        "See the log (GET /jobs/{id}/logs), then resume the job",
    )


def backoff_seconds(streak: int) -> float:
    """Return the wait before the next attempt: none after the first crash, then growing."""
    if streak <= 1:
        return 0.0
    return min(_MAX_BACKOFF_SECONDS, _FIRST_BACKOFF_SECONDS * 2 ** (streak - 2))


def retire(db: Database, settings: Settings, run: Claimed) -> None:
    """Delete the checkpoints that `save_total_limit` no longer covers, after the commit."""
    limit = run.spec.training.save_total_limit
    if limit is None:
        return
    with db.write() as session:
        old = [
            each
            for each in checkpoint_queries.beyond_limit(session, run.job_id, limit)
            if checkpoint_queries.mark_deleting(session, each.id)
        ]
    for each in old:
        checkpoints.remove_files(db, settings, each)


def _locked(session: Session, run: Claimed) -> JobRow:
    """Return the owned row, held until the end of the transaction so that no request changes it."""
    row = job_queries.get(session, run.job_id, lock=True)
    if row is None or row.fence != run.fence or JobState(row.state) not in OWNED_STATES:
        raise Fenced(f"attempt {run.attempt} of {run.job_id} is fenced")
    return row


def _end_as_wished(
    session: Session,
    run: Claimed,
    source: JobState,
    desired: Desired,
    what: str,
    outcome: str | None = None,
) -> None:
    target = JobState.CANCELLED if desired is Desired.CANCEL else JobState.PAUSED
    if source is not JobState.STOPPING:
        _settle(session, run, source, JobState.STOPPING, desired, what, {}, ends=False)
    done = f"{desired} done: {what}"
    _settle(session, run, JobState.STOPPING, target, desired, done, {}, outcome=outcome)


def _settle(
    session: Session,
    run: Claimed,
    source: JobState,
    target: JobState,
    reason: str | None,
    message: str,
    values: Mapping[str, Any],
    *,
    ends: bool = True,
    outcome: str | None = None,
) -> None:
    moved = job_queries.transition(
        session,
        run.job_id,
        source,
        target,
        Actor.SUPERVISOR,
        message=message,
        reason=reason,
        guards=job_queries.owned_by(run.fence),
        values=values,
    )
    if not moved and not _is_there(session, run, target):
        raise Fenced(f"attempt {run.attempt} of {run.job_id} cannot go from {source} to {target}")
    if ends:
        attempts.end(session, run, outcome or target)


def _is_there(session: Session, run: Claimed, target: JobState) -> bool:
    """Tell whether the same move was committed before, with its answer lost."""
    row = job_queries.get(session, run.job_id)
    if row is None or row.fence != run.fence or row.state != target:
        return False
    # The reconciler may have brought it there; then the attempt did not end it.
    return target in OWNED_STATES or attempts.outcome(session, run) == target


def require_owner(session: Session, run: Claimed, values: Mapping[str, Any]) -> None:
    changes = dict(values) or {"fence": run.fence}
    if not job_queries.update_owned(session, run.job_id, fence=run.fence, values=changes):
        raise Fenced(f"attempt {run.attempt} of {run.job_id} is fenced")
