"""How long until a job steps again after its trainer or worker was killed."""

import random
import time
from typing import Literal

from sqlalchemy import text

from tests.chaos.harness import databases, processes
from tests.chaos.harness.load import Work
from tests.chaos.harness.nemeses import Strike
from tests.chaos.harness.processes import Trainer
from tests.chaos.harness.run import Run, Scenario
from tests.chaos.harness.stack import Stuck
from tests.chaos.harness.storm import Refill

_PATIENCE_SECONDS = 120.0
# The newest attempt has a checkpoint of its own, so that the next start waits for no back-off.
_FRESH = """
SELECT j.id FROM jobs j WHERE j.state = 'running' AND j.crash_streak = 0 AND EXISTS
  (SELECT 1 FROM checkpoints c WHERE c.job_id = j.id AND c.attempt = j.attempt)"""


def recovery(victim: Literal["worker", "trainer"], *, kills: int, every_seconds: float) -> Scenario:
    """Return the scenario that kills trainers, or workers with all they run, in a step.

    Args:
        victim: What is killed; a whole worker is started again at once.
        kills: How many are killed.
        every_seconds: Time between two kills, so that there is always somebody to take over.
    """

    def scenario(run: Run) -> None:
        shape = run.stack.shape
        # Half of the slots stay free for those that lose their worker.
        refill = Refill(run, max(1, shape.num_workers * shape.slots // 2), _long)
        landed_at = time.monotonic()
        while run.num_counted < kills:
            refill.tend()
            run.stack.revive()
            run.look()
            strike = _kill_worker(run) if victim == "worker" else _kill_trainer(run)
            if strike is not None:
                run.strikes.append(strike)
                landed_at = time.monotonic()
                time.sleep(every_seconds * run.rng.uniform(0.5, 1.5))
            elif time.monotonic() - landed_at > _PATIENCE_SECONDS:
                raise Stuck(f"nobody to kill for {_PATIENCE_SECONDS:.0f} s")
            time.sleep(0.02)

    return scenario


def _long(rng: random.Random) -> Work:
    return Work(seed=rng.randrange(2**31), num_steps=600, save_steps=10, step_ms=15, save_ms=20)


def _kill_trainer(run: Run) -> Strike | None:
    found = [each for each in _fresh(run) if each.doing in ("step", "save")]
    if not found:
        return None
    seen = processes.frozen(run.rng.choice(found), run.stack.home)
    at = time.time()
    if seen is None:
        return None
    processes.kill(seen.pid)
    return Strike("trainer", at, f"trainer {seen.pid}", seen.doing, (seen.job_id,))


def _kill_worker(run: Run) -> Strike | None:
    fresh = _fresh(run)
    by_worker = {
        name: [each for each in fresh if each.pid in _below(run, name)]
        for name in run.stack.workers
        if run.stack.is_running(name)
    }
    busy = [name for name, found in by_worker.items() if any(t.doing == "step" for t in found)]
    if not busy:
        return None
    name = run.rng.choice(busy)
    at = time.time()
    run.stack.kill(name)
    jobs = tuple(each.job_id for each in by_worker[name])
    return Strike("worker", at, name, "step", jobs)


def _fresh(run: Run) -> list[Trainer]:
    with databases.reading(run.stack.database.url) as connection:
        fresh = {row[0] for row in connection.execute(text(_FRESH))}
    return processes.trainers(fresh)


def _below(run: Run, worker: str) -> set[int]:
    pid = run.stack.processes[worker].pid
    return {child.pid for child in processes.children(pid, recursive=True)}
