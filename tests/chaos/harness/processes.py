"""Looking at the processes of a run from outside: which trainers there are and what each does."""

import os
import signal
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from app.domain.runs import attempt_folder
from tests.chaos.harness.fast_trainer import NAME_END, PHASES

Doing = Literal["step", "save", "between", "start", "finish", "waiting", "idle"]
_DOING: dict[str, Doing] = {
    "load": "start",
    "wait": "waiting",
    "step": "step",
    "save": "save",
    "rest": "between",
    "last": "finish",
}
# A kill counts when it interrupts work: a step, a save, or the writing of the final adapter.
BUSY: tuple[Doing, ...] = ("step", "save", "finish")


@dataclass(frozen=True)
class Trainer:
    """A fast trainer as it was at a moment."""

    pid: int
    job_id: str
    doing: Doing


def trainers(job_ids: Iterable[str]) -> list[Trainer]:
    """Return the living fast trainers of these jobs."""
    by_end = {job_id[-NAME_END:]: job_id for job_id in job_ids}
    found: list[Trainer] = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and (seen := _look(folder, by_end)):
            found.append(seen)
    return found


def _look(folder: Path, by_end: dict[str, str]) -> Trainer | None:
    with suppress(OSError):
        phase, _, end = (folder / "comm").read_text().strip().partition(":")
        if phase not in PHASES or end not in by_end:
            return None
        state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        if state not in "ZX":
            return Trainer(int(folder.name), by_end[end], _DOING[phase])
    return None


def frozen(trainer: Trainer, home: Path) -> Trainer | None:
    """Stop a trainer where it is and look again; None when it ended meanwhile.

    What the second look sees stays true until the process is killed or continued.
    """
    with suppress(ProcessLookupError):
        os.kill(trainer.pid, signal.SIGSTOP)
        wait_until_stopped(trainer.pid)
    now = _look(Path(f"/proc/{trainer.pid}"), {trainer.job_id[-NAME_END:]: trainer.job_id})
    if now is None:
        return None
    is_saving = now.doing == "save" or has_half_written(home, now.job_id)
    return Trainer(now.pid, now.job_id, "save" if is_saving else now.doing)


def wait_until_stopped(pid: int) -> None:
    """Wait a moment until a process that got SIGSTOP does nothing any more, or is gone."""
    for _ in range(1000):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return
        if state in "TZX":
            return
        os.sched_yield()


def has_half_written(home: Path, job_id: str) -> bool:
    """Tell whether the newest attempt of a job is in the middle of a save."""
    attempts = [int(path.name) for path in attempt_folder(home, job_id, 1).parent.glob("*")]
    newest = attempt_folder(home, job_id, max(attempts, default=1))
    return any(newest.glob(".tmp-*"))


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> bool:
    """Signal a process; False when it is gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def children(pid: int, *, recursive: bool = False) -> Sequence[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=recursive)
    return []


def fork_server(worker_pid: int) -> int | None:
    """Return the process that a worker's trainers are forked from."""
    for child in children(worker_pid):
        with suppress(psutil.NoSuchProcess):
            if any("forkserver" in part for part in child.cmdline()):
                return child.pid
    return None
