"""The training slots of a worker: claims jobs while slots are free, one supervisor thread each."""

import logging
import threading
import time

import redis

from app.domain.errors import LoradError
from app.services import catalog, runs, workers
from worker import devices
from worker.context import WorkerContext
from worker.supervisor import Supervisor

_log = logging.getLogger(__name__)

_HINT_RETRY_SECONDS = 2.0


class Slots:
    """Starts supervisors when the bell rings and when one ends."""

    def __init__(self, context: WorkerContext) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._running: dict[int, tuple[Supervisor, threading.Thread]] = {}
        self._closing = threading.Event()
        self._helpers = [
            threading.Thread(target=self._keep_registered, name="heartbeat", daemon=True),
            threading.Thread(target=self._listen, name="hints", daemon=True),
        ]

    def open(self) -> None:
        """Start the heartbeat and the hint listener, and look for waiting jobs once."""
        for thread in self._helpers:
            thread.start()
        self.ring()

    def ring(self) -> None:
        """Claim jobs until every slot is taken or nothing that this worker can run is left."""
        while not self._closing.is_set():
            try:
                if not self._claim_one():
                    return
            except LoradError as error:
                _log.warning("cannot claim now: %s", error)
                return

    def close(self, *, seconds: float) -> None:
        """Take no more jobs, checkpoint the running ones, and give them back to the queue."""
        with self._lock:
            self._closing.set()
            running = list(self._running.values())
        for supervisor, _ in running:
            supervisor.drain()
        deadline = time.monotonic() + seconds
        for thread in [*(thread for _, thread in running), *self._helpers]:
            thread.join(timeout=max(0.0, deadline - time.monotonic()))

    def _claim_one(self) -> bool:
        with self._lock:
            free = [
                slot for slot in range(self._context.settings.slots) if slot not in self._running
            ]
            # Asked under the lock: a job claimed after `close` took its list is never drained.
            if not free or self._closing.is_set():
                return False
            models = tuple(catalog.model_names(self._context.settings))
            run = runs.claim(
                self._context.db,
                self._context.settings,
                worker_id=self._context.worker_id,
                capability=devices.capability(self._context.devices, models),
            )
            if run is None:
                return False
            supervisor = Supervisor(self._context, run, slot=free[0])
            thread = threading.Thread(
                target=self._supervise, args=(supervisor, free[0]), name=run.job_id
            )
            self._running[free[0]] = (supervisor, thread)
        _log.info("claimed %s, attempt %d", run.job_id, run.attempt)
        thread.start()
        return True

    def _supervise(self, supervisor: Supervisor, slot: int) -> None:
        try:
            supervisor.run()
        finally:
            with self._lock:
                del self._running[slot]
        self.ring()

    def _hint(self, job_id: str) -> None:
        with self._lock:
            running = list(self._running.values())
        for supervisor, _ in running:
            if supervisor.run_id == job_id:
                supervisor.wake()

    def _listen(self) -> None:
        while not self._closing.is_set():
            try:
                self._context.stream.listen_for_hints(self._hint, self._closing.is_set)
            except (redis.RedisError, OSError) as error:
                _log.debug("no hints for now: %s", error)
                self._closing.wait(_HINT_RETRY_SECONDS)

    def _keep_registered(self) -> None:
        settings = self._context.settings
        while not self._closing.wait(settings.heartbeat_seconds):
            try:
                workers.beat(self._context.db, settings, self._context.worker_id)
                # A bell that nobody hears, because the broker is away or has forgotten this
                # consumer, must not keep a free slot from a waiting job.
                self.ring()
            except LoradError as error:
                _log.warning("heartbeat: %s", error)
            except Exception:  # noqa: BLE001 (an edge: a worker without a heartbeat seems dead)
                _log.exception("heartbeat failed; it goes on")
