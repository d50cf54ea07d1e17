"""A mistake of ours is an answer like any other, and its log entry can be found."""

import logging
from dataclasses import replace

import pytest
from fastapi.testclient import TestClient


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
