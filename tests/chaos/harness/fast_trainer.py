# pyright: basic, reportMissingTypeStubs=false
"""A trainer that speaks the file protocol of the real one on a model of 64 numbers, without torch.

What it is doing can be read from outside in the name of its process, `<phase>:<end of the job's
id>`: whoever kills it can say where the kill landed.
"""

import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np

from app.domain import checkpoints, disk, failpoints
from app.domain.checkpoints import BadCheckpoint, Manifest
from app.domain.errors import LoradError, ResumeMismatch
from app.domain.metrics import StepMetrics
from app.domain.runs import (
    EVENTS_FILE,
    EXIT_BUSY,
    EXIT_DISK_FULL,
    FINAL_FOLDER,
    PULSE_FILE,
    RUN_FILE,
    RunFile,
    StopReason,
    checkpoint_folder_name,
)
from tests.chaos.harness import fast_model, visits
from tests.chaos.harness.fast_model import FastModel
from worker import trainer
from worker.trainer import Control, StillHeld
from worker.training import pulse
from worker.training.commit import commit
from worker.training.reporting import EventLog

# Keys of a job's metadata that tell this trainer how to behave.
STEP_MS, SAVE_MS = "chaos_step_ms", "chaos_save_ms"
FAILPOINTS, FAILING_ATTEMPTS = "chaos_failpoints", "chaos_failing_attempts"
PHASES = ("load", "wait", "step", "save", "rest", "last")
NAME_END = 10
# A save of four files and a manifest syncs six times.
_SYNCS_A_SAVE = 6


def preload() -> None:
    """Have everything imported; called in the fork server."""


def main(run_folder: Path, control_fd: int) -> int:
    """Run one attempt, as `worker.trainer.main` does, with the same exit codes."""
    started = time.monotonic()
    control = Control(control_fd)
    control.watch()
    try:
        run = RunFile.model_validate_json((run_folder / RUN_FILE).read_bytes())
        _set_failpoints(run)
        phase = _Phase(run.job_id)
        pulse.start(run.attempt_folder / PULSE_FILE)
        with EventLog(run.attempt_folder / EVENTS_FILE) as log:
            return _attempt(run, log, control.stop_requested, phase, started)
    except Exception:  # noqa: BLE001 (the edge of the process: to its log, the supervisor retries)
        traceback.print_exc()
        return 2


class _Phase:
    """Tells the outside what this process is doing."""

    def __init__(self, job_id: str) -> None:
        self._end = job_id[-NAME_END:]
        self._file = os.open("/proc/self/comm", os.O_WRONLY) if sys.platform == "linux" else None

    def enter(self, name: str) -> None:
        if self._file is not None:
            os.write(self._file, f"{name}:{self._end}".encode())


def _set_failpoints(run: RunFile) -> None:
    """Let saves take their time, and fail where the job asks for it, in the attempts it names."""
    metadata = run.spec.metadata
    points: dict[str, str] = {}
    if save_ms := float(metadata.get(SAVE_MS, "0")):
        points["checkpoint.fsync"] = f"sleep:{save_ms / _SYNCS_A_SAVE / 1000:.4f}"
    if str(run.attempt) in metadata.get(FAILING_ATTEMPTS, "").split(","):
        points |= failpoints.parse(metadata.get(FAILPOINTS, ""))
        visits.keep(run.attempt_folder.parents[3], run.job_id)
    given = os.environ.get(failpoints.VARIABLE, "")
    extra = ";".join(f"{name}={action}" for name, action in points.items())
    os.environ[failpoints.VARIABLE] = f"{given};{extra}"


def _attempt(
    run: RunFile,
    log: EventLog,
    stop_requested: Callable[[], StopReason | None],
    phase: _Phase,
    started: float,
) -> int:
    phase.enter("wait")
    try:
        with trainer._exclusive(run.lock_file):
            phase.enter("load")
            _Run(run, log, stop_requested, phase).train(started)
    except StillHeld as error:
        print(error, file=sys.stderr)  # noqa: T201 (standard error is the trainer's log)
        return EXIT_BUSY
    except LoradError as error:
        traceback.print_exc()
        log.failed(code=error.code, message=error.message)
        return 1
    except OSError as error:
        if not disk.is_full(error):
            raise
        traceback.print_exc()
        log.disk_full(needed_bytes=disk.needed_after(error, run.attempt_folder))
        return EXIT_DISK_FULL
    return 0


