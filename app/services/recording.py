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
from app.domain.runs import AttemptKey
from app.services import replay, rollups
from app.services.runs import Claimed, require_owner


def record(db: Database, run: Claimed, events: Sequence[TrainerEvent]) -> None:
    """Store what the trainer reported, and the checkpoints among it, in one fenced transaction.

    A checkpoint becomes visible together with every metric row up to its step, so that resuming
    from it never meets a gap.

    Raises:
        Fenced: Another attempt owns the job; nothing was written.
    """
    with db.write() as session:
        require_owner(session, run, progress(events))
        store(session, run, events)
        failpoints.hit("record.commit")


def store(session: Session, key: AttemptKey, events: Sequence[TrainerEvent]) -> None:
    """Insert events of an attempt and what follows from each; the job's row is locked by then."""
    # After a commit whose answer was lost, the same events come again.
    stored = event_queries.high_water(session, key.job_id, key.attempt)
    new = [event for event in events if event.seq > stored]
    if not new:
        return
    event_queries.insert_many(session, key.job_id, fence=key.fence, attempt=key.attempt, events=new)
    for event in new:
        _record_one(session, key, event)
    rollups.extend(session, key.job_id, [e.step for e in new if isinstance(e, StepEvent)])
    replay.compare(session, key, new)


def progress(events: Sequence[TrainerEvent]) -> dict[str, Any]:
    """Return columns of the job that say how far it is; only work that was done moves it."""
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
                values |= {"step": event.step, "crash_streak": 0}
            case EvaluationEvent():
                measured = event.evaluation
                values["eval_loss"] = measured.eval_loss
                if measured.is_best:
                    values |= {"best_eval_loss": measured.eval_loss, "best_step": event.step}
            case _:
                pass
    return values


def _record_one(session: Session, key: AttemptKey, event: TrainerEvent) -> None:
    match event:
        case CheckpointEvent():
            checkpoint_id = checkpoint_queries.insert(
                session, key.job_id, attempt=key.attempt, fence=key.fence, event=event
            )
            job_queries.add_event(
                session,
                key.job_id,
                "checkpoint",
                f"checkpoint {event.step} committed",
                attempt=key.attempt,
                data={"step": event.step, "checkpoint_id": checkpoint_id, "bytes": event.bytes},
            )
        case NoticeEvent():
            job_queries.add_event(
                session,
                key.job_id,
                event.code,
                event.message,
                attempt=key.attempt,
                data=event.data,
            )
        case _:
            pass
