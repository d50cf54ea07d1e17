"""Run a command with a deadline and leave none of its processes: `confined.py SECONDS COMMAND ...`.

A mutant may be a product whose processes outlive their parents, so every orphan below this process
becomes its child (on Linux) and ends with the command; so it does when this process is terminated,
or its parent dies. Exits with 124 when the time was over, else as the command did; a signal is 128
and its number.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from types import FrameType
from typing import NoReturn

import psutil

HANG = 124
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_POLL_SECONDS = 0.02
# Time that tests get to remove their folders and servers.
_GRACE_SECONDS = 10.0


def main(arguments: list[str]) -> int:
    limit_seconds, *command = arguments
    signal.signal(signal.SIGTERM, _end)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    process = subprocess.Popen(command)
    try:
        status = _wait(process.pid, float(limit_seconds))
        if status is None:
            os.kill(process.pid, signal.SIGINT)
            _wait(process.pid, _GRACE_SECONDS)
    finally:
        _kill_the_rest()
    process.returncode = 0  # it was reaped here, and Popen would warn that it still runs
    if status is None:
        return HANG
    return status if status >= 0 else 128 - status


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def _wait(pid: int, seconds: float) -> int | None:
    """Return how a child ended, or None; orphans are reaped meanwhile, as by a machine's init."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(-1, os.WNOHANG)
        if ended == pid:
            return os.waitstatus_to_exitcode(status)
        if not ended:
            time.sleep(_POLL_SECONDS)
    return None


def _kill_the_rest() -> None:
    """End every process below this one, in whatever session it is, until there is none."""
    while family := psutil.Process().children(recursive=True):
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(_POLL_SECONDS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
