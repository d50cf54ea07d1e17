"""Verifying a resume: a worker does steps again from a checkpoint, beside what was recorded."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy.orm import Session

from app.db import checkpoints as checkpoint_queries
from app.db import replays
from app.db.engine import Database
from app.db.replays import DoneStep, Start
from app.domain.checkpoints import STATE_FILES, Checkpoint
from app.domain.errors import Conflict, InvalidInput
from app.domain.metrics import StepMetrics
from app.domain.replays import ReplayedStep, StateComparison, Verification
from app.domain.runs import RUN_FILE, ResumePoint, RunFile, attempt_folder
from app.domain.tools import ReplayRequest, ReplayResult
from app.services import checkpoints, jobs, replay, tools
from app.services.jobs import Outside
from app.settings import Settings

_MAX_STEPS = 50


class VerifyRequest(BaseModel):
    """Which checkpoint to replay from, and how far."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True
    )

    checkpoint: int | str = checkpoints.LATEST
    """A step on the current branch, `latest`, `best`, or the id of a checkpoint of this job."""
    steps: int = Field(default=3, ge=1, le=_MAX_STEPS)
    """Steps to do again; fewer are done when fewer are recorded past the checkpoint."""


@dataclass(frozen=True)
class _Recorded:
    """What is known of the steps past a checkpoint."""

    start: Start
    """The attempt that did the first of them."""
    steps: Mapping[int, DoneStep]
    attempts: Mapping[int, int]
    """Fence -> attempt."""

    @property
    def last_step(self) -> int:
        return max(self.steps)


def verify(
    db: Database, outside: Outside, project_id: str, job_id: str, request: VerifyRequest
) -> Verification:
    """Let a worker replay steps from a checkpoint beside the recorded ones; the job is not touched.

    Raises:
        NotFound: No such job or checkpoint.
        CheckpointUnusable: The checkpoint does not verify.
        Conflict: There is nothing recorded to compare with, or the run cannot be replayed.
        NoWorker: No worker is running.
        Unavailable: The worker failed, took too long, or its GPU is busy.
    """
    settings = outside.settings
    with tools.place_for_a_call():
        checkpoint = checkpoints.get(db, project_id, job_id, str(request.checkpoint))
        checkpoints.require_good(db, settings, checkpoint)
        with db.read() as session:
            jobs.require(session, project_id, job_id)
            recorded = _recorded(session, checkpoint, request.steps)
        run = _run_file(settings, job_id, recorded.start.attempt)
        point = ResumePoint(
            folder=checkpoints.folder_of(settings, checkpoint),
            step=checkpoint.step,
            manifest_sha256=checkpoint.manifest_sha256,
        )
        wanted = ReplayRequest(
            run=run.model_copy(update={"resume": point}),
            num_steps=recorded.last_step - checkpoint.step,
        )
        result = _ask(db, outside, wanted)
    with db.read() as session:
        saved = _saved_there(session, settings, job_id, recorded)
    return _verification(checkpoint, recorded, result, saved)


def _ask(db: Database, outside: Outside, request: ReplayRequest) -> ReplayResult:
    try:
        return tools.ask(
            db, outside, request, ReplayResult, seconds=outside.settings.verify_seconds
        )
    except InvalidInput as error:
        # The request was fine: what it names on disk does not fit together.
        raise Conflict(
            f"the checkpoint cannot be replayed: {error.message}",
            param="checkpoint",
            code=error.code,
        ) from error


def _recorded(session: Session, checkpoint: Checkpoint, num_steps: int) -> _Recorded:
    """Return the recorded steps past a checkpoint that a replay of it has to equal.

    Raises:
        Conflict: There is none in reach.
    """
    first, last = checkpoint.step + 1, checkpoint.step + num_steps
    starts = replays.starts(session, checkpoint.job_id)
    saved = replays.saved_steps(session, checkpoint.job_id)
    done = replays.done_steps(session, checkpoint.job_id, first=first, last=last)
    done = sorted(done, key=lambda each: (each.superseded, -each.fence))
    start = _continuing(checkpoint, starts, saved, done)
    if start is None:
        raise _nothing_recorded(session, checkpoint)
    steps: dict[int, DoneStep] = {}
    for each in done:
        step = each.metrics.step
        ours = replay.history(starts, saved, start.fence, step)
        if step not in steps and replay.history(starts, saved, each.fence, step) == ours:
            steps[step] = each
    return _Recorded(start, steps, {each.fence: each.attempt for each in starts})


