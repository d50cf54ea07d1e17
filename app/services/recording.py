"""What a trainer reports becomes rows: batches of events, and what each of them changes."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy.orm import Session

from app.db import checkpoints as checkpoint_queries
from app.db import jobs as job_queries
from app.db import trainer_events as event_queries
from app.db.engine import Database
from app.domain import failpoints
from app.domain.events import (
    CheckpointEvent,
    EvaluationEvent,
    NoticeEvent,
    ReadyEvent,
    StepEvent,
    TrainerEvent,
)
from app.services import replay
from app.services.runs import Claimed, require_owner


def record(db: Database, run: Claimed, events: Sequence[TrainerEvent]) -> None:
    """Store what the trainer reported, and the checkpoints among it, in one fenced transaction.

    A checkpoint becomes visible together with every metric row up to its step, so that resuming
    from it never meets a gap.

    Raises:
        Fenced: Another attempt owns the job; nothing was written.
    """
    with db.write() as session:
        require_owner(session, run, _progress(events))
        # After a commit whose answer was lost, the same events come again.
        stored = event_queries.high_water(session, run.job_id, run.attempt)
        new = [event for event in events if event.seq > stored]
        if not new:
            return
        event_queries.insert_many(
            session, run.job_id, fence=run.fence, attempt=run.attempt, events=new
        )
        for event in new:
            _record_one(session, run, event)
        replay.compare(session, run, new)
        failpoints.hit("record.commit")


def _progress(events: Sequence[TrainerEvent]) -> dict[str, Any]:
    """Return how far the events say the job is; only work that was done moves it."""
    values: dict[str, Any] = {}
    for event in events:
        match event:
            case ReadyEvent():
                values |= {"total_steps": event.total_steps, "step": event.step}
                values["skipped_steps"] = event.num_skipped_steps
            case StepEvent():
                measured = event.metrics
                values |= {"step": event.step, "epoch": measured.epoch, "loss": measured.loss}
            case NoticeEvent(code="nonfinite_skipped"):
                values["skipped_steps"] = event.data["num_skipped"]
            case CheckpointEvent():
                values["step"] = event.step
            case EvaluationEvent():
                measured = event.evaluation
                values["eval_loss"] = measured.eval_loss
                if measured.is_best:
                    values |= {"best_eval_loss": measured.eval_loss, "best_step": event.step}
            case _:
                pass
    return values


def _record_one(session: Session, run: Claimed, event: TrainerEvent) -> None:
    match event:
        case CheckpointEvent():
            checkpoint_id = checkpoint_queries.insert(
                session, run.job_id, attempt=run.attempt, fence=run.fence, event=event
            )
            job_queries.update_owned(
                session, run.job_id, fence=run.fence, values={"crash_streak": 0}
            )
            job_queries.add_event(
                session,
                run.job_id,
                "checkpoint",
                f"checkpoint {event.step} committed",
                attempt=run.attempt,
                data={"step": event.step, "checkpoint_id": checkpoint_id, "bytes": event.bytes},
            )
        case NoticeEvent():
            job_queries.add_event(
                session,
                run.job_id,
                event.code,
                event.message,
                attempt=run.attempt,
                data=event.data,
            )
        case _:
            pass
