"""Queries on the speed of earlier runs."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.db.tables import JobRow, TrainerEventRow
from app.domain.events import TRAINER_EVENT, ReadyEvent, StepEvent

_NUM_JOBS = 20
_NUM_STEPS = 50


def tokens_per_second(
    session: Session, project_id: str, *, base_model: str, adapter: str, device: str
) -> Sequence[Sequence[float]]:
    """Return the speeds of the newest steps of each of the project's newest like jobs."""
    newest = session.execute(
        select(JobRow.id, JobRow.spec)
        .where(JobRow.project_id == project_id, JobRow.step > 0)
        .order_by(JobRow.id.desc())
        .limit(_NUM_JOBS)
    )
    like = [
        job_id
        for job_id, spec in newest
        if (spec["base_model"], spec["adapter"]) == (base_model, adapter)
    ]
    found = [_speeds(session, job_id) for job_id in like if _device(session, job_id) == device]
    return [speeds for speeds in found if speeds]


def _device(session: Session, job_id: str) -> str | None:
    body = session.scalar(_bodies(job_id, "ready", 1))
    event = None if body is None else TRAINER_EVENT.validate_json(body)
    return event.device.partition(":")[0] if isinstance(event, ReadyEvent) else None


def _speeds(session: Session, job_id: str) -> list[float]:
    events = map(TRAINER_EVENT.validate_json, session.scalars(_bodies(job_id, "step", _NUM_STEPS)))
    return [e.metrics.tokens_per_second for e in events if isinstance(e, StepEvent)]


def _bodies(job_id: str, kind: str, limit: int):
    return (
        select(TrainerEventRow.body)
        .where(TrainerEventRow.job_id == job_id, TrainerEventRow.kind == kind)
        .order_by(TrainerEventRow.fence.desc(), TrainerEventRow.seq.desc())
        .limit(limit)
    )
