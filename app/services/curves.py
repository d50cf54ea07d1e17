"""The curves of a job: few enough points to draw, and what happened on the way."""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict
from sqlalchemy.orm import Session

from app.db import checkpoints as checkpoint_queries
from app.db import trainer_events as event_queries
from app.db.engine import Database
from app.domain.curves import Point, thinned
from app.domain.evaluations import Evaluation
from app.domain.events import EvaluationEvent, NoticeEvent
from app.services import jobs, rollups

_MOST_MARKERS = 500
_NOTICES: dict[str, "Kind"] = {
    "healed": "heal",
    "nonfinite_skipped": "skipped",
    "nonfinite_step": "nonfinite",
}
Kind = Literal["resume", "heal", "skipped", "nonfinite", "spike", "checkpoint"]


class Columns(BaseModel):
    """One list per measurement, all of the same length; null where it was not finite."""

    model_config = ConfigDict(frozen=True)

    step: list[int] = []
    tokens: list[int] = []
    """Tokens up to and with the step."""
    time: list[float] = []
    """Seconds of training up to and with the step."""
    loss: list[float | None] = []
    grad_norm: list[float | None] = []
    param_norm: list[float | None] = []
    learning_rate: list[float] = []
    tokens_per_second: list[float] = []
    peak_memory_bytes: list[int] = []


class Marker(BaseModel):
    """Something that happened at a step."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    kind: Kind
    """What happened."""
    step: int
    """Step that it happened at."""


class Curves(BaseModel):
    """What charts of a job show."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    columns: Columns
    """The steps in their order, thinned."""
    evaluations: Sequence[Evaluation]
    """All of them."""
    markers: Sequence[Marker]
    """In the order of their steps."""
    cursor: str
    """Id of the last event that is in here; the stream goes on behind it."""


def of_job(
    db: Database,
    project_id: str,
    job_id: str,
    *,
    max_points: int,
    from_step: int = 1,
    to_step: int | None = None,
) -> Curves:
    """Return the curves of the current branch, thinned so that no extreme of a curve is lost."""
    with db.read() as session:
        jobs.require(session, project_id, job_id)
        # Asked before the rows: an event in between comes twice, which a reader can see, not never.
        fence, seq = event_queries.newest_cursor(session, job_id)
        last = event_queries.last_metrics(session, job_id)
        evaluations = event_queries.of_kind(
            session, job_id, "evaluation", after_step=-1, limit=None
        )
        markers = _markers(session, job_id)
        end = min(to_step or last.step, last.step) if last else 0
        read = rollups.read(session, job_id, first=from_step, last=end, max_points=max_points)
        pieces = list(read)
    points = (point for some, _ in pieces for point in some)
    found = thinned(points, first=from_step, last=end, max_points=max_points)
    spikes = [step for _, some in pieces for step in some]
    markers += [Marker(kind="spike", step=step) for step in spikes[:_MOST_MARKERS]]
    return Curves(
        columns=_columns(found),
        evaluations=[e.evaluation for e in evaluations if isinstance(e, EvaluationEvent)],
        markers=sorted(markers, key=lambda each: each.step),
        cursor=f"{fence}-{seq}" if fence else "",
    )


def _columns(points: Sequence[Point]) -> Columns:
    if not points:
        return Columns()
    return Columns(**dict(zip(Point._fields, map(list, zip(*points, strict=True)), strict=True)))


def _markers(session: Session, job_id: str) -> list[Marker]:
    found = [
        Marker(kind="checkpoint", step=saved.step)
        for saved in checkpoint_queries.of_job(session, job_id, superseded=False)
    ]
    starts = event_queries.of_kind(session, job_id, "ready", after_step=0, limit=_MOST_MARKERS)
    found += [Marker(kind="resume", step=event.step) for event in starts]
    notices = event_queries.of_kind(session, job_id, "notice", after_step=-1, limit=_MOST_MARKERS)
    for event in notices:
        if isinstance(event, NoticeEvent) and event.code in _NOTICES:
            found.append(Marker(kind=_NOTICES[event.code], step=event.step))
    return found
