"""One job from claim to end: launch the trainer, record, renew the lease, stop, settle."""

import logging
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from app.db.attempts import LOST
from app.domain import checkpoints, disk, failpoints
from app.domain.checkpoints import BadCheckpoint
from app.domain.errors import Fenced, LoradError, Unavailable
from app.domain.events import (
    CheckpointEvent,
    FailedEvent,
    FinishedEvent,
    ReadyEvent,
    StoppedEvent,
    TrainerEvent,
)
from app.domain.jobs import DISK_FULL, Desired, JobError, JobState
from app.domain.runs import (
    EVENTS_FILE,
    EXIT_BUSY,
    EXIT_DISK_FULL,
    FINAL_FOLDER,
    LOG_FILE,
    PULSE_FILE,
    StopReason,
    attempt_folder,
)
from app.services import leftovers, recording, runs
from app.services.runs import Claimed
from worker import runfile
from worker.context import WorkerContext
from worker.launcher import Launched
from worker.lease import Lease
from worker.tail import Tail
from worker.watchdog import Watchdog

_log = logging.getLogger(__name__)

T = TypeVar("T")

_POLL_SECONDS = 0.05
_FLUSH_SECONDS = 0.5
_FLUSH_ROWS = 200
_TERMINATE_SECONDS = 5.0
_RETRY_SECONDS = 0.5
_BUSY = "its device, or the job itself, is still held by another trainer"
# These must be in the database before the supervisor goes on; the others may wait for their batch.
_URGENT = (ReadyEvent, CheckpointEvent, FinishedEvent, StoppedEvent, FailedEvent)


