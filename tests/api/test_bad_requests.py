"""Addresses, cursors, numbers and methods that make no sense are refused, never a fault."""

import json
from typing import Any
from urllib.parse import quote

import pytest
from fastapi.testclient import TestClient

from app.domain.jobs import JobState
from tests.api.answers import refusal
from tests.services.driver import Driver

JOB_PATHS = (
    ("GET", ""),
    ("DELETE", ""),
    ("POST", "/pause"),
    ("POST", "/cancel"),
    ("POST", "/resume"),
    ("GET", "/metrics"),
    ("GET", "/events"),
    ("GET", "/logs"),
    ("GET", "/stream"),
    ("GET", "/checkpoints"),
    ("GET", "/checkpoints/1"),
    ("DELETE", "/checkpoints/1"),
    ("POST", "/checkpoints/1/pin"),
    ("GET", "/checkpoints/1/download"),
)
IDS = {
    "unknown": "job-" + "0" * 24,
    "another kind": "ds-" + "0" * 24,
    "dots": "..%2e",
    "encoded dots": "%2e%2e",
    "slash": "a%2Fb",
    "slashes": "../../etc/passwd",
    "NUL": "job-%00" + "0" * 23,
    "invalid UTF-8": "%ff%fe",
    "non-ASCII": "jöb-日本",
    "quote": "'; DROP TABLE jobs; --",
    "newline": "job-" + "0" * 24 + "%0A",
    "10 kB": "j" * 10_000,
}


@pytest.mark.parametrize("name", IDS)
def test_an_id_that_is_none_finds_nothing(client: TestClient, name: str):
    for method, rest in JOB_PATHS:
        answer = client.request(method, f"/jobs/{IDS[name]}{rest}", follow_redirects=False)

        assert answer.status_code in (404, 405, 422), (method, rest, answer.text)
        refusal(answer, answer.status_code)
    for method in ("GET", "DELETE"):
        answer = client.request(method, f"/datasets/{IDS[name]}", follow_redirects=False)
        assert answer.status_code in (404, 405, 422), answer.text


def test_an_unknown_id_is_a_404_that_names_it(client: TestClient):
    job, dataset = IDS["unknown"], IDS["another kind"]

    assert job in refusal(client.get(f"/jobs/{job}"), 404)["message"]
    assert dataset in refusal(client.get(f"/datasets/{dataset}"), 404)["message"]


HUGE = (2**31, 2**63, 10**30)
# (path after the job, parameter, values that are refused)
NUMBERS = [
    ("/metrics", "after_step", ["-1", "x", "1.5", "", *HUGE]),
    ("/metrics", "limit", ["0", "-1", "10001", "x", "1_0", "+5", " 5 ", "10.0", "1e1", *HUGE]),
    ("/metrics", "include", ["everything", ""]),
    ("/events", "after", ["-1", "x", *HUGE[1:]]),
    ("/events", "limit", ["0", "101"]),
    ("/logs", "attempt", ["0", "x", *HUGE]),
    ("/logs", "offset", ["-1", "x", *HUGE[1:]]),
    ("/checkpoints", "include", ["all"]),
]


@pytest.mark.parametrize(("path", "name", "values"), NUMBERS)
def test_a_parameter_out_of_range_is_refused_by_name(
    client: TestClient, driver: Driver, path: str, name: str, values: list[object]
):
    job_id = driver.submit()

    for value in values:
        error = refusal(client.get(f"/jobs/{job_id}{path}", params={name: value}), 422)
        assert error["param"] == name
        assert name in error["message"]


def test_the_largest_numbers_that_are_allowed_find_nothing(client: TestClient, driver: Driver):
    job_id, _ = driver.in_state(JobState.RUNNING)
    largest = {
        "/metrics": {"after_step": 2**31 - 1},
        "/events": {"after": 2**63 - 1},
        "/logs": {"offset": 2**63 - 1},
    }

    for path, params in largest.items():
        answer = client.get(f"/jobs/{job_id}{path}", params=params)
        assert answer.status_code == 200
        assert answer.text == "" or answer.json()["data"] == []


