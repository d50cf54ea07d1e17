"""Evaluation: the loss on rows that are not trained on, and whether it still falls."""

from app.domain.evaluations import Evaluation
from worker.training.reporting import EventLog
from worker.training.session import Session


def when_due(session: Session, log: EventLog) -> Evaluation | None:
    """Evaluate if this step is one to evaluate after; updates the best loss and the patience."""
    return None
