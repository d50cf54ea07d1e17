"""Steps done again are compared with what they were, where they have to be equal."""

import struct
from typing import Any

import pytest

from app.db.keys import DEFAULT_PROJECT
from app.domain.jobs import JobState
from app.services import jobs, resume
from app.services.resume import ResumeRequest
from app.services.runs import Claimed
from tests.services.driver import Driver

LOSS = 2.3456789012345
ONE_BIT_OFF = struct.unpack(
    "d", struct.pack("Q", struct.unpack("Q", struct.pack("d", LOSS))[0] + 1)
)


def crashed_at_8(driver: Driver, **measured: Any) -> str:
    """Return a job with a checkpoint at 4 whose trainer died after step 8."""
    job_id = driver.submit()
    run = driver.started()
    driver.steps(run, 1, 4, loss=LOSS)
    driver.checkpoint(run, 4)
    driver.steps(run, 5, 8, **{"loss": LOSS, **measured})
    driver.crash(run)
    return job_id


def replayed(driver: Driver, first: int, last: int, **measured: Any) -> Claimed:
    run = driver.started()
    driver.steps(run, first, last, **{"loss": LOSS, **measured})
    return run


def counts(driver: Driver, job_id: str) -> tuple[int, int]:
    job = driver.job(job_id)
    return job.replayed_steps, job.replay_mismatches


def mismatches(driver: Driver, job_id: str) -> list[Any]:
    found = jobs.events(driver.db, DEFAULT_PROJECT, job_id, after=0, limit=100)
    return [event for event in found if event.type == "replay_mismatch"]


def stop_and_resume(driver: Driver, job_id: str, run: Claimed, **request: Any) -> None:
    jobs.cancel(driver.db, driver.outside, DEFAULT_PROJECT, job_id)
    assert driver.stop(run) is JobState.CANCELLED
    body = ResumeRequest.model_validate(request)
    resume.resume(driver.db, driver.outside, DEFAULT_PROJECT, job_id, body)


def test_equal_steps_are_counted_and_no_mismatch_is(driver: Driver):
    job_id = crashed_at_8(driver)
    assert counts(driver, job_id) == (0, 0)

    replayed(driver, 5, 10)

    assert counts(driver, job_id) == (4, 0)
    assert mismatches(driver, job_id) == []


@pytest.mark.parametrize(
    ("name", "before", "now"),
    [
        ("loss", LOSS, ONE_BIT_OFF[0]),
        ("loss", LOSS, None),
        ("grad_norm", 1.0, 1.0000000000000002),
        ("batch_sha", "0" * 16, "1" * 16),
    ],
)
def test_one_different_bit_is_a_mismatch_that_is_told_with_both_values(
    driver: Driver, name: str, before: Any, now: Any
):
    job_id = crashed_at_8(driver)

    run = replayed(driver, 5, 6)
    driver.steps(run, 7, 7, **{"loss": LOSS, name: now})

    assert counts(driver, job_id) == (3, 1)
    (event,) = mismatches(driver, job_id)
    assert event.data["step"] == 7
    assert event.data[name] == {"before": before, "now": now}
    assert (
        f"step 7 was done again and is not what it was: {name} {before} -> {now}" in event.message
    )


def test_the_first_mismatch_of_an_attempt_is_told_and_the_others_are_counted(driver: Driver):
    job_id = crashed_at_8(driver)

    run = replayed(driver, 5, 6, loss=9.0)
    driver.steps(run, 7, 8, loss=9.0)
    driver.crash(run)
    driver.forget(job_id)
    replayed(driver, 5, 5, loss=8.0)

    assert counts(driver, job_id) == (5, 5)
    assert [(e.attempt, e.data["step"]) for e in mismatches(driver, job_id)] == [(2, 5), (3, 5)]


def test_what_comes_twice_after_a_lost_answer_is_counted_once(driver: Driver):
    job_id = crashed_at_8(driver)
    run = driver.started()
    events = [driver.step(run, step, loss=LOSS) for step in (5, 6, 7)]

    driver.record(run, *events[:2])
    driver.record(run, *events)

    assert counts(driver, job_id) == (3, 0)


@pytest.mark.parametrize(
    "training", [{"learning_rate": 1e-5}, {"max_steps": 30}], ids=["learning rate", "horizon"]
)
def test_steps_by_another_spec_are_not_compared(driver: Driver, training: dict[str, Any]):
    job_id = crashed_at_8(driver)
    stop_and_resume(driver, job_id, driver.started(), checkpoint=4, training=training)

    replayed(driver, 5, 8, loss=9.0)

    assert counts(driver, job_id) == (0, 0)


def test_what_changes_no_number_does_not_keep_steps_from_being_compared(driver: Driver):
    job_id = crashed_at_8(driver)
    changes = {"save_steps": 3, "logging_steps": 2}
    stop_and_resume(driver, job_id, driver.started(), checkpoint=4, training=changes)

    replayed(driver, 6, 6)

    assert counts(driver, job_id) == (1, 0)


def test_an_equal_spec_on_top_of_another_history_is_not_compared(driver: Driver):
    job_id = crashed_at_8(driver)
    lower, again = {"learning_rate": 1e-5}, {"learning_rate": 2e-4}
    stop_and_resume(driver, job_id, driver.started(), checkpoint=4, training=lower)
    other = driver.started()
    driver.steps(other, 5, 6, loss=9.0)
    driver.checkpoint(other, 6)
    stop_and_resume(driver, job_id, other, checkpoint=6, training=again)

    replayed(driver, 7, 8, loss=7.0)

    assert counts(driver, job_id) == (0, 0)


def test_a_pause_on_the_way_leaves_a_history_equal(driver: Driver):
    job_id = crashed_at_8(driver)
    second = replayed(driver, 5, 6)
    driver.checkpoint(second, 6)
    stop_and_resume(driver, job_id, second, checkpoint=6)

    replayed(driver, 7, 8)

    assert counts(driver, job_id) == (4, 0)


def test_a_start_from_scratch_is_a_replay_of_everything(driver: Driver):
    job_id = crashed_at_8(driver)
    stop_and_resume(driver, job_id, driver.started(), from_scratch=True)

    replayed(driver, 1, 8)

    assert counts(driver, job_id) == (8, 0)


def test_a_mismatch_says_that_the_surroundings_are_other_ones(driver: Driver):
    job_id = crashed_at_8(driver)
    run = driver.started()
    notice = driver.notice(run, step=4).model_copy(update={"code": "surroundings_changed"})
    driver.record(run, notice)

    driver.steps(run, 5, 5, loss=9.0)

    (event,) = mismatches(driver, job_id)
    assert "other surroundings" in event.message