@pytest.mark.parametrize("cursor", ["x", "ds-" + "0" * 24, "job-" + "0" * 23, "job-\0", "", "-1"])
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_broken_cursor_is_refused(client: TestClient, cursor: str):
    error = refusal(client.get("/jobs", params={"after": cursor}), 422)

    assert (error["param"], error["code"]) == ("after", "invalid_cursor")
    assert "last item" in error["message"]


def test_a_cursor_of_another_list_is_refused(client: TestClient, driver: Driver):
    answer = client.get("/datasets", params={"after": driver.submit()})

    assert refusal(answer, 422)["code"] == "invalid_cursor"


@pytest.mark.parametrize(
    "cursor", ["x", "1", "1-", "-1", "1-2-3", "1-2\t3", "a-b", "9" * 40 + "-1"]
)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_broken_last_event_id_is_refused_before_the_stream_starts(
    client: TestClient, driver: Driver, cursor: str
):
    job_id = driver.submit()

    answer = client.get(f"/jobs/{job_id}/stream", headers={"last-event-id": cursor})

    error = refusal(answer, 422)
    assert (error["param"], error["code"]) == ("Last-Event-ID", "invalid_cursor")


CHECKPOINTS = {
    "best": 404,
    "3": 404,
    "999999999": 404,
    "9999999999": 422,
    "-1": 422,
    "1.5": 422,
    "%D9%A3": 422,
    "%00": 422,
    "ckpt-" + "0" * 24: 404,
    "final": 422,
}


@pytest.mark.parametrize("which", CHECKPOINTS)
def test_a_checkpoint_that_is_none_is_refused(client: TestClient, driver: Driver, which: str):
    job_id = driver.submit()

    for method, rest in [("GET", ""), ("DELETE", ""), ("POST", "/pin"), ("GET", "/download")]:
        if (which, rest) == ("final", "/download"):
            continue  # what that is, another test says
        answer = client.request(method, f"/jobs/{job_id}/checkpoints/{which}{rest}")
        assert refusal(answer, CHECKPOINTS[which])["param"] == "checkpoint"


def test_a_state_that_is_none_is_refused_with_those_there_are(client: TestClient):
    error = refusal(client.get("/jobs", params={"state": "sleeping"}), 422)

    assert error["param"] == "state"
    assert "finalizing" in error["message"]


def test_a_wrong_method_is_a_405_in_our_envelope(client: TestClient):
    answer = client.put("/jobs")

    assert "PUT is not possible at /jobs" in refusal(answer, 405)["message"]
    assert answer.headers["allow"] == "GET, POST"
    assert client.put(f"/jobs/{IDS['unknown']}").headers["allow"] == "GET, DELETE"
    assert client.put("/openapi.json").headers["allow"] == "GET, HEAD"


def test_an_address_without_anything_is_a_404_in_our_envelope(client: TestClient):
    assert "/job" in refusal(client.get("/job"), 404)["message"]


@pytest.mark.parametrize("path", ["/jobs/", "/datasets/", "/jobs/x/", "/healthz/"])
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_slash_too_many_is_a_404_that_says_so(client: TestClient, path: str):
    for method in ("GET", "POST"):
        answer = client.request(method, path, follow_redirects=False)

        assert "leave out the slash" in refusal(answer, 404)["message"]


# (path after the job or from the root, what it is told)
UNKNOWN_PARAMETERS = [
    ("/jobs", "stat", "did you mean state?"),
    ("/jobs", "max_points", "valid keys: after, limit, state"),
    ("/jobs", "\ud800", "unknown parameter"),
    ("/datasets", "project", "valid keys: after, limit"),
    ("/models", "limit", "there is no parameter here"),
    ("/metrics", "max_point", "did you mean max_points?"),
    ("/stream", "last_event_id", "there is no parameter here"),
    ("/checkpoints/1/pin", "pined", "did you mean pinned?"),
]


