"""What a request does in each state: the move of the state table, or a 409 that says why."""

import json

import httpx2
import pytest
from fastapi.testclient import TestClient

from app.db.keys import DEFAULT_PROJECT
from app.domain.jobs import DISK_FULL, OWNED_STATES, Desired, JobState
from app.services import jobs, runs
from tests.api.answers import refusal
from tests.services.driver import Driver

S, D = JobState, Desired
Pair = tuple[JobState, Desired]
VERBS = ("pause", "cancel", "resume", "delete")
GONE = None

# What is refused says what is allowed, in these words.
FREE = "allowed now: pause, cancel"
BOUND = "allowed now: cancel"
PAUSED = "allowed now: resume, cancel"
ENDED = "allowed now: resume, delete"
DOOMED = "being cancelled; wait until it is cancelled"
NEVER = "cannot resume"
LONGER = "larger training.max_steps"

# (state, what is asked of the job) -> what pause, cancel, resume and delete make of it: another
# such pair, GONE, or a 409 with these words. A pair that is not here cannot exist.
OUTCOMES: dict[Pair, tuple[Pair | str | None, ...]] = {
    (S.QUEUED, D.RUN): ((S.PAUSED, D.PAUSE), (S.CANCELLED, D.CANCEL), FREE, FREE),
    (S.STARTING, D.RUN): ((S.STARTING, D.PAUSE), (S.STARTING, D.CANCEL), FREE, FREE),
    (S.STARTING, D.PAUSE): ((S.STARTING, D.PAUSE), (S.STARTING, D.CANCEL), FREE, FREE),
    (S.STARTING, D.CANCEL): (DOOMED, (S.STARTING, D.CANCEL), NEVER, DOOMED),
    (S.RUNNING, D.RUN): ((S.RUNNING, D.PAUSE), (S.RUNNING, D.CANCEL), FREE, FREE),
    (S.RUNNING, D.PAUSE): ((S.RUNNING, D.PAUSE), (S.RUNNING, D.CANCEL), FREE, FREE),
    (S.RUNNING, D.CANCEL): (DOOMED, (S.RUNNING, D.CANCEL), NEVER, DOOMED),
    (S.STOPPING, D.RUN): (BOUND, (S.STOPPING, D.CANCEL), BOUND, BOUND),
    (S.STOPPING, D.PAUSE): ((S.STOPPING, D.PAUSE), (S.STOPPING, D.CANCEL), BOUND, BOUND),
    (S.STOPPING, D.CANCEL): (DOOMED, (S.STOPPING, D.CANCEL), NEVER, DOOMED),
    (S.FINALIZING, D.RUN): (BOUND, (S.FINALIZING, D.CANCEL), BOUND, BOUND),
    (S.FINALIZING, D.PAUSE): ((S.FINALIZING, D.PAUSE), (S.FINALIZING, D.CANCEL), BOUND, BOUND),
    (S.FINALIZING, D.CANCEL): (DOOMED, (S.FINALIZING, D.CANCEL), NEVER, DOOMED),
    # By a full disk: it would go on by itself, and after a pause it does not.
    (S.PAUSED, D.RUN): ((S.PAUSED, D.RUN), (S.CANCELLED, D.CANCEL), (S.QUEUED, D.RUN), PAUSED),
    (S.PAUSED, D.PAUSE): (PAUSED, (S.CANCELLED, D.CANCEL), (S.QUEUED, D.RUN), PAUSED),
    (S.SUCCEEDED, D.RUN): ("allowed now: delete", "allowed now: delete", LONGER, GONE),
    (S.FAILED, D.RUN): (ENDED, ENDED, (S.QUEUED, D.RUN), GONE),
    (S.CANCELLED, D.CANCEL): (ENDED, ENDED, (S.QUEUED, D.RUN), GONE),
}


def made(driver: Driver, state: JobState, desired: Desired) -> str:
    """Make a job by the moves that lead there; it has a checkpoint at step 5."""
    if (state, desired) == (S.PAUSED, D.RUN):
        job_id, run = driver.in_state(S.RUNNING)
        runs.move(driver.db, run, S.RUNNING, S.STOPPING, message="no room", reason=DISK_FULL)
        assert runs.settle_stopped(driver.db, run, needed_bytes=1 << 60) is S.PAUSED
        return job_id
    job_id, run = driver.in_state(S.RUNNING if state in OWNED_STATES else state)
    if state is S.STARTING:
        driver.crash(run)
        driver.claimed()
    request = {D.PAUSE: jobs.pause, D.CANCEL: jobs.cancel}.get(desired)
    if state in OWNED_STATES and request is not None:
        request(driver.db, driver.outside, DEFAULT_PROJECT, job_id)
    if state in (S.STOPPING, S.FINALIZING):
        driver.move(run, S.RUNNING, state)
    return job_id


def asked(client: TestClient, verb: str, job_id: str) -> httpx2.Response:
    if verb == "delete":
        return client.delete(f"/jobs/{job_id}")
    return client.post(f"/jobs/{job_id}/{verb}")


@pytest.mark.parametrize("pair", OUTCOMES, ids="-".join)
def test_a_request_moves_a_job_or_says_what_is_allowed(
    client: TestClient, driver: Driver, pair: Pair
):
    for verb, outcome in zip(VERBS, OUTCOMES[pair], strict=True):
        job_id = made(driver, *pair)
        before = driver.job(job_id)
        assert (before.state, before.desired) == pair

        answer = asked(client, verb, job_id)

        if outcome is GONE:
            assert answer.json() == {"id": job_id, "object": "job", "deleted": True}
            require_gone(client, driver, job_id)
            continue
        after = driver.job(job_id)
        if isinstance(outcome, str):
            error = refusal(answer, 409)
            assert error["code"] == "state_conflict"
            assert outcome in error["message"], verb
            assert outcome == LONGER or f" {pair[0]}" in error["message"]
            assert after == before
        else:
            assert answer.status_code == 200, (verb, answer.text)
            assert (after.state, after.desired) == outcome
            assert (answer.json()["state"], answer.json()["desired"]) == outcome
        driver.sql("DELETE FROM jobs")  # the next one needs its place in the queue and its slot


def require_gone(client: TestClient, driver: Driver, job_id: str) -> None:
    """Assert that nothing of a job is left: no row of any table, no file."""
    refusal(client.get(f"/jobs/{job_id}"), 404)
    for table in ("attempts", "trainer_events", "checkpoints", "job_events"):
        assert driver.sql(f"SELECT * FROM {table} WHERE job_id = :id", id=job_id) == []
    assert not (driver.settings.home / "jobs" / job_id).exists()


def test_the_table_names_every_pair_and_allows_what_it_says_is_allowed():
    for state in S:
        assert any(pair[0] is state for pair in OUTCOMES)
    for pair, outcomes in OUTCOMES.items():
        refusals = {each for each in outcomes if isinstance(each, str) and "allowed now" in each}
        for said in refusals:
            for verb in said.removeprefix("allowed now: ").split(", "):
                assert not isinstance(outcomes[VERBS.index(verb)], str), (pair, said)


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
