"""Jobs from the user's side: submit, look, pause, cancel, resume, delete."""

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.db import jobs as job_queries
from app.db import keys as key_queries
from app.db.engine import Database
from app.db.jobs import JobRow
from app.domain import consistency, ids
from app.domain.errors import (
    IdempotencyConflict,
    NotFound,
    StateConflict,
)
from app.domain.groups import shown
from app.domain.jobs import (
    DISK_FULL,
    OWNED_STATES,
    Actor,
    Desired,
    Job,
    JobEvent,
    JobState,
    allowed_requests,
)
from app.domain.model_folder import ModelFolder
from app.domain.runs import job_folder
from app.domain.spec import JobSpec
from app.queue import Doorbell
from app.services import catalog, job_data
from app.settings import Settings
from app.stream import LiveStream

_SCOPE = "jobs"
_PAUSABLE = (JobState.STARTING, JobState.RUNNING)


@dataclass(frozen=True)
class Outside:
    """What a request about a job may touch beside the database; all of it after the commit."""

    settings: Settings
    doorbell: Doorbell
    stream: LiveStream


def submit(
    db: Database,
    outside: Outside,
    project_id: str,
    spec: JobSpec,
    *,
    idempotency_key: str | None = None,
) -> Job:
    """Store a queued job, then ring for a worker.

    The row is committed before the bell rings, so whoever hears it finds the job. If the ring is
    lost, the reconciler rings again.

    Raises:
        NotFound: The base model or the data set does not exist.
        InvalidInput: Two keys contradict each other, or the data's columns do not suit the job.
        InvalidModel: The base model cannot be used, or not with this data.
        IdempotencyConflict: The key was used for another body.
    """
    consistency.require(spec)
    body = hashlib.sha256(spec.model_dump_json().encode()).hexdigest()
    with db.read() as session:
        job_id = _recalled(session, project_id, idempotency_key, body)
    if job_id is None:
        model = catalog.require_model(outside.settings, spec.base_model)
        try:
            job_id = _store(db, project_id, spec, model, idempotency_key, body)
        except IntegrityError:
            # Another request with this key was faster; it is stored now, so this finds it.
            job_id = _store(db, project_id, spec, model, idempotency_key, body)
    outside.doorbell.ring()
    return get(db, outside.settings, project_id, job_id)


def get(db: Database, settings: Settings, project_id: str, job_id: str) -> Job:
    with db.read() as session:
        row = require(session, project_id, job_id)
    return _explained(db, settings, [row])[0]


def page(
    db: Database,
    settings: Settings,
    project_id: str,
    *,
    state: JobState | None,
    after: str | None,
    limit: int,
) -> list[Job]:
    with db.read() as session:
        rows = job_queries.page(session, project_id, state=state, after=after, limit=limit)
    return _explained(db, settings, rows)


def events(
    db: Database, project_id: str, job_id: str, *, after: int, limit: int
) -> Sequence[JobEvent]:
    with db.read() as session:
        require(session, project_id, job_id)
        return job_queries.events(session, job_id, after=after, limit=limit)


def pause(db: Database, outside: Outside, project_id: str, job_id: str) -> Job:
    """Stop a job at its next step boundary, with a checkpoint; a queued one at once.

    Raises:
        StateConflict: The job cannot be paused; the message says what can be done.
    """
    with db.write() as session:
        row = require(session, project_id, job_id, lock=True)
        if row.state == JobState.QUEUED:
            _leave_queue(session, row, JobState.PAUSED, Desired.PAUSE)
        elif row.desired == Desired.RUN and row.state in _PAUSABLE:
            _request(session, row, Desired.PAUSE, _PAUSABLE)
        elif row.state == JobState.PAUSED and row.state_reason == DISK_FULL:
            _keep_paused(session, row)
        elif not (row.desired == Desired.PAUSE and row.state in OWNED_STATES):
            raise conflict(row, "pause")
    return _told(db, outside, project_id, job_id)


def cancel(db: Database, outside: Outside, project_id: str, job_id: str) -> Job:
    """End a job without saving; its committed checkpoints stay and can be resumed from.

    Raises:
        StateConflict: The job has ended already.
    """
    with db.write() as session:
        row = require(session, project_id, job_id, lock=True)
        if row.state in (JobState.QUEUED, JobState.PAUSED):
            _leave_queue(session, row, JobState.CANCELLED, Desired.CANCEL)
        elif row.state in OWNED_STATES:
            _request(session, row, Desired.CANCEL, OWNED_STATES)
        else:
            raise conflict(row, "cancel")
    return _told(db, outside, project_id, job_id)


