"""One training run from its run file to its last event: the loop that everything else serves."""

import time
from collections.abc import Callable
from pathlib import Path

from app.domain import failpoints
from app.domain.runs import FINAL_FOLDER, RunFile, StopReason, checkpoint_folder_name
from worker.training import (
    certify,
    checkpoint,
    evaluate,
    healing,
    limits,
    metrics,
    nonfinite,
    optim,
)
from worker.training.commit import Committed
from worker.training.prepare import prepare
from worker.training.reporting import EventLog
from worker.training.session import Session
from worker.training.step import NotApplied, StepResult, train_step

StopRequested = Callable[[], StopReason | None]


def train(
    run: RunFile,
    log: EventLog,
    *,
    started: float,
    stop_requested: StopRequested,
    examiner: certify.Examiner,
) -> None:
    """Train until the last step, or until a stop is requested between two steps.

    Args:
        run: What to train, on what, and where from.
        log: Receives every event.
        started: `time.monotonic()` when the process began, for the time to readiness.
        stop_requested: Asked before each step.
        examiner: Looks at the final adapter from outside.
    """
    session = prepare(run, log)
    with session.memory.reporting_failure(log):
        healing.make_room(session, log)
        log.ready(**session.summary(), startup_seconds=time.monotonic() - started)
        try:
            _run(session, log, stop_requested, examiner)
        finally:
            session.saver.settle()  # a run that fails keeps its last good checkpoint


def _run(
    session: Session, log: EventLog, stop_requested: StopRequested, examiner: certify.Examiner
) -> None:
    evaluate.before_training(session, log)
    while not session.is_done():
        if reason := stop_requested():
            _stop(session, log, reason)
            return
        take_step(session, log)
        session.saver.poll()
        session.memory.report_first(log)
        evaluation = evaluate.when_due(session, log)
        is_best = evaluation is not None and evaluation.is_best
        if is_best or session.is_save_due(session.progress.step):
            _save(session, log)

    # The work is done: a pause has nothing left to pause, only a cancel still means something.
    if stop_requested() == "cancel":
        _stop(session, log, "cancel")
        return
    _finish(session, log, examiner)


def _finish(session: Session, log: EventLog, examiner: certify.Examiner) -> None:
    session.saver.settle()
    folder = session.run.attempt_folder / FINAL_FOLDER
    progress = session.progress
    # No step is to come that the reserve would have to save.
    with limits.with_reserve(session.memory.limit_bytes, session.device):
        with session.memory.phase("save"):
            final = checkpoint.save_final(
                folder, session.adapted, step=progress.step, facts=session.facts()
            )
        with session.memory.phase("certify"):
            certify.certify(session, log, folder, examiner)
    session.memory.report(log)
    log.finished(
        step=progress.step, manifest_sha256=final.manifest_sha256, num_tokens=progress.num_tokens
    )


def take_step(session: Session, log: EventLog) -> None:
    """Do the next optimizer step and report it."""
    failpoints.hit("trainer.step")
    began = time.perf_counter()
    step = session.progress.step + 1
    log.at_step(step)
    learning_rate = session.schedule.learning_rate(step)
    optim.set_learning_rate(session.optimizer, learning_rate)
    with session.memory.phase("train"):
        result = _step(session, log, step)
    seconds = time.perf_counter() - began
    _note_progress(session, step, result, learning_rate)
    updates = session.progress.num_updates
    session.flow.report(log, step=step, learning_rate=learning_rate, num_updates=updates)
    if session.is_logged(step) or not result.is_applied:
        log.step_done(
            metrics.measured(
                session, result, step=step, learning_rate=learning_rate, seconds=seconds
            )
        )


def _step(session: Session, log: EventLog, step: int) -> StepResult:
    try:
        return healing.heal(
            session,
            log,
            step,
            lambda batches: train_step(
                session.loss_sum,
                session.parameters,
                session.optimizer,
                batches,
                max_grad_norm=session.run.spec.training.max_grad_norm,
                inspect_gradients=session.flow.inspection(step),
            ),
        )
    except NotApplied as error:
        return nonfinite.settle(session, log, step, error)


def _note_progress(session: Session, step: int, result: StepResult, learning_rate: float) -> None:
    progress = session.progress
    progress.step = step
    progress.num_tokens += result.num_tokens
    progress.loss = result.loss
    if result.is_applied:
        progress.skipped_in_a_row = 0
        progress.num_updates += learning_rate > 0


def _stop(session: Session, log: EventLog, reason: StopReason) -> None:
    step = session.progress.step
    if reason != "cancel" and step > session.saved.step:
        _save(session, log)
    session.saver.settle()
    session.memory.report(log)
    log.stopped(step=step, reason=reason)


def _save(session: Session, log: EventLog) -> None:
    if not nonfinite.may_save(session):
        return
    began = time.perf_counter()
    progress = session.progress.model_copy()
    folder = session.run.attempt_folder / checkpoint_folder_name(progress.step)

    def tell(committed: Committed) -> None:
        log.checkpoint(
            step=progress.step,
            manifest_sha256=committed.manifest_sha256,
            bytes=committed.bytes,
            loss=progress.loss,
            eval_loss=progress.eval_loss if progress.eval_step == progress.step else None,
            save_seconds=time.perf_counter() - began,
        )

    with session.memory.phase("save"):
        session.saver.save(_writing(session, folder), tell)
    session.saved.step = progress.step


def _writing(session: Session, folder: Path) -> Callable[[], Committed]:
    facts, device = session.facts(), session.device
    what = (session.adapted, session.optimizer, session.state())
    if session.saver.is_beside:
        write = checkpoint.capture(*what, facts=facts, device=device)
        return lambda: write(folder)
    return lambda: checkpoint.save(folder, *what, facts=facts, device=device)
