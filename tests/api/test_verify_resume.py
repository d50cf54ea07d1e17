"""What a verification of a resume refuses, and how."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.domain.jobs import JobState
from tests.api.answers import refusal
from tests.services.driver import Driver

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": 51}, "steps"),
        ({"steps": "3"}, "steps"),
        ({"checkpoint": "newest"}, "checkpoint"),
        ({"stepz": 3}, "stepz"),
    ],
)
def test_a_bad_request_names_its_field(
    client: TestClient, driver: Driver, body: dict[str, Any], param: str
):
    job_id, _ = driver.in_state(JobState.RUNNING)

    error = refusal(client.post(f"/jobs/{job_id}/verify-resume", json=body), 422)

    assert error["param"] == param


def test_what_is_not_there_is_404_and_nothing_to_compare_with_409(
    client: TestClient, driver: Driver
):
    job_id, _ = driver.in_state(JobState.RUNNING)

    def asked(status: int, job: str = job_id, **body: Any) -> str:
        return refusal(client.post(f"/jobs/{job}/verify-resume", json=body), status)["code"]

    assert asked(404, f"job-{'0' * 24}") == "not_found"
    assert asked(404, checkpoint=3) == "not_found"
    assert asked(404, checkpoint="best") == "no_evaluation"
    assert asked(409) == "nothing_recorded"
