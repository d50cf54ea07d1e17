"""How a job of ours looks in OpenAI's words."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from app.db import jobs as job_queries
from app.db import listings
from app.db import trainer_events as event_queries
from app.db.engine import Database
from app.db.jobs import JobRow
from app.domain import model_names
from app.domain.jobs import Desired, Job, JobState
from app.domain.openai import ids
from app.domain.openai.objects import (
    FineTuningJob,
    JobProblem,
    ShownHyperparameters,
    ShownMethod,
    ShownSupervised,
    seconds,
)
from app.domain.openai.requests import AUTO, AUTO_EPOCHS, BASE_LEARNING_RATE, CreateJob
from app.domain.options import TrainingSpec
from app.services.openai import results

_OF_DATA = ("unusable_data", "invalid_dataset")
_DEFAULT = TrainingSpec()
# What OpenAI has no words for.
_OURS = {
    *("id", "state", "state_reason", "desired", "waiting_for", "step", "total_steps", "epoch"),
    *("loss", "eval_loss", "best_step", "attempt", "worker", "spec"),
}


def asked(body: CreateJob, digest: str) -> dict[str, Any]:
    """Return what is stored of a request, so that answers can repeat it."""
    return {"body_sha256": digest, "hyperparameters": body.asked.model_dump(mode="json")}


def job(db: Database, row: JobRow, *, waiting_for: str | None = None) -> FineTuningJob:
    """Return a job in OpenAI's words."""
    with db.read() as session:
        validated = listings.with_receipt(session, [row.id])
    return _job(db, row, waiting_for=waiting_for, is_validated=bool(validated))


def jobs(db: Database, rows: Sequence[JobRow]) -> list[FineTuningJob]:
    """Return jobs in OpenAI's words."""
    starting = [row.id for row in rows if row.state == JobState.STARTING]
    with db.read() as session:
        validated = listings.with_receipt(session, starting) if starting else set[str]()
    return [_job(db, row, waiting_for=None, is_validated=row.id in validated) for row in rows]


def tuned_name(found: Job) -> str:
    """Return the name of what a job makes."""
    return model_names.tuned(found.spec.base_model, found.spec.name, found.id)


def _job(
    db: Database, row: JobRow, *, waiting_for: str | None, is_validated: bool
) -> FineTuningJob:
    found = job_queries.to_job(row, waiting_for=waiting_for)
    has_succeeded = found.state == JobState.SUCCEEDED
    hyperparameters = _hyperparameters(row.asked, found.spec.training)
    eval_id = found.spec.dataset.eval_id
    return FineTuningJob(
        id=ids.show(found.id),
        model=found.spec.base_model,
        created_at=seconds(found.created_at),
        finished_at=None if found.finished_at is None else seconds(found.finished_at),
        fine_tuned_model=tuned_name(found) if has_succeeded else None,
        organization_id=found.project_id,
        status=_status(found, is_validated=is_validated),
        training_file=ids.show(found.spec.dataset.id),
        validation_file=None if eval_id is None else ids.show(eval_id),
        hyperparameters=hyperparameters,
        method=ShownMethod(supervised=ShownSupervised(hyperparameters=hyperparameters)),
        result_files=[ids.show_results(found.id)] if has_succeeded else [],
        trained_tokens=results.trained_tokens(db, row) if has_succeeded else None,
        error=_problem(found),
        seed=found.spec.seed,
        estimated_finish=_estimate(db, found),
        metadata=found.spec.metadata or None,
        user_provided_suffix=found.spec.name,
        lorad=found.model_dump(mode="json", include=_OURS),
    )


def _status(found: Job, *, is_validated: bool) -> str:
    match found.state:
        case JobState.STARTING if not is_validated:
            return "validating_files"
        case JobState.STARTING | JobState.RUNNING | JobState.FINALIZING:
            return "pausing" if found.desired == Desired.PAUSE else "running"
        case JobState.STOPPING:
            return "pausing" if found.desired == Desired.PAUSE else "running"
        case _:
            return found.state.value


def _problem(found: Job) -> JobProblem | None:
    if found.error is None:
        return None
    param = "training_file" if found.error.code in _OF_DATA else None
    return JobProblem(code=found.error.code, message=found.error.message, param=param)


def _estimate(db: Database, found: Job) -> int | None:
    """Return when the last step should be done, if every step takes as long as the last one."""
    if found.state != JobState.RUNNING or found.total_steps is None:
        return None
    with db.read() as session:
        last = event_queries.last_metrics(session, found.id)
    if last is None:
        return None
    left = timedelta(seconds=(found.total_steps - last.step) * last.step_seconds)
    return seconds(datetime.now(UTC) + left)


def _hyperparameters(stored: dict[str, Any] | None, training: TrainingSpec) -> ShownHyperparameters:
    """Return what was asked where that still holds, and what is where it does not."""
    wanted: dict[str, Any] = {} if stored is None else stored["hyperparameters"]
    batch = training.per_device_train_batch_size * training.gradient_accumulation_steps
    factor = training.learning_rate / BASE_LEARNING_RATE
    return ShownHyperparameters(
        n_epochs=_epochs(wanted.get("n_epochs"), training),
        batch_size=AUTO
        if wanted.get("batch_size") == AUTO and batch == _DEFAULT.per_device_train_batch_size
        else batch,
        learning_rate_multiplier=_multiplier(wanted.get("learning_rate_multiplier"), factor),
    )


def _epochs(wanted: object, training: TrainingSpec) -> Literal["auto"] | int | float:
    if training.max_steps is not None:
        return "auto"  # the steps say how long
    epochs = training.num_train_epochs
    if wanted == AUTO and epochs == AUTO_EPOCHS:
        return "auto"
    return int(epochs) if epochs.is_integer() else epochs


def _multiplier(wanted: object, factor: float) -> Literal["auto"] | float:
    if wanted == AUTO and factor == 1.0:
        return "auto"
    # As it was asked for: what comes back from the learning rate may differ in the last digit.
    if isinstance(wanted, int | float) and abs(wanted - factor) < 1e-9 * factor:
        return float(wanted)
    return factor
