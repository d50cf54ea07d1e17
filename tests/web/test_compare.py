"""The page that compares jobs: what sets them apart, and what is wrong with a choice."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.domain import ids
from app.main import create_app
from app.settings import Settings
from tests.services.driver import Driver
from tests.services.place import (
    database,
    driver,
    home,
    outside,
    postgres_url,
    settings,
    shelf,
    tmp_path,
)

__all__ = ["database", "driver", "home", "outside", "postgres_url", "settings", "shelf", "tmp_path"]

HOSTILE = "<script>alert(1)</script>\u202e"


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings), base_url="http://127.0.0.1:8000") as client:
        yield client


def trained(driver: Driver, *, loss: float, **changes: Any) -> str:
    job_id = driver.submit(**changes)
    run = driver.started()
    driver.steps(run, 1, 20, loss=loss)
    driver.evaluation(run, 20, loss, is_best=True)
    driver.succeed(run)
    return job_id


def page_of(client: TestClient, *job_ids: str) -> str:
    return client.get("/ui/compare", params={"job": list(job_ids)}).text


def test_only_what_differs_is_told_and_the_best_is_named(driver: Driver, client: TestClient):
    one = trained(driver, loss=2.0, name=HOSTILE, training={"learning_rate": 1e-3})
    other = trained(driver, loss=1.5, name="other", lora={"r": 4})

    text = page_of(client, one, other)

    assert "training.learning_rate" in text
    assert "lora.r<" in text
    assert "lora.lora_alpha" not in text
    assert "<code>name" not in text
    assert "<strong>1.5 ★ lowest</strong>" in text
    assert text.count("★") == 1
    assert "&lt;script&gt;alert(1)" in text
    assert "<script>alert" not in text
    # Tokens a second over all steps: 200 tokens in 2 seconds.
    assert text.count('<td class="num">100</td>') == 2


def test_equal_jobs_differ_in_nothing_and_one_is_compared_with_none(
    driver: Driver, client: TestClient
):
    twins = [driver.submit(), driver.submit()]

    assert "None: all keys" in page_of(client, *twins)
    assert "Add a second job" in page_of(client, twins[0])
    assert "Nothing to compare yet" in page_of(client)


def test_a_job_given_twice_is_shown_once(driver: Driver, client: TestClient):
    job_id = driver.submit()

    text = page_of(client, job_id, f" {job_id} ", "")

    assert text.count(f'data-src="/ui/jobs/{job_id}/curves.json"') == 1


def test_an_unknown_job_is_told_and_the_others_stay(driver: Driver, client: TestClient):
    known, unknown = driver.submit(), ids.new("job")

    answer = client.get("/ui/compare", params={"job": [known, unknown]})

    assert answer.status_code == 404
    assert f"{unknown}" in answer.text
    assert f'value="{unknown}"' in answer.text
    assert f"/ui/jobs/{known}" in answer.text


def test_an_eleventh_job_is_refused_and_ten_are_shown(driver: Driver, client: TestClient):
    eleven = [driver.submit() for _ in range(11)]

    answer = client.get("/ui/compare", params={"job": eleven})

    assert answer.status_code == 422
    assert "11 jobs are asked for" in answer.text
    assert "too_many_jobs" in answer.text
    assert answer.text.count("data-src=") == 10
    assert client.get("/ui/compare", params={"job": eleven[:10]}).status_code == 200


def test_jobs_of_ten_look_different_by_colour_and_dash(driver: Driver, client: TestClient):
    ten = [driver.submit() for _ in range(10)]

    text = page_of(client, *ten)

    looks = {
        line.split('x1="0"')[0] + ("dash" if "stroke-dasharray" in line else "")
        for line in text.splitlines()
        if '<line class="c' in line
    }
    assert len({look[look.index("<line") :] for look in looks}) == 10


def test_the_points_of_a_job_are_no_business_of_another_project(driver: Driver, client: TestClient):
    job_id = driver.submit()
    driver.sql(
        "INSERT INTO projects (id, name, created_at) VALUES ('p2', 'p2', :at)",
        at="2026-01-01 00:00:00",
    )
    driver.sql("UPDATE jobs SET project_id = 'p2' WHERE id = :id", id=job_id)

    for path in ("curves", "curves.json", "metrics.csv", "gradients", "gradients.json"):
        assert client.get(f"/ui/jobs/{job_id}/{path}").status_code == 404, path
    assert client.get("/ui/compare", params={"job": job_id}).status_code == 404
