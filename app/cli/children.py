"""Child processes of `lorad up`: tethered to it, logged to files, started again when they die."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from app.cli import output, tether
from app.domain.errors import StartupError

_LARGEST_LOG_BYTES = 16_000_000
_LONGEST_PAUSE_SECONDS = 30.0
# A child that lived this long is healthy again, and its next death is the first one.
_HEALTHY_SECONDS = 60.0
_MOST_EARLY_DEATHS = 3
_LOG_TAIL_BYTES = 2000


class Child:
    """One process that should be running.

    Call its methods from the main thread only: the tether follows the thread that started it.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: Path,
        held_file: int,
    ) -> None:
        self.name = name
        self.log = log
        self._command = list(command)
        self._held_file = held_file
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._start_again_at: float | None = None
        self._deaths = 0

    def start(self) -> None:
        """Start it in a session of its own, so that a Ctrl-C of the terminal does not reach it."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        _rotate(self.log)
        shim = [sys.executable, "-I", "-S", tether.__file__, str(os.getpid())]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*shim, *self._command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # The lock of the home stays taken until the last child is gone.
                pass_fds=(self._held_file,),
            )
        self._started_at, self._start_again_at = time.monotonic(), None

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def watch(self) -> None:
        """Notice a death, say so, and start it again after a growing pause."""
        now = time.monotonic()
        if self.is_alive or self._process is None:
            return
        if self._start_again_at is None:
            lived = now - self._started_at
            self._deaths = 1 if lived > _HEALTHY_SECONDS else self._deaths + 1
            pause = min(2.0 ** (self._deaths - 1), _LONGEST_PAUSE_SECONDS)
            self._start_again_at = now + pause
            output.complain(f"{self._obituary()}; starting it again in {pause:.0f} s")
        if now >= self._start_again_at:
            self.start()

    def require_viable(self) -> None:
        """Give up on a child that dies again and again before anything worked.

        Raises:
            StartupError: It died too often; the message ends with the last lines of its log.
        """
        if self._deaths >= _MOST_EARLY_DEATHS:
            raise StartupError(f"{self._obituary()}:\n{_tail(self.log)}")

    def ask_to_stop(self) -> None:
        if self._process is not None and self.is_alive:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it and everything in its session at once."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _obituary(self) -> str:
        code = self._process.returncode if self._process else 0
        how = f"with exit status {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
        return f"{self.name} ended {how} (log: {self.log})"


def _rotate(log: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if log.stat().st_size > _LARGEST_LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))


def _tail(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
        lines = file.read().decode("utf-8", "replace").splitlines()
    return "\n".join(f"  {line}" for line in lines[-12:])
