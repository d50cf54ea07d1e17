"""A worker that a test drives by hand: it claims, reports and settles, and trains nothing."""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from app.db import workers as worker_queries
from app.db.engine import Database
from app.db.keys import DEFAULT_PROJECT
from app.domain import ids
from app.domain.checkpoints import ADAPTER_FILES, MANIFEST_NAME, STATE_FILES, Manifest, ManifestFile
from app.domain.evaluations import Evaluation
from app.domain.events import (
    CheckpointEvent,
    EvaluationEvent,
    FailedEvent,
    FinishedEvent,
    NoticeEvent,
    ReadyEvent,
    StepEvent,
    StoppedEvent,
    TrainerEvent,
)
from app.domain.jobs import Desired, Job, JobError, JobState
from app.domain.metrics import StepMetrics
from app.domain.runs import FINAL_FOLDER, attempt_folder, checkpoint_folder_name
from app.domain.spec import JobSpec
from app.domain.workers import Capability, Device, WorkerIdentity
from app.queue import Doorbell
from app.services import datasets, jobs, recording, runs, workers
from app.services.jobs import Outside
from app.services.runs import Claimed
from app.stream import LiveStream

ROW = {"prompt": "What is one and one?", "completion": "Two."}
CAPABILITY = Capability(device_kinds=("cpu",), models=("tiny",))
DEVICE = Device(kind="cpu", index=0, name="hand", memory_bytes=1)
TOTAL_STEPS = 20


class FakeDoorbell(Doorbell):
    """Counts the rings."""

    def __init__(self) -> None:
        self.rings = 0

    def ring(self) -> bool:
        self.rings += 1
        return True

    def call_for_exports(self) -> bool:
        return self.ring()


class FakeStream(LiveStream):
    """Remembers whom it told."""

    def __init__(self) -> None:
        self.hints: list[str] = []
        self.nudges: list[str] = []

    def publish(self, job_id: str, fence: int, events: Sequence[TrainerEvent]) -> None:
        pass

    def hint(self, job_id: str) -> None:
        self.hints.append(job_id)

    def state_changed(self, job_id: str) -> None:
        self.nudges.append(job_id)


class Interrupted(Database):
    """A database on which somebody else acts just before the next write."""

    def __init__(self, url: str, act: Callable[[], object]) -> None:
        super().__init__(url)
        self._act: Callable[[], object] | None = act

    def write(self) -> AbstractContextManager[Session]:
        act, self._act = self._act, None
        if act is not None:
            act()
        return super().write()


