"""Pausing, cancelling, killing and resuming through the API change nothing in what is learned."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.rows import ROWS, SLOW, spec
from tests.fixtures.stack import Stack

pytestmark = pytest.mark.services


def finish(stack: Stack, job_id: str) -> tuple[list[float], bytes]:
    """Wait for a job and return its losses and the bytes of its final adapter."""
    stack.wait_for_state(job_id, "succeeded", seconds=120)
    metrics = stack.metrics(job_id)
    assert [each["step"] for each in metrics] == list(range(1, 21))
    return [each["loss"] for each in metrics], stack.adapter(job_id)


def paused_after_10(stack: Stack, dataset: str) -> str:
    job_id = stack.submit(spec(stack, dataset))
    stack.wait_for_step(job_id, 10)
    assert stack.post(job_id, "pause").status_code == 200
    paused = stack.wait_for_state(job_id, "paused")
    assert 10 <= paused["step"] < 20
    assert stack.post(job_id, "resume").status_code == 200
    return job_id


def cancelled_at_12_resumed_from_5_killed_at_7(stack: Stack, dataset: str) -> str:
    job_id = stack.submit(spec(stack, dataset))
    stack.wait_for_step(job_id, 12)
    assert stack.post(job_id, "cancel").status_code == 200
    stack.wait_for_state(job_id, "cancelled")
    assert stack.post(job_id, "resume", {"checkpoint": 5}).status_code == 200
    assert stack.job(job_id)["step"] == 5
    stack.wait_for_step(job_id, 7)
    (trainer,) = stack.trainers()
    trainer.send_signal(signal.SIGKILL)
    return job_id


def require_equal_runs(stack: Stack) -> None:
    dataset = stack.upload(ROWS)
    losses, adapter = finish(stack, stack.submit(spec(stack, dataset)))

    paused = paused_after_10(stack, dataset)
    assert finish(stack, paused) == (losses, adapter)

    killed = cancelled_at_12_resumed_from_5_killed_at_7(stack, dataset)
    assert finish(stack, killed) == (losses, adapter)
    starts = [each["message"] for each in stack.events(killed) if each["to_state"] == "running"]
    assert starts == [f"training from step {step}" for step in (0, 5, 5)]
    left = stack.http.get(f"/jobs/{killed}/checkpoints?include=superseded").json()["data"]
    assert {each["step"] for each in left if each["superseded"]} >= {10}


def test_interrupted_runs_of_a_tiny_model_equal_the_uninterrupted_one(
    make_stack: Callable[..., Stack],
):
    require_equal_runs(make_stack(**SLOW))


@pytest.mark.model
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_interrupted_runs_of_smollm2_equal_the_uninterrupted_one(
    make_stack: Callable[..., Stack], smollm2: Path
):
    stack = make_stack("valkey", "api", **SLOW)
    (link,) = (stack.home / "models").iterdir()
    link.unlink()
    (stack.home / "models" / smollm2.name).symlink_to(smollm2)
    stack.start("worker")

    require_equal_runs(stack)


def test_a_job_extended_after_it_succeeded_goes_on_from_its_last_checkpoint(stack: Stack):
    dataset = stack.upload(ROWS)
    job_id = stack.submit(spec(stack, dataset, max_steps=6))
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


def test_a_corrupt_newest_checkpoint_is_passed_over_with_an_event(
    make_stack: Callable[..., Stack],
):
    stack = make_stack(**SLOW)
    job_id = stack.submit(spec(stack, stack.upload(ROWS)))
    stack.wait_for_step(job_id, 11)
    stack.post(job_id, "cancel")
    stack.wait_for_state(job_id, "cancelled")
    newest = stack.home / f"jobs/{job_id}/attempts/1/checkpoint-10/optimizer.safetensors"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)

    named = stack.post(job_id, "resume", {"checkpoint": 10})
    latest = stack.post(job_id, "resume")

    assert named.status_code == 409
    assert "optimizer.safetensors" in named.json()["error"]["message"]
    assert latest.status_code == 200
    stack.wait_for_state(job_id, "succeeded")
    assert "checkpoint_corrupt" in {each["type"] for each in stack.events(job_id)}
    starts = [each["message"] for each in stack.events(job_id) if each["to_state"] == "running"]
    assert starts == ["training from step 0", "training from step 5"]


def test_save_total_limit_keeps_the_newest_and_the_pinned(make_stack: Callable[..., Stack]):
    stack = make_stack(**SLOW)
    job_id = stack.submit(spec(stack, stack.upload(ROWS), save_steps=2, save_total_limit=2))
    stack.wait_for_step(job_id, 4)
    pinned = stack.http.post(f"/jobs/{job_id}/checkpoints/2/pin").json()

    stack.wait_for_state(job_id, "succeeded")

    assert pinned["pinned"]
    kept = stack.http.get(f"/jobs/{job_id}/checkpoints").json()["data"]
    assert [each["step"] for each in kept] == [2, 18, 20]
    folders = {path.name for path in stack.home.glob(f"jobs/{job_id}/attempts/1/checkpoint-*")}
    assert folders == {"checkpoint-2", "checkpoint-18", "checkpoint-20"}
