"""Losses and gradients that are not finite: the update is not applied, and then?"""

from app.domain.errors import NonFiniteStep
from worker.training.reporting import EventLog
from worker.training.session import Session
from worker.training.step import StepResult


def settle(session: Session, log: EventLog, step: int, error: NonFiniteStep) -> StepResult:
    """Do what `monitoring.on_nonfinite` says with a step whose update was not applied.

    Raises:
        NonFiniteStep: The policy is to stop, or too many steps in a row were skipped.
    """
    raise error
