"""The sections of a job: each says what there is, or when it comes; forms do what they say."""

import re
from html import unescape

import pytest
from fastapi.testclient import TestClient

from app.domain.jobs import JobState
from app.web.job.frame import SECTIONS
from tests.services.driver import Driver

HOSTILE = '<script>alert(1)</script> "\u202eesrever"'
OWN = [name for name in SECTIONS if name]


def page(client: TestClient, path: str, **params: str) -> str:
    answer = client.get(path, params=params or None)
    assert answer.status_code == 200, answer.text
    return answer.text


@pytest.mark.parametrize("section", OWN)
def test_a_job_that_nobody_has_begun_has_every_section(
    client: TestClient, driver: Driver, section: str
):
    job_id = driver.submit(name=HOSTILE, metadata={"k": "x" * 512})

    html = page(client, f"/ui/jobs/{job_id}/{section}")

    assert f'href="/ui/jobs/{job_id}/{section}" aria-current="page"' in html
    assert "<script>alert" not in html
    assert "yet" in html or section in ("config", "gradients", "logs", "events")


@pytest.mark.parametrize("section", OWN)
@pytest.mark.parametrize("state", [JobState.RUNNING, JobState.FAILED, JobState.SUCCEEDED])
def test_every_section_of_a_job_in_any_state(
    client: TestClient, driver: Driver, section: str, state: JobState
):
    job_id, _ = driver.in_state(state)

    page(client, f"/ui/jobs/{job_id}/{section}")


@pytest.mark.parametrize("section", [*OWN, "tokens", "logs/new"])
def test_a_job_of_another_project_has_no_section(client: TestClient, driver: Driver, section: str):
    job_id, _ = driver.in_state(JobState.PAUSED)
    other_project(driver, job_id)

    assert client.get(f"/ui/jobs/{job_id}/{section}").status_code == 404


def other_project(driver: Driver, job_id: str) -> None:
    driver.sql(
        "INSERT INTO projects (id, name, created_at) VALUES ('other', 'o', '2026-01-01 00:00:00')"
    )
    driver.sql("UPDATE jobs SET project_id = 'other' WHERE id = :id", id=job_id)


def test_what_is_set_and_what_is_default_is_told_apart(client: TestClient, driver: Driver):
    job_id = driver.submit(training={"max_steps": 20, "learning_rate": 3e-4}, priority=7)
    other = driver.submit(training={"max_steps": 40, "learning_rate": 3e-4}, priority=7)

    html = page(client, f"/ui/jobs/{job_id}/config", against=other)

    rows = {
        unescape(key): row
        for key, row in re.findall(
            r"<tr><th scope=\"row\"><code>([^<]*)</code></th>(.*?)</tr>", html
        )
    }
    assert "<strong>you</strong>" in rows["training.learning_rate"]
    assert "instead of" in rows["training.learning_rate"]
    assert "<strong>you</strong>" in rows["priority"]
    assert "default" in rows["metadata"]
    assert "default" in rows["training.weight_decay"]
    differing = html[html.index("What differs") : html.index("Keys of")]
    assert re.findall(r"<code>([\w.]+)</code>", differing) == ["training.max_steps"]
    assert client.get(f"/ui/jobs/{job_id}/config?against=job-0").status_code == 404


def test_events_are_told_by_kind_and_page(client: TestClient, driver: Driver):
    job_id, _ = driver.in_state(JobState.PAUSED)
    every = client.get(f"/jobs/{job_id}/events").json()["data"]

    html = page(client, f"/ui/jobs/{job_id}/events")
    only = page(client, f"/ui/jobs/{job_id}/events", kind="checkpoint")
    older = page(client, f"/ui/jobs/{job_id}/events", before=str(every[2]["id"]))

    assert html.count("<tr><td><time") == len(every)
    assert only.count("<tr><td><time") == sum(each["type"] == "checkpoint" for each in every) > 0
    assert older.count("<tr><td><time") == 2
    refused = client.get(f"/ui/jobs/{job_id}/events", params={"kind": "states"})
    assert refused.status_code == 422
    assert "checkpoint" in refused.text


