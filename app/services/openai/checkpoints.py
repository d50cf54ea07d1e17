"""Checkpoints in OpenAI's words, each with the name that it can be asked by."""

from collections.abc import Sequence

from app.db import checkpoints as checkpoint_queries
from app.db import jobs as job_queries
from app.db import trainer_events as event_queries
from app.db.engine import Database
from app.domain import model_names
from app.domain.checkpoints import Checkpoint
from app.domain.errors import InvalidInput
from app.domain.evaluations import Evaluation
from app.domain.groups import shown
from app.domain.openai import ids
from app.domain.openai.objects import (
    CheckpointMetrics,
    CursorPage,
    FineTuningCheckpoint,
    page_of,
    seconds,
)
from app.services import jobs
from app.services.openai import fine_tuning, showing


def page(
    db: Database, project_id: str, shown_id: str, *, after: str | None, limit: int
) -> CursorPage[FineTuningCheckpoint]:
    """List the checkpoints of a job that can be used, newest first.

    Raises:
        NotFound: There is no such job.
        InvalidInput: `after` is no checkpoint of this job.
    """
    job_id = fine_tuning.own_id(shown_id)
    with db.read() as session:
        name = showing.tuned_name(job_queries.to_job(jobs.require(session, project_id, job_id)))
        every = checkpoint_queries.of_job(session, job_id, superseded=False)
        last = None if after is None else _require(every, after)
        evaluations = {each.step: each for each in event_queries.evaluations(session, job_id)}
    good = [each for each in every if each.status == "committed"]
    found = [each for each in reversed(good) if last is None or each.step < last.step]
    shown_ones = [_shown(each, name, evaluations.get(each.step)) for each in found[:limit]]
    return page_of(shown_ones, has_more=len(found) > limit)


def _require(every: Sequence[Checkpoint], after: str) -> Checkpoint:
    own_id = ids.read(after, "ckpt")
    for each in every:
        if each.id == own_id:
            return each
    raise InvalidInput(
        f"after: {shown(after)} is no checkpoint of this job; give the id of the last one of the"
        " page before",
        param="after",
        code="invalid_cursor",
    )


def _shown(found: Checkpoint, name: str, evaluation: Evaluation | None) -> FineTuningCheckpoint:
    accuracy = None if evaluation is None else evaluation.token_accuracy
    return FineTuningCheckpoint(
        id=ids.show(found.id),
        created_at=seconds(found.created_at),
        fine_tuned_model_checkpoint=model_names.at_step(name, found.step),
        fine_tuning_job_id=ids.show(found.job_id),
        step_number=found.step,
        metrics=CheckpointMetrics(
            step=found.step,
            train_loss=found.loss,
            valid_loss=found.eval_loss,
            valid_mean_token_accuracy=accuracy,
            full_valid_loss=found.eval_loss,
            full_valid_mean_token_accuracy=accuracy,
        ),
    )