@pytest.mark.parametrize(("path", "name", "words"), UNKNOWN_PARAMETERS)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_an_unknown_parameter_is_refused_with_the_nearest_one(
    client: TestClient, driver: Driver, path: str, name: str, words: str
):
    from_root = path in ("/jobs", "/datasets", "/models")
    method = "POST" if path.endswith("/pin") else "GET"
    url = path if from_root else f"/jobs/{driver.submit()}{path}"

    answer = client.request(method, f"{url}?{quote(name, errors='replace')}=1")

    error = refusal(answer, 422)
    assert error["code"] == "unknown_parameter"
    assert words in error["message"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_parameter_given_twice_is_refused(client: TestClient):
    error = refusal(client.get("/jobs?limit=1&limit=2"), 422)

    assert (error["param"], error["code"]) == ("limit", "repeated_parameter")


@pytest.mark.parametrize("path", ["pause", "cancel"])
def test_a_body_where_none_is_read_is_refused(client: TestClient, driver: Driver, path: str):
    job_id, _ = driver.in_state(JobState.QUEUED)

    error = refusal(client.post(f"/jobs/{job_id}/{path}", json={"checkpoint": 5}), 422)

    assert (error["param"], error["code"]) == ("body", "unexpected_body")
    assert client.get(f"/jobs/{job_id}").json()["state"] == "queued"
    assert client.post(f"/jobs/{job_id}/{path}", json={}).status_code == 200


def test_an_answer_names_the_first_problems_of_many(client: TestClient):
    spec = {"base_model": "m", "metadata": {f"k{n}": n for n in range(60_000)}}

    answer = client.post("/jobs", json=spec)

    error = refusal(answer, 422)
    assert len(answer.content) < 10_000
    assert len(error["details"]) == 20
    assert "the first of 60001 problems" in error["message"]


def test_the_address_alone_leads_to_the_pages_and_a_slash_too_many_is_told(client: TestClient):
    assert client.get("/", follow_redirects=False).headers["location"] == "/ui/jobs"
    assert "slash" in refusal(client.get("/jobs/"), 404)["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"max_new_tokens": "3"}, "max_new_tokens"),
        ({"max_new_tokens": True}, "max_new_tokens"),
        ({"messages": [[{"role": "user", "content": "\ud800"}]]}, "messages.0.0.content"),
        ({"messages": [[{"role": "user", "content": ""}]]}, "messages.0.0.content"),
        ({"messages": [[{"role": "alien", "content": "hi"}]]}, "messages.0.0.role"),
        ({"messages": [[{"role": "user", "content": "hi", "weight": 0}]]}, "messages.0.0.weight"),
    ],
)
def test_a_conversation_to_continue_is_read_strictly(
    client: TestClient, driver: Driver, body: dict[str, object], param: str
):
    job_id, _ = driver.in_state(JobState.QUEUED)
    whole = {"messages": [[{"role": "user", "content": "hi"}]], "checkpoint": "base", **body}

    error = refusal(
        client.post(
            f"/jobs/{job_id}/generate",
            content=json.dumps(whole),
            headers={"content-type": "application/json"},
        ),
        422,
    )

    assert error["param"] == param
    assert "Unexpected keyword" not in error["message"]


def test_a_client_that_goes_before_its_request_is_read_is_no_fault(client: TestClient):
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "http",
        "method": "GET",
        "path": "/jobs",
        "raw_path": b"/jobs",
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1:8000")],
        "root_path": "",
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
    }
    sent: list[Any] = []

    async def receive() -> dict[str, str]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    async def ask() -> None:
        await client.app({**scope, "state": client.app_state}, receive, send)

    assert client.portal is not None
    client.portal.call(ask)

    assert all(each.get("status") != 500 for each in sent)
