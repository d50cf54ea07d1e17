"""With its database or Redis away the API answers, loses nothing, and recovers by itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.db.engine import Database
from app.domain.jobs import JobState
from tests.api.answers import refusal
from tests.fixtures.database import PostgresCluster
from tests.services.driver import Driver

READS = ("/jobs", "/datasets", "/workers", "/readyz", "/openapi.json")


def require_503(client: TestClient, spec: dict[str, Any], job_id: str) -> None:
    for path in (*READS, f"/jobs/{job_id}", f"/jobs/{job_id}/metrics", f"/jobs/{job_id}/stream"):
        error = refusal(client.get(path), 503)
        assert error["code"] == "database_unavailable"
        assert "try again" in error["message"]
    refusal(client.post("/jobs", json=spec), 503)
    refusal(client.post(f"/jobs/{job_id}/cancel"), 503)
    refusal(client.post("/datasets", files={"file": ("a", b'{"text": "a"}')}), 503)
    assert client.get("/healthz").json() == {"status": "ok"}


@pytest.mark.services
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_without_postgresql_every_request_is_a_503_and_afterwards_all_is_there(
    client: TestClient, spec: dict[str, Any], driver: Driver, postgres_cluster: PostgresCluster
):
    job_id = driver.submit()

    postgres_cluster.stop()
    try:
        require_503(client, spec, job_id)
    finally:
        postgres_cluster.start()

    assert [job["id"] for job in client.get("/jobs").json()["data"]] == [job_id]
    assert client.post("/jobs", json=spec).status_code == 201
    assert len(client.get("/datasets").json()["data"]) == 1


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_without_the_sqlite_file_every_request_is_a_503_and_afterwards_all_is_there(
    client: TestClient, spec: dict[str, Any], driver: Driver, tmp_path: Path
):
    job_id = driver.submit()
    client.app.state.parts.db.close()  # type: ignore[attr-defined]
    file = tmp_path / "lorad.db"
    aside = file.rename(tmp_path / "aside.db")
    file.mkdir()

    require_503(client, spec, job_id)

    file.rmdir()
    aside.rename(file)
    assert [job["id"] for job in client.get("/jobs").json()["data"]] == [job_id]
    assert client.post("/jobs", json=spec).status_code == 201


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_locked_sqlite_file_is_a_503_for_writes_and_reads_go_on(
    client: TestClient, spec: dict[str, Any], driver: Driver, monkeypatch: pytest.MonkeyPatch
):
    driver.submit()
    client.app.state.parts.db.close()  # type: ignore[attr-defined]
    monkeypatch.setattr("app.db.engine._BUSY_TIMEOUT_MS", 50)

    with driver.db.write():
        refused = client.post("/jobs", json=spec)
        listed = client.get("/jobs")

    assert "locked" in refusal(refused, 503)["message"]
    assert len(listed.json()["data"]) == 1
    assert client.post("/jobs", json=spec).status_code == 201


def test_a_database_without_tables_says_what_to_run(
    make_client: Callable[..., TestClient], driver: Driver
):
    client = make_client()
    driver.sql("DROP TABLE sessions")
    driver.sql("DROP TABLE api_keys")

    for path in ("/readyz", "/jobs"):
        error = refusal(client.get(path), 503)
        assert error["code"] == "migration"
        assert "lorad migrate" in error["message"]


def test_readiness_tells_an_older_database_from_a_current_one(client: TestClient, driver: Driver):
    ready = client.get("/readyz").json()
    driver.sql("UPDATE alembic_version SET version_num = '0000'")

    old = refusal(client.get("/readyz"), 503)

    assert ready == {"status": "degraded", "database": "ok", "redis": "away", "workers": 0}
    assert "lorad migrate" in old["message"]


def test_without_redis_a_job_is_accepted_and_can_be_claimed(
    client: TestClient, spec: dict[str, Any], driver: Driver
):
    answer = client.post("/jobs", json=spec)

    assert answer.status_code == 201
    job = answer.json()
    assert (job["state"], job["step"], job["attempt"]) == ("queued", 0, 0)
    assert "no worker is running" in job["waiting_for"]
    assert client.get(f"/jobs/{job['id']}").json() == job
    assert driver.claimed().job_id == job["id"]
    assert client.post(f"/jobs/{job['id']}/cancel").json()["desired"] == "cancel"


def test_without_redis_or_worker_a_tool_says_what_to_start(client: TestClient, driver: Driver):
    job_id, _ = driver.in_state(JobState.RUNNING)
    driver.sql("UPDATE workers SET ended_at = CURRENT_TIMESTAMP")
    body = {"messages": [[{"role": "user", "content": "hi"}]]}

    without_worker = client.post(f"/jobs/{job_id}/generate", json=body)
    driver.other_worker()
    without_redis = client.post(f"/jobs/{job_id}/generate", json=body)

    assert "lorad worker" in refusal(without_worker, 503)["message"]
    assert "Redis" in refusal(without_redis, 503)["message"]


def test_when_every_connection_is_taken_a_request_is_a_503(database: Database, client: TestClient):
    pool = client.app.state.parts.db.engine.pool  # type: ignore[attr-defined]
    pool._timeout = 0.1
    taken = [pool.connect() for _ in range(pool.size() + pool._max_overflow)]

    answer = client.get("/jobs")

    for connection in taken:
        connection.close()
    assert "in use" in refusal(answer, 503)["message"]
    assert client.get("/jobs").status_code == 200
