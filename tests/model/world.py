"""The product and the model of it, side by side, and what changes both of them at once."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.db.engine import Database
from app.db.keys import DEFAULT_PROJECT
from app.domain.errors import Fenced, LoradError, StateConflict
from app.domain.jobs import JobState
from app.domain.runs import checkpoint_folder_name
from app.services import leftovers, reconcile, resume, runs
from app.services.jobs import Outside
from app.services.resume import ResumeRequest
from app.settings import Settings
from tests.model.lifecycle import Attempt, Expected, FilingDriver
from tests.services.driver import FakeDoorbell, FakeStream
from tests.services.place import write_model
from tests.services.test_fence import everything

S = JobState
Verb = Callable[[Database, Outside, str, str], object]


class World:
    """A home with a database, two workers of other machines, and what is expected of the jobs."""

    def __init__(self, home: Path, url: str) -> None:
        write_model(home)
        values = {"home": home, "database_url": url, "redis_url": f"unix://{home}/no.sock"}
        facts = Settings.model_validate({**values, "reconcile_seconds": 3600, "slots": 2})
        self.db = Database(url)
        self.outside = Outside(settings=facts, doorbell=FakeDoorbell(), stream=FakeStream())
        self.driver = FilingDriver(self.db, self.outside)
        self.expected: dict[str, Expected] = {}
        self.zombies: list[Attempt] = []
        self.worker_ids = [self.driver.other_worker(slots=2) for _ in range(2)]

    def job(self, number: int) -> tuple[str, Expected]:
        return list(self.expected.items())[number % len(self.expected)]

    def in_states(self, *states: JobState) -> list[tuple[str, Expected]]:
        return [(job_id, job) for job_id, job in self.expected.items() if job.state in states]

    def live(self, *states: JobState, begun: bool | None = None) -> list[tuple[Expected, Attempt]]:
        """Return the jobs in one of the states, or in any, whose worker lives."""
        return [
            (job, job.attempt)
            for job in self.expected.values()
            if job.attempt is not None
            and not job.attempt.is_dead
            and (not states or job.state in states)
            and (begun is None or job.attempt.has_begun is begun)
        ]

    def attempt_of(
        self, number: int, *states: JobState, begun: bool | None = None
    ) -> tuple[Expected, Attempt]:
        found = self.live(*states, begun=begun)
        return found[number % len(found)]

    def has_checkpoints(self) -> bool:
        return any(job.saved or job.known_bad for job in self.expected.values())

    def ask(self, verb: Verb, job_id: str) -> None:
        verb(self.db, self.outside, DEFAULT_PROJECT, job_id)

    def refused(self, verb: Verb, job_id: str) -> None:
        with pytest.raises(StateConflict, match=r"allowed|cancelled"):
            self.ask(verb, job_id)

    def resume(
        self, job_id: str, step: int | None, error: type[LoradError] | None, **request: Any
    ) -> None:
        body = ResumeRequest.model_validate(request)
        asked = (self.db, self.outside, DEFAULT_PROJECT, job_id, body)
        if error is not None:
            with pytest.raises(error):
                resume.resume(*asked)
            return
        resume.resume(*asked)
        job = self.expected[job_id]
        job.total_steps = body.training.get("max_steps", job.total_steps)
        job.requeue(step)

    def reap(self, job_id: str, job: Expected) -> None:
        attempt = job.attempt
        assert attempt is not None
        self.driver.expire(job_id)
        assert reconcile.settle_expired(self.db, self.driver.settings) == [job_id]
        job.store(attempt, self.folder(attempt, attempt.unstored_save))
        job.reap()
        self.zombies.append(attempt)

    def wake(self, stale: Attempt) -> None:
        """Let an attempt that lost its job try every write: each is refused and changes nothing."""
        job = self.expected.get(stale.run.job_id)
        before = everything(self.driver)
        for name, write in STALE_WRITES.items():
            if name == "begin" and job is not None and job.broken:
                continue  # whoever verifies a checkpoint may say that it is broken
            with pytest.raises(Fenced):
                write(self.driver, stale)
            assert everything(self.driver) == before, name
        folder = self.driver.attempt(stale.run) / checkpoint_folder_name(FAR)
        shutil.rmtree(folder, ignore_errors=True)

    def leave_lines(self, job: Expected, attempt: Attempt, num_steps: int, saves: bool) -> None:
        """Let a trainer have written lines, and maybe a checkpoint, that nobody stored."""
        last = min(attempt.step + num_steps, job.total_steps)
        attempt.unstored = list(range(attempt.step + 1, last + 1))
        for step in attempt.unstored:
            self.driver.file(attempt.run, self.driver.step(attempt.run, step))
        if saves and attempt.unstored:
            self.driver.file_checkpoint(attempt.run, last)
            attempt.unstored_save = last

    def folder(self, attempt: Attempt, step: int | None) -> Path:
        return self.driver.attempt(attempt.run) / checkpoint_folder_name(step or 0)


FAR = 500
STALE_WRITES: dict[str, Callable[[FilingDriver, Attempt], object]] = {
    "begin": lambda driver, stale: runs.begin(driver.db, driver.settings, stale.run),
    "adopt": lambda driver, stale: (
        leftovers.take_in_of_job(driver.db, driver.settings, stale.run)
        or driver.steps(stale.run, FAR, FAR)
    ),
    "record": lambda driver, stale: driver.steps(stale.run, FAR, FAR),
    "checkpoint": lambda driver, stale: driver.checkpoint(stale.run, FAR),
    "renew": lambda driver, stale: runs.renew(driver.db, driver.settings, stale.run),
    "stop": lambda driver, stale: driver.move(stale.run, S.RUNNING, S.STOPPING),
    "run": lambda driver, stale: driver.move(stale.run, S.STARTING, S.RUNNING),
    "end": lambda driver, stale: driver.move(stale.run, S.RUNNING, S.FINALIZING),
    "give back": lambda driver, stale: runs.give_back(
        driver.db, driver.settings, stale.run, S.STARTING, "busy"
    ),
    "evaluate": lambda driver, stale: driver.evaluation(
        stale.run, FAR, 0.1, is_best=True, saves=False
    ),
    "fail": lambda driver, stale: driver.fail(stale.run),
    "crash": lambda driver, stale: driver.crash(stale.run),
    "settle": lambda driver, stale: runs.settle_stopped(driver.db, stale.run),
}
