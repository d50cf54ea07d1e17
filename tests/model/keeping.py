"""What users do with checkpoints, and what evaluations say of them, as rules of the machine."""

from collections.abc import Callable

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from app.db.keys import DEFAULT_PROJECT
from app.domain.errors import InUse, NotFound
from app.domain.jobs import JobState
from app.services import checkpoints, runs
from tests.model.lifecycle import Attempt, Expected
from tests.model.world import World

S = JobState
which = st.integers(0, 11)
# Few values, so that equal ones come up; None is a loss that is not finite.
losses = st.sampled_from([None, 1.0, 2.0, 2.0, 3.0])


class Keeping(RuleBasedStateMachine):
    """Drives the product and the model side by side; the rest of a job's life is elsewhere."""

    def __init__(self, world: World, put_back: Callable[[], object]) -> None:
        super().__init__()
        self.world = world
        self._put_back = put_back

    def _checkpoint(self, number: int) -> tuple[str, Expected, int]:
        found = [
            (job_id, job, step)
            for job_id, job in self.world.expected.items()
            for step in sorted({*job.saved, *job.known_bad})
        ]
        return found[number % len(found)]

    @precondition(lambda self: self.world.has_checkpoints())
    @rule(number=which, pinned=st.booleans())
    def pin(self, number: int, pinned: bool) -> None:
        job_id, job, step = self._checkpoint(number)
        found = checkpoints.pin(self.world.db, DEFAULT_PROJECT, job_id, str(step), pinned=pinned)
        assert found.pinned is pinned
        job.pinned = job.pinned | {step} if pinned else job.pinned - {step}

    @precondition(lambda self: self.world.has_checkpoints())
    @rule(number=which)
    def delete_a_checkpoint(self, number: int) -> None:
        job_id, job, step = self._checkpoint(number)
        request = (self.world.db, self.world.driver.settings, DEFAULT_PROJECT, job_id, str(step))
        if not job.is_deletable(step):
            with pytest.raises(InUse):
                checkpoints.delete(*request)
            return
        checkpoints.delete(*request)
        job.delete(step)

    @precondition(lambda self: self.world.expected)
    @rule(number=which)
    def look_at_the_best(self, number: int) -> None:
        self.check_best(*self.world.job(number))

    def check_best(self, job_id: str, job: Expected) -> None:
        if job.best is None:
            with pytest.raises(NotFound):
                checkpoints.get(self.world.db, DEFAULT_PROJECT, job_id, "best")
            return
        assert checkpoints.get(self.world.db, DEFAULT_PROJECT, job_id, "best").step == job.best

    @precondition(lambda self: self.world.live(S.RUNNING))
    @rule(number=which, num_steps=st.integers(1, 4), loss=losses, saves=st.booleans())
    def evaluate(self, number: int, num_steps: int, loss: float | None, saves: bool) -> None:
        """Do some steps and evaluate after the last."""
        job, attempt = self.world.attempt_of(number, S.RUNNING)
        last = min(attempt.step + num_steps, job.total_steps)
        if last == attempt.step:
            return
        self.world.driver.steps(attempt.run, attempt.step + 1, last)
        attempt.step = job.last_step = last
        best = job.best_evaluation
        is_best = loss is not None and (best is None or loss < best[1])
        self.world.driver.evaluation(attempt.run, attempt.step, loss, is_best=is_best, saves=saves)
        job.evaluations[attempt.step] = loss
        if saves:
            self._saved(job, attempt, loss)

    def _saved(self, job: Expected, attempt: Attempt, loss: float | None) -> None:
        job.save(attempt.step, self.world.folder(attempt, attempt.step), loss)
        runs.retire(self.world.db, self.world.driver.settings, attempt.run)
        job.retire()

    @precondition(lambda self: self.world.live(S.STARTING))
    @rule(number=which)
    def give_back(self, number: int) -> None:
        """Let the trainer have found its device held."""
        job, attempt = self.world.attempt_of(number, S.STARTING)
        runs.give_back(self.world.db, self.world.driver.settings, attempt.run, S.STARTING, "busy")
        job.give_back()
