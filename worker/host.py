"""One model host as its worker sees it: its process, and the requests that it answers."""

import contextlib
import logging
import signal
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from app.domain.errors import Unavailable
from app.domain.inference import Event, Failed, Finished, HostKey, InferenceRequest, Taken
from app.inference_queue import InferenceQueue
from worker import devices
from worker.context import WorkerContext
from worker.host_messages import (
    FROM_HOST,
    HOST_FILE,
    Ask,
    Cancel,
    HostFile,
    Ready,
    Reports,
    Unusable,
    line,
)
from worker.launcher import Launched

_log = logging.getLogger(__name__)

LOG_FILE = "host.log"
# Training keeps two thirds of its speed beside answers on the same 2 cores: bench/sharing.py.
_NICENESS = 5
_KEEP_SECONDS = 1.0
_CANCEL_SECONDS = 0.25
# A host that does not give a request up in this time hangs.
_HANG_SECONDS = 30.0
_OWN_END_SECONDS = 2.0


@dataclass
class _Answering:
    """A request under way: answers to come, and when its end was asked for."""

    num_left: int
    cancelled_at: float | None = None


class Host:
    """A model host process; its worker is told everything that becomes of its requests.

    Args:
        context: The worker.
        queue: Where events go.
        key: What the host loads.
        folder: Where its file and its log are.
    """

    def __init__(
        self, context: WorkerContext, queue: InferenceQueue, key: HostKey, folder: Path
    ) -> None:
        self.key = key
        self.unusable: Failed | None = None
        self.ready_seconds: float | None = None
        self._context = context
        self._queue = queue
        self._folder = folder
        self._answering: dict[str, _Answering] = {}
        self._changed = threading.Condition()
        self._ended = threading.Event()
        self._idle_since = time.monotonic()
        self._process: Launched | None = None
        self._socket: socket.socket | None = None
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start the process; the model loads while requests are sent already.

        Raises:
            Unavailable: It could not be started.
        """
        settings = self._context.settings
        told = HostFile(
            key=self.key,
            device=self._context.devices[0].kind,
            num_threads=devices.threads_per_slot(1),
            most_adapters=settings.inference_adapters,
            niceness=_NICENESS,
        )
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            (self._folder / HOST_FILE).write_text(told.model_dump_json())
            log = self._folder / LOG_FILE
            self._process = self._context.launcher.launch("host", self._folder, log)
        except OSError as error:
            raise Unavailable(f"the model host cannot be started: {error}") from error
        self._socket = socket.socket(fileno=self._process.control_fd)
        for work in (self._listen, self._keep):
            thread = threading.Thread(target=work, name=f"host-{work.__name__}", daemon=True)
            self._threads.append(thread)
            thread.start()

    @property
    def is_alive(self) -> bool:
        return not self._ended.is_set()

    @property
    def num_active(self) -> int:
        return len(self._answering)

    @property
    def idle_seconds(self) -> float:
        """Time without a request in seconds."""
        with self._changed:
            return 0.0 if self._answering else time.monotonic() - self._idle_since

    def submit(self, request: InferenceRequest) -> None:
        """Give a request to the process."""
        with self._changed:
            self._answering[request.id] = _Answering(request.sampling.n)
        self._queue.report(request.id, [Taken(worker_id=self._context.worker_id)])
        self._send(Ask(request=request))

    def wait(self, seconds: float) -> None:
        """Wait until a request ends or the process does."""
        with self._changed:
            self._changed.wait(seconds)

    def end(self, why: Failed | None = None) -> None:
        """End the process; requests under way fail with `why`, or as those of a crash do."""
        with self._changed:
            is_crash = self._ended.is_set()
        if why is not None:
            self._fail_all(why)
        if self._process is not None and self._socket is not None:
            if is_crash:
                self._process.ended.wait(_OWN_END_SECONDS)  # how it ended is told in the error
            self._process.kill()
            for thread in self._threads:
                thread.join(timeout=10)
            self._socket.close()
        self._fail_all(self.unusable or self._crashed())
        if is_crash and self.unusable is None:
            _log.error("%s; its log is %s", self._crashed().message, self._folder / LOG_FILE)

    def _crashed(self) -> Failed:
        status = None if self._process is None else self._process.exit_status
        message = "the model host ended while it answered"
        if status == -signal.SIGKILL:
            message = "the model host was killed while it answered, perhaps for lack of memory"
        elif status is not None:
            message = f"{message} (status {status})"
        return Failed(code="worker_failed", message=f"{message}; ask again")

    def _fail_all(self, failed: Failed) -> None:
        with self._changed:
            request_ids = list(self._answering)
            self._answering.clear()
        for request_id in request_ids:
            self._queue.report(request_id, [failed])

    def _send(self, message: BaseModel) -> None:
        assert self._socket is not None
        # It may have ended a moment ago; its end of file says so.
        with contextlib.suppress(OSError):
            self._socket.sendall(line(message))

    def _listen(self) -> None:
        """Pass on what the process tells, until it ends."""
        assert self._socket is not None
        try:
            with self._socket.makefile("rb") as lines:
                for text in lines:
                    self._hear(FROM_HOST.validate_json(text))
        except (OSError, ValueError) as error:
            # A process that is killed may leave half a line.
            _log.debug("the model host's last words: %s", error)
        finally:
            with self._changed:
                self._ended.set()
                self._changed.notify_all()

    def _hear(self, message: Ready | Unusable | Reports) -> None:
        match message:
            case Ready():
                name = self.key.model_folder.name
                _log.info("%s is loaded for answers after %.1f s", name, message.seconds)
                self.ready_seconds = message.seconds
            case Unusable():
                self.unusable = message.failed
            case Reports():
                for request_id, events in message.events.items():
                    self._pass_on(request_id, events)

    def _pass_on(self, request_id: str, events: tuple[Event, ...]) -> None:
        if request_id not in self._answering:
            return
        self._queue.report(request_id, events)
        with self._changed:
            answering = self._answering.get(request_id)
            if answering is None:
                return
            answering.num_left -= sum(isinstance(each, Finished) for each in events)
            if answering.num_left <= 0 or isinstance(events[-1], Failed):
                del self._answering[request_id]
                self._idle_since = time.monotonic()
                self._changed.notify_all()

    def _keep(self) -> None:
        """Renew the requests under way, and give up those that nobody waits for."""
        keep_at = 0.0
        while not self._ended.wait(_CANCEL_SECONDS):
            with self._changed:
                request_ids = list(self._answering)
            if not request_ids:
                continue
            if time.monotonic() >= keep_at:
                keep_at = time.monotonic() + _KEEP_SECONDS
                self._queue.keep(request_ids, self._context.settings.lease_seconds)
            for request_id in self._queue.cancelled(request_ids):
                self._cancel(request_id)

    def _cancel(self, request_id: str) -> None:
        with self._changed:
            answering = self._answering.get(request_id)
            if answering is None:
                return
            now, since = time.monotonic(), answering.cancelled_at
            answering.cancelled_at = now if since is None else since
        if since is None:
            self._send(Cancel(request_id=request_id))
        elif self.ready_seconds is not None and now - since > _HANG_SECONDS:
            _log.error("the model host does not give a request up; it is ended")
            assert self._process is not None
            self._process.signal(signal.SIGKILL)
