"""Workers that are stopped past their lease and wake up: nothing that they write is accepted."""

import re
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.engine import make_url

from tests.chaos.harness import databases, nemeses, processes
from tests.chaos.harness.nemeses import Strike
from tests.chaos.harness.run import Run, Scenario
from tests.chaos.harness.stack import Stuck
from tests.chaos.harness.storm import Refill, any_work

_PATIENCE_SECONDS = 120.0
_REAPED_SECONDS = 60.0
_LOCK_SECONDS = 8.0
_REFUSED_SECONDS = 15.0
_OWNED = "SELECT id, fence, attempt, owner FROM jobs WHERE state = 'running'"
_FENCES = "SELECT id, fence, state FROM jobs"


@dataclass
class Zombie:
    """A worker that is stopped, with or without its trainers."""

    worker: str
    pids: list[int]
    jobs: dict[str, tuple[int, int]]
    """Job -> fence and attempt that it had."""
    strike: Strike
    stopped_at: float
    log_bytes: int
    reaped_at: float | None = None
    woken_at: float | None = None
    wakes_after_seconds: float = 0.0
    """Time from the loss of its last job until it is woken."""


def zombies(*, kills: int) -> Scenario:
    """Return the scenario that stops workers in a step until others have taken their jobs."""

    def scenario(run: Run) -> None:
        shape = run.stack.shape
        refill = Refill(run, shape.num_workers * shape.slots, any_work)
        stopped: list[Zombie] = []
        since = time.monotonic()
        run.figures |= {"refused": 0, "stopped_with_trainers": 0, "held_the_write_lock": 0}
        while run.num_counted < kills or stopped:
            refill.tend()
            run.look()
            is_wanted = run.num_counted < kills and len(stopped) < max(1, shape.num_workers // 2)
            taken = {each.worker for each in stopped}
            if is_wanted and (zombie := _stop_one(run, taken)):
                stopped.append(zombie)
                since = time.monotonic()
            stopped = [each for each in stopped if not _is_over(run, each)]
            if time.monotonic() - since > _PATIENCE_SECONDS:
                raise Stuck("no worker could be stopped in a step, or none was given up")
            time.sleep(0.03)

    return scenario


def _stop_one(run: Run, taken: set[str]) -> Zombie | None:
    """Stop a worker that has a trainer in a step; every second time the trainers too."""
    with databases.reading(run.stack.database.url) as connection:
        running = {row.id: (row.fence, row.attempt) for row in connection.execute(text(_OWNED))}
    for name in run.rng.sample(run.stack.workers, len(run.stack.workers)):
        pid = run.stack.processes[name].pid
        below = {child.pid for child in processes.children(pid, recursive=True)}
        busy = [t for t in processes.trainers(running) if t.pid in below and t.doing == "step"]
        if name in taken or not busy:
            continue
        with_trainers = run.rng.random() < 0.5
        pids = [pid, *(sorted(below) if with_trainers else [])]
        log_bytes = len(run.stack.log_of(name))
        nemeses.suspend(pids)
        jobs = {each.job_id: running[each.job_id] for each in busy}
        strike = Strike("sigstop", time.time(), name, "step", tuple(jobs))
        run.strikes.append(strike)
        run.figures["stopped_with_trainers"] += with_trainers
        wait = run.rng.uniform(0.0, 1.5)
        return Zombie(
            name, pids, jobs, strike, time.monotonic(), log_bytes, wakes_after_seconds=wait
        )
    return None


def _is_over(run: Run, zombie: Zombie) -> bool:
    """Go on with one: wait for the loss of its jobs, wake it, wait for the refusal."""
    now = time.monotonic()
    if zombie.reaped_at is None:
        return _is_given_up(run, zombie)
    if zombie.woken_at is None:
        if now - zombie.reaped_at >= zombie.wakes_after_seconds:
            nemeses.resume(zombie.pids)
            zombie.woken_at = now
        return False
    refused = _refused(run, zombie)
    if refused >= set(zombie.jobs):
        run.figures["refused"] += 1
        return True
    if now - zombie.woken_at < _REFUSED_SECONDS:
        return False
    left = sorted(set(zombie.jobs) - refused)
    run.extra["I2"].append(f"{zombie.worker} woke up and was refused nothing for {left}")
    return True


def _is_given_up(run: Run, zombie: Zombie) -> bool:
    """Note when its jobs are lost to it; true when the trial cannot count."""
    stopped_seconds = time.monotonic() - zombie.stopped_at
    if _has_lost_all(run, zombie):
        zombie.reaped_at = time.monotonic()
    elif stopped_seconds > _LOCK_SECONDS and _holds_sqlite(run):
        _let_go(run, zombie)
        return True
    elif stopped_seconds > _REAPED_SECONDS:
        run.extra["I1"].append(f"{zombie.worker} was stopped for a minute and kept its jobs")
        zombie.reaped_at = time.monotonic()
    return False


def _holds_sqlite(run: Run) -> bool:
    """Tell whether somebody keeps the one write lock of an SQLite file: a stopped worker does."""
    database = run.stack.database
    if database.kind != "sqlite":
        return False
    with closing(sqlite3.connect(make_url(database.url).database or "", timeout=2)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
        connection.rollback()
    return False


def _let_go(run: Run, zombie: Zombie) -> None:
    """Wake a worker that was stopped while it held the lock of the whole file.

    Nobody can write then, so nobody can take its jobs. That is SQLite; the trial does not count.
    """
    nemeses.resume(zombie.pids)
    run.figures["held_the_write_lock"] += 1
    run.strikes.remove(zombie.strike)


def _has_lost_all(run: Run, zombie: Zombie) -> bool:
    with databases.reading(run.stack.database.url) as connection:
        now = {row.id: (row.fence, row.state) for row in connection.execute(text(_FENCES))}
    return all(
        now[job_id][0] > fence or now[job_id][1] in ("queued", "succeeded")
        for job_id, (fence, _) in zombie.jobs.items()
    )


def _refused(run: Run, zombie: Zombie) -> set[str]:
    """Return the jobs of which the worker's log says, since it was stopped, that it lost them."""
    log = run.stack.log_of(zombie.worker)[zombie.log_bytes :]
    return {
        job_id
        for job_id, (_, attempt) in zombie.jobs.items()
        if re.search(rf"attempt {attempt} of {job_id} (lost its lease|is fenced|cannot go)", log)
    }