def test_a_checkpoint_is_pinned_verified_and_deleted(client: TestClient, driver: Driver):
    job_id, _ = driver.in_state(JobState.SUCCEEDED)
    first = client.get(f"/jobs/{job_id}/checkpoints").json()["data"][0]
    path = f"/ui/jobs/{job_id}/checkpoints"
    one = f"{path}/{first['id']}"

    assert client.post(f"{one}/pin", data={"pinned": "true"}).status_code == 200
    pinned = page(client, path)
    refused = client.post(f"{one}/delete")
    assert client.post(f"{one}/pin", data={"pinned": "false"}).status_code == 200
    verified = client.post(f"{one}/verify")
    assert client.post(f"{one}/delete").status_code == 200

    assert "pinned" in pinned
    assert "Delete: it is pinned" in unescape(pinned)
    assert refused.status_code == 409
    assert "is as it was written" in verified.text
    left = client.get(f"/jobs/{job_id}/checkpoints").json()["data"]
    assert first["id"] not in {each["id"] for each in left}


def test_a_damaged_checkpoint_says_so_and_offers_nothing(client: TestClient, driver: Driver):
    job_id, _ = driver.in_state(JobState.PAUSED)
    [found] = client.get(f"/jobs/{job_id}/checkpoints").json()["data"]
    [path] = driver.settings.home.glob(f"jobs/{job_id}/**/checkpoint-5/adapter_model.safetensors")
    path.write_bytes(b"damaged")

    answer = client.post(f"/ui/jobs/{job_id}/checkpoints/{found['id']}/verify")
    html = unescape(page(client, f"/ui/jobs/{job_id}/checkpoints"))

    assert answer.status_code == 409
    assert "✕ corrupt" in html
    assert "adapter_model.safetensors" in html
    for action in ("Resume", "Try", "Download", "Verify"):
        assert f"{action}: it is corrupt" in html


def test_an_export_is_asked_for_stopped_and_removed(client: TestClient, driver: Driver):
    job_id, _ = driver.in_state(JobState.SUCCEEDED)
    path = f"/ui/jobs/{job_id}/exports"

    made = client.post(path, data={"format": "merged bfloat16"})
    [export] = client.get(f"/jobs/{job_id}/exports").json()["data"]
    assert client.post(f"{path}/{export['id']}/cancel").status_code == 200
    [stopped] = client.get(f"/jobs/{job_id}/exports").json()["data"]
    refused = client.post(path, data={"format": "merged int3"})
    assert client.post(f"{path}/{export['id']}/delete").status_code == 200

    assert made.status_code == 200
    assert "merged bfloat16" in made.text
    assert (export["format"], export["dtype"], stopped["state"]) == (
        "merged",
        "bfloat16",
        "cancelled",
    )
    assert refused.status_code == 422
    assert "int3" in refused.text
    assert client.get(f"/jobs/{job_id}/exports").json()["data"] == []


@pytest.mark.parametrize("steps", ["0", "51", "three", "9" * 20])
def test_steps_to_prove_are_read_strictly(client: TestClient, driver: Driver, steps: str):
    job_id, _ = driver.in_state(JobState.PAUSED)

    answer = client.post(f"/ui/jobs/{job_id}/verify-resume", data={"steps": steps})

    assert answer.status_code == 422
    assert "steps" in answer.text


def test_a_log_opens_at_its_end_and_goes_on_where_it_stopped(client: TestClient, driver: Driver):
    job_id, run = driver.in_state(JobState.RUNNING)
    folder = driver.settings.home / "jobs" / job_id / "attempts" / str(run.attempt)
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "trainer.log"
    lines = [f"line {number} <b>\n" for number in range(20_000)]
    log.write_text("".join(lines))

    html = page(client, f"/ui/jobs/{job_id}/logs")
    [asked] = re.findall(r'hx-get="([^"]*)"', html)
    with log.open("a") as file:
        file.write("newest\n")
    more = page(client, unescape(asked))
    [older] = re.findall(r'href="([^"]*before[^"]*)"', html)
    before = page(client, unescape(older))

    assert "line 19999 &lt;b&gt;" in html
    assert "line 0 " not in html
    assert more.startswith("newest\n")
    assert "hx-get" in more
    shown_lines = [int(each) for each in re.findall(r"line (\d+) &lt;", html)]
    older_lines = [int(each) for each in re.findall(r"line (\d+) &lt;", before)]
    assert older_lines[-1] + 1 == shown_lines[0]
    assert "hx-get" not in before[before.index("<pre") :]
