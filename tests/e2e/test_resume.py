"""Pausing, cancelling, killing and resuming through the API change nothing in what is learned."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Outcome, outcome
from tests.e2e.rows import submitted
from tests.fixtures.stack import SLOW_STEPS, Stack

pytestmark = pytest.mark.services
on_sqlite = pytest.mark.parametrize("shared_stack", ["sqlite"], indirect=True)


def paused_after_10(stack: Stack) -> str:
    job_id = submitted(stack)
    stack.wait_for_step(job_id, 10)
    assert stack.post(job_id, "pause").status_code == 200
    paused = stack.wait_for_state(job_id, "paused")
    assert 10 <= paused["step"] < 20
    assert stack.post(job_id, "resume").status_code == 200
    return job_id


def cancelled_at_12_resumed_from_5_killed_at_7(stack: Stack, **training: Any) -> str:
    job_id = submitted(stack, **training)
    stack.wait_for_step(job_id, 12)
    assert stack.post(job_id, "cancel").status_code == 200
    stack.wait_for_state(job_id, "cancelled")
    assert stack.post(job_id, "resume", {"checkpoint": 5}).status_code == 200
    assert stack.job(job_id)["step"] == 5
    stack.wait_for_step(job_id, 7)
    (trainer,) = stack.trainers()
    trainer.send_signal(signal.SIGKILL)
    return job_id


def require_that_a_killed_run_equals(stack: Stack, golden: Outcome, **training: Any) -> None:
    killed = cancelled_at_12_resumed_from_5_killed_at_7(stack, **training)
    assert outcome(stack, killed) == golden
    starts = [each["message"] for each in stack.events(killed) if each["to_state"] == "running"]
    assert starts == [f"training from step {step}" for step in (0, 5, 5)]
    left = stack.http.get(f"/jobs/{killed}/checkpoints?include=superseded").json()["data"]
    assert {each["step"] for each in left if each["superseded"]} >= {10}


def test_interrupted_runs_equal_the_uninterrupted_one(stack: Stack, golden: Outcome):
    assert outcome(stack, paused_after_10(stack)) == golden

    require_that_a_killed_run_equals(stack, golden)


@pytest.mark.model
def test_interrupted_runs_of_smollm2_equal_the_uninterrupted_one(
    make_stack: Callable[..., Stack], smollm2: Path
):
    stack = make_stack(**SLOW_STEPS)
    (link,) = (stack.home / "models").iterdir()
    link.unlink()
    (stack.home / "models" / smollm2.name).symlink_to(smollm2)

    single = {"per_device_train_batch_size": 1}  # a real model is slow enough by itself
    golden = outcome(stack, submitted(stack, **single))

    require_that_a_killed_run_equals(stack, golden, **single)


@on_sqlite
def test_a_job_extended_after_it_succeeded_goes_on_from_its_last_checkpoint(stack: Stack):
    job_id = submitted(stack, max_steps=6)
    stack.wait_for_state(job_id, "succeeded")

    refused = stack.post(job_id, "resume")
    accepted = stack.post(job_id, "resume", {"training": {"max_steps": 9}})

    assert refused.status_code == 409
    assert "larger" in refused.json()["error"]["message"]
    assert accepted.status_code == 200
    done = stack.wait_for_state(job_id, "succeeded")
    assert (done["step"], done["total_steps"], done["attempt"]) == (9, 9, 2)
    assert [each["step"] for each in stack.metrics(job_id)] == list(range(1, 10))
    assert "schedule_changed" in {each["type"] for each in stack.events(job_id)}


@on_sqlite
def test_a_corrupt_newest_checkpoint_is_passed_over_with_an_event(stack: Stack, golden: Outcome):
    job_id = submitted(stack)
    stack.wait_for_step(job_id, 11)
    stack.post(job_id, "cancel")
    stack.wait_for_state(job_id, "cancelled")
    newest = stack.http.get(f"/jobs/{job_id}/checkpoints/latest").json()["step"]
    folder = stack.home / f"jobs/{job_id}/attempts/1/checkpoint-{newest}"
    content = bytearray((folder / "optimizer.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "optimizer.safetensors").write_bytes(content)

    named = stack.post(job_id, "resume", {"checkpoint": newest})
    latest = stack.post(job_id, "resume")

    assert named.status_code == 409
    assert "optimizer.safetensors" in named.json()["error"]["message"]
    assert latest.status_code == 200
    assert outcome(stack, job_id) == golden
    assert "checkpoint_corrupt" in {each["type"] for each in stack.events(job_id)}
    starts = [each["message"] for each in stack.events(job_id) if each["to_state"] == "running"]
    assert starts == ["training from step 0", f"training from step {newest - 5}"]


@on_sqlite
def test_save_total_limit_keeps_the_newest_and_the_pinned(stack: Stack):
    job_id = submitted(stack, max_steps=12, save_steps=2, save_total_limit=2)
    stack.wait_for_step(job_id, 3)
    stack.wait_until(
        lambda: stack.http.get(f"/jobs/{job_id}/checkpoints/2").status_code == 200,
        what="the first checkpoint",
    )
    pinned = stack.http.post(f"/jobs/{job_id}/checkpoints/2/pin").json()

    stack.wait_for_state(job_id, "succeeded")

    assert pinned["pinned"]
    kept = stack.http.get(f"/jobs/{job_id}/checkpoints").json()["data"]
    assert [each["step"] for each in kept] == [2, 10, 12]
    folders = {path.name for path in stack.home.glob(f"jobs/{job_id}/attempts/1/checkpoint-*")}
    assert folders == {"checkpoint-2", "checkpoint-10", "checkpoint-12"}
