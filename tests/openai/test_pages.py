"""Lists over OpenAI's client: they end where they say, and hold nothing of another project."""

from collections.abc import Callable
from typing import Any

import openai
import pytest
from fastapi.testclient import TestClient

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
        lambda: make_job(training_file=job.training_file),
        lambda: client.models.retrieve(job.fine_tuned_model or ""),
    ):
        with pytest.raises(openai.NotFoundError):
            ask()
    assert [files.list().data, jobs.list().data] == [[], []]
    assert [model.id for model in client.models.list()] == ["tiny"]


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
