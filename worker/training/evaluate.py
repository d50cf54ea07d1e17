"""Evaluation: the loss on rows that are not trained on, and whether it still falls."""

import math
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager

import torch

from app.domain.evaluations import Evaluation
from worker.training import healing, pulse, state
from worker.training.batch import lay_end_to_end
from worker.training.encode import EncodedRow
from worker.training.loss import make_scorer
from worker.training.reporting import EventLog
from worker.training.session import Session

# Larger micro-batches are no faster, and an evaluation must not need more memory than training.
_MAX_TOKENS = 4096


def when_due(session: Session, log: EventLog) -> Evaluation | None:
    """Evaluate if this step is one to evaluate after; updates the best loss and the patience."""
    if not _is_due(session):
        return None
    with session.memory.phase("evaluate"):
        evaluation = _evaluate(session)
    _note_result(session, evaluation)
    log.evaluation(evaluation)
    if evaluation.eval_loss is None:
        log.notice(
            step=evaluation.step,
            code="nonfinite_evaluation",
            message="the evaluation loss is not finite; this evaluation counts as no improvement"
            " and its checkpoint is never the best",
        )
    _stop_when_patience_is_over(session, log)
    return evaluation


def before_training(session: Session, log: EventLog) -> None:
    """Evaluate the base model if that is asked for; it has no checkpoint, so it is never best."""
    if session.progress.step > 0 or not session.run.spec.training.eval_on_start:
        return
    with session.memory.phase("evaluate"):
        found = _evaluate(session)
    log.evaluation(found.model_copy(update={"is_best": False, "num_since_best": 0}))


def lift_early_stop(session: Session, log: EventLog, *, steps_before: int) -> None:
    """Let a run that was stopped early go on if it is now to have more steps; patience starts anew.

    A run that only has to finish what it was doing when it was interrupted stays stopped.

    Args:
        steps_before: Steps that the run was to have when its checkpoint was written.
    """
    progress = session.progress
    if not progress.is_stopped_early or session.total_steps <= steps_before:
        return
    progress.is_stopped_early = False
    progress.num_evaluations_since_best = 0
    patience = session.run.spec.training.early_stopping_patience
    log.notice(
        step=progress.step,
        code="early_stopping_lifted",
        message=f"the run had stopped early at step {progress.step} of {steps_before} and goes on"
        f" to {session.total_steps}; its patience starts anew: {patience} evaluations in a row"
        f" that are not below {_best_so_far(session)} stop it again",
        patience=patience,
        best_step=progress.best_step,
        best_eval_loss=progress.best_eval_loss,
    )


def _is_due(session: Session) -> bool:
    step, every = session.progress.step, session.run.spec.training.eval_steps
    if not session.data.eval_rows:
        return False
    return step == session.total_steps or (every is not None and step % every == 0)


def _evaluate(session: Session) -> Evaluation:
    began = time.perf_counter()
    progress, rows = session.progress, session.data.eval_rows
    loss_sum, num_correct, num_targets = _measure_in_memory(session, rows)
    mean = loss_sum / num_targets
    eval_loss = mean if math.isfinite(mean) else None
    is_best = eval_loss is not None and (
        progress.best_eval_loss is None or eval_loss < progress.best_eval_loss
    )
    return Evaluation(
        step=progress.step,
        epoch=session.sampler.epoch_after(progress.step),
        eval_loss=eval_loss,
        token_accuracy=num_correct / num_targets,
        num_rows=len(rows),
        num_target_tokens=num_targets,
        is_best=is_best,
        num_since_best=0 if is_best else progress.num_evaluations_since_best + 1,
        seconds=time.perf_counter() - began,
    )


def _measure_in_memory(session: Session, rows: Sequence[EncodedRow]) -> tuple[float, int, int]:
    """Measure; where memory runs out, again with fewer rows at once. Training keeps its split."""
    most_rows, is_limited = session.micro_batch_size, session.memory.limit_bytes is not None
    while True:
        try:
            return _measure(session, rows, most_rows=most_rows)
        except (RuntimeError, MemoryError) as error:
            if most_rows == 1 or not healing.is_out_of_memory(error, is_limited=is_limited):
                raise
        # Outside of the handler: the error holds the frames that hold the tensors.
        most_rows //= 2
        healing.return_freed(session.device)


def _measure(
    session: Session, rows: Sequence[EncodedRow], *, most_rows: int
) -> tuple[float, int, int]:
    """Return the summed loss in nats, the number of labels predicted right, and that of labels."""
    loss_sum = torch.zeros((), dtype=torch.float64, device=session.device)
    num_correct = torch.zeros((), dtype=torch.int64, device=session.device)
    num_targets = 0
    score = make_scorer(session.adapted.base)
    with _undisturbed(session):
        for part in _micro_batches(rows, most_rows=most_rows):
            batch = lay_end_to_end(part, device=session.device)
            scored = score(batch)
            loss_sum += scored.loss_sum
            num_correct += scored.num_correct
            num_targets += batch.num_targets
            pulse.beat()
    return loss_sum.item(), int(num_correct.item()), num_targets


def _micro_batches(rows: Sequence[EncodedRow], *, most_rows: int) -> Iterator[Sequence[EncodedRow]]:
    """Divide rows, in their order, into parts of no more tokens than `most_rows` long ones have."""
    longest = max(len(row.ids) for row in rows)
    budget = max(longest, min(_MAX_TOKENS, most_rows * longest))
    part: list[EncodedRow] = []
    num_tokens = 0
    for row in rows:
        if num_tokens + len(row.ids) > budget:
            yield part
            part, num_tokens = [], 0
        part.append(row)
        num_tokens += len(row.ids)
    yield part


@contextmanager
def _undisturbed(session: Session) -> Generator[None]:
    """Switch dropout off inside, and leave every random generator as it was found.

    Nothing of ours draws a number without dropout; code of a model might.
    """
    host = state.capture_host_rng()
    devices = [session.device] if session.device.type == "cuda" else []
    session.adapted.model.eval()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        session.adapted.model.train()
        state.restore_host_rng(host)


def _note_result(session: Session, evaluation: Evaluation) -> None:
    progress = session.progress
    progress.eval_step, progress.eval_loss = evaluation.step, evaluation.eval_loss
    progress.num_evaluations_since_best = evaluation.num_since_best
    if evaluation.is_best:
        progress.best_step, progress.best_eval_loss = evaluation.step, evaluation.eval_loss


def _stop_when_patience_is_over(session: Session, log: EventLog) -> None:
    progress, patience = session.progress, session.run.spec.training.early_stopping_patience
    if patience is None or progress.step >= session.total_steps:
        return
    if progress.num_evaluations_since_best < patience:
        return
    progress.is_stopped_early = True
    log.notice(
        step=progress.step,
        code="early_stopping",
        message=f"stopping at step {progress.step} of {session.total_steps}: the last"
        f" {progress.num_evaluations_since_best} evaluations were not below"
        f" {_best_so_far(session)}",
        patience=patience,
        best_step=progress.best_step,
        best_eval_loss=progress.best_eval_loss,
    )


def _best_so_far(session: Session) -> str:
    loss, step = session.progress.best_eval_loss, session.progress.best_step
    return "infinity" if loss is None else f"{loss:.6g} (step {step})"
