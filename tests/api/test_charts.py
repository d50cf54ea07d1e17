"""Step metrics as charts, as CSV, and not at all when nothing changed."""

import csv
import io
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.services.driver import Driver

CSV = {"accept": "text/csv"}


@pytest.fixture
def job(driver: Driver) -> str:
    """A job of 300 steps; step 77 has the lowest loss, 200 the highest, 150 none."""
    job_id = driver.submit(training={"max_steps": 400})
    run = driver.started()
    driver.steps(run, 1, 76, loss=2.0)
    driver.steps(run, 77, 77, loss=0.25)
    driver.steps(run, 78, 149, loss=2.0)
    driver.steps(run, 150, 150, loss=None)
    driver.steps(run, 151, 199, loss=2.0)
    driver.steps(run, 200, 200, loss=9.5)
    driver.steps(run, 201, 300, loss=2.0)
    return job_id


def columns(client: TestClient, job: str, **params: Any) -> dict[str, list[Any]]:
    answer = client.get(f"/jobs/{job}/metrics", params=params)
    assert answer.status_code == 200, answer.text
    assert answer.json()["object"] == "chart"
    return answer.json()["columns"]


def test_a_chart_of_few_points_has_the_extremes_at_their_steps(client: TestClient, job: str):
    found = columns(client, job, max_points=40)

    by_step = dict(zip(found["step"], found["loss"], strict=True))
    assert len(by_step) <= 40
    assert {1, 300} <= set(by_step)
    assert (by_step[77], by_step[150], by_step[200]) == (0.25, None, 9.5)


def test_a_chart_with_room_for_all_steps_is_the_steps(client: TestClient, job: str):
    pages = client.get(f"/jobs/{job}/metrics", params={"limit": 500}).json()["data"]

    found = columns(client, job, max_points=500)

    for name in ("step", "loss", "grad_norm", "learning_rate", "peak_memory_bytes"):
        assert found[name] == [row[name] for row in pages]
    assert found["tokens"][-1] == sum(row["num_tokens"] for row in pages)


@pytest.mark.parametrize("most", [2, 3, 5, 11])
def test_even_a_handful_of_points_is_no_more_than_asked_for(
    client: TestClient, job: str, most: int
):
    steps = columns(client, job, max_points=most)["step"]

    assert len(steps) <= most
    assert (steps[0], steps[-1]) == (1, 300)


def test_a_range_and_some_columns_come_alone(client: TestClient, job: str):
    found = columns(client, job, max_points=50, from_step=70, to_step=80, metrics="loss, grad_norm")

    assert list(found) == ["step", "tokens", "time", "loss", "grad_norm"]
    assert found["step"] == list(range(70, 81))


def test_a_range_holds_for_pages_too(client: TestClient, job: str):
    params = {"from_step": 70, "to_step": 80, "limit": 6}

    page = client.get(f"/jobs/{job}/metrics", params=params).json()
    rest = client.get(f"/jobs/{job}/metrics", params={**params, "after_step": 75}).json()

    assert ([row["step"] for row in page["data"]], page["has_more"]) == ([*range(70, 76)], True)
    assert ([row["step"] for row in rest["data"]], rest["has_more"]) == ([*range(76, 81)], False)


def test_csv_has_a_row_for_every_step(client: TestClient, job: str):
    answer = client.get(f"/jobs/{job}/metrics", headers=CSV)
    pages = client.get(f"/jobs/{job}/metrics", params={"limit": 500}).json()["data"]

    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert answer.headers["content-type"].startswith("text/csv")
    assert len(rows) == 300
    for row, step in zip(rows, pages, strict=True):
        assert row == {key: "" if value is None else str(value) for key, value in step.items()}


def test_csv_can_be_part_of_the_steps_and_a_chart(client: TestClient, job: str):
    params = {"from_step": 77, "limit": 2, "metrics": "loss"}

    some = client.get(f"/jobs/{job}/metrics", params=params, headers=CSV).text
    chart = client.get(
        f"/jobs/{job}/metrics", params={"max_points": 2, "metrics": "loss"}, headers=CSV
    ).text

    assert some == "step,loss\r\n77,0.25\r\n78,2.0\r\n"
    assert [line.split(",")[0] for line in chart.splitlines()] == ["step", "1", "300"]


