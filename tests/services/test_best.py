"""`best` is the checkpoint of the lowest evaluation loss on the branch, and retention keeps it."""

from typing import Any

import pytest

from app.db.keys import DEFAULT_PROJECT
from app.domain.errors import NotFound, StateConflict
from app.domain.jobs import Job, JobState
from app.services import checkpoints, generation, jobs, resume, runs
from app.services.resume import ResumeRequest
from app.services.runs import Claimed
from tests.services.driver import Driver


def best(driver: Driver, job_id: str) -> int:
    return checkpoints.get(driver.db, DEFAULT_PROJECT, job_id, "best").step


def no_best(driver: Driver, job_id: str) -> str:
    with pytest.raises(NotFound) as caught:
        checkpoints.get(driver.db, DEFAULT_PROJECT, job_id, "best")
    assert caught.value.code == "no_evaluation"
    return caught.value.message


def evaluated(driver: Driver, *losses: float | None, **spec: Any) -> tuple[str, Claimed]:
    """Return a job with an evaluated checkpoint every two steps, with these losses."""
    spec = {"dataset": {"id": driver.dataset(), "val_size": 0.1}, **spec}
    job_id = driver.submit(**spec)
    run = driver.started()
    go_on(driver, run, 0, *losses)
    return job_id, run


def go_on(driver: Driver, run: Claimed, after: int, *losses: float | None) -> None:
    for number, loss in enumerate(losses, start=1):
        step = after + 2 * number
        driver.steps(run, step - 1, step)
        earlier = [each for each in losses[: number - 1] if each is not None]
        is_best = loss is not None and all(loss < each for each in earlier)
        driver.evaluation(run, step, loss, is_best=is_best)


def resumed(driver: Driver, job_id: str, run: Claimed, checkpoint: int | str) -> Job:
    jobs.cancel(driver.db, driver.outside, DEFAULT_PROJECT, job_id)
    assert driver.stop(run) is JobState.CANCELLED
    request = ResumeRequest(checkpoint=checkpoint)
    return resume.resume(driver.db, driver.outside, DEFAULT_PROJECT, job_id, request)


def kept(driver: Driver, job_id: str) -> list[int]:
    found = checkpoints.of_job(driver.db, DEFAULT_PROJECT, job_id, superseded=False)
    return [each.step for each in found]


def test_the_lowest_loss_is_best_and_the_first_of_equal_ones(driver: Driver):
    job_id, _ = evaluated(driver, 3.0, 2.0, 2.0, None, 2.5)

    assert best(driver, job_id) == 4
    job = driver.job(job_id)
    assert (job.eval_loss, job.best_eval_loss, job.best_step) == (2.5, 2.0, 4)


def test_a_corrupt_checkpoint_is_not_best(driver: Driver):
    job_id, run = evaluated(driver, 3.0, 2.0, 2.5)
    (driver.attempt(run) / "checkpoint-4" / "optimizer.safetensors").unlink()
    found = checkpoints.get(driver.db, DEFAULT_PROJECT, job_id, "4")
    with driver.db.write() as session:
        checkpoints.mark_corrupt(session, found, "by hand")

    assert best(driver, job_id) == 6


def test_without_a_best_the_answer_says_what_to_do(driver: Driver):
    unevaluated = driver.submit()
    first = driver.started()
    driver.checkpoint(first, 2)
    driver.fail(first)
    waiting, run = evaluated(driver, None)
    driver.steps(run, 3, 4)

    assert "dataset.val_size or dataset.eval_id" in no_best(driver, unevaluated)
    assert f"GET /jobs/{waiting}/evaluations" in no_best(driver, waiting)
    driver.evaluation(run, 4, 1.0, is_best=True, saves=False)
    assert "step 4) is not committed yet" in no_best(driver, waiting)


def test_best_can_be_downloaded_asked_and_resumed_from(driver: Driver):
    job_id, run = evaluated(driver, 3.0, 2.0, 2.5)
    settings = driver.settings

    folder = checkpoints.adapter_folder(driver.db, settings, DEFAULT_PROJECT, job_id, "best")
    asked = generation.named(driver.db, settings, DEFAULT_PROJECT, job_id, "best")
    job = resumed(driver, job_id, run, "best")

    assert asked.adapter is not None
    assert folder == asked.adapter.folder == driver.attempt(run) / "checkpoint-4"
    assert asked.label == "step 4"
    assert job.step == 4


