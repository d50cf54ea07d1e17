"""Any order of requests, worker events, deaths and time keeps every promise about jobs."""

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule, run_state_machine_as_test

from app.db.attempts import LOST
from app.db.keys import DEFAULT_PROJECT
from app.domain.errors import CheckpointUnusable, LoradError, NotFound, StateConflict
from app.domain.jobs import DISK_FULL, OWNED_STATES, RESUMABLE_STATES, Desired, JobState
from app.services import jobs, leftovers, reconcile, runs
from tests.model import oracle
from tests.model.keeping import Keeping, losses, which
from tests.model.lifecycle import PAUSABLE, Attempt, Expected
from tests.model.world import World
from tests.services.place import Shelf

S = JobState
MAX_JOBS = 3
A_LOT = 1 << 60

# Requests are rarer than steps, or hardly a job would ever run.
seldom = st.sampled_from([True, False, False])


class Jobs(Keeping):
    """Drives the product and the model side by side; they must never differ."""

    # What a user does.

    @precondition(lambda self: len(self.world.expected) < MAX_JOBS)
    @rule(limit=st.sampled_from([None, 2]))
    def submit(self, limit: int | None) -> None:
        job_id = self.world.driver.submit(training={"save_total_limit": limit})
        self.world.expected[job_id] = Expected(limit=limit)

    @precondition(lambda self: self.world.expected)
    @rule(number=which, chance=seldom)
    def pause(self, number: int, chance: bool) -> None:
        if not chance:
            return
        job_id, job = self.world.job(number)
        if job.state is S.QUEUED:
            self.world.ask(jobs.pause, job_id)
            job.state, job.reason, job.desired = S.PAUSED, "pause", Desired.PAUSE
        elif job.desired is Desired.PAUSE and job.is_owned:
            self.world.ask(jobs.pause, job_id)
        elif job.desired is Desired.RUN and job.state in PAUSABLE:
            self.world.ask(jobs.pause, job_id)
            job.desired = Desired.PAUSE
        elif job.state is S.PAUSED and (job.reason or "").startswith(DISK_FULL):
            self.world.ask(jobs.pause, job_id)  # it waits for its user now, not for space
            job.reason = "pause"
        else:
            self.world.refused(jobs.pause, job_id)

    @precondition(lambda self: self.world.expected)
    @rule(number=which, chance=seldom)
    def cancel(self, number: int, chance: bool) -> None:
        if not chance:
            return
        job_id, job = self.world.job(number)
        if job.is_terminal:
            self.world.refused(jobs.cancel, job_id)
            return
        self.world.ask(jobs.cancel, job_id)
        job.desired = Desired.CANCEL
        if not job.is_owned:
            job.state = S.CANCELLED

    @precondition(lambda self: any(job.is_terminal for job in self.world.expected.values()))
    @rule(number=which, chance=seldom)
    def delete(self, number: int, chance: bool) -> None:
        if not chance:
            return
        job_id, job = self.world.job(number)
        if not job.is_terminal:
            with pytest.raises(StateConflict):
                jobs.delete(self.world.db, self.world.driver.settings, DEFAULT_PROJECT, job_id)
            return
        jobs.delete(self.world.db, self.world.driver.settings, DEFAULT_PROJECT, job_id)
        del self.world.expected[job_id]

    @precondition(lambda self: self.world.in_states(*RESUMABLE_STATES))
    @rule(number=which, back=which, how=st.sampled_from(["latest", "step", "from_scratch"]))
    def resume(self, number: int, back: int, how: str) -> None:
        found = self.world.in_states(*RESUMABLE_STATES)
        job_id, job = found[number % len(found)]
        training = {"max_steps": job.total_steps + 10} if job.state is S.SUCCEEDED else {}
        steps = sorted({*job.saved, *job.known_bad})
        error: type[LoradError] | None
        if how == "from_scratch":
            self.world.resume(job_id, None, None, from_scratch=True, training=training)
        elif how == "step" and steps:
            step = steps[back % len(steps)]
            if step in job.saved and job.saved[step] in job.broken:
                job.find_bad(step)
            error = CheckpointUnusable if step in job.known_bad else None
            self.world.resume(job_id, step, error, checkpoint=step, training=training)
        else:
            step = job.pick()
            error = None
            if step is None and job.known_bad:
                error = CheckpointUnusable
            elif step is None and job.state is not S.PAUSED:
                error = NotFound
            self.world.resume(job_id, step, error, training=training)
        self.check_best(job_id, job)

    @precondition(lambda self: self.world.in_states(S.QUEUED, *OWNED_STATES))
    @rule(number=which)
    def resume_what_has_not_stopped(self, number: int) -> None:
        found = self.world.in_states(S.QUEUED, *OWNED_STATES)
        self.world.resume(found[number % len(found)][0], None, StateConflict, from_scratch=True)

    # What a worker does.

    @precondition(lambda self: self.world.in_states(S.QUEUED))
    @rule(worker=st.integers(0, 1))
    def claim(self, worker: int) -> None:
        run = self.world.driver.claim(self.world.worker_ids[worker])
        ready = {job_id for job_id, job in self.world.in_states(S.QUEUED) if not job.waits}
        busy = self.world.driver.sql(
            "SELECT count(*) FROM jobs WHERE owner = :id", id=self.world.worker_ids[worker]
        )[0][0] - (run is not None)
        if run is None:
            assert not ready or busy == 2
            return
        assert run.job_id in ready
        assert busy < 2
        job = self.world.expected[run.job_id]
        job.state, job.reason, job.fence = S.STARTING, None, job.fence + 1
        job.attempt = Attempt(run)

    @precondition(lambda self: self.world.in_states(S.QUEUED))
    @rule(worker=st.integers(0, 1), num_steps=st.integers(1, 4), saves=st.booleans(), loss=losses)
    def start(self, worker: int, num_steps: int, saves: bool, loss: float | None) -> None:
        """Do at once what mostly follows: all that is claimed begins and trains."""
        self.claim(worker)
        while self.world.live(S.STARTING, begun=False):
            self.begin(0)
        while self.world.live(S.STARTING, begun=True):
            self.get_ready(0)
        if self.world.live(S.RUNNING):
            self.evaluate(0, num_steps, loss, saves)

    @precondition(lambda self: self.world.live(S.STARTING, begun=False))
    @rule(number=which)
    def begin(self, number: int) -> None:
        job, attempt = self.world.attempt_of(number, S.STARTING, begun=False)
        leftovers.take_in_of_job(self.world.db, self.world.driver.settings, attempt.run)
        for lost in job.lost:
            job.store(lost, self.world.folder(lost, lost.unstored_save))
        job.lost.clear()
        step = None if job.is_fresh else job.pick(job.wanted)
        start = runs.begin(self.world.db, self.world.driver.settings, attempt.run)
        assert (None if start is None else start.step) == step
        job.cut(step or 0)
        job.wanted, job.is_fresh = None, False
        attempt.step, attempt.has_begun = step or 0, True

    @precondition(lambda self: self.world.live(S.STARTING, begun=True))
    @rule(number=which)
    def get_ready(self, number: int) -> None:
        job, attempt = self.world.attempt_of(number, S.STARTING, begun=True)
        self.world.driver.record(
            attempt.run, self.world.driver.ready(attempt.run, step=attempt.step)
        )
        self.world.driver.move(attempt.run, S.STARTING, S.RUNNING)
        job.state = S.RUNNING

    @precondition(lambda self: self.world.live(S.RUNNING))
    @rule(number=which, num_steps=st.integers(1, 4), saves=st.booleans())
    def train(self, number: int, num_steps: int, saves: bool) -> None:
        job, attempt = self.world.attempt_of(number, S.RUNNING)
        last = min(attempt.step + num_steps, job.total_steps)
        if last == attempt.step:
            return
        self.world.driver.steps(attempt.run, attempt.step + 1, last)
        attempt.step = job.last_step = last
        if saves:
            job.save(last, self.world.driver.checkpoint(attempt.run, last))
            runs.retire(self.world.db, self.world.driver.settings, attempt.run)
            job.retire()

    @precondition(lambda self: self.world.live(S.RUNNING))
    @rule(number=which)
    def finish(self, number: int) -> None:
        job, attempt = self.world.attempt_of(number, S.RUNNING)
        if attempt.step < job.total_steps:
            self.world.driver.steps(attempt.run, attempt.step + 1, job.total_steps)
        attempt.step = job.last_step = job.total_steps
        attempt.finished = self.world.driver.finish(attempt.run, attempt.step)
        job.state = S.FINALIZING

    @precondition(lambda self: self.world.live(S.FINALIZING))
    @rule(number=which)
    def succeed(self, number: int) -> None:
        job, attempt = self.world.attempt_of(number, S.FINALIZING)
        assert attempt.finished is not None
        runs.succeed(self.world.db, attempt.run, attempt.finished)
        if job.desired is Desired.CANCEL:
            job.settle(S.CANCELLED)
            return
        job.settle(S.SUCCEEDED)
        job.desired = Desired.RUN

    @precondition(lambda self: self.world.live(S.STARTING, S.RUNNING, S.FINALIZING))
    @rule(number=which)
    def fail(self, number: int) -> None:
        job, attempt = self.world.attempt_of(number, S.STARTING, S.RUNNING, S.FINALIZING)
        self.world.driver.fail(attempt.run, job.state)
        job.settle(S.FAILED)
        job.desired = Desired.RUN

    @precondition(lambda self: self.world.live(S.STARTING, S.RUNNING, S.FINALIZING))
    @rule(number=which, num_unstored=st.integers(0, 3), saves=st.booleans())
    def crash(self, number: int, num_unstored: int, saves: bool) -> None:
        job, attempt = self.world.attempt_of(number, S.STARTING, S.RUNNING, S.FINALIZING)
        outcome = None
        if job.state is S.RUNNING and num_unstored:
            self.world.leave_lines(job, attempt, num_unstored, saves)
            job.lost.append(attempt)
            outcome = LOST
        run, place = attempt.run, self.world.driver.settings
        runs.crash(self.world.db, place, run, job.state, "the trainer died", outcome=outcome)
        job.crash()

    @precondition(lambda self: self.world.live(S.STARTING, S.RUNNING, S.FINALIZING))
    @rule(number=which, is_full=st.booleans())
    def stop(self, number: int, is_full: bool) -> None:
        job, attempt = self.world.attempt_of(number, S.STARTING, S.RUNNING, S.FINALIZING)
        if job.state is S.FINALIZING and job.desired is not Desired.CANCEL:
            return
        job.reason = DISK_FULL if is_full else None
        values = {"message": "by hand", "reason": job.reason}
        runs.move(self.world.db, attempt.run, job.state, S.STOPPING, **values)
        job.state = S.STOPPING

    @precondition(lambda self: self.world.live(S.STOPPING))
    @rule(number=which, needed=st.sampled_from([1, A_LOT]))
    def settle_stopped(self, number: int, needed: int) -> None:
        job, attempt = self.world.attempt_of(number, S.STOPPING)
        settled = runs.settle_stopped(self.world.db, attempt.run, needed_bytes=needed)
        if not job.end_as_wished():
            is_full = job.reason == DISK_FULL
            reason = f"{DISK_FULL}:{needed}" if is_full else None
            job.settle(S.PAUSED if is_full else S.QUEUED, reason=reason)
        job.waits = False
        assert settled is job.state

    @precondition(lambda self: self.world.live())
    @rule(number=which)
    def renew(self, number: int) -> None:
        job, attempt = self.world.attempt_of(number)
        assert runs.renew(self.world.db, self.world.driver.settings, attempt.run) is job.desired

    # What happens to workers, files and time.

    @precondition(lambda self: self.world.live(S.RUNNING))
    @rule(number=which, num_unstored=st.integers(0, 3), saves=st.booleans())
    def kill(self, number: int, num_unstored: int, saves: bool) -> None:
        job, attempt = self.world.attempt_of(number, S.RUNNING)
        self.world.leave_lines(job, attempt, num_unstored, saves)
        attempt.is_dead = True

    @precondition(lambda self: any(job.is_owned for job in self.world.expected.values()))
    @rule(number=which)
    def let_a_lease_expire(self, number: int) -> None:
        owned = [(job_id, job) for job_id, job in self.world.expected.items() if job.is_owned]
        job_id, job = owned[number % len(owned)]
        self.world.reap(job_id, job)

    @rule()
    def reconcile(self) -> None:
        assert reconcile.settle_expired(self.world.db, self.world.driver.settings) == []
        assert reconcile.settle_dead(self.world.db, self.world.driver.settings) == []
        for job_id in reconcile.resume_with_space(self.world.db, self.world.driver.settings):
            job = self.world.expected[job_id]
            assert job.reason in (DISK_FULL, f"{DISK_FULL}:1")
            assert (job.state, job.desired) == (S.PAUSED, Desired.RUN)
            job.state, job.reason = S.QUEUED, None

    @precondition(lambda self: any(job.waits for job in self.world.expected.values()))
    @rule(number=which)
    def let_a_back_off_pass(self, number: int) -> None:
        waiting = [(job_id, job) for job_id, job in self.world.expected.items() if job.waits]
        job_id, job = waiting[number % len(waiting)]
        self.world.driver.forget(job_id)
        job.waits = False

    @precondition(lambda self: any(job.saved for job in self.world.expected.values()))
    @rule(number=which, how=st.sampled_from(["flip", "cut", "remove"]))
    def break_a_checkpoint(self, number: int, how: str) -> None:
        folders = [path for job in self.world.expected.values() for path in job.saved.values()]
        folder = folders[number % len(folders)]
        file = folder / "optimizer.safetensors"
        content = file.read_bytes() if file.exists() else b""
        if how == "remove":
            file.unlink(missing_ok=True)
        elif how == "cut" or not content:
            file.write_bytes(content[: len(content) // 2])
        else:
            file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        for job in self.world.expected.values():
            if folder in job.saved.values():
                job.broken.add(folder)

    @precondition(lambda self: self.world.zombies)
    @rule(number=which)
    def wake_a_zombie(self, number: int) -> None:
        self.world.wake(self.world.zombies[number % len(self.world.zombies)])

    @invariant()
    def every_promise_holds(self) -> None:
        oracle.check(self.world.driver, self.world.expected)

    def teardown(self) -> None:
        """Let time pass and a good worker come: every job that waits for one succeeds."""
        try:
            for job_id, job in self.world.expected.items():
                if job.is_owned:
                    self.world.reap(job_id, job)
            while queued := self.world.in_states(S.QUEUED):
                for job_id, job in queued:
                    self.world.driver.forget(job_id)
                    job.waits = False
                self._run_one()
            oracle.check(self.world.driver, self.world.expected)
        finally:
            self.world.db.close()
            self._put_back()

    def _run_one(self) -> None:
        """Run a queued job from its claim to its success."""
        self.claim(0)
        for go_on in (self.begin, self.get_ready, self.finish, self.succeed):
            go_on(0)
        for job_id, job in self.world.in_states(S.SUCCEEDED):
            oracle.check_final(self.world.driver, job_id)
            assert job.last_step == job.total_steps


def run_machine(make: Callable[[], Jobs], *, num_examples: int, num_steps: int) -> None:
    run_state_machine_as_test(
        make,
        settings=settings(
            max_examples=num_examples,
            stateful_step_count=num_steps,
            derandomize=True,
            deadline=None,
            database=None,
            # A shortest example would take longer than a test may.
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_no_order_of_events_breaks_a_promise(tmp_path: Path, sqlite_template: Path):
    numbers = itertools.count(1)

    def make() -> Jobs:
        home = tmp_path / str(next(numbers))
        home.mkdir()
        shutil.copyfile(sqlite_template, home / "lorad.db")
        return Jobs(World(home, f"sqlite:///{home / 'lorad.db'}"), lambda: shutil.rmtree(home))

    run_machine(make, num_examples=50, num_steps=40)


@pytest.mark.services
def test_no_order_of_events_breaks_a_promise_on_postgresql(tmp_path: Path, shelf: Shelf):
    numbers = itertools.count(1)

    def make() -> Jobs:
        home = tmp_path / str(next(numbers))
        home.mkdir()
        return Jobs(World(home, shelf.take()), shelf.put_back)

    run_machine(make, num_examples=12, num_steps=40)
