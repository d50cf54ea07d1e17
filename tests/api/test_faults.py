"""A mistake of ours is an answer like any other, and its log entry can be found."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace

import httpx2
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text
from sqlalchemy.orm import Session

from app.db.engine import Database
from app.domain import failpoints
from app.domain.jobs import JobState
from tests.services.driver import ROW, Driver

FENCE_RULE = "jobs_fence_is_raised_by_a_claim_only"


class BrokenDoorbell:
    """A seam with a mistake in it."""

    def ring(self) -> bool:
        raise ZeroDivisionError("a mistake")


def test_a_mistake_of_ours_is_a_500_that_names_its_log_entry(
    client: TestClient, spec: dict[str, object], caplog: pytest.LogCaptureFixture
):
    parts = client.app.state.parts
    client.app.state.parts = replace(
        parts, outside=replace(parts.outside, doorbell=BrokenDoorbell())
    )

    with caplog.at_level(logging.ERROR):
        answer = client.post("/jobs", json=spec)

    assert answer.status_code == 500
    request_id = answer.headers["x-request-id"]
    assert answer.json()["error"]["code"] == "internal_error"
    assert request_id in answer.json()["error"]["message"]
    assert "a mistake" not in answer.text
    assert any(request_id in record.getMessage() for record in caplog.records)
    client.app.state.parts = parts
    assert len(client.get("/jobs").json()["data"]) == 1


class Careless(Database):
    """A database whose transactions end with what no code of ours may do: they raise a fence."""

    num_writes = 0

    @contextmanager
    def write(self) -> Generator[Session]:
        self.num_writes += 1
        with super().write() as session:
            yield session
            session.execute(text("UPDATE jobs SET fence = fence + 1"))


@pytest.fixture
def careless(client: TestClient, driver: Driver) -> Generator[Careless]:
    """The database of the API from now on."""
    parts = client.app.state.parts
    database = Careless(driver.settings.sqlalchemy_url)
    client.app.state.parts = replace(parts, db=database)
    yield database
    client.app.state.parts = parts
    database.close()


# A key that another request is using at this moment looks the same, so storing is tried twice.
BREACHES: dict[str, tuple[int, Callable[[TestClient, Driver, str], httpx2.Response]]] = {
    "submit": (2, lambda client, driver, job_id: client.post("/jobs", json=driver.spec())),
    "cancel": (1, lambda client, driver, job_id: client.post(f"/jobs/{job_id}/cancel")),
    "pin": (1, lambda client, driver, job_id: client.post(f"/jobs/{job_id}/checkpoints/5/pin")),
}


@pytest.mark.parametrize("request_name", BREACHES)
def test_what_a_rule_of_the_database_refuses_is_a_500_at_once_with_the_rule_in_the_log(
    client: TestClient,
    driver: Driver,
    careless: Careless,
    caplog: pytest.LogCaptureFixture,
    request_name: str,
):
    job_id, _ = driver.in_state(JobState.RUNNING)
    before = driver.job(job_id)
    most_writes, ask = BREACHES[request_name]

    with caplog.at_level(logging.ERROR):
        answer = ask(client, driver, job_id)

    assert answer.status_code == 500
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("server_error", "internal_error")
    assert FENCE_RULE not in answer.text
    request_id = answer.headers["x-request-id"]
    (entry,) = [each for each in caplog.records if request_id in each.getMessage()]
    assert request_id in error["message"]
    assert entry.exc_info is not None
    assert FENCE_RULE in str(entry.exc_info[1])
    assert "retry-after" not in answer.headers
    assert careless.num_writes == most_writes
    assert driver.job(job_id) == before
    assert driver.sql("SELECT count(*) FROM jobs")[0][0] == 1


def submit(client: TestClient, driver: Driver) -> httpx2.Response:
    return client.post("/jobs", json=driver.spec(), headers={"Idempotency-Key": "one"})


def upload(client: TestClient, driver: Driver) -> httpx2.Response:
    files = {"file": ("rows.jsonl", json.dumps({**ROW, "completion": "Three."}).encode())}
    return client.post("/datasets", files=files, headers={"Idempotency-Key": "one"})


def count(driver: Driver, table: str) -> int:
    """Count without a transaction that writes, which could fail as the others do."""
    with driver.db.read() as session:
        return session.scalar(text(f"SELECT count(*) FROM {table}")) or 0


@pytest.mark.parametrize(
    ("point", "ask", "status", "num_stored"),
    [
        ("database.commit", submit, 500, 0),
        ("database.committed", submit, 500, 1),
        ("queue.publish", submit, 201, 1),  # a lost bell is rung again by the reconciler
        ("database.commit", upload, 500, 0),
        ("database.committed", upload, 500, 1),
        ("dataset.fsync", upload, 503, 0),
    ],
)
def test_a_request_that_fails_anywhere_is_done_once_when_it_is_sent_again(
    client: TestClient,
    driver: Driver,
    monkeypatch: pytest.MonkeyPatch,
    point: str,
    ask: Callable[[TestClient, Driver], httpx2.Response],
    status: int,
    num_stored: int,
):
    driver.dataset()
    table = "jobs" if ask is submit else "datasets"
    num_before = count(driver, table)
    monkeypatch.setattr(failpoints, "_visits", Counter())
    monkeypatch.setenv(failpoints.VARIABLE, f"{point}=raise:EIO@1")

    failed = ask(client, driver)
    stored = count(driver, table) - num_before
    monkeypatch.delenv(failpoints.VARIABLE)
    again = ask(client, driver)
    third = ask(client, driver)

    assert failpoints._visits[point] == 1
    assert failed.status_code == status
    assert stored == num_stored
    assert (again.status_code, third.status_code) == (201, 201)
    assert again.json()["id"] == third.json()["id"]
    assert count(driver, table) - num_before == 1