class Driver:
    """Plays the user's requests and the worker's part on one database."""

    def __init__(self, database: Database, outside: Outside) -> None:
        self.db = database
        self.outside = outside
        self.settings = outside.settings
        self._seqs: Counter[tuple[int, str]] = Counter()
        self._worker: str | None = None
        self._dataset: str | None = None

    # What a user does.

    def dataset(self) -> str:
        if self._dataset is None:
            self._dataset = datasets.upload(
                self.db,
                self.settings,
                DEFAULT_PROJECT,
                io.BytesIO(json.dumps(ROW).encode()),
                name="rows",
                filename="rows.jsonl",
            ).id
        return self._dataset

    def spec(self, **changes: Any) -> dict[str, Any]:
        training = {"max_steps": TOTAL_STEPS, **changes.pop("training", {})}
        return {
            "base_model": "tiny",
            "dataset": {"id": self.dataset()},
            "training": training,
            **changes,
        }

    def submit(self, **changes: Any) -> str:
        spec = JobSpec.model_validate(self.spec(**changes))
        return jobs.submit(self.db, self.outside, DEFAULT_PROJECT, spec).id

    def job(self, job_id: str) -> Job:
        return jobs.get(self.db, self.settings, DEFAULT_PROJECT, job_id)

    # What a worker does.

    def worker(self) -> str:
        """Register a live worker, this process, once."""
        if self._worker is None:
            self._worker = workers.register(self.db, self.settings, [DEVICE], "0")
        return self._worker

    def other_worker(self, *, machine: str = "elsewhere", pid: int = 1, slots: int = 1) -> str:
        """Register a worker of another machine, whose death cannot be seen from here."""
        worker_id = ids.new("worker")
        with self.db.write() as session:
            worker_queries.insert(
                session,
                worker_id,
                host=machine,
                identity=WorkerIdentity(machine=machine, pid=pid, started=1.0),
                slots=slots,
                devices=[DEVICE],
                models=["tiny"],
                version="0",
            )
        return worker_id

    def claim(
        self, worker_id: str | None = None, *, capability: Capability = CAPABILITY
    ) -> Claimed | None:
        worker_id = worker_id or self.worker()
        return runs.claim(self.db, self.settings, worker_id=worker_id, capability=capability)

    def claimed(self, worker_id: str | None = None) -> Claimed:
        run = self.claim(worker_id)
        assert run is not None
        return run

    def started(self, worker_id: str | None = None) -> Claimed:
        """Claim the next job and bring it to `running`."""
        run = self.claimed(worker_id)
        start = runs.begin(self.db, self.settings, run)
        self.record(run, self.ready(run, step=0 if start is None else start.step))
        self.move(run, JobState.STARTING, JobState.RUNNING)
        return run

    def move(self, run: Claimed, source: JobState, target: JobState) -> None:
        runs.move(self.db, run, source, target, message="by hand")

    def record(self, run: Claimed, *events: TrainerEvent) -> None:
        recording.record(self.db, run, events)

    def steps(self, run: Claimed, first: int, last: int, **measured: Any) -> list[StepEvent]:
        """Record the metrics of some steps."""
        events = [self.step(run, step, **measured) for step in range(first, last + 1)]
        self.record(run, *events)
        return events

    def checkpoint(self, run: Claimed, step: int, *, eval_loss: float | None = None) -> Path:
        """Write a checkpoint and record it."""
        folder = self.attempt(run) / checkpoint_folder_name(step)
        names = (*ADAPTER_FILES, *STATE_FILES)
        sha256 = write_folder(folder, run, step=step, kind="checkpoint", names=names)
        event = CheckpointEvent(
            **self._line(run),
            step=step,
            manifest_sha256=sha256,
            bytes=1000,
            loss=1.0,
            eval_loss=eval_loss,
            save_seconds=0.1,
        )
        self.record(run, event)
        return folder

    def evaluation(
        self, run: Claimed, step: int, loss: float | None, *, is_best: bool, saves: bool = True
    ) -> None:
        """Record an evaluation, and the checkpoint of it unless it is not saved."""
        evaluation = Evaluation(
            step=step,
            epoch=step / 10,
            eval_loss=loss,
            token_accuracy=0.5,
            num_rows=3,
            num_target_tokens=30,
            is_best=is_best,
            num_since_best=0 if is_best else 1,
            seconds=0.1,
        )
        self.record(run, EvaluationEvent(**self._line(run), step=step, evaluation=evaluation))
        if saves:
            self.checkpoint(run, step, eval_loss=loss)

    def train(self, run: Claimed, first: int, last: int, *, save_every: int) -> None:
        """Record steps, with a checkpoint whenever one is due."""
        for step in range(first, last + 1):
            self.steps(run, step, step)
            if step % save_every == 0:
                self.checkpoint(run, step)

    def finish(self, run: Claimed, step: int = TOTAL_STEPS) -> FinishedEvent:
        """Write the final adapter, report it and bring the job to `finalizing`."""
        folder = self.attempt(run) / FINAL_FOLDER
        sha256 = write_folder(folder, run, step=step, kind="final", names=ADAPTER_FILES)
        event = FinishedEvent(**self._line(run), step=step, manifest_sha256=sha256, num_tokens=1000)
        self.record(run, event)
        self.move(run, JobState.RUNNING, JobState.FINALIZING)
        return event

    def succeed(self, run: Claimed, step: int = TOTAL_STEPS) -> None:
        runs.succeed(self.db, run, self.finish(run, step))

    def stop(self, run: Claimed, source: JobState = JobState.RUNNING) -> JobState:
        """Stop the trainer and settle by what is asked of the job."""
        self.move(run, source, JobState.STOPPING)
        return runs.settle_stopped(self.db, run)

    def fail(self, run: Claimed, source: JobState = JobState.RUNNING) -> None:
        runs.fail(self.db, run, source, JobError(code="nonfinite_step", message="by hand"))

    def crash(self, run: Claimed, source: JobState = JobState.RUNNING) -> None:
        runs.crash(self.db, self.settings, run, source, "the trainer died")

    # What only time does.

    @contextmanager
    def interrupted(self, act: Callable[[], object]) -> Generator[Database]:
        """Yield the database as somebody sees it to whom `act` happens before the next write."""
        slow = Interrupted(self.settings.sqlalchemy_url, act)
        try:
            yield slow
        finally:
            slow.close()

    def sql(self, statement: str, **values: Any) -> Any:
        with self.db.write() as session:
            result = session.execute(text(statement), values)
            return result.all() if result.returns_rows else result.rowcount

    def expire(self, job_id: str) -> None:
        """Let the lease of a job have ended long ago."""
        self.sql(
            "UPDATE jobs SET lease_expires_at = '2020-01-01 00:00:00' WHERE id = :id", id=job_id
        )

    def forget(self, job_id: str) -> None:
        """Let a job have waited long, its back-off included."""
        self.sql(
            "UPDATE jobs SET rung_at = '2020-01-01 00:00:00', not_before = '2020-01-01 00:00:00'"
            " WHERE id = :id",
            id=job_id,
        )

    def in_state(self, state: JobState, *, desired: Desired | None = None) -> tuple[str, Claimed]:
        """Make a job in `state` by the moves that lead there; it has a checkpoint at step 5."""
        job_id = self.submit()
        run = self.started()
        self.train(run, 1, 5, save_every=5)
        self._go_on(job_id, run, state)
        if desired is not None:
            self.sql("UPDATE jobs SET desired = :to WHERE id = :id", to=desired, id=job_id)
        return job_id, run

    def _go_on(self, job_id: str, run: Claimed, state: JobState) -> None:
        request = (self.db, self.outside, DEFAULT_PROJECT, job_id)
        ways: dict[JobState, list[Callable[[], object]]] = {
            JobState.QUEUED: [lambda: self.crash(run)],
            JobState.STARTING: [lambda: self.crash(run), self.claimed],
            JobState.RUNNING: [],
            JobState.STOPPING: [lambda: self.move(run, JobState.RUNNING, state)],
            JobState.FINALIZING: [lambda: self.move(run, JobState.RUNNING, state)],
            JobState.PAUSED: [lambda: jobs.pause(*request), lambda: self.stop(run)],
            JobState.CANCELLED: [lambda: jobs.cancel(*request), lambda: self.stop(run)],
            JobState.FAILED: [lambda: self.fail(run)],
            JobState.SUCCEEDED: [lambda: self.succeed(run)],
        }
        for go in ways[state]:
            go()

    def attempt(self, run: Claimed) -> Path:
        return attempt_folder(self.settings.home, run.job_id, run.attempt)

    def ready(self, run: Claimed, *, step: int) -> ReadyEvent:
        return ReadyEvent(
            **self._line(run),
            step=step,
            total_steps=run.spec.training.max_steps or TOTAL_STEPS,
            num_rows=1,
            num_trained_rows=1,
            num_truncated_rows=0,
            num_dropped_rows=0,
            dropped_reasons={},
            num_parameters=1,
            num_trainable_parameters=1,
            target_modules=("q_proj",),
            device="cpu",
            dtype="float32",
            startup_seconds=0.1,
        )

    def notice(self, run: Claimed, *, step: int) -> NoticeEvent:
        return NoticeEvent(**self._line(run), step=step, code="by_hand", message="by hand")

    def stopped(self, run: Claimed, *, step: int) -> StoppedEvent:
        return StoppedEvent(**self._line(run), step=step, reason="pause")

    def failed(self, run: Claimed, *, step: int) -> FailedEvent:
        return FailedEvent(**self._line(run), step=step, code="by_hand", message="by hand")

    def step(self, run: Claimed, step: int, **measured: Any) -> StepEvent:
        """Make the event of a step; its loss tells attempts apart unless it is given."""
        metrics = StepMetrics(
            step=step,
            epoch=step / 10,
            loss=run.fence + step / 100,
            grad_norm=1.0,
            param_norm=1.0,
            learning_rate=1e-4,
            num_tokens=10,
            num_target_tokens=5,
            step_seconds=0.1,
            tokens_per_second=100.0,
            peak_memory_bytes=1000,
            batch_sha="0" * 16,
        )
        metrics = metrics.model_copy(update=measured)
        return StepEvent(**self._line(run), step=step, metrics=metrics)

    def _line(self, run: Claimed) -> dict[str, Any]:
        self._seqs[run.fence, run.job_id] += 1
        return {"seq": self._seqs[run.fence, run.job_id], "at": datetime.now(UTC)}


def write_folder(folder: Path, run: Claimed, *, step: int, kind: Any, names: Any) -> str:
    """Write files and their manifest as a trainer does, and return the manifest's SHA-256."""
    folder.mkdir(parents=True)
    files: list[ManifestFile] = []
    for name in names:
        content = f"{name} of step {step}".encode()
        if name == "adapter_config.json":
            content = json.dumps({"peft_type": "LORA", "r": run.spec.lora.r}).encode()
        (folder / name).write_bytes(content)
        sha256 = hashlib.sha256(content).hexdigest()
        files.append(ManifestFile(name=name, bytes=len(content), sha256=sha256))
    manifest = Manifest(
        kind=kind,
        job_id=run.job_id,
        attempt=run.attempt,
        fence=run.fence,
        step=step,
        base_model="tiny",
        base_model_sha256="0" * 64,
        dataset_sha256="0" * 64,
        versions={},
        files=tuple(files),
    )
    content = manifest.model_dump_json().encode()
    (folder / MANIFEST_NAME).write_bytes(content)
    return hashlib.sha256(content).hexdigest()
