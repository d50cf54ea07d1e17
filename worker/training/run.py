"""One training run from its run file to its last event: the loop that everything else serves."""

import time
from collections.abc import Callable

from app.domain import failpoints
from app.domain.runs import FINAL_FOLDER, RunFile, StopReason, checkpoint_folder_name
from worker.training import checkpoint, metrics, optim
from worker.training.batch import lay_end_to_end
from worker.training.prepare import prepare
from worker.training.reporting import EventLog
from worker.training.session import Progress, Session
from worker.training.step import StepResult, train_step

StopRequested = Callable[[], StopReason | None]


def train(run: RunFile, log: EventLog, *, started: float, stop_requested: StopRequested) -> None:
    """Train until the last step, or until a stop is requested between two steps.

    Args:
        run: What to train, on what, and where from.
        log: Receives every event.
        started: `time.monotonic()` when the process began, for the time to readiness.
        stop_requested: Asked before each step.
    """
    session = prepare(run, log)
    progress = session.progress
    log.ready(**session.summary(), startup_seconds=time.monotonic() - started)

    while progress.step < session.total_steps:
        if reason := stop_requested():
            _stop(session, log, reason)
            return
        _take_step(session, log)
        if session.is_save_due(progress.step):
            _save(session, log)

    # The work is done: a pause has nothing left to pause, only a cancel still means something.
    if stop_requested() == "cancel":
        _stop(session, log, "cancel")
        return
    final = checkpoint.save_final(
        run.attempt_folder / FINAL_FOLDER,
        session.adapted,
        step=progress.step,
        facts=session.facts(),
    )
    log.finished(
        step=progress.step, manifest_sha256=final.manifest_sha256, num_tokens=progress.num_tokens
    )


def _take_step(session: Session, log: EventLog) -> None:
    failpoints.hit("trainer.step")
    began = time.perf_counter()
    step = session.progress.step + 1
    log.at_step(step)
    micro_batches = session.sampler.micro_batches_of(step)
    learning_rate = session.schedule.learning_rate(step)
    optim.set_learning_rate(session.optimizer, learning_rate)
    result = train_step(
        session.loss_sum,
        session.parameters,
        session.optimizer,
        [
            lay_end_to_end([session.data.rows[row] for row in rows], device=session.device)
            for rows in micro_batches
        ],
        max_grad_norm=session.run.spec.training.max_grad_norm,
    )
    seconds = time.perf_counter() - began
    _note_progress(session.progress, step, result)
    if session.is_logged(step):
        log.step_done(
            metrics.measured(
                session, result, step=step, learning_rate=learning_rate, seconds=seconds
            )
        )


def _note_progress(progress: Progress, step: int, result: StepResult) -> None:
    progress.step = step
    progress.num_tokens += result.num_tokens
    progress.loss = result.loss


def _stop(session: Session, log: EventLog, reason: StopReason) -> None:
    step = session.progress.step
    if reason != "cancel" and step > session.progress.saved_step:
        _save(session, log)
    log.stopped(step=step, reason=reason)


def _save(session: Session, log: EventLog) -> None:
    began = time.perf_counter()
    progress = session.progress
    committed = checkpoint.save(
        session.run.attempt_folder / checkpoint_folder_name(progress.step),
        session.adapted,
        session.optimizer,
        session.state(),
        facts=session.facts(),
        device=session.device,
    )
    progress.saved_step = progress.step
    log.checkpoint(
        step=progress.step,
        manifest_sha256=committed.manifest_sha256,
        bytes=committed.bytes,
        loss=progress.loss,
        save_seconds=time.perf_counter() - began,
    )
