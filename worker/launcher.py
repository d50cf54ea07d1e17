"""Starting trainers, tools and model hosts: forked from the warm server, or as fresh processes."""

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from app.domain.errors import Unavailable
from app.domain.failpoints import VARIABLE as FAILPOINTS
from app.domain.runs import StopCommand, StopReason

_log = logging.getLogger(__name__)

Entry = Literal["trainer", "tool", "host"]
_MODULES: dict[Entry, str] = {
    "trainer": "worker.trainer",
    "tool": "worker.tool_process",
    "host": "worker.host_process",
}
_READY_SECONDS = 120.0

# A trainer gets these variables and no others: no URL of a database or broker is among them.
_PASSED = ("PATH", "HOME", "USER", "LANG", "TZ", "TMPDIR", "VIRTUAL_ENV", "PYTHONPATH", FAILPOINTS)
_PASSED_PREFIXES = (
    "LC_",
    "LD_",
    "CUDA_",
    "NVIDIA_",
    "OMP_",
    "GOMP_",
    "MKL_",
    "MALLOC_",
    "TRITON_",
    "NCCL_",
)
_SET = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "PYTHONUNBUFFERED": "1",
    # Threads that wait for each other in a spin starve everybody, themselves included: with one
    # more busy process on 2 cores a step took 2 to 19 s instead of 1.8 s; alone it costs 5 %.
    "GOMP_SPINCOUNT": "1000",
    # glibc returns big blocks at every free and faults them in again; keeping them saves a tenth
    # of a step on the CPU.
    "MALLOC_MMAP_THRESHOLD_": "8589934592",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
}


@dataclass
class Launched:
    """A running trainer, tool or host; it leads a session and process group of its own.

    `control_fd` is the write end of a pipe; that of a host is a socket, for both directions.
    """

    pid: int
    control_fd: int
    exit_status: int | None = None
    ended: threading.Event = field(default_factory=threading.Event)

    def stop(self, reason: StopReason) -> None:
        """Ask it to stop at the next step boundary."""
        line = StopCommand(stop=reason).model_dump_json() + "\n"
        # It may have ended a moment ago; its exit says so.
        with contextlib.suppress(OSError):
            os.write(self.control_fd, line.encode())

    def signal(self, number: signal.Signals) -> None:
        """Signal its whole process group."""
        if self.ended.is_set():
            return
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            # It was forked a moment ago and does not lead its group yet.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def abort(self) -> None:
        """End it, and no process below it, so that the stacks of its threads are printed alone."""
        with contextlib.suppress(ProcessLookupError):
            if not self.ended.is_set():
                os.kill(self.pid, signal.SIGABRT)

    def kill(self) -> None:
        """End it now, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        self.ended.wait(timeout=10)

    def finish(self, status: int) -> None:
        self.exit_status = status
        self.ended.set()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self.control_fd)


class Launcher(Protocol):
    """What starts trainers."""

    def launch(self, entry: Entry, folder: Path, log: Path) -> Launched:
        """Start `entry` on a folder, with its output appended to `log`.

        Raises:
            Unavailable: It could not be started.
        """
        ...

    def is_ready(self, *, within_seconds: float) -> bool:
        """Wait a moment until `launch` would not block."""
        ...

    def close(self) -> None: ...


def environment() -> dict[str, str]:
    """Return the environment of a trainer: allow-listed variables of ours, and fixed settings."""
    passed = {
        name: value
        for name, value in os.environ.items()
        if name in _PASSED or name.startswith(_PASSED_PREFIXES)
    }
    return {**_SET, **passed}


def _control(entry: Entry) -> tuple[int, int]:
    """Return the child's and the worker's end of what commands come through."""
    if entry != "host":
        return os.pipe()
    theirs, ours = socket.socketpair()
    return theirs.detach(), ours.detach()


class FreshLauncher:
    """Starts a new Python for every trainer: slower by the import of torch."""

    def launch(self, entry: Entry, folder: Path, log: Path) -> Launched:
        read_fd, write_fd = _control(entry)
        command = [sys.executable, "-m", _MODULES[entry], str(folder), "--control-fd", str(read_fd)]
        try:
            with log.open("ab") as output:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=environment(),
                    pass_fds=[read_fd],
                    start_new_session=True,
                )
        finally:
            os.close(read_fd)
        launched = Launched(process.pid, write_fd)
        threading.Thread(target=_wait, args=(process, launched), daemon=True).start()
        return launched

    def is_ready(self, *, within_seconds: float) -> bool:
        return True

    def close(self) -> None:
        pass


def _wait(process: subprocess.Popen[bytes], launched: Launched) -> None:
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    # While the leader is a zombie its process group id cannot belong to anybody else.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    launched.finish(process.wait())


class WarmLauncher:
    """Forks trainers from a server that has torch loaded; starts the server again when it dies."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._server: _Server | None = None

    def launch(self, entry: Entry, folder: Path, log: Path) -> Launched:
        with self._lock:
            server = self._living_server()
        return server.fork(entry, folder, log)

    def is_ready(self, *, within_seconds: float) -> bool:
        """Start the server when there is none, and wait a moment until it has loaded everything."""
        with self._lock:
            server = self._living_server()
        return server.is_decided(within_seconds=within_seconds)

    def _living_server(self) -> "_Server":
        if self._server is None or not self._server.is_alive():
            self._server = _Server()
        return self._server

    def close(self) -> None:
        with self._lock:
            if self._server is not None:
                self._server.close()


