"""How an attempt ends: the crash budget, the wishes of the user, retention."""

from dataclasses import replace

import pytest

from app.db.keys import DEFAULT_PROJECT
from app.domain.jobs import Desired, JobState
from app.services import checkpoints, jobs, runs
from tests.services.driver import Driver

S = JobState


def test_three_crashes_without_a_new_checkpoint_fail_the_job(driver: Driver):
    job_id = driver.submit()
    states: list[JobState] = []
    for _ in range(3):
        driver.forget(job_id)
        driver.crash(driver.started())
        states.append(driver.job(job_id).state)

    assert states == [S.QUEUED, S.QUEUED, S.FAILED]
    error = driver.job(job_id).error
    assert error is not None
    assert error.code == "crash_loop"
    assert "/logs" in error.message


def test_a_new_checkpoint_gives_the_budget_back_and_a_mere_start_does_not(driver: Driver):
    job_id = driver.submit()
    for _ in range(2):
        driver.forget(job_id)
        driver.crash(driver.started())
    before = driver.job(job_id).crash_streak

    driver.forget(job_id)
    run = driver.started()
    driver.steps(run, 1, 3)
    at_start = driver.job(job_id).crash_streak
    driver.checkpoint(run, 3)
    after = driver.job(job_id).crash_streak
    driver.crash(run)

    assert (before, at_start, after) == (2, 2, 0)
    assert driver.job(job_id).state is S.QUEUED
    assert driver.job(job_id).crash_streak == 1


def test_the_wait_between_crashes_grows_and_is_bounded():
    waits = [runs.backoff_seconds(streak) for streak in range(1, 9)]

    assert waits[:4] == [0, 5, 10, 20]
    assert max(waits) == 60


@pytest.mark.parametrize(
    ("desired", "end"),
    [(Desired.RUN, S.QUEUED), (Desired.PAUSE, S.PAUSED), (Desired.CANCEL, S.CANCELLED)],
)
@pytest.mark.parametrize("state", [S.STARTING, S.RUNNING, S.FINALIZING])
def test_a_crash_ends_a_job_as_its_user_wished(
    driver: Driver, state: JobState, desired: Desired, end: JobState
):
    job_id, run = driver.in_state(state, desired=desired)
    if state is S.STARTING:
        run = replace(run, attempt=2, fence=2)  # in_state hands out the attempt before

    driver.crash(run, state)

    assert driver.job(job_id).state is end


@pytest.mark.parametrize(
    ("desired", "end"),
    [(Desired.RUN, S.QUEUED), (Desired.PAUSE, S.PAUSED), (Desired.CANCEL, S.CANCELLED)],
)
def test_a_stopped_job_ends_by_what_is_asked_at_the_last_moment(
    driver: Driver, desired: Desired, end: JobState
):
    job_id, run = driver.in_state(S.STOPPING, desired=desired)

    settled = runs.settle_stopped(driver.db, run)

    assert settled is end
    assert driver.job(job_id).state is end
    assert driver.job(job_id).crash_streak == 0


def test_a_job_succeeds_with_its_last_step_and_its_final_adapter(driver: Driver):
    job_id = driver.submit()
    run = driver.started()
    driver.train(run, 1, 20, save_every=20)

    driver.succeed(run)

    job = driver.job(job_id)
    assert (job.state, job.step, job.total_steps) == (S.SUCCEEDED, 20, 20)
    folder = checkpoints.adapter_folder(
        driver.db, driver.settings, DEFAULT_PROJECT, job_id, "final"
    )
    assert folder == driver.attempt(run) / "final"


def steps(driver: Driver, job_id: str) -> list[int]:
    found = checkpoints.of_job(driver.db, DEFAULT_PROJECT, job_id, superseded=False)
    return [each.step for each in found]


def test_retention_keeps_the_newest_and_the_pinned_and_removes_files_with_rows(driver: Driver):
    job_id = driver.submit(training={"save_total_limit": 2})
    run = driver.started()
    driver.train(run, 1, 8, save_every=2)
    checkpoints.pin(driver.db, DEFAULT_PROJECT, job_id, "2", pinned=True)

    runs.retire(driver.db, driver.settings, run)

    assert steps(driver, job_id) == [2, 6, 8]
    folders = {path.name for path in driver.attempt(run).glob("*checkpoint*")}
    assert folders == {"checkpoint-2", "checkpoint-6", "checkpoint-8"}


def test_retention_counts_only_checkpoints_that_can_be_resumed(driver: Driver):
    job_id = driver.submit(training={"save_total_limit": 2})
    run = driver.started()
    driver.train(run, 1, 8, save_every=2)
    (driver.attempt(run) / "checkpoint-8" / "optimizer.safetensors").unlink()
    newest = checkpoints.get(driver.db, DEFAULT_PROJECT, job_id, "8")
    with driver.db.write() as session:
        checkpoints.mark_corrupt(session, newest, "by hand")

    runs.retire(driver.db, driver.settings, run)

    assert steps(driver, job_id) == [4, 6, 8]


