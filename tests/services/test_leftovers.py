"""What a dead attempt reported and nobody stored is stored by whoever comes next, once."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from app.db.keys import DEFAULT_PROJECT
from app.domain.checkpoints import ADAPTER_FILES, STATE_FILES
from app.domain.errors import Fenced
from app.domain.events import CheckpointEvent, TrainerEvent
from app.domain.jobs import Desired, JobState
from app.domain.runs import EVENTS_FILE, AttemptKey, checkpoint_folder_name
from app.services import checkpoints, jobs, leftovers, metrics, reconcile, runs
from app.services.resume import ResumeRequest, resume
from app.services.runs import Claimed
from tests.services.driver import Driver, write_folder


def report(driver: Driver, run: Claimed, events: Sequence[TrainerEvent]) -> Path:
    """Write events to the file of an attempt, as its trainer does, and store none of them."""
    folder = driver.attempt(run)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / EVENTS_FILE
    with path.open("ab") as file:
        for event in events:
            file.write(event.model_dump_json().encode() + b"\n")
    return path


def saved(driver: Driver, run: Claimed, step: int) -> CheckpointEvent:
    """Write a checkpoint that no row knows of, and return the event that tells of it."""
    folder = driver.attempt(run) / checkpoint_folder_name(step)
    names = (*ADAPTER_FILES, *STATE_FILES)
    sha256 = write_folder(folder, run, step=step, kind="checkpoint", names=names)
    return CheckpointEvent(
        **driver._line(run),
        step=step,
        manifest_sha256=sha256,
        bytes=1000,
        loss=1.0,
        save_seconds=0.1,
    )


def died_after_9_with_6_stored(driver: Driver, *, save_at: int = 8) -> tuple[str, Claimed]:
    """Let a worker die when its trainer was at step 9, and steps up to 6 were stored."""
    job_id = driver.submit()
    run = driver.claimed()
    runs.begin(driver.db, driver.settings, run)
    stored = [driver.ready(run, step=0), *(driver.step(run, step) for step in range(1, 7))]
    report(driver, run, stored)
    driver.record(run, *stored)
    driver.move(run, JobState.STARTING, JobState.RUNNING)
    late: list[TrainerEvent] = []
    for step in range(7, 10):
        late.append(driver.step(run, step))
        if step == save_at:
            late.append(saved(driver, run, step))
    report(driver, run, late)
    driver.expire(job_id)
    return job_id, run


def lost_unread(driver: Driver, job_id: str, run: Claimed) -> None:
    """Let the reconciler settle a job while the attempt's file cannot be read."""
    events = driver.attempt(run) / EVENTS_FILE
    kept = events.rename(events.with_name("kept"))
    events.mkdir()  # reading it fails, for root too
    assert reconcile.settle_expired(driver.db, driver.settings) == [job_id]
    assert steps(driver, job_id) == list(range(1, 7))
    events.rmdir()
    kept.rename(events)
    driver.forget(job_id)


def steps(driver: Driver, job_id: str) -> list[int]:
    found = metrics.of_job(
        driver.db, DEFAULT_PROJECT, job_id, after_step=0, limit=100, superseded=False
    )
    return [each.step for each in found]


def test_the_reconciler_stores_the_last_lines_and_the_checkpoint_among_them(driver: Driver):
    job_id, _ = died_after_9_with_6_stored(driver)

    assert reconcile.settle_expired(driver.db, driver.settings) == [job_id]

    assert steps(driver, job_id) == list(range(1, 10))
    [found] = checkpoints.of_job(driver.db, DEFAULT_PROJECT, job_id, superseded=False)
    assert found.step == 8
    checkpoints.require_good(driver.db, driver.settings, found)
    job = driver.job(job_id)
    assert (job.step, job.state) == (9, JobState.QUEUED)
    # The checkpoint is progress, so this crash is the first one after it.
    assert job.crash_streak == 1
    kinds = [
        each.type for each in jobs.events(driver.db, DEFAULT_PROJECT, job_id, after=0, limit=99)
    ]
    assert kinds.count("recovered") == kinds.count("checkpoint") == 1


def test_the_next_attempt_goes_on_from_the_checkpoint_that_was_taken_in(driver: Driver):
    job_id, _ = died_after_9_with_6_stored(driver)
    reconcile.settle_expired(driver.db, driver.settings)
    driver.forget(job_id)

    again = driver.started()

    assert driver.job(job_id).step == 8
    assert steps(driver, job_id) == list(range(1, 9))
    driver.steps(again, 9, 10)
    assert steps(driver, job_id) == list(range(1, 11))


def test_a_crash_with_leftover_progress_is_not_the_last_one(driver: Driver):
    job_id, _ = died_after_9_with_6_stored(driver)
    driver.sql("UPDATE jobs SET crash_streak = 2")

    reconcile.settle_expired(driver.db, driver.settings)

    assert driver.job(job_id).state is JobState.QUEUED