def delete(db: Database, settings: Settings, project_id: str, job_id: str) -> None:
    """Remove a job that has ended, with its checkpoints, metrics and files.

    Raises:
        StateConflict: The job has not ended.
    """
    with db.write() as session:
        row = require(session, project_id, job_id)
        if not job_queries.remove(session, job_id):
            raise conflict(row, "delete")
        key_queries.forget(session, job_id)
    shutil.rmtree(job_folder(settings.home, job_id), ignore_errors=True)


def require(session: Session, project_id: str, job_id: str, *, lock: bool = False) -> JobRow:
    """Return a job of the project; with `lock` nobody changes it until the transaction ends.

    Raises:
        NotFound: No such job.
    """
    row = None
    if ids.is_id(job_id, "job"):  # the database never sees what cannot be an id
        row = job_queries.get(session, job_id, project_id=project_id, lock=lock)
    if row is None:
        raise NotFound(f"there is no job {shown(job_id)}; see GET /jobs", param="job_id")
    return row


def _store(
    db: Database,
    project_id: str,
    spec: JobSpec,
    model: ModelFolder,
    idempotency_key: str | None,
    body_sha256: str,
) -> str:
    with db.write() as session:
        known = _recalled(session, project_id, idempotency_key, body_sha256)
        if known is not None:
            return known
        job_data.require(session, project_id, spec, model)
        job_id = job_queries.insert(session, project_id, spec)
        if idempotency_key is not None:
            key_queries.remember(
                session,
                project_id,
                _SCOPE,
                idempotency_key,
                body_sha256=body_sha256,
                resource_id=job_id,
            )
    return job_id


def _recalled(
    session: Session, project_id: str, idempotency_key: str | None, body_sha256: str
) -> str | None:
    """Return the job that an idempotency key made before.

    Raises:
        IdempotencyConflict: It was made from another body.
    """
    if idempotency_key is None:
        return None
    known = key_queries.recall(session, project_id, _SCOPE, idempotency_key)
    if known is None:
        return None
    if known.body_sha256 != body_sha256:
        raise IdempotencyConflict("this Idempotency-Key was used for another job; use a new key")
    return known.resource_id


def _explained(db: Database, settings: Settings, rows: Sequence[JobRow]) -> list[Job]:
    if not any(row.state == JobState.QUEUED for row in rows):
        return [job_queries.to_job(row) for row in rows]
    workers = catalog.list_workers(db, settings)

    def reason(row: JobRow) -> str | None:
        if row.state != JobState.QUEUED:
            return None
        return catalog.waiting_for(workers, JobSpec.model_validate(row.spec))

    return [job_queries.to_job(row, waiting_for=reason(row)) for row in rows]


def _leave_queue(session: Session, row: JobRow, target: JobState, desired: Desired) -> None:
    moved = job_queries.transition(
        session,
        row.id,
        JobState(row.state),
        target,
        Actor.API,
        reason=desired,
        message=f"{desired} requested",
        values={"desired": desired},
    )
    if not moved:
        raise StateConflict(f"job {row.id} changed while it was asked to {desired}; try again")


def _keep_paused(session: Session, row: JobRow) -> None:
    """Let a job that waits for space wait for its user instead."""
    values = {"state_reason": Desired.PAUSE.value, "needed_bytes": None}
    job_queries.set_progress(session, row.id, values)
    message = "pause requested; it does not go on by itself when there is space again"
    job_queries.add_event(session, row.id, "requested", message, attempt=row.attempt)


def _request(session: Session, row: JobRow, desired: Desired, states: Sequence[JobState]) -> None:
    if not job_queries.ask(session, row.id, desired, states=states):
        raise StateConflict(f"job {row.id} changed while it was asked to {desired}; try again")
    if row.desired != desired:
        job_queries.add_event(
            session, row.id, "requested", f"{desired} requested", attempt=row.attempt
        )


def _told(db: Database, outside: Outside, project_id: str, job_id: str) -> Job:
    outside.stream.hint(job_id)
    outside.stream.state_changed(job_id)
    return get(db, outside.settings, project_id, job_id)


def conflict(row: JobRow, verb: str) -> StateConflict:
    """Return what to raise where a job's state forbids a request; it says what is possible."""
    state = JobState(row.state)
    if state in OWNED_STATES and row.desired == Desired.CANCEL:
        then = ", then resume" if verb == "resume" else ""
        return StateConflict(
            f"cannot {verb} job {row.id}: it is {state} and being cancelled; "
            f"wait until it is cancelled{then}"
        )
    is_over = state in (JobState.SUCCEEDED, JobState.FAILED)
    place = f"it has {state}" if is_over else f"it is {state}"
    return StateConflict(f"cannot {verb} job {row.id}: {place}; {allowed_requests(state)}")
