"""Runs in which the product fails at named places: every place, every way, several seeds."""

import os
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.domain import disk
from tests.chaos.harness import processes, visits
from tests.chaos.harness.load import Accepted, Work
from tests.chaos.harness.run import Run, Scenario
from tests.chaos.harness.stack import API
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
# The visits of one upload and one submission.
IN_API = {
    "dataset.fsync": 1,
    "database.commit": 2,
    "database.committed": 2,
    "queue.publish": 1,
}
ACTIONS = ("kill", "raise:ENOSPC", "raise:EIO", "sleep:0.3")
# Places where a worker comes only after another failure, which is arranged in every worker.
_PROVOKED = {"leftovers.commit": "record.commit=raise:EIO@2"}
# A ballast is more than a job that met a full disk waits for, with what the other jobs have written
# since then; there is one for each attempt that may meet a full disk.
_BALLAST_BYTES = disk.SOME_BYTES + (32 << 20)
_BALLAST_BYTES_PER_JOB = 512 << 10
_NUM_BALLASTS = 3
_VISITED_SECONDS = 30.0
_DEAD_SECONDS = 5.0
_FOLLOWED_SECONDS = 0.06
_MOST_ROUNDS = 5
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
        points = list(_points(IN_TRAINER, run.rng, seeds, actions))
        _fill(run, len(points))
        jobs: list[tuple[Point, Accepted]] = []
        for point in points:
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
        seen = {(each.who, each.point, each.action) for each in visits.read(run.stack.home)}
        run.extra["visits"] += [
            f"the trainer of {job.job_id} never came to {point.configured}"
            for point, job in jobs
            if (job.job_id, point.name, point.action) not in seen
        ]

    return scenario


def in_workers(*, seeds: int, actions: Sequence[str] = ACTIONS) -> Scenario:
    """Return the scenario in which workers fail, one place after another, while jobs run."""

    def scenario(run: Run) -> None:
        shape = run.stack.shape
        refill = Refill(run, shape.num_workers * shape.slots + 1, any_work)
        trials: Counter[str] = Counter()
        died: Counter[str] = Counter()
        points = list(_points(IN_WORKER, run.rng, seeds, actions))
        _fill(run, 2 * len(points))
        for point in points:
            died[point.name] += _fail_in_a_worker(run, refill, point)
            trials[point.name] += 1
            run.stack.revive()
        _make_room(run)
        run.figures |= {"trials": dict(trials), "workers_died": dict(died)}

    return scenario


def in_api(*, seeds: int, actions: Sequence[str] = ACTIONS[:3]) -> Scenario:
    """Return the scenario in which the API fails, one place after another, at uploads and submits.

    Its client sends what was not answered again, under the same key.
    """

    def scenario(run: Run) -> None:
        trials: Counter[str] = Counter()
        run.load.before_retry = lambda: run.stack.set_failpoints(API, "")
        for point in _points(IN_API, run.rng, seeds, actions):
            _fail_in_the_api(run, point)
            trials[point.name] += 1
            run.look()
        run.figures |= {"trials": dict(trials), "requests": len(run.load.uploads)}

    return scenario


def _fail_in_a_worker(run: Run, refill: Refill, point: Point) -> int:
    """Let a worker fail at a place once it comes there; returns how many died of it."""
    workers, configured = [run.rng.choice(_at_work(run))], point.configured
    if provoked := _PROVOKED.get(point.name):
        workers, configured = run.stack.workers, f"{provoked};{configured}"
    before = _num_visits(run, point)
    for worker in workers:
        run.stack.set_failpoints(worker, configured)
    deadline = time.monotonic() + _VISITED_SECONDS
    while _num_visits(run, point) == before and time.monotonic() < deadline:
        refill.tend()
        run.look()
        time.sleep(0.02)
    if _num_visits(run, point) == before:
        run.extra["visits"].append(f"{' or '.join(workers)} never came to {point.configured}")
    elif point.action == "kill":
        run.stack.wait_until(
            lambda: not all(map(run.stack.is_running, workers)),
            what=f"a worker to die at {point.name}",
            seconds=_DEAD_SECONDS,
        )
    for worker in workers:
        run.stack.set_failpoints(worker, "")
    time.sleep(_FOLLOWED_SECONDS)  # the same again, at once, would be no change
    return sum(not run.stack.is_running(worker) for worker in workers)


def _at_work(run: Run) -> Sequence[str]:
    """Return the workers that have a trainer now, or all where none has."""
    busy = {each.pid for each in processes.trainers(run.load.accepted)}
    running = [name for name in run.stack.workers if run.stack.is_running(name)]
    return [
        name
        for name in running
        if any(
            child.pid in busy
            for child in processes.children(run.stack.processes[name].pid, recursive=True)
        )
    ] or run.stack.workers


def _fail_in_the_api(run: Run, point: Point) -> None:
    """Let the API fail at a place in the middle of a request, and its client try again."""
    before = _num_visits(run, point)
    for _ in range(_MOST_ROUNDS):
        run.stack.set_failpoints(API, point.configured)
        time.sleep(_FOLLOWED_SECONDS)
        run.load.upload(b'{"text": "row %d"}\n' % len(run.load.uploads))
        run.load.submit(Work(seed=run.rng.randrange(2**31), num_steps=8, step_ms=2, save_ms=0))
        run.stack.set_failpoints(API, "")
        run.stack.revive()
        time.sleep(_FOLLOWED_SECONDS)  # the same again, at once, would be no change
        if _num_visits(run, point) > before:
            return
    run.extra["visits"].append(f"no request to the API came to {point.configured}")


def _num_visits(run: Run, point: Point) -> int:
    """Count the acts at a place so far; what the reconciler did is no request."""
    return sum(
        (each.point, each.action) == (point.name, point.action) and each.thread != visits.RECONCILER
        for each in visits.read(run.stack.home)
    )


def _fill(run: Run, num_jobs: int) -> None:
    """Take up space that can be freed for what a full disk pauses."""
    for ballast in _ballasts(run):
        with ballast.open("wb") as file:
            num_bytes = _BALLAST_BYTES + num_jobs * _BALLAST_BYTES_PER_JOB
            os.posix_fallocate(file.fileno(), 0, num_bytes)


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
