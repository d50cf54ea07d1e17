"""Lists come page by page without a gap or a repetition; a key makes a request count once."""

import itertools
import json
import threading
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient

from app.domain.jobs import JobState
from tests.api.answers import refusal
from tests.services.driver import Driver

GOOD = b'{"prompt": "a", "completion": "b"}\n'


def walk(client: TestClient, path: str, cursor: str, field: str, **params: Any) -> list[list[Any]]:
    """Return the cursor fields of every page."""
    pages: list[list[Any]] = []
    while True:
        answer = client.get(path, params=params)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        assert page["object"] == "list"
        pages.append([item[field] for item in page["data"]])
        if not page["has_more"]:
            return pages
        params[cursor] = pages[-1][-1]


def test_jobs_come_newest_first_in_pages(client: TestClient, driver: Driver):
    made = [driver.submit() for _ in range(5)]

    pages = walk(client, "/jobs", "after", "id", limit=2)

    assert [len(page) for page in pages] == [2, 2, 1]
    assert list(itertools.chain(*pages)) == sorted(made, reverse=True)


def test_a_page_that_ends_with_the_list_says_so(client: TestClient, driver: Driver):
    for _ in range(4):
        driver.submit()

    assert [len(page) for page in walk(client, "/jobs", "after", "id", limit=2)] == [2, 2]
    assert walk(client, "/datasets", "after", "id", limit=1) == [[driver.dataset()]]


def test_jobs_of_one_state_come_in_pages(client: TestClient, driver: Driver):
    made = [driver.submit() for _ in range(6)]
    for job_id in made[::2]:
        client.post(f"/jobs/{job_id}/cancel")

    cancelled = walk(client, "/jobs", "after", "id", limit=2, state="cancelled")
    queued = walk(client, "/jobs", "after", "id", limit=1, state="queued")

    assert list(itertools.chain(*cancelled)) == sorted(made[::2], reverse=True)
    assert list(itertools.chain(*queued)) == sorted(made[1::2], reverse=True)
    assert [len(page) for page in queued] == [1, 1, 1]


def test_data_sets_come_in_pages(client: TestClient):
    made = [
        client.post("/datasets", files={"file": ("a", GOOD * number)}).json()["id"]
        for number in range(1, 6)
    ]

    pages = walk(client, "/datasets", "after", "id", limit=2)

    assert [len(page) for page in pages] == [2, 2, 1]
    assert list(itertools.chain(*pages)) == sorted(made, reverse=True)


def test_metrics_and_events_come_in_pages(client: TestClient, driver: Driver):
    job_id, run = driver.in_state(JobState.RUNNING)
    driver.train(run, 6, 9, save_every=2)

    steps = walk(client, f"/jobs/{job_id}/metrics", "after_step", "step", limit=4)
    events = walk(client, f"/jobs/{job_id}/events", "after", "id", limit=2)

    assert steps == [[1, 2, 3, 4], [5, 6, 7, 8], [9]]
    numbers = list(itertools.chain(*events))
    assert numbers == sorted(set(numbers))
    assert len(numbers) == len(driver.sql("SELECT id FROM job_events"))


def test_superseded_metrics_come_in_pages_without_a_gap(client: TestClient, driver: Driver):
    job_id, run = driver.in_state(JobState.RUNNING)
    driver.steps(run, 6, 8)
    driver.crash(run)
    driver.steps(driver.started(), 6, 8)

    pages = walk(
        client, f"/jobs/{job_id}/metrics", "after_step", "step", limit=1, include="superseded"
    )

    assert list(itertools.chain(*pages)) == [1, 2, 3, 4, 5, 6, 6, 7, 7, 8, 8]


def post(client: TestClient, kind: str, key: str, change: int = 0) -> httpx2.Response:
    headers = {"idempotency-key": key}
    if kind == "datasets":
        content = GOOD * (change + 1)
        return client.post("/datasets", files={"file": ("a", content)}, headers=headers)
    dataset = client.get("/datasets").json()["data"][-1]["id"]
    spec = {"base_model": "tiny", "dataset": {"id": dataset}, "seed": change}
    return client.post("/jobs", content=json.dumps(spec), headers={**headers, **JSON})


JSON = {"content-type": "application/json"}


@pytest.mark.parametrize("kind", ["jobs", "datasets"])
def test_the_same_key_and_body_give_the_same_thing(client: TestClient, driver: Driver, kind: str):
    driver.dataset()
    first, second = post(client, kind, "a"), post(client, kind, "a")

    other_key = post(client, kind, "b")
    other_body = post(client, kind, "a", change=1)

    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json()["id"] == second.json()["id"] != other_key.json()["id"]
    error = refusal(other_body, 409)
    assert error["code"] == "idempotency_conflict"
    assert "use a new key" in error["message"]
    stored = {item["id"] for item in client.get(f"/{kind}").json()["data"]} - {driver.dataset()}
    assert stored == {first.json()["id"], other_key.json()["id"]}
    folders = {path.name for path in (driver.settings.home / "datasets").iterdir()}
    assert folders == {item["id"] for item in client.get("/datasets").json()["data"]}


@pytest.mark.parametrize("kind", ["jobs", "datasets"])
def test_requests_with_one_key_at_the_same_time_make_one_thing(
    client: TestClient, driver: Driver, kind: str
):
    driver.dataset()
    gate = threading.Barrier(4)
    answers: list[httpx2.Response] = []

    def one() -> None:
        gate.wait()
        answers.append(post(client, kind, "a"))

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [answer.status_code for answer in answers] == [201] * 4
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(client.get(f"/{kind}").json()["data"]) == (1 if kind == "jobs" else 2)


def test_a_key_of_a_deleted_job_is_free_again(client: TestClient, driver: Driver):
    driver.dataset()
    first = post(client, "jobs", "a").json()["id"]
    client.post(f"/jobs/{first}/cancel")
    client.delete(f"/jobs/{first}")

    second = post(client, "jobs", "a", change=1)

    assert second.status_code == 201


@pytest.mark.parametrize("key", ["", "x" * 256])
def test_a_key_of_no_or_too_many_characters_is_refused(
    client: TestClient, driver: Driver, key: str
):
    driver.dataset()

    error = refusal(post(client, "jobs", key), 422)

    assert error["param"].lower() == "idempotency-key"
    assert client.get("/jobs").json()["data"] == []


def test_every_answer_has_an_id_of_its_own(client: TestClient):
    answers = [client.get(path) for path in ("/jobs", "/jobs", "/nowhere", "/healthz")]

    assert len({answer.headers["x-request-id"] for answer in answers}) == 4
    assert {answer.headers["cache-control"] for answer in answers} == {"no-store"}
