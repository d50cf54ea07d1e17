"""A worker that lost its job writes nothing more, and one that writes twice writes once."""

from collections.abc import Callable

import pytest

from app.domain.errors import Fenced
from app.domain.jobs import Desired, JobError, JobState
from app.services import reconcile, runs
from app.services.runs import Claimed
from tests.services.driver import Driver

TABLES = ("jobs", "attempts", "trainer_events", "checkpoints", "job_events")

Write = Callable[[Driver, Claimed], object]
WRITES: dict[str, Write] = {
    "begin": lambda driver, run: runs.begin(driver.db, driver.settings, run),
    "record": lambda driver, run: driver.steps(run, 9, 9),
    "checkpoint": lambda driver, run: driver.checkpoint(run, 9),
    "renew": lambda driver, run: runs.renew(driver.db, driver.settings, run),
    "move": lambda driver, run: driver.move(run, JobState.RUNNING, JobState.STOPPING),
    "fail": lambda driver, run: driver.fail(run),
    "crash": lambda driver, run: driver.crash(run),
    "settle_stopped": lambda driver, run: runs.settle_stopped(driver.db, run),
}


def everything(driver: Driver) -> list[list[tuple[object, ...]]]:
    """Return the content of every table that a worker writes to."""
    return [
        sorted((tuple(row) for row in driver.sql(f"SELECT * FROM {table}")), key=repr)
        for table in TABLES
    ]


@pytest.mark.parametrize("name", WRITES)
def test_an_attempt_that_another_one_replaced_changes_no_row(driver: Driver, name: str):
    driver.submit()
    stale = driver.started()
    driver.train(stale, 1, 5, save_every=5)
    driver.crash(stale)
    current = driver.started()
    before = everything(driver)

    with pytest.raises(Fenced):
        WRITES[name](driver, stale)

    assert everything(driver) == before
    driver.steps(current, 6, 6)
    assert everything(driver) != before


@pytest.mark.parametrize("name", WRITES)
def test_an_attempt_whose_job_went_back_to_the_queue_changes_no_row(driver: Driver, name: str):
    job_id = driver.submit()
    stale = driver.started()
    driver.crash(stale)
    before = everything(driver)

    with pytest.raises(Fenced):
        WRITES[name](driver, stale)

    assert everything(driver) == before
    assert driver.job(job_id).state is JobState.QUEUED


def test_every_claim_mints_a_higher_fence_and_attempt(driver: Driver):
    driver.submit()
    first = driver.started()
    driver.crash(first)

    second = driver.claimed()

    assert (first.fence, second.fence) == (1, 2)
    assert (first.attempt, second.attempt) == (1, 2)


def test_recording_the_same_events_again_changes_nothing(driver: Driver):
    driver.submit()
    run = driver.started()
    events = driver.steps(run, 1, 3)
    driver.checkpoint(run, 3)
    before = everything(driver)

    driver.record(run, *events[2:])

    assert everything(driver)[2:] == before[2:]


def test_a_batch_of_which_a_part_is_stored_adds_only_the_rest(driver: Driver):
    job_id = driver.submit()
    run = driver.started()
    stored = driver.steps(run, 1, 2)
    new = driver.step(run, 3)

    driver.record(run, *stored, new)

    rows = driver.sql("SELECT step FROM trainer_events WHERE kind = 'step' ORDER BY seq")
    assert [row[0] for row in rows] == [1, 2, 3]
    assert driver.job(job_id).step == 3


def test_a_move_whose_answer_was_lost_can_be_made_again(driver: Driver):
    job_id = driver.submit()
    run = driver.started()
    driver.move(run, JobState.RUNNING, JobState.STOPPING)

    driver.move(run, JobState.RUNNING, JobState.STOPPING)

    assert driver.job(job_id).state is JobState.STOPPING
    moves = driver.sql("SELECT id FROM job_events WHERE to_state = 'stopping'")
    assert len(moves) == 1


def test_renewing_moves_the_lease_and_tells_what_is_asked(driver: Driver):
    job_id = driver.submit()
    run = driver.started()
    driver.expire(job_id)
    driver.sql("UPDATE jobs SET desired = 'pause'")
    (old,) = driver.sql("SELECT lease_expires_at FROM jobs")

    desired = runs.renew(driver.db, driver.settings, run)

    (new,) = driver.sql("SELECT lease_expires_at FROM jobs")
    assert desired is Desired.PAUSE
    assert str(new[0]) > str(old[0])


def test_a_checkpoint_and_the_steps_before_it_are_stored_together_or_not_at_all(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
):
    driver.submit()
    run = driver.started()
    driver.steps(run, 1, 4)
    monkeypatch.setenv("LORAD_FAILPOINTS", "record.commit=raise:EIO")
    step = driver.step(run, 5)

    with pytest.raises(OSError, match=r"record\.commit"):
        driver.record(run, step)
    with pytest.raises(OSError, match=r"record\.commit"):
        driver.checkpoint(run, 5)

    monkeypatch.delenv("LORAD_FAILPOINTS")
    assert driver.sql("SELECT id FROM checkpoints") == []
    assert driver.sql("SELECT max(step) FROM trainer_events")[0][0] == 4


def test_a_failed_job_says_why(driver: Driver):
    job_id = driver.submit()
    run = driver.started()

    driver.fail(run)

    job = driver.job(job_id)
    assert job.state is JobState.FAILED
    assert job.error == JobError(code="nonfinite_step", message="by hand")
    assert job.finished_at is not None


def test_an_attempt_whose_job_was_failed_for_it_has_no_say_in_how_it_ended(driver: Driver):
    job_id = driver.submit()
    run = driver.started()
    driver.sql("UPDATE jobs SET crash_streak = 2")
    driver.expire(job_id)
    reconcile.settle_expired(driver.db, driver.settings)
    before = driver.sql("SELECT outcome, ended_at FROM attempts")

    with pytest.raises(Fenced):
        driver.fail(run)

    assert driver.job(job_id).error is not None
    assert driver.sql("SELECT outcome, ended_at FROM attempts") == before
