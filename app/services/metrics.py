"""Step metrics, and the events that a stream replays."""

from collections.abc import Sequence

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


def replay(db: Database, job_id: str, *, after: tuple[int, int]) -> Sequence[StoredEvent]:
    """Return the next stored events behind a cursor (fence, seq); empty at the end."""
    fence, seq = after
    with db.read() as session:
        return event_queries.after(session, job_id, fence=fence, seq=seq, limit=_REPLAY_ROWS)