def test_a_resume_puts_the_evaluations_back_to_those_of_the_branch(driver: Driver):
    job_id, run = evaluated(driver, 3.0, 2.5, 2.0, 2.2)
    assert best(driver, job_id) == 6

    job = resumed(driver, job_id, run, 4)

    assert (job.eval_loss, job.best_eval_loss, job.best_step) == (2.5, 2.5, 4)
    assert best(driver, job_id) == 4
    second = driver.started()
    go_on(driver, second, 4, 2.4)
    assert best(driver, job_id) == 6


def test_a_start_from_scratch_has_no_evaluation_left(driver: Driver):
    job_id, run = evaluated(driver, 3.0)
    driver.crash(run)
    (driver.attempt(run) / "checkpoint-2" / "optimizer.safetensors").unlink()

    driver.started()  # its only checkpoint does not verify

    job = driver.job(job_id)
    assert (job.step, job.eval_loss, job.best_eval_loss, job.best_step) == (0, None, None, None)
    assert "no evaluation" in no_best(driver, job_id)


@pytest.mark.parametrize(
    ("losses", "left"),
    [
        ((1.0, 2.0, 3.0, 4.0), [2, 8]),  # the best counts as one of the limit
        ((4.0, 3.0, 2.0, 1.0), [6, 8]),
        ((4.0, 3.0, 1.0, 2.0), [6, 8]),
        ((None, None, None, None), [6, 8]),
    ],
)
def test_retention_keeps_the_best_and_the_newest(
    driver: Driver, losses: tuple[float | None, ...], left: list[int]
):
    job_id, run = evaluated(driver, *losses, training={"save_total_limit": 2})

    runs.retire(driver.db, driver.settings, run)

    assert kept(driver, job_id) == left
    assert {path.name for path in driver.attempt(run).iterdir()} == {
        f"checkpoint-{step}" for step in left
    }


def test_a_pinned_best_does_not_count(driver: Driver):
    job_id, run = evaluated(driver, 1.0, 2.0, 3.0, 4.0, training={"save_total_limit": 2})
    checkpoints.pin(driver.db, DEFAULT_PROJECT, job_id, "best", pinned=True)

    runs.retire(driver.db, driver.settings, run)

    assert kept(driver, job_id) == [2, 6, 8]


def test_retention_leaves_what_the_job_continues_from(driver: Driver):
    job_id, run = evaluated(driver, 4.0, 3.0, 2.0, 1.0, training={"save_total_limit": 2})
    two = checkpoints.get(driver.db, DEFAULT_PROJECT, job_id, "2")
    driver.sql("UPDATE jobs SET resume_checkpoint_id = :c WHERE id = :j", c=two.id, j=job_id)

    runs.retire(driver.db, driver.settings, run)

    assert kept(driver, job_id) == [2, 6, 8]


def test_a_job_that_stopped_early_says_so_and_wants_more_steps_to_go_on(driver: Driver):
    job_id, run = evaluated(driver, 2.0, 3.0)

    driver.succeed(run, 4)

    job = driver.job(job_id)
    assert (job.state, job.state_reason) == (JobState.SUCCEEDED, "early_stopping")
    assert (job.step, job.total_steps) == (4, 20)
    with pytest.raises(StateConflict, match=r"4 of 20 steps \(it stopped early\)"):
        resume.resume(driver.db, driver.outside, DEFAULT_PROJECT, job_id, ResumeRequest())
    request = ResumeRequest(training={"max_steps": 21})
    resume.resume(driver.db, driver.outside, DEFAULT_PROJECT, job_id, request)
    assert driver.job(job_id).state is JobState.QUEUED


def test_a_job_that_did_all_its_steps_has_no_reason_to_tell(driver: Driver):
    job_id, run = evaluated(driver, 2.0)

    driver.succeed(run)

    assert driver.job(job_id).state_reason is None
