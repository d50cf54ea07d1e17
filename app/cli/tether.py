"""Run a command that the kernel kills when its parent dies: `tether.py PARENT_PID COMMAND ...`.

The parent-death signal follows the thread that started the process, so the parent must start it
from a thread that lives as long as itself: its main thread. Linux only; elsewhere the command runs
without a tether. Stands alone, because it starts with every child and must be quick.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    parent, *command = arguments
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
            sys.exit(f"tether: prctl failed: {os.strerror(ctypes.get_errno())}")
    # A parent that died before prctl sends no signal any more.
    if os.getppid() != int(parent):
        sys.exit("tether: the parent is gone")
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"tether: cannot run {command[0]}: {error.strerror}")


if __name__ == "__main__":
    main(sys.argv[1:])
