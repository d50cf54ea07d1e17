"""Trainers that hang and disks that fill up: the job goes on, and learns the same."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from tests.e2e.conftest import Outcome, outcome
from tests.e2e.rows import submitted
from tests.fixtures.stack import Stack

pytestmark = pytest.mark.services

MakeStack = Callable[..., Stack]


@pytest.mark.parametrize("kind", ["sleep", "hold"])
def test_a_trainer_that_hangs_is_ended_with_its_stacks_and_the_job_goes_on(
    make_stack: MakeStack, kind: str
):
    # Every attempt does two steps, saves them, and hangs in its third.
    stack = make_stack(LORAD_FAILPOINTS=f"trainer.step={kind}:600@3", LORAD_HANG_SECONDS="3")
    job_id = submitted(stack, max_steps=5, save_steps=1)

    stack.wait_for_state(job_id, "succeeded", seconds=120)

    assert [each["step"] for each in stack.metrics(job_id)] == [1, 2, 3, 4, 5]
    crashes = [each["message"] for each in stack.events(job_id) if "hung" in each["message"]]
    assert len(crashes) == 2
    assert stack.job(job_id)["attempt"] == 3
    log = stack.http.get(f"/jobs/{job_id}/logs", params={"attempt": 1}).text
    assert "Fatal Python error: Aborted" in log
    assert "in take_step" in log


def test_a_full_disk_pauses_the_job_until_there_is_space(make_stack: MakeStack, golden: Outcome):
    # Five files a checkpoint: the eighth write of a trainer is in its second.
    stack = make_stack(LORAD_FAILPOINTS="trainer.step=sleep:0.02;checkpoint.write=raise:ENOSPC@8")
    job_id = submitted(stack)

    waiting = stack.wait_for_state(job_id, "paused")
    assert waiting["state_reason"] == "disk_full"
    assert (waiting["crash_streak"], waiting["error"]) == (0, None)
    assert stack.http.get(f"/jobs/{job_id}/checkpoints/latest").json()["step"] == 5
    assert [each["step"] for each in stack.metrics(job_id)] == list(range(1, 11))
    stack.stop("worker")
    stack.start("worker", LORAD_FAILPOINTS="trainer.step=sleep:0.02")
    there_is_space(stack, job_id)

    assert outcome(stack, job_id) == golden
    assert stack.job(job_id)["attempt"] == 2


def there_is_space(stack: Stack, job_id: str) -> None:
    engine = create_engine(stack.environment["LORAD_DATABASE_URL"])
    with engine.begin() as connection:
        values: dict[str, Any] = {"id": job_id}
        connection.execute(text("UPDATE jobs SET needed_bytes = 1 WHERE id = :id"), values)
    engine.dispose()
