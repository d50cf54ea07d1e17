"""The reconciler: rings for forgotten jobs and settles jobs whose worker is gone."""

import logging
import threading
import time
from typing import Any

from app.db import jobs as job_queries
from app.db import workers as worker_queries
from app.db.engine import Database
from app.db.jobs import JobRow
from app.db.types import db_now
from app.domain.errors import LoradError
from app.domain.jobs import OWNED_STATES, Actor, Desired, JobState
from app.queue import Doorbell
from app.services import catalog, runs, sweep, workers
from app.settings import Settings
from app.stream import LiveStream

_log = logging.getLogger(__name__)

_GRACE_SECONDS = 2.0
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
        ring_for_forgotten(self._db, self._settings, self._doorbell)
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
    settled: list[str] = []
    with db.read() as session:
        owned = [
            (row, worker_queries.identity(session, row.owner))
            for row in job_queries.owned(session)
            if row.owner is not None
        ]
    for row, identity in owned:
        if identity is None or not workers.is_dead(identity):
            continue
        if _settle(db, settings, row, what="its worker died", only_expired=False):
            settled.append(row.id)
    return settled


def settle_expired(db: Database, settings: Settings) -> list[str]:
    """Settle jobs whose lease ended; returns their ids."""
    with db.read() as session:
        late = job_queries.expired(session, grace_seconds=_GRACE_SECONDS)
    return [
        row.id
        for row in late
        if _settle(
            db, settings, row, what="its worker was not heard of any more", only_expired=True
        )
    ]


def ring_for_forgotten(db: Database, settings: Settings, doorbell: Doorbell) -> bool:
    """Ring when a job has waited too long although a worker could take one."""
    if all(worker.busy_slots >= worker.slots for worker in catalog.list_workers(db, settings)):
        return False
    with db.write() as session:
        forgotten = job_queries.mark_forgotten_as_rung(
            session, after_seconds=settings.ring_again_seconds
        )
    return doorbell.ring() if forgotten else False


def _settle(
    db: Database, settings: Settings, seen: JobRow, *, what: str, only_expired: bool
) -> bool:
    """Move an ownerless job to where the state table sends it; False when someone was faster.

    Args:
        seen: The job as it was when its worker was found to be gone. What is asked of it may have
            changed since, so that is read again under the lock.
    """
    guards = [job_queries.JobRow.fence == seen.fence]
    if only_expired:
        guards.append(job_queries.JobRow.lease_expires_at < db_now(-_GRACE_SECONDS))
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
            job_queries.end_attempt(session, row.id, row.attempt, "lost")
    return moved


def _outcome(
    settings: Settings, row: JobRow, what: str
) -> tuple[JobState, str | None, dict[str, Any]]:
    if row.desired == Desired.CANCEL:
        return JobState.CANCELLED, "cancel", {}
    if row.desired == Desired.PAUSE:
        return JobState.PAUSED, "pause", {}
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
