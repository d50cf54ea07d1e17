"""The reconciler: rings for forgotten jobs and settles jobs whose worker is gone."""

import logging
import threading
import time
from collections.abc import Sequence
from shutil import disk_usage
from typing import Any

from app.db import jobs as job_queries
from app.db import workers as worker_queries
from app.db.engine import Database
from app.db.jobs import JobRow
from app.db.types import db_now
from app.domain.errors import Fenced, LoradError
from app.domain.jobs import DISK_FULL, OWNED_STATES, Actor, Desired, JobState
from app.domain.runs import AttemptKey
from app.queue import Doorbell
from app.services import catalog, exporting, leftovers, runs, sweep, workers
from app.settings import Settings
from app.stream import LiveStream

_log = logging.getLogger(__name__)

_GRACE_SHARE = 2 / 15
_SWEEP_SECONDS = 60.0


class Reconciler:
    """Runs in every API process; all it does is guarded by the rows, so several do no harm."""

    def __init__(
        self, db: Database, settings: Settings, doorbell: Doorbell, stream: LiveStream
    ) -> None:
        self._db = db
        self._settings = settings
        self._doorbell = doorbell
        self._stream = stream
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reconciler", daemon=True)
        # After its own start or outage it waits one lease, so that live workers renew first.
        self._reap_from = time.monotonic() + settings.lease_seconds
        self._sweep_from = time.monotonic()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(timeout=5)

    def run_once(self) -> None:
        """Settle what lost its worker, ring for what waits, and now and then clean up."""
        for job_id in settle_dead(self._db, self._settings):
            self._stream.state_changed(job_id)
        if time.monotonic() >= self._reap_from:
            for job_id in settle_expired(self._db, self._settings):
                self._stream.state_changed(job_id)
        for job_id in resume_with_space(self._db, self._settings):
            self._stream.state_changed(job_id)
        ring_for_forgotten(self._db, self._settings, self._doorbell)
        may_expire = time.monotonic() >= self._reap_from
        exporting.settle_dead(self._db, self._settings, also_expired=may_expire)
        exporting.ring_for_forgotten(self._db, self._settings, self._doorbell)
        if time.monotonic() >= self._sweep_from:
            self._sweep_from = time.monotonic() + _SWEEP_SECONDS
            sweep.sweep(self._db, self._settings)

    def _run(self) -> None:
        while not self._stopped.wait(self._settings.reconcile_seconds):
            try:
                self.run_once()
            except LoradError as error:
                _log.warning("reconciler: %s", error)
                self._reap_from = time.monotonic() + self._settings.lease_seconds
            except Exception:  # noqa: BLE001 (an edge: it must live on, and say so)
                _log.exception("reconciler failed; it goes on")


def settle_dead(db: Database, settings: Settings) -> list[str]:
    """Settle jobs whose owner was a process of this machine that has ended; returns their ids."""
    with db.read() as session:
        owned = [
            (row, worker_queries.identity(session, row.owner))
            for row in job_queries.owned(session)
            if row.owner is not None
        ]
    dead = [row for row, identity in owned if identity is not None and workers.is_dead(identity)]
    return _settle_each(db, settings, dead, what="its worker died", only_expired=False)


def settle_expired(db: Database, settings: Settings) -> list[str]:
    """Settle jobs whose lease ended; returns their ids."""
    with db.read() as session:
        late = job_queries.expired(session, grace_seconds=grace_seconds(settings))
    what = "its worker was not heard of any more"
    return _settle_each(db, settings, late, what=what, only_expired=True)


def grace_seconds(settings: Settings) -> float:
    """Return how long after the end of a lease its job is left alone: 2 s for one of 15 s."""
    return settings.lease_seconds * _GRACE_SHARE


def ring_for_forgotten(db: Database, settings: Settings, doorbell: Doorbell) -> bool:
    """Ring when a job has waited too long although a worker could take one."""
    if all(worker.busy_slots >= worker.slots for worker in catalog.list_workers(db, settings)):
        return False
    with db.write() as session:
        forgotten = job_queries.mark_forgotten_as_rung(
            session, after_seconds=settings.ring_again_seconds
        )
    return doorbell.ring() if forgotten else False


