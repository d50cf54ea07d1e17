"""What a resume may change, and how it says no."""

import io
import json

import pytest

from app.cli import specs
from app.db import datasets as dataset_queries
from app.db.keys import DEFAULT_PROJECT
from app.domain.errors import (
    CheckpointUnusable,
    Conflict,
    InvalidInput,
    LoradError,
    StateConflict,
)
from app.domain.jobs import Job, JobState
from app.domain.options import TrainingSpec
from app.services import datasets, jobs, resume
from app.services.resume import ResumeRequest
from tests.services.driver import ROW, Driver


def resumed(driver: Driver, job_id: str, **training: object) -> Job:
    request = ResumeRequest(training=training)
    return resume.resume(driver.db, driver.outside, DEFAULT_PROJECT, job_id, request)


def refusal(driver: Driver, job_id: str, **training: object) -> LoradError:
    with pytest.raises(LoradError) as caught:
        resumed(driver, job_id, **training)
    assert driver.job(job_id).state is JobState.CANCELLED
    return caught.value


def own_rows(driver: Driver) -> str:
    """Upload rows that nothing else uses; returns the id of the data set."""
    return datasets.upload(
        driver.db,
        driver.settings,
        DEFAULT_PROJECT,
        io.BytesIO(json.dumps(ROW).encode()),
        name="own",
        filename="own.jsonl",
    ).id


@pytest.mark.parametrize("key", ["id", "eval_id"])
@pytest.mark.parametrize("from_scratch", [False, True])
def test_a_job_whose_rows_are_gone_is_not_resumed(driver: Driver, key: str, from_scratch: bool):
    gone_id = own_rows(driver)
    job_id = driver.submit(dataset={"id": driver.dataset(), key: gone_id})
    run = driver.started()
    driver.train(run, 1, 6, save_every=5)
    driver.fail(run)
    # Neither is to be looked at: a broken checkpoint would be marked corrupt on the way.
    (driver.attempt(run) / "checkpoint-5" / "optimizer.safetensors").unlink()
    before = driver.job(job_id)
    checkpoints_before = driver.sql("SELECT id, status, superseded FROM checkpoints")
    with driver.db.write() as session:
        dataset_queries.withdraw(session, gone_id)

    request = ResumeRequest(from_scratch=from_scratch)
    with pytest.raises(StateConflict) as refused:
        resume.resume(driver.db, driver.outside, DEFAULT_PROJECT, job_id, request)

    assert (refused.value.param, refused.value.code) == (f"dataset.{key}", "file_deleted")
    assert job_id in refused.value.message
    assert gone_id in refused.value.message
    assert driver.job(job_id) == before
    assert driver.sql("SELECT id, status, superseded FROM checkpoints") == checkpoints_before


def test_rows_that_go_while_a_job_is_being_resumed_are_noticed(driver: Driver):
    job_id, _ = driver.in_state(JobState.CANCELLED)

    def withdraw() -> None:
        with driver.db.write() as session:
            dataset_queries.withdraw(session, driver.dataset())

    with driver.interrupted(withdraw) as slow, pytest.raises(resume.DataGone):
        resume.resume(slow, driver.outside, DEFAULT_PROJECT, job_id, ResumeRequest())

    assert driver.job(job_id).state is JobState.CANCELLED


def test_epochs_that_max_steps_would_overrule_are_refused(driver: Driver):
    job_id, _ = driver.in_state(JobState.CANCELLED)

    refused = refusal(driver, job_id, num_train_epochs=9.0)
    aliased = refusal(driver, job_id, epochs=9.0)

    for error in (refused, aliased):
        assert isinstance(error, Conflict)
        assert error.param == "training.max_steps"
        assert "max_steps is 20" in error.message


def test_epochs_count_once_max_steps_is_null(driver: Driver):
    job_id, _ = driver.in_state(JobState.CANCELLED)

    job = resumed(driver, job_id, num_train_epochs=9.0, max_steps=None)

    assert (job.spec.training.num_train_epochs, job.spec.training.max_steps) == (9.0, None)