def _continuing(
    checkpoint: Checkpoint,
    starts: Sequence[Start],
    saved: Sequence[tuple[int, int]],
    done: Sequence[DoneStep],
) -> Start | None:
    """Return the attempt that went on from a checkpoint: its writer, or one resumed from it."""
    by_fence = {each.fence: each for each in starts}
    for each in done:
        start = by_fence[each.fence]
        writers = [f for f, step in saved if step == checkpoint.step and f < start.fence]
        resumed = start.step == checkpoint.step and writers
        writer = by_fence[max(writers)] if resumed else start
        if writer.attempt == checkpoint.attempt:
            return start
    return None


def _nothing_recorded(session: Session, checkpoint: Checkpoint) -> Conflict:
    step, job_id = checkpoint.step, checkpoint.job_id
    following = replays.next_step(
        session, job_id, after_step=step, superseded=checkpoint.superseded
    )
    if following is not None and following - step <= _MAX_STEPS:
        remedy = f"the next logged step is {following}; ask for steps: {following - step}"
    else:
        earlier = [
            str(each.step)
            for each in checkpoint_queries.of_job(session, job_id, superseded=False)
            if each.step < step and each.status == "committed"
        ]
        remedy = "let the job train further"
        if earlier:
            remedy += f", or choose an earlier checkpoint: {', '.join(earlier)}"
    return Conflict(
        f"no step that follows checkpoint {step} is recorded, so there is nothing to compare a"
        f" replay with; {remedy}",
        param="checkpoint",
        code="nothing_recorded",
    )


def _run_file(settings: Settings, job_id: str, attempt: int) -> RunFile:
    """Return what the trainer of an attempt was told: threads, device and settings make the bits.

    Raises:
        Conflict: The file is gone, or was written by another version.
    """
    path = attempt_folder(settings.home, job_id, attempt) / RUN_FILE
    try:
        return RunFile.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise Conflict(
            f"attempt {attempt} cannot be replayed: its {RUN_FILE} is gone or was written by"
            " another version of lorad; resume the job and verify a step of the new attempt",
            param="checkpoint",
            code="not_replayable",
        ) from error


def _saved_there(
    session: Session, settings: Settings, job_id: str, recorded: _Recorded
) -> str | None:
    """Return the hash of the state that was saved after the last recorded step, if it was."""
    attempt = recorded.attempts[recorded.steps[recorded.last_step].fence]
    for each in checkpoint_queries.of_job(session, job_id, superseded=True):
        if (each.step, each.attempt) != (recorded.last_step, attempt):
            continue
        try:
            path = checkpoints.folder_of(settings, each) / STATE_FILES[1]
            return str(json.loads(path.read_bytes())["tensors_sha256"])
        except (OSError, ValueError, KeyError):
            return None  # it was deleted at this moment, or is corrupt
    return None


def _verification(
    checkpoint: Checkpoint, recorded: _Recorded, result: ReplayResult, saved: str | None
) -> Verification:
    pairs = [(recorded.steps.get(now.step), now) for now in result.steps]
    steps = [_step(None if before is None else before.metrics, now) for before, now in pairs]
    absolute, relative = _largest_differences(steps)
    state = None
    if saved is not None:
        state = StateComparison(
            step=recorded.last_step,
            recorded_tensors_sha256=saved,
            replayed_tensors_sha256=result.tensors_sha256,
            identical=saved == result.tensors_sha256,
        )
    return Verification(
        job_id=checkpoint.job_id,
        checkpoint_id=checkpoint.id,
        checkpoint_step=checkpoint.step,
        attempt=recorded.start.attempt,
        steps=steps,
        largest_absolute_difference=absolute,
        largest_relative_difference=relative,
        next_checkpoint=state,
        identical=all(each.identical is not False for each in steps)
        and (state is None or state.identical),
        notices=list(result.notices),
        seconds=result.seconds,
    )


def _step(before: StepMetrics | None, now: StepMetrics) -> ReplayedStep:
    return ReplayedStep(
        step=now.step,
        recorded_loss=None if before is None else before.loss,
        replayed_loss=now.loss,
        recorded_grad_norm=None if before is None else before.grad_norm,
        replayed_grad_norm=now.grad_norm,
        identical=None if before is None else not replay.differences(before, now),
    )


def _largest_differences(steps: Sequence[ReplayedStep]) -> tuple[float, float]:
    """Return the largest absolute and the largest relative difference of all values."""
    absolute = relative = 0.0
    for step in steps:
        for before, now in (
            (step.recorded_loss, step.replayed_loss),
            (step.recorded_grad_norm, step.replayed_grad_norm),
        ):
            if before is None or now is None:
                continue
            difference = abs(now - before)
            absolute = max(absolute, difference)
            relative = max(relative, difference / abs(before) if before else difference)
    return absolute, relative
