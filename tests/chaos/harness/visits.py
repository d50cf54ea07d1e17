# pyright: basic
"""The journal of failpoints that were really reached: a line before each act, in the home.

What was configured proves nothing; a line does, and it outlives the process that was killed.
"""

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from app.domain import failpoints

FILE = "failpoints.log"
FAILPOINTS_FILE = "CHAOS_FAILPOINTS_FILE"
RECONCILER = "reconciler"
_LOOK_SECONDS = 0.02


@dataclass(frozen=True)
class Visit:
    """One act at a failpoint."""

    who: str
    """`api`, the name of a worker, or the id of the job whose trainer it was."""
    thread: str
    point: str
    action: str


def keep(home: Path, who: str) -> None:
    """Let this process write down each act before it does it."""
    act = failpoints._act

    def told(name: str, verb: str) -> None:
        line = f"{who}\t{threading.current_thread().name}\t{name}\t{verb}\n"
        descriptor = os.open(home / FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)
        act(name, verb)

    failpoints._act = told


def read(home: Path) -> list[Visit]:
    """Return the acts so far."""
    file = home / FILE
    lines = file.read_text().splitlines() if file.exists() else []
    return [Visit(*line.split("\t")) for line in lines]


def follow(who_home: Path) -> None:
    """Take this process's failpoints from the file that its environment names, for ever."""
    path = os.environ.get(FAILPOINTS_FILE)
    if path is None:
        return
    keep(who_home, Path(path).stem)
    threading.Thread(target=_follow, args=(Path(path),), daemon=True).start()


def _follow(path: Path) -> None:
    known = ""
    while True:
        wanted = path.read_text() if path.exists() else ""
        if wanted != known:
            failpoints._visits.clear()
            os.environ[failpoints.VARIABLE] = known = wanted
        time.sleep(_LOOK_SECONDS)
