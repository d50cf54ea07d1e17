"""What a request does in each state: the move of the state table, or a 409 that says why."""

import json

import pytest
from fastapi.testclient import TestClient

from app.domain.jobs import Desired, JobState
from tests.api.answers import refusal
from tests.services.driver import Driver

S = JobState
RUN, PAUSE, CANCEL = "run", "pause", "cancel"

# (request, state) -> (state afterwards, what is asked of the job afterwards); the rest is a 409.
MOVES: dict[tuple[str, JobState], tuple[JobState, str]] = {
    ("pause", S.QUEUED): (S.PAUSED, PAUSE),
    ("pause", S.STARTING): (S.STARTING, PAUSE),
    ("pause", S.RUNNING): (S.RUNNING, PAUSE),
    ("cancel", S.QUEUED): (S.CANCELLED, CANCEL),
    ("cancel", S.STARTING): (S.STARTING, CANCEL),
    ("cancel", S.RUNNING): (S.RUNNING, CANCEL),
    ("cancel", S.STOPPING): (S.STOPPING, CANCEL),
    ("cancel", S.FINALIZING): (S.FINALIZING, CANCEL),
    ("cancel", S.PAUSED): (S.CANCELLED, CANCEL),
    ("resume", S.PAUSED): (S.QUEUED, RUN),
    ("resume", S.FAILED): (S.QUEUED, RUN),
    ("resume", S.CANCELLED): (S.QUEUED, RUN),
}
DELETABLE = (S.SUCCEEDED, S.FAILED, S.CANCELLED)
ALLOWED = {
    S.QUEUED: "pause, cancel",
    S.STARTING: "pause, cancel",
    S.RUNNING: "pause, cancel",
    S.STOPPING: "cancel",
    S.FINALIZING: "cancel",
    S.PAUSED: "resume, cancel",
    S.SUCCEEDED: "delete",
    S.FAILED: "resume, delete",
    S.CANCELLED: "resume, delete",
}


@pytest.mark.parametrize("state", S)
@pytest.mark.parametrize("verb", ["pause", "cancel", "resume"])
def test_a_request_moves_a_job_or_says_what_is_allowed(
    client: TestClient, driver: Driver, verb: str, state: JobState
):
    job_id, _ = driver.in_state(state)
    before = driver.job(job_id)

    answer = client.post(f"/jobs/{job_id}/{verb}")

    after = driver.job(job_id)
    if (verb, state) in MOVES:
        assert answer.status_code == 200
        assert (after.state, after.desired) == MOVES[verb, state]
        assert answer.json()["state"] == after.state
    elif verb == "resume" and state is S.SUCCEEDED:
        assert "larger" in refusal(answer, 409)["message"]
        assert after == before
    else:
        error = refusal(answer, 409)
        assert error["code"] == "state_conflict"
        assert f"it is {state}" in error["message"]
        assert ALLOWED[state] in error["message"]
        assert after == before


@pytest.mark.parametrize("state", S)
def test_only_a_job_that_has_ended_is_deleted_and_then_with_all_it_has(
    client: TestClient, driver: Driver, state: JobState
):
    job_id, _ = driver.in_state(state)
    folder = driver.settings.home / "jobs" / job_id

    answer = client.delete(f"/jobs/{job_id}")

    if state in DELETABLE:
        assert answer.json() == {"id": job_id, "object": "job", "deleted": True}
        refusal(client.get(f"/jobs/{job_id}"), 404)
        tables = ("jobs", "attempts", "trainer_events", "checkpoints", "job_events")
        assert [driver.sql(f"SELECT * FROM {table}") for table in tables] == [[]] * 5
        assert not folder.exists()
    else:
        error = refusal(answer, 409)
        assert f"it is {state}" in error["message"]
        assert ALLOWED[state] in error["message"]
        assert driver.job(job_id).state is state
        assert folder.exists()


@pytest.mark.parametrize("verb", ["pause", "cancel"])
def test_asking_twice_asks_once(client: TestClient, driver: Driver, verb: str):
    job_id, _ = driver.in_state(S.RUNNING)

    first = client.post(f"/jobs/{job_id}/{verb}")
    second = client.post(f"/jobs/{job_id}/{verb}")

    assert (first.status_code, second.status_code) == (200, 200)
    events = client.get(f"/jobs/{job_id}/events").json()["data"]
    assert [each["message"] for each in events if each["type"] == "requested"] == [
        f"{verb} requested"
    ]


def test_a_cancel_overrides_a_pause_and_not_the_other_way_round(client: TestClient, driver: Driver):
    job_id, _ = driver.in_state(S.RUNNING)
    client.post(f"/jobs/{job_id}/pause")

    cancelled = client.post(f"/jobs/{job_id}/cancel")
    paused = client.post(f"/jobs/{job_id}/pause")

    assert cancelled.json()["desired"] == "cancel"
    assert "being cancelled" in refusal(paused, 409)["message"]
    assert driver.job(job_id).desired is Desired.CANCEL


