"""Runs in which the product fails at named places: every place, every way, several seeds."""

import os
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.domain import disk
from tests.chaos.harness.load import Accepted, Work
from tests.chaos.harness.run import Run, Scenario
from tests.chaos.harness.storm import Refill, any_work

# Where a trainer commits, and how often it comes there before its second checkpoint is done.
IN_TRAINER = {
    "trainer.load": 1,
    "trainer.step": 9,
    "trainer.event.write": 12,
    "trainer.event.fsync": 2,
    "checkpoint.write": 8,
    "checkpoint.fsync": 12,
    "checkpoint.manifest": 2,
    "checkpoint.rename": 2,
    "checkpoint.fsync_parent": 2,
}
IN_WORKER = {
    "claim": 2,
    "heartbeat": 3,
    "record.commit": 6,
    "supervisor.launch": 1,
    "supervisor.settle": 1,
    "stream.publish": 6,
    "checkpoint.delete": 2,
    "leftovers.commit": 1,
}
ACTIONS = ("kill", "raise:ENOSPC", "raise:EIO", "sleep:0.3")
# More than a job that met a full disk waits for, once for each attempt that may meet one.
_BALLAST_BYTES = disk.SOME_BYTES + (32 << 20)
_NUM_BALLASTS = 3
_FIRED_SECONDS = 1.5
_BATCH_SECONDS = 180.0


@dataclass(frozen=True)
class Point:
    """One place, one way to fail, one visit."""

    name: str
    action: str
    visit: int

    @property
    def configured(self) -> str:
        return f"{self.name}={self.action}@{self.visit}"


def in_trainers(*, seeds: int, actions: Sequence[str] = ACTIONS) -> Scenario:
    """Return the scenario in which each job's first two attempts fail at one place."""

    def scenario(run: Run) -> None:
        num_slots = run.stack.shape.num_workers * run.stack.shape.slots
        for ballast in _ballasts(run):
            with ballast.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, _BALLAST_BYTES)
        jobs: list[tuple[Point, Accepted]] = []
        for point in _points(IN_TRAINER, run.rng, seeds, actions):
            work = Work(
                seed=run.rng.randrange(2**31),
                num_steps=20,
                step_ms=3,
                save_ms=0,
                failpoints=point.configured,
                failing_attempts=run.rng.choice(("1", "1,2")),
            )
            jobs.append((point, run.load.submit(work)))
            if len(run.load.unfinished()) >= 2 * num_slots:
                run.stack.wait_until(
                    lambda: len(run.load.unfinished()) < num_slots,
                    what="jobs that fail on purpose to end",
                    seconds=_BATCH_SECONDS,
                    poll=0.1,
                )
            run.look()
        _make_room(run)
        run.figures["trials"] = dict(Counter(point.name for point, _ in jobs))

    return scenario


def in_workers(*, seeds: int, actions: Sequence[str] = ACTIONS) -> Scenario:
    """Return the scenario in which workers fail, one place after another, while jobs run."""

    def scenario(run: Run) -> None:
        shape = run.stack.shape
        refill = Refill(run, shape.num_workers * shape.slots + 1, any_work)
        trials: Counter[str] = Counter()
        died: Counter[str] = Counter()
        for point in _points(IN_WORKER, run.rng, seeds, actions):
            worker = run.rng.choice(run.stack.workers)
            run.stack.set_failpoints(worker, point.configured)
            deadline = time.monotonic() + _FIRED_SECONDS
            while time.monotonic() < deadline and run.stack.is_running(worker):
                refill.tend()
                run.look()
                time.sleep(0.03)
            trials[point.name] += 1
            died[point.name] += not run.stack.is_running(worker)
            run.stack.set_failpoints(worker, "")
            run.stack.revive()
        run.figures |= {"trials": dict(trials), "workers_died": dict(died)}

    return scenario


def _make_room(run: Run) -> None:
    """Free space, so that what a full disk paused goes on by itself; it may pause once more."""
    for ballast in _ballasts(run):
        run.stack.wait_until(
            lambda: not run.load.unfinished(), what="jobs to end or pause", seconds=_BATCH_SECONDS
        )
        paused = [job for job, state in run.load.states().items() if state == "paused"]
        before = run.load.attempts()
        run.figures.setdefault("paused_by_a_full_disk", []).append(len(paused))
        ballast.unlink()
        run.stack.wait_until(
            lambda ids=paused, old=before: _have_gone_on(run, ids, old),
            what="jobs paused by a full disk to go on",
            seconds=_BATCH_SECONDS,
        )


def _have_gone_on(run: Run, job_ids: list[str], before: dict[str, int]) -> bool:
    """Tell whether each job was started again; it may be paused again by now."""
    now = run.load.attempts()
    return bool(now) and all(now[job_id] > before[job_id] for job_id in job_ids)


def _ballasts(run: Run) -> list[Path]:
    return [run.stack.home / f"ballast-{number}" for number in range(_NUM_BALLASTS)]


def _points(
    places: dict[str, int], rng: random.Random, seeds: int, actions: Sequence[str]
) -> Iterator[Point]:
    for _ in range(seeds):
        found = [
            Point(name, action, rng.randint(1, visits))
            for name, visits in places.items()
            for action in actions
        ]
        rng.shuffle(found)
        yield from found
