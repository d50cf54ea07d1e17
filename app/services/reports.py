"""What trainers report beside metrics: receipt, evaluations, gradient flow, memory, certificate."""

from collections.abc import Sequence
from pathlib import Path

from app.db import trainer_events as event_queries
from app.db.engine import Database
from app.domain.certificates import Certificate
from app.domain.errors import NotFound
from app.domain.evaluations import Evaluation
from app.domain.events import (
    CertificateEvent,
    EvaluationEvent,
    GradientFlowEvent,
    MemoryEvent,
    ReceiptEvent,
    TrainerEvent,
)
from app.domain.gradient_flow import GradientFlow
from app.domain.memory import MemoryReport
from app.domain.receipts import Receipt
from app.domain.runs import FATES_FILE, attempt_folder
from app.services import jobs
from app.settings import Settings


def receipt(db: Database, project_id: str, job_id: str) -> Receipt:
    """Return what became of every line of the job's data set.

    Raises:
        NotFound: No such job, or its data has not been read yet.
    """
    event = _newest(db, project_id, job_id, "receipt")
    if not isinstance(event, ReceiptEvent):
        raise _not_yet(job_id, "receipt", "it is made when the job starts and reads its data")
    return event.receipt


def fates_file(db: Database, settings: Settings, project_id: str, job_id: str) -> Path:
    """Return the file with a `LineFate` per line of the job's data set.

    Raises:
        NotFound: No such job, or its data has not been read yet.
    """
    with db.read() as session:
        newest = jobs.require(session, project_id, job_id).attempt
    # The newest attempt may not have come so far; every attempt decides alike.
    for attempt in range(newest, 0, -1):
        path = attempt_folder(settings.home, job_id, attempt) / FATES_FILE
        if path.is_file():
            return path
    raise _not_yet(job_id, "receipt", "it is made when the job starts and reads its data")


def memory(db: Database, project_id: str, job_id: str) -> MemoryReport:
    """Return the memory peaks of the job's newest attempt.

    Raises:
        NotFound: No such job, or nothing was measured yet.
    """
    event = _newest(db, project_id, job_id, "memory")
    if not isinstance(event, MemoryEvent):
        raise _not_yet(job_id, "memory report", "the first comes with the first step")
    return event.memory


def certificate(db: Database, project_id: str, job_id: str) -> Certificate:
    """Return what was measured of the final adapter, passed or not.

    Raises:
        NotFound: No such job, or it has not reached its last step.
    """
    event = _newest(db, project_id, job_id, "certificate")
    if not isinstance(event, CertificateEvent):
        raise _not_yet(job_id, "certificate", "it is made after the last step")
    return event.certificate


def evaluations(
    db: Database, project_id: str, job_id: str, *, after_step: int, limit: int
) -> Sequence[Evaluation]:
    found = _of_kind(db, project_id, job_id, "evaluation", after_step=after_step, limit=limit)
    return [event.evaluation for event in found if isinstance(event, EvaluationEvent)]


def gradient_flow(
    db: Database, project_id: str, job_id: str, *, after_step: int, limit: int
) -> Sequence[GradientFlow]:
    found = _of_kind(db, project_id, job_id, "gradient_flow", after_step=after_step, limit=limit)
    return [event.gradient_flow for event in found if isinstance(event, GradientFlowEvent)]


def _newest(db: Database, project_id: str, job_id: str, kind: str) -> TrainerEvent | None:
    with db.read() as session:
        jobs.require(session, project_id, job_id)
        return event_queries.newest(session, job_id, kind)


def _of_kind(
    db: Database, project_id: str, job_id: str, kind: str, *, after_step: int, limit: int
) -> Sequence[TrainerEvent]:
    with db.read() as session:
        jobs.require(session, project_id, job_id)
        return event_queries.of_kind(session, job_id, kind, after_step=after_step, limit=limit)


def _not_yet(job_id: str, what: str, when: str) -> NotFound:
    return NotFound(
        f"job {job_id} has no {what} yet; {when}", param="job_id", code="not_measured_yet"
    )
