"""The supervisor and its lease on a real database, with a launcher that starts nothing."""

import threading
from pathlib import Path
from typing import Any

import pytest

from app.db.keys import DEFAULT_PROJECT
from app.domain.errors import Fenced
from app.domain.jobs import Desired, JobState
from app.domain.runs import EXIT_BUSY
from app.services import jobs, runs
from app.services.runs import Claimed
from tests.services.driver import DEVICE, Driver
from tests.services.place import (
    database,
    driver,
    home,
    outside,
    postgres_url,
    settings,
    shelf,
    tmp_path,
)
from worker.context import WorkerContext
from worker.launcher import Launched
from worker.lease import Lease
from worker.supervisor import Supervisor

__all__ = ["database", "driver", "home", "outside", "postgres_url", "settings", "shelf", "tmp_path"]


class EndedLauncher:
    """Hands out trainers that have ended already, or is never ready."""

    def __init__(self, status: int | None) -> None:
        self._status = status
        self.num_launched = 0

    def is_ready(self, *, within_seconds: float) -> bool:
        threading.Event().wait(within_seconds)
        return self._status is not None

    def launch(self, entry: str, folder: Path, log: Path) -> Launched:
        self.num_launched += 1
        launched = Launched(pid=2**30, control_fd=-1)
        launched.finish(self._status or 0)
        return launched


def supervised(driver: Driver, run: Claimed, launcher: EndedLauncher) -> None:
    stream: Any = driver.outside.stream
    context: Any = WorkerContext(
        worker_id=driver.worker(),
        db=driver.db,
        settings=driver.settings,
        stream=stream,
        launcher=launcher,  # type: ignore[arg-type]
        devices=(DEVICE,),
    )
    Supervisor(context, run, slot=0).run()


def claimed(driver: Driver) -> tuple[str, Claimed]:
    job_id = driver.submit()
    return job_id, driver.claimed()


def wait_for_request(lease: Lease) -> Desired:
    """Return what is asked of the job as soon as it is anything but to run."""
    waited = threading.Event()
    while (desired := lease.desired()) is Desired.RUN:
        waited.wait(0.02)
    return desired


def test_a_trainer_that_found_its_device_held_costs_no_crash_budget(driver: Driver):
    job_id, run = claimed(driver)

    supervised(driver, run, EndedLauncher(EXIT_BUSY))

    job = driver.job(job_id)
    assert (job.state, job.state_reason, job.crash_streak) == (JobState.QUEUED, "device_busy", 0)


def test_a_trainer_that_died_without_a_word_costs_one(driver: Driver):
    job_id, run = claimed(driver)

    supervised(driver, run, EndedLauncher(-9))

    job = driver.job(job_id)
    assert (job.state, job.state_reason, job.crash_streak) == (JobState.QUEUED, "crash", 1)


@pytest.mark.parametrize(
    ("ask", "end"), [(jobs.cancel, JobState.CANCELLED), (jobs.pause, JobState.PAUSED)]
)
def test_a_job_is_stopped_before_the_launcher_is_ready(driver: Driver, ask: Any, end: JobState):
    job_id, run = claimed(driver)
    ask(driver.db, driver.outside, DEFAULT_PROJECT, job_id)
    launcher = EndedLauncher(None)

    supervised(driver, run, launcher)

    assert driver.job(job_id).state is end
    assert launcher.num_launched == 0


def test_a_job_given_back_while_a_cancel_was_asked_is_cancelled(driver: Driver):
    job_id, run = claimed(driver)
    jobs.cancel(driver.db, driver.outside, DEFAULT_PROJECT, job_id)

    runs.give_back(driver.db, driver.settings, run, JobState.STARTING, "busy")

    assert driver.job(job_id).state is JobState.CANCELLED


def test_a_lease_is_renewed_and_brings_what_is_asked(driver: Driver):
    job_id, run = claimed(driver)
    before = driver.sql("SELECT lease_expires_at FROM jobs")
    lease = Lease(driver.db, driver.settings, run)
    lease.start()
    jobs.cancel(driver.db, driver.outside, DEFAULT_PROJECT, job_id)

    lease.renew_now()
    asked = wait_for_request(lease)
    lease.stop()

    assert asked is Desired.CANCEL
    assert driver.sql("SELECT lease_expires_at FROM jobs") != before


def test_a_lease_that_was_taken_over_says_so(driver: Driver):
    _, run = claimed(driver)
    driver.sql("UPDATE jobs SET fence = fence + 1")
    lease = Lease(driver.db, driver.settings, run)

    lease.start()

    with pytest.raises(Fenced):
        wait_for_request(lease)
    lease.stop()
