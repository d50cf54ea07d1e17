"""Replay: some steps from a checkpoint on, done again as a run does them, and nothing saved."""

import fcntl
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from app.domain.errors import Unavailable
from app.domain.events import TRAINER_EVENT, NoticeEvent, StepEvent
from app.domain.runs import EVENTS_FILE, RunFile
from app.domain.tools import ReplayRequest, ReplayResult
from worker.training import state
from worker.training.prepare import prepare
from worker.training.reporting import EventLog
from worker.training.run import take_step


def replay(request: ReplayRequest, scratch: Path) -> ReplayResult:
    """Do the steps that follow a checkpoint again, by the trainer's own code and settings.

    Evaluations and saves of the run are left out: that they change no number is part of what a
    replay shows.

    Args:
        request: The run file of the attempt that did the steps, and how many.
        scratch: An empty folder for the events; nothing is written anywhere else.

    Raises:
        Unavailable: The device of the run is not here, or is busy.
        ResumeMismatch: The checkpoint does not continue that run.
    """
    began = time.monotonic()
    run = _beside(request, scratch)
    with _device(run, request.device), EventLog(scratch / EVENTS_FILE) as log:
        session = prepare(run, log)
        for _ in range(request.num_steps):
            take_step(session, log)
        tensors = state.live_tensors(session.adapted.parameters, session.optimizer, session.device)
        tensors_sha256 = state.digest(tensors)
    events = [
        TRAINER_EVENT.validate_json(line)
        for line in (scratch / EVENTS_FILE).read_bytes().splitlines()
    ]
    return ReplayResult(
        steps=tuple(event.metrics for event in events if isinstance(event, StepEvent)),
        tensors_sha256=tensors_sha256,
        notices=tuple(event.message for event in events if isinstance(event, NoticeEvent)),
        seconds=time.monotonic() - began,
    )


def _beside(request: ReplayRequest, scratch: Path) -> RunFile:
    """Return the run file with its own folder, and every step logged."""
    run = request.run
    training = run.spec.training.model_copy(update={"logging_steps": 1})
    spec = run.spec.model_copy(update={"training": training})
    return run.model_copy(update={"spec": spec, "attempt_folder": scratch})


@contextmanager
def _device(run: RunFile, kind_here: str) -> Generator[None]:
    """Hold the run's GPU; a CPU is shared with whoever trains on it.

    Raises:
        Unavailable: It is not here, or another process holds it.
    """
    if run.device == "cpu":
        yield
        return
    if kind_here != "cuda":
        raise Unavailable(
            "the steps were done on CUDA and this worker has none; equal bits need an equal device",
            code="no_device",
        )
    run.lock_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with run.lock_file.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Unavailable(
                f"GPU {run.device_index} is busy with a training job; ask again when that has"
                " ended or is paused",
                code="device_busy",
            ) from error
        yield
