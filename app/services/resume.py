"""Resuming a job from a checkpoint: whether it can be, and what it leaves behind."""

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticCustomError
from sqlalchemy.orm import Session

from app.db import attempts
from app.db import checkpoints as checkpoint_queries
from app.db import datasets as dataset_queries
from app.db import jobs as job_queries
from app.db import trainer_events as event_queries
from app.db.engine import Database
from app.db.jobs import JobRow
from app.db.types import db_now
from app.domain import faults
from app.domain.checkpoints import Checkpoint
from app.domain.errors import CheckpointUnusable, Conflict, InvalidInput, NotFound, StateConflict
from app.domain.groups import canonical
from app.domain.jobs import RESUMABLE_STATES, Actor, Desired, Job, JobState
from app.domain.options import TrainingSpec
from app.domain.spec import JobSpec
from app.services import checkpoints, jobs
from app.services.jobs import Outside
from app.settings import Settings

EARLY_STOPPING = "early_stopping"
CHANGEABLE = (
    "max_steps",
    "num_train_epochs",
    "learning_rate",
    "save_steps",
    "eval_steps",
    "logging_steps",
)


class DataGone(StateConflict):
    """The rows that a job was submitted with were deleted or have expired.

    Args:
        job_id: The job.
        dataset_id: Its data set that is not there any more.
        param: The key of the job's spec that names the data set.
    """

    default_code = "file_deleted"

    def __init__(self, job_id: str, dataset_id: str, *, param: str) -> None:
        super().__init__(
            f"cannot resume job {job_id}: its data set {dataset_id} ({param}) was deleted or has"
            " expired; upload it again and submit a new job",
            param=param,
        )
        self.dataset_id = dataset_id


