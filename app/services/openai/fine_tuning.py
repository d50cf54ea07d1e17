"""Fine-tuning jobs in OpenAI's words: the same rows and rules as those of `POST /jobs`."""

from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.db import datasets as dataset_queries
from app.db import jobs as job_queries
from app.db import keys as key_queries
from app.db import listings
from app.db.engine import Database
from app.domain import consistency, model_names
from app.domain.errors import (
    IdempotencyConflict,
    InvalidInput,
    LoradError,
    NotFound,
    StateConflict,
)
from app.domain.groups import shown
from app.domain.jobs import Desired, Job, JobState
from app.domain.model_folder import ModelFolder
from app.domain.openai import ids
from app.domain.openai.objects import CursorPage, FineTuningJob, page_of
from app.domain.openai.requests import NAMES, CreateJob, ResumeJob
from app.domain.spec import JobSpec
from app.services import catalog, job_data, jobs, resume
from app.services.jobs import Outside
from app.services.openai import repeats, showing
from app.services.openai.repeats import Attempt
from app.services.resume import DataGone, ResumeRequest

_SCOPE = "v1.jobs"
_GOING_ON = (JobState.QUEUED, JobState.STARTING, JobState.RUNNING, JobState.FINALIZING)


def create(
    db: Database,
    outside: Outside,
    project_id: str,
    body: CreateJob,
    spec: JobSpec,
    *,
    attempt: Attempt,
) -> FineTuningJob:
    """Store a queued job, then ring for a worker.

    Raises:
        NotFound: There is no such base model or file.
        InvalidInput: Two keys contradict each other, or the columns of the file do not suit.
        InvalidModel: The base model cannot be used, or not with this file.
        IdempotencyConflict: The key was used for another job.
    """
    consistency.require(spec)
    digest = repeats.digest(project_id, body.model_dump_json())
    with repeats.flights.alone(f"job {digest}"):
        with db.read() as session:
            job_id = _recalled(session, project_id, attempt, digest)
        if job_id is None:
            job_id = _checked(db, outside, project_id, body, spec, attempt, digest)
    outside.doorbell.ring()
    return get(db, outside, project_id, ids.show(job_id))


def get(db: Database, outside: Outside, project_id: str, shown_id: str) -> FineTuningJob:
    """Return a job.

    Raises:
        NotFound: There is none with this id.
    """
    job = jobs.get(db, outside.settings, project_id, own_id(shown_id))
    with db.read() as session:
        row = jobs.require(session, project_id, job.id)
    return showing.job(db, row, waiting_for=job.waiting_for)


def page(
    db: Database,
    project_id: str,
    *,
    after: str | None,
    limit: int,
    metadata: Mapping[str, str] | None,
) -> CursorPage[FineTuningJob]:
    """List jobs, newest first.

    Args:
        metadata: Pairs that a job has to have; None finds the jobs without any metadata.

    Raises:
        InvalidInput: `after` is no id of a job.
    """
    last = None if after is None else ids.read(after, "job")
    if after is not None and last is None:
        raise InvalidInput(
            f"after: {shown(after)} is no id of a job; give that of the last job of the page"
            " before",
            param="after",
            code="invalid_cursor",
        )
    with db.read() as session:
        rows = listings.jobs(session, project_id, after=last, limit=limit + 1, metadata=metadata)
    return page_of(showing.jobs(db, rows[:limit]), has_more=len(rows) > limit)


def pause(
    db: Database, outside: Outside, project_id: str, shown_id: str, *, attempt: Attempt
) -> FineTuningJob:
    """Stop a job at its next step, with a checkpoint.

    Raises:
        StateConflict: It cannot be paused.
    """

    def is_done(job: Job) -> bool:
        return job.state == JobState.PAUSED or job.desired == Desired.PAUSE

    return _told(db, outside, project_id, shown_id, attempt, jobs.pause, is_done)


def cancel(
    db: Database, outside: Outside, project_id: str, shown_id: str, *, attempt: Attempt
) -> FineTuningJob:
    """End a job without saving; its checkpoints stay.

    Raises:
        StateConflict: It has ended.
    """

    def is_done(job: Job) -> bool:
        return job.state == JobState.CANCELLED

    return _told(db, outside, project_id, shown_id, attempt, jobs.cancel, is_done)


def resume_job(
    db: Database,
    outside: Outside,
    project_id: str,
    shown_id: str,
    body: ResumeJob,
    *,
    attempt: Attempt,
) -> FineTuningJob:
    """Continue a stopped job from a checkpoint.

    Raises:
        StateConflict: It is not stopped, has nothing left to do, or its file was deleted.
        Conflict: A change that would make it another run.
        InvalidInput: A value is impossible.
        NotFound: No such checkpoint.
        CheckpointUnusable: The checkpoint does not verify.
    """
    request = _request(own_id(shown_id), body)

    def act(db: Database, outside: Outside, project_id: str, job_id: str) -> Job:
        try:
            return resume.resume(db, outside, project_id, job_id, request)
        except DataGone as error:
            raise _file_gone(job_id, error) from error
        except LoradError as error:
            if error.param != "checkpoint":
                raise
            raise type(error)(error.message, param="from_checkpoint", code=error.code) from error

    def is_done(job: Job) -> bool:
        return job.state in _GOING_ON and job.desired == Desired.RUN

    return _told(db, outside, project_id, shown_id, attempt, act, is_done)


