"""The mixed run: many jobs at once, and one blow after another, each where it hurts."""

import random
import time
from collections.abc import Callable, Mapping, Sequence

from tests.chaos.harness import processes
from tests.chaos.harness.load import Work
from tests.chaos.harness.nemeses import Nemesis
from tests.chaos.harness.processes import BUSY
from tests.chaos.harness.run import Run, Scenario
from tests.chaos.harness.stack import Stuck

_LOOK_SECONDS = 0.01
# Without a single blow that landed for so long, something is stuck.
_PATIENCE_SECONDS = 120.0
_STATES_EVERY_SECONDS = 0.5


def any_work(rng: random.Random) -> Work:
    """Make a job of about a second."""
    return Work(seed=rng.randrange(2**31), save_total_limit=rng.choice((None, 2, 3)))


def storm(
    nemeses: Mapping[str, tuple[Nemesis, float]],
    *,
    kills: int,
    work: Callable[[random.Random], Work] = any_work,
    pause_seconds: tuple[float, float] = (0.02, 0.2),
) -> Scenario:
    """Return the scenario that strikes until `kills` blows have landed in work.

    Args:
        nemeses: Name -> nemesis and its weight.
        kills: Blows that interrupted a step or a save; others do not count.
        work: Makes each job.
        pause_seconds: Least and most time between two blows.
    """

    def scenario(run: Run) -> None:
        num_jobs = 2 * run.stack.shape.num_workers * run.stack.shape.slots
        refill = Refill(run, num_jobs, work)
        landed_at = time.monotonic()
        while run.num_counted < kills:
            refill.tend()
            run.stack.revive()
            run.look()
            strike = None
            # A blow that meets no work proves nothing, and keeps the next one from meeting some.
            if any(each.doing in BUSY for each in processes.trainers(run.load.accepted)):
                strike = _choose(run.rng, nemeses)(run.stack, run.load, run.rng)
            if strike is not None:
                run.strikes.append(strike)
                time.sleep(run.rng.uniform(*pause_seconds))
            if strike is not None and strike.counts:
                landed_at = time.monotonic()
            if time.monotonic() - landed_at > _PATIENCE_SECONDS:
                raise Stuck(f"no blow landed for {_PATIENCE_SECONDS:.0f} s")
            time.sleep(_LOOK_SECONDS)

    return scenario


class Refill:
    """Keeps a number of jobs unfinished."""

    def __init__(self, run: Run, num_jobs: int, work: Callable[[random.Random], Work]) -> None:
        self._run = run
        self._num_jobs = num_jobs
        self._work = work
        self._next_look = 0.0

    def tend(self) -> None:
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + _STATES_EVERY_SECONDS
        missing = self._num_jobs - len(self._run.load.unfinished())
        # A few at a time: while jobs are submitted nothing is struck.
        for _ in range(min(missing, 4)):
            self._run.load.submit(self._work(self._run.rng))


def _choose(rng: random.Random, nemeses: Mapping[str, tuple[Nemesis, float]]) -> Nemesis:
    found: Sequence[tuple[Nemesis, float]] = list(nemeses.values())
    (chosen,) = rng.choices(found, weights=[weight for _, weight in found])
    return chosen[0]
