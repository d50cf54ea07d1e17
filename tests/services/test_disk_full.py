"""A full disk pauses a job, and space lets it go on by itself."""

from shutil import disk_usage

import pytest

from app.db.keys import DEFAULT_PROJECT
from app.domain.jobs import DISK_FULL, Desired, JobState
from app.services import jobs, reconcile, runs
from app.services.resume import ResumeRequest, resume
from tests.services.driver import Driver

ENDLESS = 1 << 60


def out_of_space(driver: Driver, needed_bytes: int | None) -> str:
    job_id, run = driver.in_state(JobState.RUNNING)
    runs.move(driver.db, run, JobState.RUNNING, JobState.STOPPING, message="full", reason=DISK_FULL)
    runs.settle_stopped(driver.db, run, needed_bytes=needed_bytes)
    return job_id


def test_a_job_waits_until_there_is_as_much_space_as_it_needs(driver: Driver):
    job_id = out_of_space(driver, ENDLESS)
    job = driver.job(job_id)
    assert (job.state, job.state_reason) == (JobState.PAUSED, "disk_full")
    assert job.crash_streak == 0

    assert reconcile.resume_with_space(driver.db, driver.settings) == []
    driver.sql(
        "UPDATE jobs SET needed_bytes = :free", free=disk_usage(driver.settings.home).free // 2
    )
    assert reconcile.resume_with_space(driver.db, driver.settings) == [job_id]

    again = driver.started()
    assert again.job_id == job_id
    assert driver.job(job_id).step == 5
    assert driver.sql("SELECT needed_bytes FROM jobs") == [(None,)]


def test_jobs_are_let_go_one_at_a_time(driver: Driver):
    two = {out_of_space(driver, 1), out_of_space(driver, 1)}

    first = reconcile.resume_with_space(driver.db, driver.settings)
    second = reconcile.resume_with_space(driver.db, driver.settings)

    assert len(first) == len(second) == 1
    assert {*first, *second} == two


def test_a_trainer_that_could_not_say_how_much_waits_for_some(driver: Driver):
    out_of_space(driver, None)

    assert driver.sql("SELECT needed_bytes FROM jobs")[0][0] > 1 << 20


@pytest.mark.parametrize(
    ("desired", "end"), [(Desired.PAUSE, JobState.PAUSED), (Desired.CANCEL, JobState.CANCELLED)]
)
def test_what_the_user_asked_for_meanwhile_wins(driver: Driver, desired: Desired, end: JobState):
    job_id, run = driver.in_state(JobState.RUNNING)
    runs.move(driver.db, run, JobState.RUNNING, JobState.STOPPING, message="full", reason=DISK_FULL)
    driver.sql("UPDATE jobs SET desired = :to", to=desired)

    runs.settle_stopped(driver.db, run, needed_bytes=1)

    job = driver.job(job_id)
    assert (job.state, job.state_reason) == (end, desired)
    assert reconcile.resume_with_space(driver.db, driver.settings) == []


def test_a_pause_keeps_a_waiting_job_paused(driver: Driver):
    job_id = out_of_space(driver, 1)

    job = jobs.pause(driver.db, driver.outside, DEFAULT_PROJECT, job_id)

    assert (job.state, job.state_reason) == (JobState.PAUSED, "pause")
    assert reconcile.resume_with_space(driver.db, driver.settings) == []


def test_a_user_may_resume_before_there_is_space(driver: Driver):
    job_id = out_of_space(driver, ENDLESS)

    job = resume(driver.db, driver.outside, DEFAULT_PROJECT, job_id, ResumeRequest())

    assert (job.state, job.step) == (JobState.QUEUED, 5)


def test_a_worker_that_dies_while_it_stops_for_space_leaves_a_paused_job(driver: Driver):
    job_id, run = driver.in_state(JobState.RUNNING)
    runs.move(driver.db, run, JobState.RUNNING, JobState.STOPPING, message="full", reason=DISK_FULL)
    driver.expire(job_id)

    reconcile.settle_expired(driver.db, driver.settings)

    job = driver.job(job_id)
    assert (job.state, job.state_reason) == (JobState.PAUSED, "disk_full")