def own_id(shown_id: str) -> str:
    """Return our id of a job.

    Raises:
        NotFound: It is no id of a job.
    """
    found = ids.read(shown_id, "job")
    if found is None:
        raise NotFound(
            f"there is no fine-tuning job {shown(shown_id)}; see GET /v1/fine_tuning/jobs",
            param="fine_tuning_job_id",
        )
    return found


def _checked(
    db: Database,
    outside: Outside,
    project_id: str,
    body: CreateJob,
    spec: JobSpec,
    attempt: Attempt,
    digest: str,
) -> str:
    _require_there(db, project_id, body, spec)
    asked = showing.asked(body, digest)
    try:
        model = catalog.require_model(outside.settings, spec.base_model)
        try:
            return _store(db, project_id, spec, model, asked, attempt, digest)
        except IntegrityError:
            # Another request with this key was faster; it is stored now, so this finds it.
            return _store(db, project_id, spec, model, asked, attempt, digest)
    except LoradError as error:
        if error.param not in NAMES:
            raise
        code = "model_not_found" if error.code == "unknown_model" else error.code
        raise type(error)(error.message, param=NAMES[error.param], code=code) from error


def _store(
    db: Database,
    project_id: str,
    spec: JobSpec,
    model: ModelFolder,
    asked: dict[str, Any],
    attempt: Attempt,
    digest: str,
) -> str:
    with db.write() as session:
        known = _recalled(session, project_id, attempt, digest)
        if known is not None:
            return known
        job_data.require(session, project_id, spec, model)
        job_id = job_queries.insert(session, project_id, spec)
        job_queries.set_progress(session, job_id, {"asked": asked})
        if attempt.key is not None:
            key_queries.remember(
                session,
                project_id,
                _SCOPE,
                attempt.key,
                body_sha256=digest,
                resource_id=job_id,
            )
    return job_id


def _recalled(session: Session, project_id: str, attempt: Attempt, digest: str) -> str | None:
    """Return the job that the same request made before.

    Raises:
        IdempotencyConflict: The key was used for another body.
    """
    if attempt.key is not None:
        known = key_queries.recall(session, project_id, _SCOPE, attempt.key)
        if known is not None and known.body_sha256 != digest:
            raise IdempotencyConflict(
                "this Idempotency-Key was used for another job; use a new key"
            )
        return None if known is None else known.resource_id
    if not attempt.is_repeat:
        return None
    return listings.newest_asked(
        session, project_id, digest=digest, within_seconds=repeats.WITHIN_SECONDS
    )


def _require_there(db: Database, project_id: str, body: CreateJob, spec: JobSpec) -> None:
    named = (
        ("training_file", body.training_file, spec.dataset.id),
        ("validation_file", body.validation_file, spec.dataset.eval_id),
    )
    with db.read() as session:
        for param, file_id, dataset_id in named:
            if dataset_id is None:
                continue
            if dataset_queries.get(session, dataset_id, project_id=project_id) is None:
                raise NotFound(
                    f"there is no file {shown(file_id)}; upload it with purpose fine-tune",
                    param=param,
                    code="file_not_found",
                )


def _file_gone(job_id: str, error: DataGone) -> StateConflict:
    is_of_training = error.param == "dataset.id"
    return StateConflict(
        f"cannot resume job {ids.show(job_id)}: its file {ids.show(error.dataset_id)} was deleted"
        " or has expired; upload it again and create a new job",
        param="training_file" if is_of_training else "validation_file",
        code=error.code,
    )


def _request(job_id: str, body: ResumeJob) -> ResumeRequest:
    if body.from_checkpoint is None:
        return ResumeRequest(training=body.training)
    return ResumeRequest(
        checkpoint=_checkpoint(job_id, body.from_checkpoint), training=body.training
    )


def _checkpoint(job_id: str, wanted: int | str) -> int | str:
    """Return a checkpoint as `resume` names it.

    Raises:
        InvalidInput: It is the final adapter, or of another job.
        NotFound: It is written as the name of a model, and is none.
    """
    if isinstance(wanted, int):
        return wanted
    try:
        named = model_names.parse(wanted)
    except NotFound as error:
        raise NotFound(error.message, param="from_checkpoint", code=error.code) from error
    if named is None:
        return ids.read(wanted, "ckpt") or wanted
    if named.job_id != job_id or named.which == "final":
        whose = "is of another job" if named.job_id != job_id else "is no checkpoint"
        raise InvalidInput(
            f"from_checkpoint: {shown(wanted)} {whose}; give a checkpoint of job {job_id}, such as"
            " its id, its step, latest or best",
            param="from_checkpoint",
        )
    return named.which


def _told(
    db: Database,
    outside: Outside,
    project_id: str,
    shown_id: str,
    attempt: Attempt,
    act: Callable[[Database, Outside, str, str], Job],
    is_done: Callable[[Job], bool],
) -> FineTuningJob:
    """Do something to a job; what a client sends again because no answer came is done once."""
    job_id = own_id(shown_id)
    try:
        act(db, outside, project_id, job_id)
    except StateConflict:
        if not attempt.is_repeat or not is_done(jobs.get(db, outside.settings, project_id, job_id)):
            raise
    return get(db, outside, project_id, shown_id)