def test_without_a_limit_nothing_is_removed(driver: Driver):
    job_id = driver.submit(training={"save_total_limit": None})
    run = driver.started()
    driver.train(run, 1, 10, save_every=1)

    runs.retire(driver.db, driver.settings, run)

    assert steps(driver, job_id) == list(range(1, 11))


def test_a_pause_that_came_after_the_last_step_is_ignored(driver: Driver):
    job_id = driver.submit()
    run = driver.started()
    jobs.pause(driver.db, driver.outside, DEFAULT_PROJECT, job_id)

    driver.succeed(run)

    assert driver.job(job_id).state is S.SUCCEEDED


def test_the_worker_is_told_of_a_request_after_it_is_stored(driver: Driver):
    job_id = driver.submit()
    driver.started()

    jobs.pause(driver.db, driver.outside, DEFAULT_PROJECT, job_id)

    assert driver.outside.stream.hints == [job_id]
    assert driver.job(job_id).desired is Desired.PAUSE
    assert driver.outside.doorbell.rings == 1


def states_of(driver: Driver) -> list[str]:
    rows = driver.sql("SELECT to_state FROM job_events WHERE type = 'state' ORDER BY id")
    return [row[0] for row in rows]


def test_a_cancel_accepted_before_the_end_cancels_a_job_whose_training_is_done(driver: Driver):
    job_id = driver.submit()
    run = driver.started()
    finished = driver.finish(run)
    jobs.cancel(driver.db, driver.outside, DEFAULT_PROJECT, job_id)

    runs.succeed(driver.db, run, finished)

    assert driver.job(job_id).state is S.CANCELLED
    assert states_of(driver)[-3:] == ["finalizing", "stopping", "cancelled"]
    ended = driver.sql("SELECT outcome FROM attempts WHERE ended_at IS NOT NULL")
    assert [row[0] for row in ended] == ["cancelled"]


@pytest.mark.parametrize("desired", [Desired.PAUSE, Desired.CANCEL])
def test_a_failure_wins_over_a_request_and_nothing_is_asked_any_more(
    driver: Driver, desired: Desired
):
    job_id, run = driver.in_state(S.RUNNING, desired=desired)

    driver.fail(run)

    job = driver.job(job_id)
    assert (job.state, job.desired) == (S.FAILED, Desired.RUN)


def test_a_job_that_succeeded_despite_a_pause_is_not_asked_to_pause(driver: Driver):
    job_id = driver.submit()
    run = driver.started()
    finished = driver.finish(run)
    driver.sql("UPDATE jobs SET desired = 'pause'")

    runs.succeed(driver.db, run, finished)

    assert (driver.job(job_id).state, driver.job(job_id).desired) == (S.SUCCEEDED, Desired.RUN)


def test_settling_a_success_again_after_a_lost_answer_changes_nothing(driver: Driver):
    job_id = driver.submit()
    run = driver.started()
    finished = driver.finish(run)
    runs.succeed(driver.db, run, finished)
    before = states_of(driver)

    runs.succeed(driver.db, run, finished)

    assert driver.job(job_id).state is S.SUCCEEDED
    assert states_of(driver) == before


def test_only_work_that_was_done_moves_the_step(driver: Driver):
    job_id = driver.submit()
    run = driver.started()
    driver.train(run, 1, 4, save_every=4)
    seen: list[int] = []

    for event in (
        driver.notice(run, step=0),
        driver.stopped(run, step=9),
        driver.failed(run, step=0),
    ):
        driver.record(run, event)
        seen.append(driver.job(job_id).step)
    driver.steps(run, 5, 5)

    assert seen == [4, 4, 4]
    assert driver.job(job_id).step == 5


def test_a_disk_that_keeps_a_checkpoint_stops_neither_retention_nor_a_request(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
):
    job_id = driver.submit(training={"save_total_limit": 2})
    run = driver.started()
    driver.train(run, 1, 8, save_every=2)
    monkeypatch.setenv("LORAD_FAILPOINTS", "checkpoint.delete=raise:EACCES")

    runs.retire(driver.db, driver.settings, run)
    checkpoints.delete(driver.db, driver.settings, DEFAULT_PROJECT, job_id, "6")

    marked = driver.sql("SELECT step FROM checkpoints WHERE status = 'deleting' ORDER BY step")
    assert [row[0] for row in marked] == [2, 4, 6]
    assert steps(driver, job_id) == [8]
    assert (driver.attempt(run) / "checkpoint-6").is_dir()