class Supervisor:
    """Owns one attempt of one job in a thread of its own."""

    def __init__(self, context: WorkerContext, run: Claimed, *, slot: int) -> None:
        self.run_id = run.job_id
        self._context = context
        self._run = run
        self._slot = slot
        self._folder = attempt_folder(context.settings.home, run.job_id, run.attempt)
        self._tail = Tail(self._folder / EVENTS_FILE)
        self._wake = threading.Event()
        self._trainer: Launched | None = None
        self._drain = False
        self._state = JobState.STARTING
        self._pending: list[TrainerEvent] = []
        self._stored: deque[TrainerEvent] = deque()
        self._finished: FinishedEvent | None = None
        self._failed: FailedEvent | None = None
        self._stopped: StoppedEvent | None = None
        self._watchdog = Watchdog(self._folder / PULSE_FILE, seconds=context.settings.hang_seconds)
        self._hung_at: float | None = None
        self._stop_deadline: float | None = None
        self._terminated = False
        self._next_flush = 0.0
        self._is_database_away = False
        self._lease = Lease(context.db, context.settings, run)

    def wake(self) -> None:
        """Look at once at what is asked of the job."""
        self._lease.renew_now()
        self._wake.set()

    def drain(self) -> None:
        """Checkpoint the job and give it back to the queue."""
        self._drain = True
        self.wake()

    def run(self) -> None:
        """Supervise until the job is settled or belongs to somebody else."""
        self._lease.start()
        try:
            self._begin()
            self._launch()
            self._watch()
            self._settle()
        except Fenced as error:
            _log.warning("%s; stopping its trainer", error)
        except LoradError as error:
            self._give_up(error)
        except OSError as error:
            self._give_up_on_files(error)
        except Exception:  # noqa: BLE001 (an edge: the job must not stay owned by nobody)
            _log.exception("supervising %s failed", self.run_id)
            self._give_up(Unavailable("the supervisor failed; see the worker's log"))
        finally:
            self._end_trainer()
            self._lease.stop()
            self._context.stream.state_changed(self.run_id)

    def _begin(self) -> None:
        db, settings, run = self._context.db, self._context.settings, self._run
        self._retried(lambda: leftovers.take_in_of_job(db, settings, run))
        start = self._retried(lambda: runs.begin(db, settings, run))
        runfile.write(self._context, self._run, self._folder, start, slot=self._slot)
        self._context.stream.state_changed(self.run_id)

    def _launch(self) -> None:
        """Start the trainer, unless the job is to stop before the launcher is ready."""
        failpoints.hit("supervisor.launch")
        launcher = self._context.launcher
        while not launcher.is_ready(within_seconds=_POLL_SECONDS):
            self._try_database(self._follow)
            if self._state is JobState.STOPPING:
                return
        self._watchdog.start()
        self._trainer = launcher.launch("trainer", self._folder, self._folder / LOG_FILE)

    def _watch(self) -> None:
        """Pass on what the trainer reports until it has ended and all of it is stored."""
        trainer = self._trainer
        while trainer is not None:
            has_ended = trainer.ended.is_set()  # asked before the read, so the last lines are in it
            self._take(self._tail.read())
            self._try_database(lambda ended=has_ended: self._flush(force=ended))
            self._try_database(self._follow)
            self._escalate(trainer)
            self._end_if_it_hangs(trainer)
            if has_ended and not self._pending and not self._stored:
                return
            self._wake.wait(_RETRY_SECONDS if self._is_database_away else _POLL_SECONDS)
            self._wake.clear()

    def _end_trainer(self) -> None:
        if self._trainer is not None:
            self._trainer.kill()
            self._trainer.close()

    def _take(self, events: list[TrainerEvent]) -> None:
        if not events:
            return
        self._context.stream.publish(self.run_id, self._run.fence, events)
        self._pending += events
        if any(isinstance(event, _URGENT) for event in events):
            self._next_flush = 0.0

    def _flush(self, *, force: bool) -> None:
        """Store the batch when it is due, then act on what it means."""
        now = time.monotonic()
        is_due = now >= self._next_flush or len(self._pending) >= _FLUSH_ROWS
        if self._pending and (is_due or force):
            self._lease.confirm()
            batch = list(self._pending)
            recording.record(self._context.db, self._run, batch)
            self._pending.clear()
            self._stored.extend(batch)
            self._next_flush = now + _FLUSH_SECONDS
        while self._stored:
            self._act_on(self._stored[0])
            self._stored.popleft()

    def _act_on(self, event: TrainerEvent) -> None:
        match event:
            case ReadyEvent() if self._state is JobState.STARTING:
                self._move(JobState.RUNNING, f"training from step {event.step}")
            case CheckpointEvent():
                runs.retire(self._context.db, self._context.settings, self._run)
            case FinishedEvent():
                self._finished = event
                if self._state is JobState.RUNNING:
                    self._move(JobState.FINALIZING, "the last step is done")
            case FailedEvent():
                self._failed = event
            case StoppedEvent():
                self._stopped = event
            case _:
                pass

    def _follow(self) -> None:
        """Do what is asked of the job."""
        desired = self._lease.desired()
        settings = self._context.settings
        is_stoppable = self._state in (JobState.STARTING, JobState.RUNNING)
        if desired is Desired.CANCEL:
            self._stop("cancel", settings.cancel_grace_seconds)
        elif desired is Desired.PAUSE and is_stoppable:
            self._stop("pause", settings.stop_grace_seconds)
        elif self._drain and is_stoppable:
            self._stop("drain", settings.stop_grace_seconds)

    def _stop(self, reason: StopReason, grace_seconds: float) -> None:
        deadline = time.monotonic() + grace_seconds
        if self._state is not JobState.STOPPING:
            self._move(JobState.STOPPING, f"{reason} under way", reason=reason)
        elif self._stop_deadline is not None and deadline >= self._stop_deadline:
            return
        self._stop_deadline = deadline
        if self._trainer is not None:
            self._trainer.stop(reason)

    def _escalate(self, trainer: Launched) -> None:
        """Terminate, then kill, a trainer that does not stop in time."""
        if self._stop_deadline is None or time.monotonic() < self._stop_deadline:
            return
        if not self._terminated:
            _log.warning("the trainer of %s did not stop in time; terminating it", self.run_id)
            trainer.signal(signal.SIGTERM)
            self._terminated = True
            self._stop_deadline = time.monotonic() + _TERMINATE_SECONDS
        else:
            trainer.signal(signal.SIGKILL)

    def _end_if_it_hangs(self, trainer: Launched) -> None:
        """Abort a trainer without progress, which prints its threads' stacks, then kill it."""
        if not self._watchdog.is_still():
            return
        now = time.monotonic()
        if self._hung_at is None:
            _log.warning("the trainer of %s hangs; its stacks go to its log", self.run_id)
            self._hung_at = now
            trainer.abort()
        elif now > self._hung_at + _TERMINATE_SECONDS:
            trainer.signal(signal.SIGKILL)

    def _settle(self) -> None:
        failpoints.hit("supervisor.settle")
        db, settings, run = self._context.db, self._context.settings, self._run
        if self._state is JobState.STOPPING:
            self._retried(lambda: runs.settle_stopped(db, run))
        elif self._failed is not None:
            error = JobError(code=self._failed.code, message=self._failed.message)
            self._retried(lambda: runs.fail(db, run, self._state, error))
        elif self._finished is not None and self._exit_status == 0:
            self._succeed(self._finished)
        elif self._exit_status == EXIT_BUSY:
            self._retried(lambda: runs.give_back(db, settings, run, self._state, _BUSY))
        elif self._exit_status == EXIT_DISK_FULL:
            self._wait_for_space()
        else:
            self._crash(self._end_in_words())

    @property
    def _exit_status(self) -> int | None:
        return None if self._trainer is None else self._trainer.exit_status

    def _end_in_words(self) -> str:
        if self._hung_at is not None:
            seconds = self._context.settings.hang_seconds
            return f"the trainer hung: no progress for {seconds:g} s; its log has its stacks"
        return f"the trainer ended with {_describe(self._exit_status)}"

    def _wait_for_space(self, needed_bytes: int | None = None) -> None:
        """Pause the job until there is as much space as its trainer says it needs."""
        if needed_bytes is None and self._stopped is not None:
            needed_bytes = self._stopped.needed_bytes
        if self._state is not JobState.STOPPING:
            why = "the disk is full"
            self._retried(lambda: self._move(JobState.STOPPING, why, reason=DISK_FULL))
        db, run = self._context.db, self._run
        self._retried(lambda: runs.settle_stopped(db, run, needed_bytes=needed_bytes))

    def _succeed(self, finished: FinishedEvent) -> None:
        try:
            checkpoints.verify(
                self._folder / FINAL_FOLDER, manifest_sha256=finished.manifest_sha256
            )
        except (BadCheckpoint, OSError) as error:
            self._crash(f"the final adapter does not verify: {error}")
            return
        self._retried(lambda: runs.succeed(self._context.db, self._run, finished))

    def _give_up_on_files(self, error: OSError) -> None:
        """Settle what could not be written down."""
        if not disk.is_full(error):
            _log.exception("supervising %s failed", self.run_id)
            self._give_up(Unavailable(f"the supervisor failed: {error}"))
            return
        _log.error("job %s: %s", self.run_id, error)
        self._end_trainer()
        try:
            self._wait_for_space(disk.needed_after(error, self._context.settings.home))
        except LoradError as again:
            _log.error("job %s is left to the reconciler: %s", self.run_id, again)

    def _give_up(self, error: LoradError) -> None:
        """Settle what could not be launched or supervised, if the database lets us."""
        _log.error("job %s: %s", self.run_id, error)
        # Whoever takes the job next must not meet this trainer.
        self._end_trainer()
        try:
            self._crash(error.message, outcome=LOST)
        except LoradError as again:
            _log.error("job %s is left to the reconciler: %s", self.run_id, again)

    def _crash(self, what: str, *, outcome: str | None = None) -> None:
        db, settings, run = self._context.db, self._context.settings, self._run
        self._retried(lambda: runs.crash(db, settings, run, self._state, what, outcome=outcome))

    def _move(self, target: JobState, message: str, *, reason: str | None = None) -> None:
        runs.move(self._context.db, self._run, self._state, target, message=message, reason=reason)
        self._state = target
        self._context.stream.state_changed(self.run_id)

    def _try_database(self, work: Callable[[], None]) -> None:
        """Do `work`, or leave it for the next round while the database is away."""
        try:
            work()
        except Unavailable:
            self._lease.desired()  # raises when it has been away for too long
            self._is_database_away = True
        else:
            self._is_database_away = False

    def _retried(self, work: Callable[[], T]) -> T:
        """Do `work` again until the database is back."""
        deadline = time.monotonic() + self._context.settings.database_outage_seconds
        while True:
            try:
                return work()
            except Unavailable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_RETRY_SECONDS)


def _describe(status: int | None) -> str:
    if status is not None and status < 0:
        return f"signal {signal.Signals(-status).name}"
    return f"status {status}"