class _Server:
    """The worker's end of one fork server."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self._channel = ours
        self._children: dict[int, Launched] = {}
        self._answers: dict[str, Any] = {}
        self._changed = threading.Condition()
        # One request and its answer at a time, so that two never share a read of the server.
        self._forking = threading.Lock()
        self._num_requests = 0
        self._ended = False
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "worker.forkserver", "--socket-fd", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                env=environment(),
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._listener = threading.Thread(target=self._listen, name="fork-server", daemon=True)
        self._listener.start()

    def is_alive(self) -> bool:
        return not self._ended and self._process.poll() is None

    def is_decided(self, *, within_seconds: float) -> bool:
        """Tell whether it is known if the server can fork: it loaded everything, or it failed."""
        with self._changed:
            return self._changed.wait_for(
                lambda: "ready" in self._answers or self._ended, within_seconds
            )

    def fork(self, entry: Entry, folder: Path, log: Path) -> Launched:
        """Fork one child.

        Raises:
            Unavailable: The server could not load the training stack, or died.
        """
        ready = self._wait_for("ready")
        if ready is not True:
            raise Unavailable(f"the fork server did not start: {self._answers.get('problem')}")
        read_fd, write_fd = _control(entry)
        try:
            with self._forking, log.open("ab") as output:
                number = self._request(entry, folder, [read_fd, output.fileno()])
                pid = self._wait_for(f"forked {number}")
        except OSError as error:
            os.close(write_fd)
            raise Unavailable(f"the fork server is gone: {error}") from error
        finally:
            os.close(read_fd)
        if not isinstance(pid, int):
            os.close(write_fd)
            raise Unavailable("the fork server did not fork")
        return self._adopt(pid, write_fd)

    def _request(self, entry: Entry, folder: Path, descriptors: list[int]) -> int:
        """Ask for one child and return the number that the answer will carry."""
        with self._changed:
            self._num_requests += 1
            request = {"id": self._num_requests, "entry": entry, "folder": str(folder)}
            socket.send_fds(self._channel, [json.dumps(request).encode()], descriptors)
            return self._num_requests

    def _adopt(self, pid: int, control_fd: int) -> Launched:
        launched = Launched(pid, control_fd)
        with self._changed:
            exit_status = self._answers.pop(f"exit {pid}", None)
            # A server that died meanwhile took the child along, and nobody else will tell.
            if exit_status is None and self._ended:
                exit_status = -signal.SIGKILL
            if exit_status is None:
                self._children[pid] = launched
        if exit_status is not None:
            launched.finish(exit_status)
        return launched

    def close(self) -> None:
        # A server that died has closed it already.
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)
        self._listener.join(timeout=10)

    def _wait_for(self, key: str) -> object:
        with self._changed:
            self._changed.wait_for(lambda: key in self._answers or self._ended, _READY_SECONDS)
            return self._answers.get(key)

    def _listen(self) -> None:
        with self._channel.makefile("r") as lines:
            for line in lines:
                self._take(json.loads(line))
        status = self._process.wait()
        with self._changed:
            self._ended = True
            self._channel.close()
            orphans = list(self._children.values())
            self._changed.notify_all()
        if status != 0:
            _log.error(
                "the fork server ended with status %s; trainers fail until it is back", status
            )
        for launched in orphans:
            # They were killed with their server; nobody else can tell how they ended.
            launched.finish(-signal.SIGKILL)

    def _take(self, answer: dict[str, Any]) -> None:
        with self._changed:
            if "ready" in answer:
                self._answers |= answer
                if not answer["ready"]:
                    _log.error(
                        "the fork server cannot load the training stack: %s", answer["problem"]
                    )
            elif "exit" not in answer:
                self._answers[f"forked {answer['id']}"] = answer["pid"]
            elif launched := self._children.pop(answer["pid"], None):
                launched.finish(answer["exit"])
            else:
                self._answers[f"exit {answer['pid']}"] = answer["exit"]
            self._changed.notify_all()
