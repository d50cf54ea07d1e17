"""A verification compares a replay with the steps that continued that very checkpoint."""

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from app.db.keys import DEFAULT_PROJECT
from app.domain.errors import CheckpointUnusable, Conflict, NoWorker, Unavailable
from app.domain.jobs import JobState
from app.domain.replays import Verification
from app.domain.runs import RUN_FILE, RunFile
from app.domain.tools import REQUEST_FILE, RESULT_FILE, ReplayRequest, ReplayResult, ToolFailure
from app.services import jobs, resume, verifying
from app.services.resume import ResumeRequest
from app.services.runs import Claimed
from app.services.verifying import VerifyRequest
from tests.services.driver import Driver, FakeDoorbell, FakeStream

LOSS = 2.5
ONE_BIT_MORE = struct.unpack(
    "d", struct.pack("Q", struct.unpack("Q", struct.pack("d", LOSS))[0] + 1)
)[0]
# Its queries are those of a replay, which run on both databases in test_replay.
pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

STATE = "a" * 64
NOBODY: Any = SimpleNamespace(job_id="job", fence=0)


class Worker(FakeDoorbell):
    """Answers every call at once, with steps of a given loss."""

    def __init__(self, driver: Driver) -> None:
        super().__init__()
        self.driver = driver
        self.loss: Callable[[int], float] = lambda _: LOSS
        self.failure: ToolFailure | None = None
        self.asked: list[ReplayRequest] = []

    def call_tool(self, task_id: str) -> bool:
        folder = self.driver.settings.home / "tools" / task_id
        request = ReplayRequest.model_validate_json((folder / REQUEST_FILE).read_bytes())
        self.asked.append(request)
        result = self.failure or self._replay(request)
        (folder / RESULT_FILE).write_text(result.model_dump_json())
        return True

    def _replay(self, request: ReplayRequest) -> ReplayResult:
        assert request.run.resume is not None
        first = request.run.resume.step + 1
        steps = tuple(
            self.driver.step(NOBODY, step, loss=self.loss(step)).metrics
            for step in range(first, first + request.num_steps)
        )
        return ReplayResult(steps=steps, tensors_sha256=STATE, notices=("as before",), seconds=1.5)


class Answered(FakeStream):
    def wait_for_tool(self, task_id: str, *, seconds: float) -> bool:
        return True


@pytest.fixture
def worker(driver: Driver) -> Worker:
    driver.worker()
    return Worker(driver)


def write_run_file(driver: Driver, run: Claimed, *, num_threads: int = 3) -> None:
    folder = driver.attempt(run)
    folder.mkdir(parents=True, exist_ok=True)
    run_file = RunFile.model_validate(
        {
            "job_id": run.job_id,
            "attempt": run.attempt,
            "fence": run.fence,
            "spec": run.spec,
            "model_folder": driver.settings.models_folder / "tiny",
            "dataset": {"path": folder / "rows.jsonl", "sha256": "0" * 64, "format": "text"},
            "attempt_folder": folder,
            "cache_folder": driver.settings.cache_folder,
            "device": "cpu",
            "device_index": 0,
            "lock_file": folder / "lock",
            "num_threads": num_threads,
        }
    )
    (folder / RUN_FILE).write_text(run_file.model_dump_json())


def trained_to_8(driver: Driver) -> tuple[str, Claimed]:
    """Return a running job with steps 1 to 8 and checkpoints at 4 and 8."""
    job_id = driver.submit()
    run = driver.started()
    write_run_file(driver, run)
    for first in (1, 5):
        driver.steps(run, first, first + 3, loss=LOSS)
        driver.checkpoint(run, first + 3)
    return job_id, run


def continued(
    driver: Driver, job_id: str, run: Claimed, checkpoint: int, **training: Any
) -> Claimed:
    jobs.cancel(driver.db, driver.outside, DEFAULT_PROJECT, job_id)
    assert driver.stop(run) is JobState.CANCELLED
    request = ResumeRequest(checkpoint=checkpoint, training=training)
    resume.resume(driver.db, driver.outside, DEFAULT_PROJECT, job_id, request)
    again = driver.started()
    write_run_file(driver, again)
    return again


def verify(driver: Driver, worker: Worker, job_id: str, **request: Any) -> Verification:
    outside = replace(driver.outside, doorbell=worker, stream=Answered())
    return verifying.verify(driver.db, outside, DEFAULT_PROJECT, job_id, VerifyRequest(**request))


def test_equal_steps_are_identical(driver: Driver, worker: Worker):
    job_id, run = trained_to_8(driver)

    found = verify(driver, worker, job_id, checkpoint=4, steps=3)

    (asked,) = worker.asked
    assert asked.run.resume is not None
    assert asked.run.resume.folder == driver.attempt(run) / "checkpoint-4"
    assert (asked.num_steps, asked.run.num_threads) == (3, 3)
    assert asked.deadline_seconds == driver.settings.verify_seconds == 600
    assert [(s.step, s.recorded_loss, s.replayed_loss) for s in found.steps] == [
        (step, LOSS, LOSS) for step in (5, 6, 7)
    ]
    assert found.identical
    assert (found.largest_absolute_difference, found.largest_relative_difference) == (0, 0)
    assert (found.checkpoint_step, found.attempt, found.next_checkpoint) == (4, 1, None)
    assert (found.notices, found.seconds) == (["as before"], 1.5)


