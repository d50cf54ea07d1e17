"""The model hosts of a worker: one at a time, for the base model that is asked for."""

import logging
import shutil
import threading
import time
from contextlib import suppress
from pathlib import Path

from app.domain.errors import LoradError
from app.domain.inference import Failed, HostKey, InferenceRequest, Taken
from app.inference_queue import InferenceQueue
from worker.context import WorkerContext
from worker.host import Host

_log = logging.getLogger(__name__)

# Between looks at what waits, in case a wake got lost.
_LOOK_SECONDS = 1.0
_POLL_SECONDS = 0.5
# A worker whose host is loaded already takes a request in less.
_HEAD_START_SECONDS = 0.05
# Time that requests for another base model wait before a busy host takes no more.
_PATIENCE_SECONDS = 2.0
_LEFT_BEHIND_SECONDS = 86_400
_STOPPING = Failed(code="worker_stopping", message="the worker is being stopped; ask again")


class Hosts:
    """Starts a host when something waits, feeds it, and ends it when it is idle or in the way."""

    def __init__(self, context: WorkerContext, queue: InferenceQueue) -> None:
        self._context = context
        self._queue = queue
        self._closing = threading.Event()
        self._bell = threading.Event()
        self._last_digest = ""
        self._folder = context.settings.home / "hosts" / context.worker_id
        self._thread = threading.Thread(target=self._serve, name="hosts", daemon=True)

    def open(self) -> None:
        """Begin to look for requests."""
        _remove_left_behind(self._folder.parent)
        self._thread.start()

    def wake(self) -> None:
        """Look for requests now."""
        self._bell.set()

    def close(self, *, seconds: float = 20.0) -> None:
        """Take no more requests; those under way fail with code `worker_stopping`."""
        self._closing.set()
        self._bell.set()
        if self._thread.is_alive():
            self._thread.join(timeout=seconds)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _serve(self) -> None:
        while not self._closing.is_set():
            try:
                if not self._serve_one():
                    self._bell.wait(_LOOK_SECONDS)
                    self._bell.clear()
            except Exception:  # noqa: BLE001 (an edge: a worker without this thread answers nothing)
                _log.exception("model hosts failed; they go on")
                self._closing.wait(_LOOK_SECONDS)

    def _serve_one(self) -> bool:
        """Run a host for the base model whose turn it is; False when nothing waits."""
        digest = self._next_digest()
        if digest is None or self._closing.wait(_HEAD_START_SECONDS):
            return False
        # What is taken is renewed only while its host runs; a start that blocks would lose it.
        if not self._context.launcher.is_ready(within_seconds=_LOOK_SECONDS):
            return False
        request = self._queue.next(digest, 0)
        if request is None:
            return False
        self._last_digest = digest
        self._run(request)
        return True

    def _next_digest(self) -> str | None:
        """Return the host that is asked for next after the last one, in a fixed order."""
        waiting = sorted(self._queue.waiting())
        later = [each for each in waiting if each > self._last_digest]
        return next(iter([*later, *waiting]), None)

    def _run(self, first: InferenceRequest) -> None:
        host = Host(self._context, self._queue, first.host, self._folder)
        try:
            host.start()
        except LoradError as error:
            _log.error("%s", error.message)
            self._refuse(first, Failed(code="worker_failed", message=error.message))
            return
        try:
            host.submit(first)
            self._feed(host)
        finally:
            host.end(_STOPPING if self._closing.is_set() else None)
        if host.unusable is not None:
            self._refuse_all(host.key, host.unusable)

    def _feed(self, host: Host) -> None:
        """Give requests to a host until it ends, is idle for long, or another one is needed."""
        settings = self._context.settings
        turn = _Turn(self._queue, host)
        while host.is_alive and not self._closing.is_set():
            is_wanted_by_others = turn.is_over()
            if is_wanted_by_others and host.num_active == 0:
                return
            if host.idle_seconds > settings.inference_idle_seconds:
                _log.info("nobody asked for %g s; the model host ends", host.idle_seconds)
                return
            if is_wanted_by_others or host.num_active >= settings.inference_batch:
                host.wait(_POLL_SECONDS)
            elif request := self._queue.next(host.key.digest, _POLL_SECONDS):
                host.submit(request)

    def _refuse(self, request: InferenceRequest, failed: Failed) -> None:
        worker_id = self._context.worker_id
        self._queue.report(request.id, [Taken(worker_id=worker_id), failed])

    def _refuse_all(self, key: HostKey, failed: Failed) -> None:
        """Tell all who wait for a base model that cannot be loaded."""
        while request := self._queue.next(key.digest, 0):
            self._refuse(request, failed)


class _Turn:
    """Whether a host has to make place for another base model."""

    def __init__(self, queue: InferenceQueue, host: Host) -> None:
        self._queue = queue
        self._host = host
        self._look_at = 0.0
        self._waiting_since: float | None = None

    def is_over(self) -> bool:
        """Tell whether others wait, and have waited for long enough or while nobody asks it."""
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + _LOOK_SECONDS
            others = self._queue.waiting().keys() - {self._host.key.digest}
            self._waiting_since = (self._waiting_since or now) if others else None
        if self._waiting_since is None or self._host.ready_seconds is None:
            return False
        patience = max(_PATIENCE_SECONDS, self._host.ready_seconds)
        return self._host.num_active == 0 or now - self._waiting_since > patience


def _remove_left_behind(folder: Path) -> None:
    """Remove what hosts of workers that were killed left."""
    with suppress(OSError):
        for each in folder.iterdir():
            if time.time() - each.stat().st_mtime > _LEFT_BEHIND_SECONDS:
                shutil.rmtree(each, ignore_errors=True)
