"""Run folders for tests of the trainer, and ways to run it."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from app.domain.checkpoints import MANIFEST_NAME, hash_file
from app.domain.events import (
    TRAINER_EVENT,
    CheckpointEvent,
    FailedEvent,
    NoticeEvent,
    ReadyEvent,
    StepEvent,
    TrainerEvent,
)
from app.domain.runs import (
    EVENTS_FILE,
    RUN_FILE,
    ResumePoint,
    RunFile,
    StopReason,
    checkpoint_folder_name,
)
from worker import examiner, trainer

ROOT = Path(__file__).parent.parent
DATASET_ID = "ds-0199c2f4a1b3e07d5c2f9a81"
JOB_ID = "job-0199c2f4a1b3e07d5c2f9a81"

CHAT_ROWS: Sequence[dict[str, Any]] = tuple(
    {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    }
    for question, answer in (
        ("What is the capital of France?", "Paris."),
        ("Name a prime number above ten.", "Eleven is the first prime above ten."),
        ("Who wrote Faust?", "Goethe."),
        ("How many legs does a spider have?", "It has eight legs, two more than an insect."),
        ("Say hello.", "Hello! How can I help you today?"),
        ("What colour is the sky?", "Blue, mostly."),
        ("Translate 'dog' into German.", "Hund."),
        ("What is 2 + 2?", "2 + 2 = 4."),
        ("Which planet is the largest?", "Jupiter is the largest planet."),
    )
)


_REPORTS = ("receipt", "evaluation", "gradient_flow", "memory", "certificate")


@dataclass(frozen=True)
class Attempt:
    """What an attempt left behind."""

    exit_code: int
    folder: Path
    events: list[TrainerEvent]

    @classmethod
    def of(cls, run: RunFile, exit_code: int) -> Self:
        return cls(exit_code, run.attempt_folder, read_events(run))

    @property
    def losses(self) -> dict[int, float | None]:
        return {e.step: e.metrics.loss for e in self.events if isinstance(e, StepEvent)}

    @property
    def steps(self) -> list[StepEvent]:
        return [e for e in self.events if isinstance(e, StepEvent)]

    @property
    def kinds(self) -> list[str]:
        """The kinds of events that tell the course of the run, without the reports beside it."""
        return [event.kind for event in self.events if event.kind not in _REPORTS]

    @property
    def ready(self) -> ReadyEvent:
        return next(e for e in self.events if isinstance(e, ReadyEvent))

    @property
    def failed(self) -> FailedEvent:
        return next(e for e in self.events if isinstance(e, FailedEvent))

    @property
    def notices(self) -> dict[str, str]:
        return {e.code: e.message for e in self.events if isinstance(e, NoticeEvent)}

    @property
    def final_adapter(self) -> bytes:
        return (self.folder / "final" / "adapter_model.safetensors").read_bytes()

    def checkpoint(self, step: int) -> ResumePoint:
        """Return the checkpoint of a step as the place to resume from."""
        folder = self.folder / checkpoint_folder_name(step)
        sha256 = next(
            e.manifest_sha256
            for e in self.events
            if isinstance(e, CheckpointEvent) and e.step == step
        )
        assert hash_file(folder / MANIFEST_NAME) == sha256
        return ResumePoint(folder=folder, step=step, manifest_sha256=sha256)


@dataclass
class Workplace:
    """A folder in which runs are made; attempts are numbered in the order they are made."""

    folder: Path
    model_folder: Path
    attempts: int = 0

    def run_file(
        self,
        *,
        rows: Sequence[dict[str, Any]] = CHAT_ROWS,
        resume: ResumePoint | None = None,
        num_threads: int = 1,
        row_format: str = "chat",
        seed: int = 7,
        device: str = "cpu",
        **groups: dict[str, Any],
    ) -> RunFile:
        """Write a data set, a new attempt folder and its run.json.

        Args:
            rows: The data set.
            resume: Checkpoint to continue from.
            num_threads: CPU threads of the trainer.
            row_format: What the upload found the rows to be.
            seed: Seed of the run.
            device: `cpu` or `cuda`.
            groups: `lora`, `training`, `dataset`... as in a JobSpec.
        """
        self.attempts += 1
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        dataset_file = self.folder / f"{hashlib.sha256(data).hexdigest()[:12]}.jsonl"
        dataset_file.write_bytes(data)
        attempt_folder = self.folder / "attempts" / str(self.attempts)
        attempt_folder.mkdir(parents=True)
        spec = {
            "base_model": "model-of-the-test",
            "seed": seed,
            "lora": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]},
            "training": {"per_device_train_batch_size": 2},
            **groups,
        }
        spec["dataset"] = {"id": DATASET_ID, **groups.get("dataset", {})}
        run = RunFile.model_validate(
            {
                "job_id": JOB_ID,
                "attempt": self.attempts,
                "fence": self.attempts,
                "spec": spec,
                "model_folder": self.model_folder,
                "dataset": _data_file(dataset_file, row_format),
                "attempt_folder": attempt_folder,
                "cache_folder": self.folder / "cache",
                "device": device,
                "device_index": 0,
                "lock_file": self.folder / "device.lock",
                "num_threads": num_threads,
                "resume": resume,
            }
        )
        (attempt_folder / RUN_FILE).write_text(run.model_dump_json())
        return run

    def train(self, **arguments: Any) -> Attempt:
        """Run an attempt in this process and return what it left."""
        run = self.run_file(**arguments)
        exit_code = run_in_process(run)
        return Attempt.of(run, exit_code)

    def train_until(self, step: int, reason: StopReason, **arguments: Any) -> Attempt:
        """Run an attempt in this process that is told to stop after `step`."""
        from worker.training.reporting import EventLog
        from worker.training.run import train

        run = self.run_file(**arguments)
        with examiner.forked() as outside, EventLog(run.attempt_folder / EVENTS_FILE) as log:
            train(
                run,
                log,
                started=0.0,
                stop_requested=lambda: reason if log.step >= step else None,
                examiner=outside,
            )
        return Attempt.of(run, 0)


def _data_file(path: Path, row_format: str) -> dict[str, Any]:
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"path": path, "sha256": sha256, "format": row_format}


def run_in_process(run: RunFile) -> int:
    """Run the trainer here, with a control pipe that stays silent."""
    reader, writer = os.pipe()
    try:
        return trainer.main(run.attempt_folder, reader)
    finally:
        # The control thread ends this process when the pipe ends, so the writer stays open.
        _KEPT_OPEN.append(writer)


_KEPT_OPEN: list[int] = []


class TrainerProcess:
    """The trainer as a process of its own, with its control pipe."""

    def __init__(self, run: RunFile, *, failpoints: str = "") -> None:
        reader, self._writer = os.pipe()
        self.run = run
        command = ["-m", "worker.trainer", str(run.attempt_folder), "--control-fd", str(reader)]
        with (run.attempt_folder / "trainer.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env={**os.environ, "LORAD_FAILPOINTS": failpoints, "HF_HUB_OFFLINE": "1"},
                pass_fds=[reader],
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        os.close(reader)

    def send(self, line: str) -> None:
        os.write(self._writer, line.encode() + b"\n")

    def hang_up(self) -> None:
        """Close the pipe, as the death of the supervisor would."""
        os.close(self._writer)
        self._writer = -1

    def wait(self, seconds: float = 120) -> Attempt:
        try:
            exit_code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()  # a trainer that should have ended must not outlive its test
            self._process.wait()
            raise
        if self._writer >= 0:
            self.hang_up()
        return Attempt.of(self.run, exit_code)

    def wait_for_step(self, step: int, seconds: float = 60) -> None:
        """Return once the trainer has reported `step`."""
        deadline = threading.Event()
        for _ in range(int(seconds * 100)):
            if any(e.kind == "step" and e.step >= step for e in read_events(self.run)):
                return
            assert self._process.poll() is None, self.log()
            deadline.wait(0.01)
        self._process.kill()
        raise AssertionError(f"step {step} was not reached in {seconds} s")

    def log(self) -> str:
        return (self.run.attempt_folder / "trainer.log").read_text()


def read_events(run: RunFile) -> list[TrainerEvent]:
    """Return the complete lines of an attempt's events file."""
    path = run.attempt_folder / EVENTS_FILE
    if not path.is_file():
        return []
    return [
        TRAINER_EVENT.validate_json(line)
        for line in path.read_bytes().splitlines(keepends=True)
        if line.endswith(b"\n")
    ]