def test_one_bit_is_a_difference(driver: Driver, worker: Worker):
    job_id, _ = trained_to_8(driver)
    worker.loss = lambda step: ONE_BIT_MORE if step == 6 else LOSS

    found = verify(driver, worker, job_id, checkpoint=4)

    assert not found.identical
    assert [each.identical for each in found.steps] == [True, False, True]
    assert found.largest_absolute_difference == ONE_BIT_MORE - LOSS > 0
    assert found.largest_relative_difference == (ONE_BIT_MORE - LOSS) / LOSS


@pytest.mark.parametrize("saved", [STATE, "b" * 64])
def test_the_whole_state_is_compared_where_the_last_step_was_saved(
    driver: Driver, worker: Worker, saved: str
):
    job_id, run = trained_to_8(driver)
    state_file = driver.attempt(run) / "checkpoint-8" / "training_state.json"
    state_file.write_text(json.dumps({"tensors_sha256": saved}))

    found = verify(driver, worker, job_id, checkpoint=4, steps=50)

    assert worker.asked[0].num_steps == 4  # no more are recorded
    assert found.next_checkpoint is not None
    assert found.next_checkpoint.step == 8
    assert found.next_checkpoint.identical is found.identical is (saved == STATE)


def test_the_settings_are_those_of_the_attempt_that_went_on(driver: Driver, worker: Worker):
    job_id, run = trained_to_8(driver)
    again = continued(driver, job_id, run, 4, learning_rate=1e-5)
    driver.steps(again, 5, 6, loss=LOSS)

    found = verify(driver, worker, job_id, checkpoint=4)

    assert (found.attempt, [each.step for each in found.steps]) == (2, [5, 6])
    assert worker.asked[0].run.spec.training.learning_rate == 1e-5


def test_steps_left_behind_serve_until_there_are_new_ones(driver: Driver, worker: Worker):
    job_id, run = trained_to_8(driver)
    continued(driver, job_id, run, 4, learning_rate=1e-5)

    found = verify(driver, worker, job_id, checkpoint=4)

    assert found.attempt == 1
    assert worker.asked[0].run.spec.training.learning_rate == 2e-4


def test_steps_go_on_across_a_pause_but_not_across_a_change(driver: Driver, worker: Worker):
    job_id, run = trained_to_8(driver)
    second = continued(driver, job_id, run, 8)
    driver.steps(second, 9, 10, loss=LOSS)
    driver.checkpoint(second, 10)
    third = continued(driver, job_id, second, 10, learning_rate=1e-5)
    driver.steps(third, 11, 12, loss=LOSS)

    found = verify(driver, worker, job_id, checkpoint=4, steps=50)

    assert [each.step for each in found.steps] == list(range(5, 11))


def test_nothing_to_compare_with_is_a_conflict_that_says_what_to_do(driver: Driver, worker: Worker):
    job_id, run = trained_to_8(driver)

    with pytest.raises(Conflict, match="choose an earlier checkpoint: 4") as caught:
        verify(driver, worker, job_id)
    driver.steps(run, 12, 12)
    with pytest.raises(Conflict, match="the next logged step is 12; ask for steps: 4"):
        verify(driver, worker, job_id)

    assert caught.value.code == "nothing_recorded"
    assert worker.asked == []


def test_what_cannot_be_replayed_is_told(driver: Driver, worker: Worker):
    job_id, run = trained_to_8(driver)

    worker.failure = ToolFailure(code="resume_mismatch", message="no", is_input_at_fault=True)
    with pytest.raises(Conflict, match="cannot be replayed: no"):
        verify(driver, worker, job_id, checkpoint=4)
    worker.failure = ToolFailure(code="device_busy", message="GPU 0 is busy")
    with pytest.raises(Unavailable, match="GPU 0 is busy"):
        verify(driver, worker, job_id, checkpoint=4)
    (driver.attempt(run) / RUN_FILE).unlink()
    with pytest.raises(Conflict, match=r"run\.json is gone"):
        verify(driver, worker, job_id, checkpoint=4)
    (driver.attempt(run) / "checkpoint-4" / "optimizer.safetensors").unlink()
    with pytest.raises(CheckpointUnusable, match=r"optimizer\.safetensors"):
        verify(driver, worker, job_id, checkpoint=4)


def test_without_a_worker_it_says_what_to_start(driver: Driver, worker: Worker):
    job_id, _ = trained_to_8(driver)
    driver.sql("UPDATE workers SET ended_at = '2020-01-01 00:00:00'")

    with pytest.raises(NoWorker, match="lorad worker"):
        verify(driver, worker, job_id, checkpoint=4)