def test_a_job_that_succeeded_goes_on_with_more_steps_only(client: TestClient, driver: Driver):
    job_id, _ = driver.in_state(S.SUCCEEDED)

    same = client.post(f"/jobs/{job_id}/resume", json={"training": {"max_steps": 20}})
    more = client.post(f"/jobs/{job_id}/resume", json={"training": {"max_steps": 30}})

    assert "larger" in refusal(same, 409)["message"]
    assert more.status_code == 200
    job = more.json()
    assert (job["state"], job["spec"]["training"]["max_steps"]) == ("queued", 30)
    assert (job["step"], job["finished_at"]) == (5, None)


def test_resuming_changes_only_what_leaves_it_the_same_run(client: TestClient, driver: Driver):
    job_id, _ = driver.in_state(S.CANCELLED)

    def resume(**training: object):
        body = json.dumps({"training": training})
        headers = {"content-type": "application/json"}
        return client.post(f"/jobs/{job_id}/resume", content=body, headers=headers)

    other = refusal(resume(per_device_train_batch_size=8), 409)
    wrong = refusal(resume(learning_rate=-1), 422)
    odd = refusal(resume(**{"\ud83d": 1}), 422)
    taken = resume(learning_rate=1e-5, logging_steps=2)

    assert other["param"] == "training.per_device_train_batch_size"
    assert "learning_rate" in other["message"]
    assert wrong["param"] == "training.learning_rate"
    assert "learning_rate" in wrong["message"]
    assert odd["code"] == "unknown_key"
    assert taken.json()["spec"]["training"]["learning_rate"] == 1e-5


def test_resuming_from_nothing_that_is_there_changes_nothing(client: TestClient, driver: Driver):
    other, _ = driver.in_state(S.CANCELLED)
    theirs = client.get(f"/jobs/{other}/checkpoints").json()["data"][0]["id"]
    job_id, _ = driver.in_state(S.CANCELLED)
    before = driver.job(job_id)

    def resume(**body: object):
        return client.post(f"/jobs/{job_id}/resume", json=body)

    unknown = refusal(resume(checkpoint=7), 404)
    foreign = refusal(resume(checkpoint=theirs), 404)
    both = refusal(resume(checkpoint=5, from_scratch=True), 422)
    typed = refusal(resume(checkpoint=5.5), 422)
    key = refusal(resume(step=5), 422)

    assert "it has: 5" in unknown["message"]
    assert theirs in foreign["message"]
    assert "not both" in both["message"]
    assert typed["param"] == "checkpoint"
    assert key["param"] == "step"
    assert driver.job(job_id) == before


def test_a_corrupt_checkpoint_is_a_409_and_is_known_as_corrupt_from_then_on(
    client: TestClient, driver: Driver
):
    job_id, run = driver.in_state(S.CANCELLED)
    file = driver.attempt(run) / "checkpoint-5" / "adapter_model.safetensors"
    file.write_bytes(bytes(len(file.read_bytes())))

    first = client.post(f"/jobs/{job_id}/resume", json={"checkpoint": 5})
    second = client.post(f"/jobs/{job_id}/resume", json={"checkpoint": 5})
    latest = client.post(f"/jobs/{job_id}/resume")

    for answer in (first, second):
        error = refusal(answer, 409)
        assert (error["param"], error["code"]) == ("checkpoint", "checkpoint_unusable")
        assert "adapter_model.safetensors" in error["message"]
    assert "from_scratch" in refusal(latest, 409)["message"]
    shown = client.get(f"/jobs/{job_id}/checkpoints/5").json()
    assert shown["status"] == "corrupt"
    assert "adapter_model.safetensors" in shown["corrupt_reason"]
    events = client.get(f"/jobs/{job_id}/events").json()["data"]
    assert [each["type"] for each in events].count("checkpoint_corrupt") == 1
    assert driver.job(job_id).state is S.CANCELLED


def test_a_checkpoint_that_is_needed_is_not_deleted(client: TestClient, driver: Driver):
    job_id, run = driver.in_state(S.PAUSED)
    path = f"/jobs/{job_id}/checkpoints/5"
    newest = refusal(client.delete(path), 409)
    client.post(f"/jobs/{job_id}/cancel")
    client.post(f"{path}/pin")
    pinned = refusal(client.delete(path), 409)
    unpinned = client.post(f"{path}/pin?pinned=false")

    deleted = client.delete(path)

    assert "newest" in newest["message"]
    assert "unpin" in pinned["message"]
    assert unpinned.json()["pinned"] is False
    assert deleted.status_code == 200
    assert not (driver.attempt(run) / "checkpoint-5").exists()
    refusal(client.get(path), 404)
    assert client.get(f"/jobs/{job_id}/checkpoints").json()["data"] == []
