"""Lists over OpenAI's client: they end where they say, and hold nothing of another project."""

from collections.abc import Callable
from typing import Any

import openai
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, event

from tests.openai.conftest import lines
from tests.services.driver import Driver

LISTS = {
    "files": "/v1/files",
    "jobs": "/v1/fine_tuning/jobs",
    "events": "/v1/fine_tuning/jobs/{job_id}/events",
    "checkpoints": "/v1/fine_tuning/jobs/{job_id}/checkpoints",
}


@pytest.mark.parametrize("kind", LISTS)
def test_the_last_page_says_that_it_is_the_last(
    http: TestClient, succeeded: Callable[..., str], kind: str
):
    job_id = succeeded()
    succeeded()
    path = LISTS[kind].format(job_id=job_id)

    def page(**params: Any) -> dict[str, Any]:
        return http.get(path, params=params).json()

    whole = page(limit=100)
    count = len(whole["data"])
    exact, first = page(limit=count), page(limit=count - 1)
    rest = page(limit=1, after=first["last_id"])

    assert count >= 2
    assert (whole["has_more"], exact["has_more"], rest["has_more"]) == (False, False, False)
    assert first["has_more"]
    assert exact["data"] == first["data"] + rest["data"] == whole["data"]


def test_nothing_of_another_project_is_found_listed_or_trained_on(
    client: openai.OpenAI, succeeded: Callable[..., str], driver: Driver, make_job: Any
):
    job = client.fine_tuning.jobs.retrieve(succeeded())
    (result_id,) = job.result_files
    jobs, files = client.fine_tuning.jobs, client.files
    driver.sql("INSERT INTO projects VALUES ('other', 'other', CURRENT_TIMESTAMP)")
    for table in ("jobs", "datasets"):
        driver.sql(f"UPDATE {table} SET project_id = 'other'")

    for ask in (
        lambda: files.retrieve(job.training_file),
        lambda: files.content(job.training_file),
        lambda: files.delete(job.training_file),
        lambda: files.retrieve(result_id),
        lambda: files.content(result_id),
        lambda: jobs.retrieve(job.id),
        lambda: jobs.cancel(job.id),
        lambda: jobs.list_events(job.id),
        lambda: jobs.checkpoints.list(job.id),
        lambda: client.models.retrieve(job.fine_tuned_model or ""),
    ):
        with pytest.raises(openai.NotFoundError):
            ask()
    assert [files.list().data, jobs.list().data] == [[], []]
    assert [model.id for model in client.models.list()] == ["tiny"]
    for param in ("training_file", "validation_file"):
        with pytest.raises(openai.NotFoundError) as refused:
            make_job(**{param: job.training_file})
        assert (refused.value.param, refused.value.code) == (param, "file_not_found")


def test_a_repeated_request_finds_no_job_of_another_project(
    client: openai.OpenAI, make_job: Any, driver: Driver
):
    file = client.files.create(file=("rows.jsonl", lines()), purpose="fine-tune")
    again = {"X-Stainless-Retry-Count": "1"}
    first = make_job(training_file=file.id)
    driver.sql("INSERT INTO projects VALUES ('other', 'other', CURRENT_TIMESTAMP)")
    driver.sql("UPDATE jobs SET project_id = 'other'")

    assert make_job(training_file=file.id, extra_headers=again).id != first.id


def test_what_was_asked_long_ago_is_no_repeated_request(
    client: openai.OpenAI, make_job: Any, driver: Driver
):
    file = client.files.create(file=("rows.jsonl", lines()), purpose="fine-tune")
    again = {"X-Stainless-Retry-Count": "1"}
    first = make_job(training_file=file.id)
    assert make_job(training_file=file.id, extra_headers=again).id == first.id

    driver.sql("UPDATE jobs SET created_at = '2020-01-01 00:00:00'")

    assert make_job(training_file=file.id, extra_headers=again).id != first.id


def test_a_longer_list_of_files_costs_no_more_queries(
    http: TestClient, succeeded: Callable[..., str]
):
    asked: list[str] = []

    def look(*given: Any) -> None:
        asked.append(given[2])

    def cost() -> tuple[int, int]:
        # What results measure never changes: it is found out once, and not counted here.
        http.get("/v1/files").raise_for_status()
        asked.clear()
        return len(http.get("/v1/files").json()["data"]), len(asked)

    event.listen(Engine, "before_cursor_execute", look)
    try:
        succeeded()
        few = cost()
        for _ in range(4):
            succeeded()
        many = cost()
    finally:
        event.remove(Engine, "before_cursor_execute", look)

    assert (few[0], many[0]) == (2, 10)
    assert 0 < many[1] == few[1] <= 7
