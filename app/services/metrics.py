"""Step metrics, and the events that a stream replays."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.db import trainer_events as event_queries
from app.db.engine import Database
from app.db.trainer_events import StoredEvent
from app.domain.metrics import StepMetrics
from app.services import jobs

_REPLAY_ROWS = 500


def of_job(
    db: Database, project_id: str, job_id: str, *, after_step: int, limit: int, superseded: bool
) -> Sequence[StepMetrics]:
    """Return the metrics of up to `limit` steps: one each on the current branch."""
    with db.read() as session:
        jobs.require(session, project_id, job_id)
        return event_queries.metrics(
            session, job_id, after_step=after_step, limit=limit, superseded=superseded
        )


def newest(db: Database, job_id: str) -> tuple[int, int]:
    """Return (fence, seq) of the last stored event of a job, (0, 0) without one."""
    with db.read() as session:
        return event_queries.newest_cursor(session, job_id)


@dataclass(frozen=True)
class Replay:
    """A piece of a job's stored events."""

    events: Sequence[StoredEvent]
    end: tuple[int, int]
    """Cursor (fence, seq) up to which nothing more is to be sent, superseded events included."""


def replay(db: Database, job_id: str, *, after: tuple[int, int]) -> Replay:
    """Return the next events of the current branch behind a cursor (fence, seq)."""
    fence, seq = after
    with db.read() as session:
        # Asked before the events: what is stored in between comes with the next piece.
        newest = event_queries.newest_cursor(session, job_id)
        found = event_queries.after(session, job_id, fence=fence, seq=seq, limit=_REPLAY_ROWS)
    if len(found) == _REPLAY_ROWS:
        return Replay(found, (found[-1].fence, found[-1].seq))
    last = (found[-1].fence, found[-1].seq) if found else after
    return Replay(found, max(after, last, newest))