def resume_with_space(db: Database, settings: Settings) -> list[str]:
    """Put jobs that a full disk paused back in the queue, one at a time; returns their ids.

    One at a time, because what is free is free once: the next look tells what the first one left.
    """
    with db.read() as session:
        waiting = job_queries.waiting_for_space(session)
    if not waiting:
        return []
    free = disk_usage(settings.home).free
    for row in waiting:
        if free < (row.needed_bytes or 0):
            continue
        with db.write() as session:
            moved = job_queries.transition(
                session,
                row.id,
                JobState.PAUSED,
                JobState.QUEUED,
                Actor.RECONCILER,
                message=f"there is space again: {free / 1e6:.0f} MB are free",
                reason="resume",
                guards=(job_queries.JobRow.state_reason == DISK_FULL,),
                values={"not_before": db_now(), "rung_at": db_now(-3600)},
            )
        if moved:
            return [row.id]
    return []


def _settle_each(
    db: Database, settings: Settings, jobs: Sequence[JobRow], *, what: str, only_expired: bool
) -> list[str]:
    settled: list[str] = []
    for row in jobs:
        try:
            if _settle(db, settings, row, what=what, only_expired=only_expired):
                settled.append(row.id)
        except LoradError:
            raise
        except Exception:  # noqa: BLE001 (an edge: one job must not keep the others waiting)
            _log.exception("settling %s failed; the others are settled", row.id)
    return settled


def _settle(
    db: Database, settings: Settings, seen: JobRow, *, what: str, only_expired: bool
) -> bool:
    """Move an ownerless job to where the state table sends it; False when someone was faster.

    What its trainer reported last is stored first: a checkpoint among it is progress.

    Args:
        seen: The job as it was when its worker was found to be gone. What is asked of it may have
            changed since, so that is read again under the lock.
    """
    guards = list(job_queries.owned_by(seen.fence))
    if only_expired:
        guards.append(job_queries.JobRow.lease_expires_at < db_now(-grace_seconds(settings)))
    key = AttemptKey(seen.id, seen.attempt, seen.fence)
    # One row that somebody holds must not keep all others from being settled.
    with db.write() as session:
        if job_queries.get(session, seen.id, lock=True, skip_locked=True) is None:
            return False
    try:
        num_lines = leftovers.take_in(db, settings, key, guards=guards)
    except Fenced:
        return False
    with db.write() as session:
        row = job_queries.get(session, seen.id, lock=True)
        if row is None or JobState(row.state) not in OWNED_STATES:
            return False
        target, reason, values = _outcome(settings, row, what)
        moved = job_queries.transition(
            session,
            row.id,
            JobState(row.state),
            target,
            Actor.RECONCILER,
            message=what,
            reason=reason,
            guards=guards,
            values=values,
        )
        if moved:
            leftovers.close(session, key, num_lines)
    return moved


def _outcome(
    settings: Settings, row: JobRow, what: str
) -> tuple[JobState, str | None, dict[str, Any]]:
    if row.desired == Desired.CANCEL:
        return JobState.CANCELLED, "cancel", {}
    if row.desired == Desired.PAUSE:
        return JobState.PAUSED, "pause", {}
    if row.state == JobState.STOPPING and row.state_reason == DISK_FULL:
        return JobState.PAUSED, DISK_FULL, {}
    if row.state == JobState.STOPPING:
        return JobState.QUEUED, "drain", {"not_before": db_now(), "rung_at": db_now(-3600)}
    streak = row.crash_streak + 1
    if streak >= settings.max_crashes:
        return JobState.FAILED, "crash_loop", {"error": runs.crash_loop(streak, what).model_dump()}
    wait_seconds = runs.backoff_seconds(streak)
    values = {
        "crash_streak": streak,
        "not_before": db_now(wait_seconds),
        "rung_at": db_now(wait_seconds - 3600),
    }
    return JobState.QUEUED, "worker_lost", values
