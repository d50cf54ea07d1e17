"""Pause and cancel against the end of a job: one outcome, whoever comes first."""

import time
from collections import Counter
from dataclasses import dataclass

from app.domain.runs import EVENTS_FILE, attempt_folder
from tests.chaos.harness.load import Accepted, Work
from tests.chaos.harness.run import Run, Scenario

_STEPS = 8
_LATEST_SECONDS = 0.12
_POLL_SECONDS = 0.004
_PATIENCE_SECONDS = 60.0
_ENDED = ("succeeded", "cancelled", "failed", "paused")


@dataclass
class Race:
    """A job, and what is asked of it how long after which of its steps."""

    job: Accepted
    verb: str
    after_step: int
    delay_seconds: float
    due: float | None = None


def races(*, trials: int) -> Scenario:
    """Return the scenario that asks jobs to stop about when they end.

    Half of those that are paused are resumed afterwards, and then have to succeed.
    """

    def scenario(run: Run) -> None:
        # As many at once as can be watched closely.
        width = min(4, run.stack.shape.num_workers * run.stack.shape.slots)
        answers: Counter[str] = Counter()
        left = trials
        while left > 0:
            _batch(run, min(width, left), answers)
            left -= width
            run.look()
        run.figures["answers"] = dict(answers)
        run.figures["outcomes"] = dict(Counter(run.load.states().values()))

    return scenario


def _batch(run: Run, num_jobs: int, answers: Counter[str]) -> None:
    started = [_race(run) for _ in range(num_jobs)]
    waiting = list(started)
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while waiting and time.monotonic() < deadline:
        for race in list(waiting):
            if _is_due(run, race):
                code = run.load.ask(race.job, race.verb).status_code
                answers[f"{race.verb} {code}"] += 1
                waiting.remove(race)
        time.sleep(_POLL_SECONDS)
    for race in started:
        state = run.load.wait_for(race.job, _ENDED)
        if state == "paused" and run.rng.random() < 0.5:
            answers[f"resume {run.load.ask(race.job, 'resume').status_code}"] += 1
            run.load.wait_for(race.job, ("succeeded", "failed"))


def _race(run: Run) -> Race:
    seed = run.rng.randrange(2**31)
    work = Work(seed=seed, num_steps=_STEPS, save_steps=4, step_ms=10, save_ms=10)
    return Race(
        run.load.submit(work),
        run.rng.choice(("cancel", "pause")),
        # Mostly the last steps: it is the end that is raced with.
        after_step=run.rng.choice((0, 2, 5, _STEPS - 1, _STEPS - 1, _STEPS, _STEPS)),
        delay_seconds=run.rng.uniform(0, _LATEST_SECONDS),
    )


def _is_due(run: Run, race: Race) -> bool:
    if race.due is None and _num_steps(run, race.job) >= race.after_step:
        race.due = time.monotonic() + race.delay_seconds
    return race.due is not None and time.monotonic() >= race.due


def _num_steps(run: Run, job: Accepted) -> int:
    """Return how many steps its trainer has written; the file knows before the database does."""
    file = attempt_folder(run.stack.home, job.job_id, 1) / EVENTS_FILE
    return file.read_bytes().count(b'"kind":"step"') if file.exists() else 0