def test_an_attempt_that_could_not_be_read_is_read_by_the_next(driver: Driver):
    job_id, run = died_after_9_with_6_stored(driver)
    lost_unread(driver, job_id, run)

    again = driver.claimed()
    leftovers.take_in_of_job(driver.db, driver.settings, again)
    start = runs.begin(driver.db, driver.settings, again)

    assert start is not None
    assert start.step == 8
    assert steps(driver, job_id) == list(range(1, 9))
    assert driver.sql("SELECT outcome FROM attempts ORDER BY attempt")[0][0] == "recovered"


def test_lines_that_a_later_attempt_has_done_again_are_not_taken_in(driver: Driver):
    job_id, run = died_after_9_with_6_stored(driver)
    events = driver.attempt(run) / EVENTS_FILE
    kept = events.rename(events.with_name("kept"))
    events.mkdir()
    reconcile.settle_expired(driver.db, driver.settings)
    driver.forget(job_id)
    second = driver.claimed()
    leftovers.take_in_of_job(driver.db, driver.settings, second)
    runs.begin(driver.db, driver.settings, second)
    driver.record(second, driver.ready(second, step=0))
    driver.move(second, JobState.STARTING, JobState.RUNNING)
    driver.train(second, 1, 9, save_every=9)
    events.rmdir()
    kept.rename(events)
    driver.crash(second)

    third = driver.claimed()
    leftovers.take_in_of_job(driver.db, driver.settings, third)
    runs.begin(driver.db, driver.settings, third)

    assert steps(driver, job_id) == list(range(1, 10))


def test_a_job_that_starts_again_from_scratch_does_not_meet_what_was_lost(driver: Driver):
    job_id, run = died_after_9_with_6_stored(driver)
    driver.sql("UPDATE jobs SET desired = 'pause'")
    lost_unread(driver, job_id, run)
    from_scratch = ResumeRequest(from_scratch=True)
    resume(driver.db, driver.outside, DEFAULT_PROJECT, job_id, from_scratch)

    again = driver.claimed()
    leftovers.take_in_of_job(driver.db, driver.settings, again)

    assert runs.begin(driver.db, driver.settings, again) is None
    assert steps(driver, job_id) == []


@pytest.mark.parametrize("desired", [Desired.PAUSE, Desired.CANCEL])
def test_a_job_that_ends_with_its_worker_has_its_last_steps_too(driver: Driver, desired: Desired):
    job_id, _ = died_after_9_with_6_stored(driver)
    driver.sql("UPDATE jobs SET desired = :to", to=desired)

    reconcile.settle_expired(driver.db, driver.settings)

    assert driver.job(job_id).step == 9
    resumed = resume(driver.db, driver.outside, DEFAULT_PROJECT, job_id, ResumeRequest())
    assert resumed.step == 8


def test_a_torn_last_line_ends_what_is_taken_in(driver: Driver):
    job_id, run = died_after_9_with_6_stored(driver, save_at=0)
    path = driver.attempt(run) / EVENTS_FILE
    path.write_bytes(path.read_bytes()[:-10])

    reconcile.settle_expired(driver.db, driver.settings)

    assert steps(driver, job_id) == list(range(1, 9))


def test_a_hole_in_the_numbers_ends_what_is_taken_in(driver: Driver):
    job_id, run = died_after_9_with_6_stored(driver, save_at=0)
    path = driver.attempt(run) / EVENTS_FILE
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:7], *lines[8:]]))

    reconcile.settle_expired(driver.db, driver.settings)

    assert steps(driver, job_id) == list(range(1, 7))


def test_what_is_stored_already_is_not_stored_twice(driver: Driver):
    job_id, run = died_after_9_with_6_stored(driver)
    key = AttemptKey(run.job_id, run.attempt, run.fence)
    guards = (reconcile.job_queries.JobRow.fence == run.fence,)

    first = leftovers.take_in(driver.db, driver.settings, key, guards=guards)
    again = leftovers.take_in(driver.db, driver.settings, key, guards=guards)

    assert (first, again) == (4, 0)
    assert steps(driver, job_id) == list(range(1, 10))
    assert driver.sql("SELECT count(*) FROM checkpoints")[0][0] == 1


def test_a_job_that_went_on_is_left_alone(driver: Driver):
    job_id, run = died_after_9_with_6_stored(driver)
    key = AttemptKey(run.job_id, run.attempt, run.fence)
    guards = (reconcile.job_queries.JobRow.fence == run.fence + 1,)

    with pytest.raises(Fenced):
        leftovers.take_in(driver.db, driver.settings, key, guards=guards)

    assert steps(driver, job_id) == list(range(1, 7))


def test_a_worker_that_comes_back_while_its_job_is_settled_keeps_it(driver: Driver):
    job_id, run = died_after_9_with_6_stored(driver)

    def renew() -> None:
        runs.renew(driver.db, driver.settings, run)

    with driver.interrupted(renew) as slow:
        settled = reconcile.settle_expired(slow, driver.settings)

    assert settled == []
    assert driver.job(job_id).state is JobState.RUNNING