class _Run:
    """One attempt that holds its lock."""

    def __init__(
        self,
        run: RunFile,
        log: EventLog,
        stop_requested: Callable[[], StopReason | None],
        phase: _Phase,
    ) -> None:
        training = run.spec.training
        assert training.max_steps is not None, "the fast trainer counts in steps"
        self._run = run
        self._log = log
        self._stop_requested = stop_requested
        self._phase = phase
        self._total = training.max_steps
        self._save_steps = training.save_steps or self._total
        self._seconds = float(run.spec.metadata.get(STEP_MS, "0")) / 1000
        self._model = self._start()
        self._saved = self._model.step

    def train(self, started: float) -> None:
        failpoints.hit("trainer.load")
        self._tell_ready(started)
        while self._model.step < self._total:
            if reason := self._stop_requested():
                self._stop(reason)
                return
            self._do_step()
            if self._model.step % self._save_steps == 0 or self._model.step == self._total:
                self._save()
            self._phase.enter("rest")
        if self._stop_requested() == "cancel":
            self._stop("cancel")
            return
        self._finish()

    def _start(self) -> FastModel:
        point = self._run.resume
        if point is None:
            return FastModel.fresh(self._run.spec.seed)
        try:
            checkpoints.verify(point.folder, manifest_sha256=point.manifest_sha256)
        except (BadCheckpoint, OSError) as error:
            raise ResumeMismatch(f"checkpoint {point.step} cannot be read: {error}") from error
        return fast_model.load(point.folder)

    def _do_step(self) -> None:
        self._phase.enter("step")
        pulse.beat()
        failpoints.hit("trainer.step")
        began = time.perf_counter()
        self._log.at_step(self._model.step + 1)
        weights = self._model.weights
        done = self._model.do_step()
        time.sleep(self._seconds)
        seconds = time.perf_counter() - began
        self._log.step_done(
            StepMetrics(
                step=self._model.step,
                epoch=self._model.step / 100,
                loss=done.loss,
                grad_norm=float(np.sqrt(np.float32(done.loss))),
                param_norm=float(np.sqrt(np.sum(weights * weights))),
                learning_rate=done.learning_rate,
                num_tokens=done.num_tokens,
                num_target_tokens=done.num_tokens,
                step_seconds=seconds,
                tokens_per_second=done.num_tokens / seconds,
                peak_memory_bytes=0,
                batch_sha=done.batch_sha,
            )
        )

    def _save(self) -> None:
        self._phase.enter("save")
        began = time.perf_counter()
        step = self._model.step
        folder = self._run.attempt_folder / checkpoint_folder_name(step)
        committed = commit(folder, self._model.contents(), self._manifest("checkpoint"))
        self._saved = step
        self._log.checkpoint(
            step=step,
            manifest_sha256=committed.manifest_sha256,
            bytes=committed.bytes,
            loss=self._model.loss,
            save_seconds=time.perf_counter() - began,
        )

    def _stop(self, reason: StopReason) -> None:
        if reason != "cancel" and self._model.step > self._saved:
            self._save()
        self._log.stopped(step=self._model.step, reason=reason)

    def _finish(self) -> None:
        self._phase.enter("last")
        folder = self._run.attempt_folder / FINAL_FOLDER
        final = commit(folder, self._model.adapter_contents(), self._manifest("final"))
        self._log.finished(
            step=self._model.step,
            manifest_sha256=final.manifest_sha256,
            num_tokens=self._model.num_tokens,
        )

    def _manifest(self, kind: str) -> Manifest:
        run = self._run
        return Manifest.model_validate(
            {
                "kind": kind,
                "job_id": run.job_id,
                "attempt": run.attempt,
                "fence": run.fence,
                "step": self._model.step,
                "base_model": run.spec.base_model,
                "base_model_sha256": "0" * 64,
                "dataset_sha256": run.dataset.sha256,
                "versions": {"numpy": np.__version__},
                "files": (),
            }
        )

    def _tell_ready(self, started: float) -> None:
        self._log.ready(
            step=self._model.step,
            total_steps=self._total,
            num_rows=1,
            num_trained_rows=1,
            num_truncated_rows=0,
            num_dropped_rows=0,
            dropped_reasons={},
            num_parameters=self._model.weights.size,
            num_trainable_parameters=self._model.weights.size,
            target_modules=("layer",),
            device=self._run.device,
            dtype="float32",
            startup_seconds=time.monotonic() - started,
        )
