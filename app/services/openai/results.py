"""The result file of a job: what was measured at every step, as CSV."""

import csv
import io
from functools import lru_cache

from app.db import trainer_events as event_queries
from app.db.engine import Database
from app.db.jobs import JobRow
from app.domain.spec import JobSpec

_COLUMNS = ("step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy")
_ALL_STEPS = 100_000_000


def table(db: Database, row: JobRow) -> bytes:
    """Return the CSV of a job that succeeded; a cell is empty where nothing was measured."""
    with db.read() as session:
        steps = event_queries.metrics(
            session, row.id, after_step=0, limit=_ALL_STEPS, superseded=False
        )
        evaluations = {each.step: each for each in event_queries.evaluations(session, row.id)}
    losses = {each.step: each.loss for each in steps}
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for step in sorted(losses.keys() | evaluations.keys()):
        found = evaluations.get(step)
        valid = (None, None) if found is None else (found.eval_loss, found.token_accuracy)
        writer.writerow([step, losses.get(step), None, *valid])
    return out.getvalue().encode()


def size(db: Database, row: JobRow) -> int:
    """Return the size of the CSV in bytes."""
    return _known(_OfJob(db, row)).bytes


def trained_tokens(db: Database, row: JobRow) -> int:
    """Return how many tokens the loss of a job that succeeded was computed on, each time counted.

    Where not every step was logged, it follows from the data and the passes over it.
    """
    return _known(_OfJob(db, row)).tokens


class _OfJob:
    """A job as the key of what was found out about it: equal as long as its outcome is the same."""

    def __init__(self, db: Database, row: JobRow) -> None:
        self.db = db
        self.row = row
        self._key = (str(db.url), row.id, row.fence, row.final_attempt)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _OfJob) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


class _Known:
    def __init__(self, num_bytes: int, tokens: int) -> None:
        self.bytes = num_bytes
        self.tokens = tokens


@lru_cache(maxsize=4096)
def _known(job: _OfJob) -> _Known:
    return _Known(len(table(job.db, job.row)), _tokens(job.db, job.row))


def _tokens(db: Database, row: JobRow) -> int:
    spec = JobSpec.model_validate(row.spec)
    with db.read() as session:
        if spec.training.logging_steps == 1:
            steps = event_queries.metrics(
                session, row.id, after_step=0, limit=_ALL_STEPS, superseded=False
            )
            return sum(each.num_target_tokens for each in steps)
        found = event_queries.newest(session, row.id, "receipt")
    assert found is None or found.kind == "receipt"
    return 0 if found is None else round(found.receipt.num_target_tokens * (row.epoch or 0.0))
