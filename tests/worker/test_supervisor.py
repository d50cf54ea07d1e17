"""The supervisor and its lease on a real database, with a launcher that starts nothing."""

import errno
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from app.db.keys import DEFAULT_PROJECT
from app.domain.checkpoints import ADAPTER_FILES
from app.domain.errors import Fenced, Unavailable
from app.domain.events import FinishedEvent
from app.domain.jobs import Desired, JobState
from app.domain.runs import EVENTS_FILE, EXIT_BUSY, EXIT_DISK_FULL, FINAL_FOLDER
from app.services import jobs, reconcile, runs
from app.services.runs import Claimed
from tests.services.driver import DEVICE, Driver, write_folder
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
from worker import runfile
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


def context_of(driver: Driver, launcher: EndedLauncher) -> WorkerContext:
    stream: Any = driver.outside.stream
    return WorkerContext(
        worker_id=driver.worker(),
        db=driver.db,
        settings=driver.settings,
        stream=stream,
        launcher=launcher,  # type: ignore[arg-type]
        devices=(DEVICE,),
    )


def supervised(driver: Driver, run: Claimed, launcher: EndedLauncher) -> None:
    Supervisor(context_of(driver, launcher), run, slot=0).run()


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
    job_id, run = claimed(driver)
    driver.expire(job_id)
    reconcile.settle_expired(driver.db, driver.settings)
    driver.claimed()
    lease = Lease(driver.db, driver.settings, run)

    lease.start()

    with pytest.raises(Fenced):
        wait_for_request(lease)
    lease.stop()


def test_a_trainer_without_room_lets_the_job_wait_for_it(driver: Driver):
    job_id, run = claimed(driver)

    supervised(driver, run, EndedLauncher(EXIT_DISK_FULL))

    job = driver.job(job_id)
    assert (job.state, job.state_reason) == (JobState.PAUSED, "disk_full")
    assert job.crash_streak == 0


def test_a_supervisor_without_room_for_its_own_files_lets_the_job_wait(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(runfile, "write", full)
    job_id, run = claimed(driver)

    supervised(driver, run, EndedLauncher(0))

    assert driver.job(job_id).state_reason == "disk_full"


def test_after_a_long_stop_the_lease_is_renewed_before_anything_is_written(driver: Driver):
    job_id, run = claimed(driver)
    lease = Lease(driver.db, driver.settings, run)
    lease.confirm()
    lease._renewed_at -= driver.settings.lease_seconds + 1
    driver.expire(job_id)

    lease.confirm()

    assert reconcile.settle_expired(driver.db, driver.settings) == []
    driver.expire(job_id)
    assert reconcile.settle_expired(driver.db, driver.settings) == [job_id]
    lease.confirm()  # as far as this process knows, its lease is fresh
    lease._renewed_at -= driver.settings.lease_seconds + 1
    with pytest.raises(Fenced):
        lease.confirm()


def test_a_job_goes_on_without_its_database_for_a_limited_time(driver: Driver):
    _, run = claimed(driver)
    lease = Lease(driver.db, driver.settings, run)
    lease._renewed_at -= driver.settings.database_outage_seconds + 1

    with pytest.raises(Unavailable, match="has been away for"):
        lease.desired()


def test_a_lease_counts_from_before_the_database_was_asked(driver: Driver):
    _, run = claimed(driver)
    asked: list[float] = []

    with driver.interrupted(lambda: asked.append(time.monotonic())) as slow:
        lease = Lease(slow, driver.settings, run)
        lease._renew()

    assert lease._renewed_at <= asked[0]


class FinishedLauncher(EndedLauncher):
    """Hands out a trainer that has done all its steps."""

    def __init__(self, driver: Driver, run: Claimed, *, is_damaged: bool) -> None:
        super().__init__(0)
        self._driver, self._run, self._is_damaged = driver, run, is_damaged

    def launch(self, entry: str, folder: Path, log: Path) -> Launched:
        final = folder / FINAL_FOLDER
        sha256 = write_folder(final, self._run, step=20, kind="final", names=ADAPTER_FILES)
        if self._is_damaged:
            (final / "adapter_model.safetensors").write_bytes(b"?")
        ready = self._driver.ready(self._run, step=0)
        finished = FinishedEvent(
            **self._driver._line(self._run), step=20, manifest_sha256=sha256, num_tokens=1
        )
        lines = "".join(f"{each.model_dump_json()}\n" for each in (ready, finished))
        (folder / EVENTS_FILE).write_text(lines)
        return super().launch(entry, folder, log)


@pytest.mark.parametrize(
    ("is_damaged", "end"), [(False, JobState.SUCCEEDED), (True, JobState.QUEUED)]
)
def test_a_job_succeeds_only_with_a_final_adapter_that_verifies(
    driver: Driver, is_damaged: bool, end: JobState
):
    job_id, run = claimed(driver)

    supervised(driver, run, FinishedLauncher(driver, run, is_damaged=is_damaged))

    assert driver.job(job_id).state is end


def test_an_attempt_takes_in_what_a_lost_one_left(driver: Driver):
    job_id, first = claimed(driver)
    lines = [driver.ready(first, step=0), driver.step(first, 1)]
    folder = driver.attempt(first)
    folder.mkdir(parents=True)
    (folder / EVENTS_FILE).write_text("".join(f"{e.model_dump_json()}\n" for e in lines))
    runs.begin(driver.db, driver.settings, first)
    driver.crash(first, JobState.STARTING)
    driver.sql("UPDATE attempts SET outcome = 'lost'")

    supervised(driver, driver.claimed(), EndedLauncher(-9))

    stored = driver.sql("SELECT fence, kind FROM trainer_events ORDER BY seq")
    assert [tuple(row) for row in stored] == [(1, "ready"), (1, "step")]
    assert job_id == first.job_id


def test_a_batch_is_stored_only_under_a_lease_that_may_not_have_ended(driver: Driver):
    job_id, run = claimed(driver)
    supervisor = Supervisor(context_of(driver, EndedLauncher(0)), run, slot=0)
    supervisor._lease._renewed_at -= driver.settings.lease_seconds + 1
    driver.expire(job_id)
    supervisor._pending.append(driver.ready(run, step=0))

    supervisor._flush(force=True)

    # The batch renewed the lease, so the job is not taken away from whoever just reported.
    assert reconcile.settle_expired(driver.db, driver.settings) == []