def test_other_names_are_understood_as_in_a_spec(driver: Driver):
    job_id, _ = driver.in_state(JobState.CANCELLED)

    job = resumed(driver, job_id, lr=1e-5, save_every=3)

    assert (job.spec.training.learning_rate, job.spec.training.save_steps) == (1e-5, 3)


def test_steps_to_do_are_known_where_max_steps_says_so(driver: Driver):
    job_id, _ = driver.in_state(JobState.CANCELLED)

    assert resumed(driver, job_id, max_steps=30).total_steps == 30


def test_steps_to_do_are_unknown_until_the_trainer_counts_them(driver: Driver):
    job_id, _ = driver.in_state(JobState.CANCELLED)

    assert resumed(driver, job_id, num_train_epochs=2.0, max_steps=None).total_steps is None


def test_a_job_that_is_being_cancelled_is_told_to_wait_for(driver: Driver):
    job_id, _ = driver.in_state(JobState.RUNNING)
    jobs.cancel(driver.db, driver.outside, DEFAULT_PROJECT, job_id)

    with pytest.raises(StateConflict) as caught:
        resumed(driver, job_id)

    assert caught.value.message.endswith("wait until it is cancelled, then resume")


@pytest.mark.parametrize("value", [{"max_steps": 0}, {"max_steps": "x"}, {"eval_steps": 5}])
def test_a_resume_says_of_a_mistake_what_a_job_file_is_told(
    driver: Driver, value: dict[str, object]
):
    job_id, _ = driver.in_state(JobState.CANCELLED)
    spec = {"base_model": "tiny", "dataset": {"id": "ds-" + "0" * 24}, "training": value}

    with pytest.raises(InvalidInput) as of_file:
        specs.validate(spec)
    of_resume = refusal(driver, job_id, **value)

    assert (of_resume.message, of_resume.param) == (of_file.value.message, of_file.value.param)


def test_an_unknown_key_is_answered_with_the_nearest_one(driver: Driver):
    job_id, _ = driver.in_state(JobState.CANCELLED)

    error = refusal(driver, job_id, learning_rat=1e-5)

    assert isinstance(error, InvalidInput)
    assert (error.code, error.param) == ("unknown_key", "training.learning_rat")
    assert "did you mean learning_rate?" in error.message


def test_two_names_of_one_key_must_agree(driver: Driver):
    job_id, _ = driver.in_state(JobState.CANCELLED)

    error = refusal(driver, job_id, lr=1e-5, learning_rate=1e-4)

    assert isinstance(error, InvalidInput)
    assert error.code == "alias_conflict"


def test_what_would_make_it_another_run_is_refused_under_its_own_name(driver: Driver):
    job_id, _ = driver.in_state(JobState.CANCELLED)

    error = refusal(driver, job_id, batch_size=8)

    assert isinstance(error, Conflict)
    assert (error.code, error.param) == ("not_changeable", "training.per_device_train_batch_size")
    assert set(resume.CHANGEABLE) < set(TrainingSpec.model_fields)


def test_evaluations_need_rows_to_evaluate_on(driver: Driver):
    job_id, _ = driver.in_state(JobState.CANCELLED)

    error = refusal(driver, job_id, eval_steps=5)

    assert isinstance(error, InvalidInput)
    assert error.param == "training.eval_steps"
    assert "dataset.val_size or dataset.eval_id" in error.message


def test_a_job_without_a_good_checkpoint_never_starts_again_by_itself(driver: Driver):
    job_id, run = driver.in_state(JobState.PAUSED)
    (driver.attempt(run) / "checkpoint-5" / "optimizer.safetensors").unlink()

    for _ in range(2):  # the first request finds it corrupt, the second one knows
        with pytest.raises(CheckpointUnusable, match="from_scratch"):
            resumed(driver, job_id)

    assert driver.job(job_id).state is JobState.PAUSED
