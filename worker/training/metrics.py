"""StepMetrics from what a step measured."""

import hashlib
from collections.abc import Iterable

from app.domain.metrics import StepMetrics
from worker.training.session import Session
from worker.training.step import StepResult


def measured(
    session: Session, result: StepResult, *, step: int, learning_rate: float, seconds: float
) -> StepMetrics:
    """Gather the measurements of one optimizer step."""
    return StepMetrics(
        step=step,
        epoch=session.sampler.epoch_after(step),
        loss=result.loss,
        grad_norm=result.grad_norm,
        param_norm=result.param_norm,
        learning_rate=learning_rate,
        num_tokens=result.num_tokens,
        num_target_tokens=result.num_targets,
        step_seconds=seconds,
        tokens_per_second=result.num_tokens / seconds,
        peak_memory_bytes=session.memory.highest(),
        batch_sha=batch_sha(session.lines_of(step)),
    )


def batch_sha(lines: Iterable[int]) -> str:
    """Return the first 16 hex digits of the SHA-256 of the line numbers, joined by commas."""
    return hashlib.sha256(",".join(map(str, lines)).encode()).hexdigest()[:16]
