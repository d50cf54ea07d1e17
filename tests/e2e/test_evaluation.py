"""Evaluation, early stopping, `best` and steps done again, through the API of a running service."""

import signal
import sqlite3
from contextlib import closing
from typing import Any

import pytest

from tests.e2e.rows import ROWS, spec
from tests.fixtures.stack import Stack

pytestmark = [
    pytest.mark.services,
    pytest.mark.parametrize("shared_stack", ["sqlite"], indirect=True),
]


def submitted(stack: Stack, **training: Any) -> str:
    job = spec(stack, stack.upload(ROWS), **training)
    job["dataset"]["val_size"] = 4
    return stack.submit(job)


def killed_at_8(stack: Stack) -> str:
    """Return a job whose trainer was killed past its checkpoints of steps 5 and 6."""
    job_id = submitted(stack, max_steps=12, eval_steps=6)
    stack.wait_for_step(job_id, 8)
    (trainer,) = stack.trainers()
    trainer.send_signal(signal.SIGKILL)
    return job_id


def test_a_killed_trainer_does_the_same_steps_again_and_says_so(stack: Stack):
    job_id = killed_at_8(stack)

    job = stack.wait_for_state(job_id, "succeeded")

    assert job["attempt"] == 2
    assert job["replayed_steps"] >= 2
    assert job["replay_mismatches"] == 0, stack.story(job_id)
    answer = stack.post(job_id, "verify-resume", {"checkpoint": 5, "steps": 5})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert [each["step"] for each in found["steps"]] == [6, 7, 8, 9, 10]
    assert found["next_checkpoint"]["step"] == 10
    assert found["identical"], found
    assert found["largest_absolute_difference"] == 0
    assert stack.job(job_id)["step"] == 12
    assert not list((stack.home / "tools").iterdir())


def test_a_step_that_comes_out_differently_is_counted_and_told(stack: Stack):
    job_id = submitted(stack, max_steps=8, save_steps=4)
    stack.wait_for_step(job_id, 7)
    stack.post(job_id, "cancel")
    stack.wait_for_state(job_id, "cancelled")
    with closing(sqlite3.connect(stack.home / "lorad.db")) as database, database:
        database.execute("DROP TRIGGER trainer_events_never_change")
        database.execute(
            "UPDATE trainer_events SET body = json_set(body, '$.metrics.loss', 1.5)"
            " WHERE job_id = ? AND kind = 'step' AND step = 6",
            [job_id],
        )
    stack.post(job_id, "resume", {"checkpoint": 4})

    job = stack.wait_for_state(job_id, "succeeded")

    assert job["replayed_steps"] >= 3
    assert job["replay_mismatches"] == 1
    (told,) = [each for each in stack.events(job_id) if each["type"] == "replay_mismatch"]
    assert (told["data"]["step"], told["data"]["loss"]["before"]) == (6, 1.5)


def test_a_run_that_gets_worse_stops_early_and_its_best_is_kept(stack: Stack):
    job_id = submitted(
        stack,
        max_steps=20,
        save_steps=1,
        save_total_limit=2,
        eval_steps=1,
        early_stopping_patience=3,
        learning_rate=2.0,
        lr_scheduler_type="constant",
    )

    job = stack.wait_for_state(job_id, "succeeded")

    assert job["state_reason"] == "early_stopping"
    assert job["step"] == job["best_step"] + 3 < job["total_steps"] == 20
    listed = stack.http.get(f"/jobs/{job_id}/evaluations").json()["data"]
    assert [each["step"] for each in listed] == list(range(1, job["step"] + 1))
    assert min(each["eval_loss"] for each in listed) == job["best_eval_loss"]
    best = stack.http.get(f"/jobs/{job_id}/checkpoints/best").json()
    assert (best["step"], best["eval_loss"]) == (job["best_step"], job["best_eval_loss"])
    kept = stack.http.get(f"/jobs/{job_id}/checkpoints").json()["data"]
    assert [each["step"] for each in kept] == [job["best_step"], job["step"]]
    assert stack.http.get(f"/jobs/{job_id}/checkpoints/best/download").status_code == 200
    assert "early_stopping" in {each["type"] for each in stack.events(job_id)}