class ResumeRequest(BaseModel):
    """Where to continue from, and what to change."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True
    )

    checkpoint: int | str = checkpoints.LATEST
    """A step on the current branch, `latest`, `best`, or the id of a checkpoint of this job."""
    from_scratch: bool = False
    """Start again at step 0; excludes `checkpoint`."""
    training: dict[str, Any] = {}
    """New values for max_steps, num_train_epochs, learning_rate, save_steps, eval_steps or
    logging_steps."""


def resume(
    db: Database, outside: Outside, project_id: str, job_id: str, request: ResumeRequest
) -> Job:
    """Put a stopped job back in the queue, to continue from a checkpoint.

    Everything past that checkpoint is superseded in the same transaction.

    Raises:
        StateConflict: The job is not stopped, or has nothing left to do.
        DataGone: Rows that it was submitted with were deleted or have expired.
        Conflict: An override that would make it another run, or that would change nothing.
        InvalidInput: An override with an unknown key or an impossible value.
        NotFound: No such checkpoint.
        CheckpointUnusable: The named checkpoint does not verify, or `latest` finds none that does.
    """
    with db.read() as session:
        row = jobs.require(session, project_id, job_id)
        _require_stopped(row)
        _require_data(session, row)
    spec = _changed_spec(JobSpec.model_validate(row.spec), request.training)
    start = _starting_point(db, outside, project_id, row, request)
    _require_work(row, spec, start)
    with db.write() as session:
        _requeue(session, row, spec, start, from_scratch=request.from_scratch)
    outside.doorbell.ring()
    outside.stream.state_changed(job_id)
    return jobs.get(db, outside.settings, project_id, job_id)


def _require_stopped(row: JobRow) -> None:
    if JobState(row.state) not in RESUMABLE_STATES:
        raise jobs.conflict(row, "resume")


def _require_data(session: Session, row: JobRow) -> None:
    used = {"dataset.id": row.dataset_id, "dataset.eval_id": row.eval_dataset_id}
    for param, dataset_id in used.items():
        if dataset_id is None:
            continue
        if dataset_queries.get(session, dataset_id, project_id=row.project_id) is None:
            raise DataGone(row.id, dataset_id, param=param)


def _changed_spec(spec: JobSpec, changes: dict[str, Any]) -> JobSpec:
    given = _canonical(changes)
    refused = sorted(set(given) - set(CHANGEABLE))
    if refused:
        raise Conflict(
            f"training.{refused[0]} cannot change on resume, it would be another run; "
            f"only {', '.join(CHANGEABLE)} can (submit a new job for the rest)",
            param=f"training.{refused[0]}",
            code="not_changeable",
        )
    steps = spec.training.max_steps
    if steps is not None and "num_train_epochs" in given and "max_steps" not in given:
        raise Conflict(
            f"training.num_train_epochs changes nothing while training.max_steps is {steps}; "
            "change training.max_steps, or set it to null to count in epochs",
            param="training.max_steps",
            code="max_steps_wins",
        )
    try:
        training = TrainingSpec.model_validate({**spec.training.model_dump(), **given})
        changed = spec.model_copy(update={"training": training})
        # Groups have to fit each other too: eval_steps without rows to evaluate on does nothing.
        JobSpec.model_validate(changed.model_dump())
    except ValidationError as error:
        # The groups are checked together only once the training group is right in itself.
        is_group = error.title == TrainingSpec.__name__
        found = faults.of(error.errors()[0], group="training" if is_group else "")
        raise InvalidInput(found.message, param=found.param, code=_code(found.code)) from error
    return changed


def _canonical(changes: dict[str, Any]) -> dict[str, Any]:
    """Return the changes under our names.

    Raises:
        InvalidInput: A key is unknown, or an alias contradicts its key.
    """
    try:
        return canonical(changes, TrainingSpec)
    except PydanticCustomError as error:
        key = (error.context or {}).get("key")
        param = "training" if key is None else f"training.{key}"
        raise InvalidInput(error.message(), param=param, code=error.type) from error


def _code(error_type: str) -> str:
    return error_type if error_type == "not_available" else "invalid_input"


def _starting_point(
    db: Database, outside: Outside, project_id: str, row: JobRow, request: ResumeRequest
) -> Checkpoint | None:
    """Return the verified checkpoint to continue from; None is step 0."""
    if request.from_scratch:
        if "checkpoint" in request.model_fields_set:
            raise InvalidInput("give checkpoint or from_scratch, not both", param="from_scratch")
        return None
    if request.checkpoint == checkpoints.LATEST:
        return _newest_good(db, outside, row)
    found = checkpoints.get(db, project_id, row.id, str(request.checkpoint))
    if found.superseded:
        raise CheckpointUnusable(
            f"checkpoint {found.id} (step {found.step}) was left behind when the job was resumed "
            "from an earlier step, so the steps before it are not this job's any more",
            param="checkpoint",
        )
    checkpoints.require_good(db, outside.settings, found)
    return found


def _newest_good(db: Database, outside: Outside, row: JobRow) -> Checkpoint | None:
    """Return the furthest checkpoint that verifies; those that do not are marked on the way."""
    bad: CheckpointUnusable | None = None
    while True:
        with db.read() as session:
            newest = checkpoint_queries.latest(session, row.id)
        if newest is None:
            break
        try:
            checkpoints.require_good(db, outside.settings, newest)
        except CheckpointUnusable as error:
            bad = error
            continue
        return newest
    with db.read() as session:
        left = checkpoint_queries.of_job(session, row.id, superseded=False)
    if bad is not None or left:
        why = bad.message if bad is not None else f"{len(left)} of {len(left)} are corrupt"
        raise CheckpointUnusable(
            f"job {row.id} has no checkpoint that verifies ({why}); "
            "resume with from_scratch to start again",
            param="checkpoint",
        )
    if row.state == JobState.PAUSED:
        return None  # paused before its first checkpoint: it starts at step 0
    raise NotFound(
        f"job {row.id} has no checkpoint; resume with from_scratch to start at step 0",
        param="checkpoint",
        code="no_checkpoint",
    )


def _require_work(row: JobRow, spec: JobSpec, start: Checkpoint | None) -> None:
    before = JobSpec.model_validate(row.spec).training
    steps, epochs = spec.training.max_steps, spec.training.num_train_epochs
    if start is not None and steps is not None and start.step > steps:
        raise StateConflict(
            f"checkpoint {start.step} is past max_steps {steps}; resume from an earlier one, or "
            "with a larger training.max_steps",
            param="training.max_steps",
        )
    if row.state != JobState.SUCCEEDED:
        return
    longer = (
        steps > (row.total_steps or 0)
        if steps is not None
        else epochs > before.num_train_epochs or before.max_steps is not None
    )
    if not longer:
        done = f"{row.total_steps} steps"
        if row.state_reason == EARLY_STOPPING:
            done = f"{row.step} of {row.total_steps} steps (it stopped early)"
        raise StateConflict(
            f"job {row.id} has succeeded with {done}; to go on, resume it with a "
            "larger training.max_steps or training.num_train_epochs",
            param="training.max_steps",
        )
    if start is not None and steps is not None and start.step >= steps:
        raise StateConflict(f"checkpoint {start.step} is not before max_steps {steps}")


def _requeue(
    session: Session, row: JobRow, spec: JobSpec, start: Checkpoint | None, *, from_scratch: bool
) -> None:
    step = 0 if start is None else start.step
    moved = job_queries.transition(
        session,
        row.id,
        JobState(row.state),
        JobState.QUEUED,
        Actor.API,
        reason="resume",
        message=f"resume from step {step} requested",
        guards=(job_queries.JobRow.fence == row.fence,),
        values={
            "desired": Desired.RUN.value,
            "spec": spec.model_dump(mode="json"),
            # Only the trainer knows how many steps an epoch has.
            "total_steps": spec.training.max_steps,
            "resume_checkpoint_id": None if start is None else start.id,
            "crash_streak": 0,
            "not_before": db_now(),
            "rung_at": db_now(),
            "finished_at": None,
            "error": None,
            "final_attempt": None,
            "final_manifest_sha256": None,
        },
        data={"step": step, "from_scratch": from_scratch},
    )
    if not moved:
        raise StateConflict(f"job {row.id} changed while it was being resumed; try again")
    _require_data(session, row)  # again: it was looked at before the files were verified
    attempts.abandon(session, row.id)
    if start is not None:
        _require_still_there(session, start)
    leave_behind(session, row.id, after_step=step, before_fence=row.fence + 1)


def _require_still_there(session: Session, start: Checkpoint) -> None:
    """Look again, now that the job is locked: the files were verified before."""
    found = checkpoint_queries.get(session, start.job_id, start.id)
    if found is None or found.status != "committed" or found.superseded:
        raise CheckpointUnusable(
            f"checkpoint {start.step} was deleted, broke or was left behind while the job was "
            "being resumed; try again",
            param="checkpoint",
        )


def choose(
    db: Database, settings: Settings, job_id: str, *, wanted_id: str | None
) -> Checkpoint | None:
    """Return the furthest good checkpoint of the branch, not past the wanted one; None is step 0.

    Those that do not verify are marked corrupt on the way.
    """
    wanted: Checkpoint | None = None
    if wanted_id is not None:
        with db.read() as session:
            wanted = checkpoint_queries.get(session, job_id, wanted_id)
    up_to_step = None if wanted is None else wanted.step
    while True:
        with db.read() as session:
            newest = checkpoint_queries.latest(session, job_id, up_to_step=up_to_step)
        if newest is None:
            return None
        try:
            checkpoints.require_good(db, settings, newest)
        except CheckpointUnusable:
            continue  # it is marked corrupt now, so the next look finds the one before it
        return newest


def tell_fallback(
    session: Session, job_id: str, attempt: int, wanted_id: str, start: Checkpoint | None
) -> None:
    """Record that an attempt does not start where its user wanted it to."""
    step = 0 if start is None else start.step
    job_queries.add_event(
        session,
        job_id,
        "resume_fallback",
        f"checkpoint {wanted_id} cannot be used any more; continuing from step {step} instead",
        attempt=attempt,
        data={
            "step": step,
            "checkpoint_id": None if start is None else start.id,
            "wanted_checkpoint_id": wanted_id,
        },
    )


def leave_behind(session: Session, job_id: str, *, after_step: int, before_fence: int) -> None:
    """Supersede what older attempts did past a step, and put the job's progress back there."""
    rows = event_queries.supersede(
        session, job_id, after_step=after_step, before_fence=before_fence
    )
    num_checkpoints = checkpoint_queries.supersede(
        session, job_id, after_step=after_step, before_fence=before_fence
    )
    job_queries.set_progress(session, job_id, _progress(session, job_id, after_step))
    if rows or num_checkpoints:
        job_queries.add_event(
            session,
            job_id,
            "superseded",
            f"steps past {after_step} are superseded",
            attempt=job_queries.attempt_of(session, job_id),
            data={"after_step": after_step, "checkpoints": num_checkpoints},
        )


def _progress(session: Session, job_id: str, step: int) -> dict[str, Any]:
    """Return what a job's row says of its progress, from what is on its current branch."""
    last = event_queries.last_metrics(session, job_id)
    evaluations = event_queries.evaluations(session, job_id)
    # The evaluation at step 0 is of the base model, which no checkpoint holds.
    finite = [each for each in evaluations if each.eval_loss is not None and each.step > 0]
    best = min(finite, key=lambda each: (each.eval_loss, each.step), default=None)
    return {
        "step": step,
        "epoch": None if last is None else last.epoch,
        "loss": None if last is None else last.loss,
        "eval_loss": evaluations[-1].eval_loss if evaluations else None,
        "best_eval_loss": None if best is None else best.eval_loss,
        "best_step": None if best is None else best.step,
    }