def test_json_that_is_wanted_more_than_csv_is_json(client: TestClient, job: str):
    accept = {"accept": "application/json, text/csv;q=0.5"}

    answer = client.get(f"/jobs/{job}/metrics", headers=accept)

    assert answer.headers["content-type"] == "application/json"


def test_nothing_is_sent_again_until_there_is_a_new_step(client: TestClient, driver: Driver):
    job_id = driver.submit()
    run = driver.started()
    driver.steps(run, 1, 3)
    path = f"/jobs/{job_id}/metrics?max_points=100"
    known = {"if-none-match": client.get(path).headers["etag"]}

    same = client.get(path, headers=known)
    driver.steps(run, 4, 4)
    changed = client.get(path, headers=known)

    assert (same.status_code, same.content) == (304, b"")
    assert changed.status_code == 200
    assert changed.json()["columns"]["step"] == [1, 2, 3, 4]
    assert client.get(path, headers={**CSV, **known}).status_code == 200


def test_the_cursor_of_a_chart_is_the_newest_event(client: TestClient, driver: Driver):
    job_id = driver.submit()
    run = driver.started()
    [event] = driver.steps(run, 1, 1)

    found = client.get(f"/jobs/{job_id}/metrics?max_points=100").json()

    assert found["cursor"] == f"{run.fence}-{event.seq}"


def test_a_job_without_steps_has_an_empty_chart(client: TestClient, driver: Driver):
    job_id = driver.submit()

    assert set(map(len, columns(client, job_id, max_points=100).values())) == {0}
    assert client.get(f"/jobs/{job_id}/metrics", headers=CSV).text.count("\n") == 1
    assert client.get(f"/jobs/{job_id}/markers").json() == {"object": "list", "data": []}


def test_markers_tell_checkpoints_and_spikes_of_a_range(client: TestClient, driver: Driver):
    job_id = driver.submit(training={"max_steps": 400})
    run = driver.started()
    for step in range(1, 60):
        driver.steps(run, step, step, loss=2.0 + step % 3 / 100)
    driver.steps(run, 60, 60, loss=50.0)
    driver.checkpoint(run, 60)

    found = client.get(f"/jobs/{job_id}/markers").json()["data"]
    before = client.get(f"/jobs/{job_id}/markers", params={"to_step": 59}).json()["data"]

    assert {(each["kind"], each["step"]) for each in found} == {("checkpoint", 60), ("spike", 60)}
    assert before == []


@pytest.mark.parametrize(
    ("params", "headers", "param", "code"),
    [
        ({"max_points": 9, "metrics": "los"}, {}, "metrics", "unknown_metric"),
        ({"metrics": ""}, CSV, "metrics", "unknown_metric"),
        ({"metrics": "loss"}, {}, "metrics", "conflicting_parameters"),
        ({"max_points": 9, "limit": 5}, {}, "limit", "conflicting_parameters"),
        ({"max_points": 9, "include": "superseded"}, {}, "include", "conflicting_parameters"),
        ({"include": "superseded"}, CSV, "include", "conflicting_parameters"),
        ({"from_step": 9, "to_step": 3}, {}, "from_step", "empty_range"),
        ({"max_points": 1}, {}, "max_points", "greater_than_equal"),
        ({"max_points": 10_001}, {}, "max_points", "less_than_equal"),
    ],
)
def test_what_would_be_ignored_or_is_unknown_is_refused(
    client: TestClient,
    driver: Driver,
    params: dict[str, Any],
    headers: dict[str, str],
    param: str,
    code: str,
):
    answer = client.get(f"/jobs/{driver.submit()}/metrics", params=params, headers=headers)

    assert answer.status_code == 422, answer.text
    assert (answer.json()["error"]["param"], answer.json()["error"]["code"]) == (param, code)


@pytest.mark.parametrize("path", ["metrics?max_points=10", "metrics", "markers"])
def test_a_job_of_another_project_is_not_there(
    client: TestClient, job: str, driver: Driver, path: str
):
    driver.sql(
        "INSERT INTO projects (id, name, created_at) VALUES ('other', 'o', '2026-01-01 00:00:00')"
    )
    driver.sql("UPDATE jobs SET project_id = 'other' WHERE id = :id", id=job)

    for headers in ({}, CSV, {"if-none-match": "*"}):
        assert client.get(f"/jobs/{job}/{path}", headers=headers).status_code == 404
