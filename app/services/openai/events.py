"""Events of a job in OpenAI's words: its history and what was measured, in one list by time.

Every event has an id of its own that never changes: the number of an entry of the history, or the
attempt and line of a trainer's event. A page goes on behind the time of the event that it is given,
so nothing is shown twice while new events come in at the front.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy.orm import Session

from app.db import listings
from app.db.engine import Database
from app.db.listings import StoredLine
from app.domain.errors import InvalidInput
from app.domain.events import EvaluationEvent, StepEvent
from app.domain.groups import shown
from app.domain.jobs import JobEvent, JobState
from app.domain.openai.objects import CursorPage, FineTuningEvent, page_of, seconds
from app.services import jobs
from app.services.openai import fine_tuning

_ID = re.compile(
    r"ftevent-(?:h(?P<number>[0-9a-f]{16})|m(?P<fence>[0-9a-f]{8})(?P<seq>[0-9a-f]{12}))"
)
_WARNINGS = (
    "checkpoint_corrupt",
    "resume_fallback",
    "crash",
    "nonfinite_skipped",
    "environment_changed",
)


@dataclass(frozen=True)
class _Entry:
    """An event and its place: by its time, then by its source and its number."""

    at: datetime
    is_measured: bool
    number: tuple[int, int]
    event: FineTuningEvent

    @property
    def key(self) -> tuple[datetime, bool, tuple[int, int]]:
        return (self.at, self.is_measured, self.number)


def page(
    db: Database, project_id: str, shown_id: str, *, after: str | None, limit: int
) -> CursorPage[FineTuningEvent]:
    """List the events of a job, newest first.

    Raises:
        NotFound: There is no such job.
        InvalidInput: `after` is no id of an event of this job.
    """
    job_id = fine_tuning.own_id(shown_id)
    with db.read() as session:
        jobs.require(session, project_id, job_id)
        last = None if after is None else _entry(session, job_id, after)
        found = _before(session, job_id, last, limit + 1)
        total_steps = jobs.require(session, project_id, job_id).total_steps
    events = [_with_total(each.event, total_steps) for each in found[:limit]]
    return page_of(events, has_more=len(found) > limit)


def _before(session: Session, job_id: str, last: _Entry | None, limit: int) -> list[_Entry]:
    if last is None:
        history = listings.history(session, job_id, before=None, limit=limit)
        lines = listings.measured(session, job_id, up_to=None, limit=limit)
    else:
        # What was measured comes before the history of the same time, newest first.
        number = 2**62 if last.is_measured else last.number[0]
        history = listings.history(session, job_id, before=(last.at, number), limit=limit)
        up_to = last.number if last.is_measured else _line_before(session, job_id, last.at)
        # One more: the line of the event itself is among them.
        lines: Sequence[StoredLine] = (
            ()
            if up_to is None
            else listings.measured(session, job_id, up_to=up_to, limit=limit + 1)
        )
    found = [_of_history(each) for each in history] + [_of_line(each) for each in lines]
    behind = [each for each in found if last is None or each.key < last.key]
    return sorted(behind, key=lambda each: each.key, reverse=True)[:limit]


def _line_before(session: Session, job_id: str, at: datetime) -> tuple[int, int] | None:
    """Return (fence, number) of the last line that was written before a time.

    The lines of an attempt are in the order of their times, so halving finds it.
    """
    for fence, last in listings.fences(session, job_id):
        low, high = 0, last
        while low < high:
            middle = (low + high + 1) // 2
            line = listings.line(session, job_id, fence, middle)
            if line is not None and line.event.at < at:
                low = middle
            else:
                high = middle - 1
        if low > 0:
            return fence, low
    return None


def _entry(session: Session, job_id: str, event_id: str) -> _Entry:
    found = _ID.fullmatch(event_id)
    entry: _Entry | None = None
    if found is not None and found["number"] is not None:
        number = int(found["number"], 16)
        event = listings.history_entry(session, job_id, number) if number < 2**63 else None
        entry = None if event is None else _of_history(event)
    elif found is not None:
        line = listings.line(session, job_id, int(found["fence"], 16), int(found["seq"], 16))
        is_shown = line is not None and isinstance(line.event, StepEvent | EvaluationEvent)
        entry = _of_line(line) if line is not None and is_shown else None
    if entry is None:
        raise InvalidInput(
            f"after: {shown(event_id)} is no event of this job; give the id of the last event of"
            " the page before",
            param="after",
            code="invalid_cursor",
        )
    return entry


def _of_history(event: JobEvent) -> _Entry:
    data: dict[str, Any] = dict(event.data)
    if event.to_state is not None:
        data |= {"from_state": event.from_state, "to_state": event.to_state}
    shown_event = FineTuningEvent(
        id=f"ftevent-h{event.id:016x}",
        created_at=seconds(event.at),
        level=_level(event),
        message=event.message,
        type="message",
        data=data or None,
    )
    return _Entry(event.at, False, (event.id, 0), shown_event)


def _level(event: JobEvent) -> Literal["info", "warn", "error"]:
    if event.to_state == JobState.FAILED:
        return "error"
    went_back = event.to_state == JobState.QUEUED and event.from_state in (
        JobState.STARTING,
        JobState.RUNNING,
        JobState.FINALIZING,
    )
    return "warn" if event.type in _WARNINGS or went_back else "info"


def _of_line(line: StoredLine) -> _Entry:
    event = line.event
    data: dict[str, Any]
    if isinstance(event, EvaluationEvent):
        measured = event.evaluation
        data = {
            "step": event.step,
            "valid_loss": measured.eval_loss,
            "valid_mean_token_accuracy": measured.token_accuracy,
            "full_valid_loss": measured.eval_loss,
            "full_valid_mean_token_accuracy": measured.token_accuracy,
        }
        message = f"Step {event.step}: validation loss={_number(measured.eval_loss)}"
    else:
        assert isinstance(event, StepEvent)
        step = event.metrics
        data = {
            "step": event.step,
            "train_loss": step.loss,
            "learning_rate": step.learning_rate,
            "grad_norm": step.grad_norm,
            "epoch": step.epoch,
            "tokens_per_second": step.tokens_per_second,
        }
        message = f"Step {event.step}: training loss={_number(step.loss)}"
    shown_event = FineTuningEvent(
        id=f"ftevent-m{line.fence:08x}{line.seq:012x}",
        created_at=seconds(event.at),
        level="info",
        message=message,
        type="metrics",
        data=data,
    )
    return _Entry(event.at, True, (line.fence, line.seq), shown_event)


def _number(loss: float | None) -> str:
    return "not finite" if loss is None else f"{loss:.4f}"


def _with_total(event: FineTuningEvent, total_steps: int | None) -> FineTuningEvent:
    if event.type != "metrics" or event.data is None:
        return event
    return event.model_copy(update={"data": {**event.data, "total_steps": total_steps}})
